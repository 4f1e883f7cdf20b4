"""The authority, the server's certificate and nodes' keys: who trusts whom, and who can read what."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedlora.deploy.certificates import write_authority, write_node_key, write_secret, write_server_certificate
from fedlora.errors import ConfigError, RunFolderError


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with an authority and a server's certificate for two hosts."""
    write_authority(tmp_path / "ca.crt", tmp_path / "ca.key")
    hosts = ["server.example.org", "10.77.0.1"]
    write_server_certificate(tmp_path / "server.crt", tmp_path / "server.key", tmp_path / "ca.crt", tmp_path / "ca.key", hosts)
    return tmp_path


def _handshake(folder: Path, name: str, authority: Path) -> bytes:
    """Let a client that trusts `authority` meet the server under `name`; return its certificate (raises what TLS refuses)."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    left, right = socket.socketpair()

    def accept() -> None:
        try:
            server.wrap_socket(right, server_side=True).close()
        except OSError:
            right.close()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        with ssl.create_default_context(cafile=str(authority)).wrap_socket(left, server_hostname=name) as met:
            return met.getpeercert(binary_form=True) or b""
    finally:
        left.close()
        thread.join()


@pytest.mark.parametrize("name", ["server.example.org", "10.77.0.1", "localhost", "127.0.0.1", "::1"])
def test_a_client_of_this_authority_meets_the_server(made: Path, name: str) -> None:
    certificate = ssl.PEM_cert_to_DER_cert((made / "server.crt").read_text())
    assert _handshake(made, name, made / "ca.crt") == certificate


def test_other_names_and_other_authorities_are_refused(made: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        _handshake(made, "elsewhere.example.org", made / "ca.crt")
    write_authority(made / "other.crt", made / "other.key")
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        _handshake(made, "localhost", made / "other.crt")


def test_the_server_cannot_sign(made: Path) -> None:
    certificate = x509.load_pem_x509_certificate((made / "server.crt").read_bytes())
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign is False


def test_a_nodes_key_is_one_pair_that_ssh_reads(tmp_path: Path) -> None:
    write_node_key(tmp_path / "roof", tmp_path / "roof.pub", "roof")
    private = load_ssh_private_key((tmp_path / "roof").read_bytes(), None)
    public = load_ssh_public_key((tmp_path / "roof.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(public, ec.EllipticCurvePublicKey)
    assert private.curve.name == "secp384r1" and private.public_key() == public
    assert (tmp_path / "roof.pub").read_text().endswith(" roof\n")


def test_only_the_owner_reads_what_is_secret(made: Path) -> None:
    write_node_key(made / "roof", made / "roof.pub", "roof")
    write_secret(made / "secret")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()}
    assert {name for name, mode in modes.items() if mode == 0o600} == {"ca.key", "server.key", "roof", "secret"}
    assert {mode for name, mode in modes.items() if name.endswith((".crt", ".pub"))} == {0o644}


def test_no_key_is_written_over_another(made: Path) -> None:
    before = (made / "ca.key").read_bytes()
    with pytest.raises(RunFolderError, match=r"cannot write .*ca\.key: File exists"):
        write_authority(made / "ca.crt", made / "ca.key")
    assert (made / "ca.key").read_bytes() == before


@pytest.mark.parametrize("host", ["https://server", "server:9092", "", "two words", "-x.org", "300.1.1.1", "a..b"])
def test_what_is_no_host_is_refused(made: Path, host: str) -> None:
    files = [made / name for name in ("new.crt", "new.key", "ca.crt", "ca.key")]
    with pytest.raises(ConfigError, match=f"'{host}' is neither a name nor an address. Give what devices type"):
        write_server_certificate(*files, [host])


def test_an_authority_that_cannot_be_read(made: Path) -> None:
    (made / "ca.key").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"the authority in .*ca\.crt and .*ca\.key cannot be read"):
        write_server_certificate(made / "new.crt", made / "new.key", made / "ca.crt", made / "ca.key", ["localhost"])
