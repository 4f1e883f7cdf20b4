"""Keys and certificates of a deployment: its own authority, the server's certificate, one key per node.

All keys are ECDSA on P-384. Private keys are written with mode 0600, before their bytes are in them.
"""

from __future__ import annotations

import ipaddress
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedlora.errors import ConfigError, reason
from fedlora.files import disk_errors

VALID_DAYS = 825
"""Days that a server certificate holds; the authority holds four times as long."""

# Clocks of devices are off by minutes: a certificate is valid from an hour before it was made.
_EARLY = timedelta(hours=1)
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)", re.IGNORECASE)


def write_authority(certificate: Path, key: Path, name: str = "fedlora deployment") -> None:
    """Make a certificate authority and write its certificate and private key (PEM)."""
    private = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name), x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    built = (
        _builder(subject, subject, private.public_key(), 4 * VALID_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA384())
    )
    _write_private(key, _pem(private))
    _write_public(certificate, built.public_bytes(serialization.Encoding.PEM))


def write_server_certificate(certificate: Path, key: Path, authority: Path, authority_key: Path, hosts: list[str]) -> None:
    """Make the server's certificate for `hosts`, signed by the authority, and write it with its private key (PEM).

    The names of this machine itself (localhost, 127.0.0.1, ::1) are always among its names, so that what runs beside the server
    reaches it.

    Args:
        certificate: Where to write the certificate.
        key: Where to write its private key.
        authority: The authority's certificate.
        authority_key: The authority's private key.
        hosts: Names and addresses under which nodes reach the server.

    Raises:
        ConfigError: A host is neither a name nor an address, or the authority's files cannot be read.
    """
    try:
        issuer = x509.load_pem_x509_certificate(authority.read_bytes())
        signer = serialization.load_pem_private_key(authority_key.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the authority in {authority} and {authority_key} cannot be read: {reason(error)}. Restore them from a copy"
        ) from None
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    private = ec.generate_private_key(ec.SECP384R1())
    names = [general_name(host) for host in dict.fromkeys([*hosts, "localhost", "127.0.0.1", "::1"])]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    built = (
        _builder(subject, issuer.subject, private.public_key(), VALID_DAYS)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key(issuer)), critical=False)
        .sign(signer, hashes.SHA384())
    )
    # The old pair stays until the new one is there: a host that cannot be, or a full disk, leaves a server that works.
    fresh = [path.with_name(f".new-{path.name}") for path in (key, certificate)]
    for path in fresh:
        path.unlink(missing_ok=True)
    _write_private(fresh[0], _pem(private))
    _write_public(fresh[1], built.public_bytes(serialization.Encoding.PEM))
    for path, name in zip(fresh, (key, certificate), strict=True):
        with disk_errors(name):
            os.replace(path, name)


def write_node_key(private: Path, public: Path, comment: str) -> None:
    """Make a node's key and write both halves in OpenSSH format, as Flower reads them."""
    key = ec.generate_private_key(ec.SECP384R1())
    _write_private(
        private,
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()),
    )
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write_public(public, line + f" {comment}\n".encode())


def write_secret(path: Path) -> None:
    """Write 32 random bytes that only this user can read."""
    _write_private(path, os.urandom(32))


def general_name(host: str) -> x509.GeneralName:
    """Return a host as a certificate names it (ConfigError where it is neither a name nor an address)."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    # Names of digits and dots alone are addresses that were mistyped.
    labels = host.rstrip(".").split(".")
    if not all(_LABEL.fullmatch(label) for label in labels) or all(label.isdigit() for label in labels) or len(host) > 253:
        raise ConfigError(
            f"'{host}' is neither a name nor an address. Give what devices type to reach the server, without a scheme or a port, "
            "for example server.example.org or 192.168.1.20"
        )
    return x509.DNSName(host)


def issuer_key(issuer: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """Return the public key of one of our own authorities."""
    key = issuer.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write_private(path: Path, data: bytes) -> None:
    """Write a new file that only this user can read, from its first byte on."""
    with disk_errors(path), os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def _write_public(path: Path, data: bytes) -> None:
    with disk_errors(path):
        path.write_bytes(data)
        path.chmod(0o644)
