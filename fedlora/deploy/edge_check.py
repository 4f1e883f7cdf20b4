"""Whether this device can join a deployment: its own state, and what the server says before any key is shown."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import ssl
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import psutil

from fedlora.deploy.link_meter import clock_skew
from fedlora.errors import ConfigError, ExitCode, FedLoRAError

AHEAD_S, BEHIND_S = 5.0, 305.0
"""How far a device's clock may be ahead of the server's, and behind it, seconds: Flower refuses signatures beyond that."""

_TIMEOUT_S = 5.0
_EXPIRES_SOON_S = 30 * 86400.0
_LEAST_MEMORY, _ENOUGH_MEMORY = 0.5e9, 1.5e9
_LEAST_DISK, _ENOUGH_DISK = 0.2e9, 1e9
# OpenSSL's numbers of what is wrong with a certificate.
_NOT_YET, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64


class RefusedError(FedLoRAError):
    """A server that this node must not or may not talk to; trying again changes nothing."""

    exit_code = ExitCode.refused


class UnreachableError(FedLoRAError):
    """A server that does not answer; trying again later may help."""

    exit_code = ExitCode.unreachable


class ClockError(FedLoRAError):
    """A clock that is too far from the server's; a device that has just started may set it soon, so trying again may help."""

    exit_code = ExitCode.unreachable


@dataclass(frozen=True)
class Greeting:
    """What the server showed.

    Attributes:
        skew_s: Seconds that this device's clock is ahead, to about one; None where the server tells no time.
        certificate: As `ssl.SSLSocket.getpeercert` gives it; None in plain text.
    """

    skew_s: float | None
    certificate: dict[str, object] | None


@dataclass(frozen=True)
class Finding:
    """One line of `fedlora doctor --edge`."""

    name: str
    level: Literal["ok", "warning", "bad"]
    text: str


def split_address(superlink: str) -> tuple[str, int]:
    """Return (host, port) of "HOST:PORT" or "[IPV6]:PORT" (ConfigError where it is neither)."""
    host, colon, port = superlink.rpartition(":")
    if not colon or not host or "/" in superlink or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"'{superlink}' is not HOST:PORT. Write the server's name or address and its port, as in lab.example:8800"
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def greet(superlink: str, ca: Path | None, plain: bool = False, timeout: float = _TIMEOUT_S) -> Greeting:
    """Say hello to the server over HTTP, without any key of this node.

    Args:
        superlink: HOST:PORT.
        ca: Certificate of the authority that must have signed the server's; None trusts the system's authorities.
        plain: Speak plain text.
        timeout: Seconds for each step.

    Raises:
        RefusedError: The certificate is not to be trusted, or one side speaks TLS and the other does not.
        ClockError: The certificate is not valid yet.
        UnreachableError: Nobody answers.
    """
    host, port = split_address(superlink)
    connection = (
        http.client.HTTPConnection(host, port, timeout=timeout)
        if plain
        else http.client.HTTPSConnection(host, port, timeout=timeout, context=_context(ca))
    )
    try:
        connection.connect()
        sock = connection.sock
        certificate = sock.getpeercert() if isinstance(sock, ssl.SSLSocket) else None
        asked = time.time()
        connection.request("GET", "/")
        return Greeting(clock_skew(connection.getresponse().headers["date"], asked), certificate or None)  # type: ignore[arg-type]
    except ssl.SSLCertVerificationError as error:
        # A device without a clock of its own starts in the past, and sets it later.
        kind = ClockError if error.verify_code == _NOT_YET else RefusedError
        raise kind(_distrust(error, superlink, ca)) from None
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE"):
            raise RefusedError(
                f"{superlink} speaks plain text, this node TLS. Start the server with its certificate, or check the port"
            ) from None
        raise UnreachableError(f"no secure connection to {superlink}: {error.reason or error}") from None
    except (OSError, http.client.HTTPException) as error:
        if plain and _speaks_tls(host, port, timeout):
            raise RefusedError(
                f"{superlink} speaks TLS, this node plain text. Leave --insecure-plain-text out and give the authority with --ca"
            ) from None
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreachableError(
            f"{superlink} cannot be reached: {reason}. Check the address, the network, and that it runs"
        ) from None
    finally:
        connection.close()


def reach(greeting: Callable[[], Greeting], retries: int, say: Callable[[str], None]) -> Greeting:
    """Return what `greeting` returns, trying again while nobody answers: `retries` times, 1 to 5 s apart."""
    for attempt in range(retries + 1):
        try:
            return greeting()
        except UnreachableError as error:
            if attempt == retries:
                raise UnreachableError(f"{error} (tried {retries + 1} times)") from None
            pause = min(5.0, 1.0 + attempt)
            say(f"{error}; trying again in {pause:.0f} s")
            time.sleep(pause)
    raise AssertionError("unreachable")


def check_key(path: Path) -> None:
    """Refuse a key file that Flower cannot use, or that others can read (ConfigError)."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        data, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"the node's key {path} cannot be read: {error.strerror}. Check --key") from None
    try:
        key = load_ssh_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            f"{path} is not a private ECDSA key in OpenSSH format without a passphrase. "
            "Use the file that `fedlora deploy` made for this node (not the .pub)"
        )
    # A service manager's copy is guarded by its folder, and its mode shows the access list's mask.
    handed = os.environ.get("CREDENTIALS_DIRECTORY")
    if mode & 0o077 and not (handed and path.is_relative_to(handed)):
        raise ConfigError(f"the key {path} can be read by others (mode {mode:04o}). Run: chmod 600 {path}")


def clock_fault(skew_s: float | None) -> str | None:
    """Return what is wrong with this device's clock, None where it is near enough to the server's."""
    if skew_s is None or -BEHIND_S < skew_s < AHEAD_S:
        return None
    side = f"{skew_s:.0f} s ahead of" if skew_s > 0 else f"{-skew_s:.0f} s behind"
    return (
        f"this device's clock is {side} the server's; at most {AHEAD_S:.0f} s ahead and {BEHIND_S:.0f} s behind are accepted. "
        "Set it, for example with NTP"
    )


def check_edge(superlink: str | None, ca: Path | None, key: Path | None, state: Path, plain: bool = False) -> list[Finding]:
    """Return what speaks for and against this device joining; one finding per line, none of which stops the others."""
    findings = [_memory(), _disk(state), _torch()]
    if key is not None:
        findings.append(_judged("key", lambda: check_key(key), f"{key}: ECDSA, readable by its owner only"))
    if superlink is None:
        return findings
    try:
        greeting = greet(superlink, ca, plain)
    except (RefusedError, ClockError) as error:
        return [*findings, Finding("server", "ok", f"{superlink} answers"), Finding("certificate", "bad", str(error))]
    except FedLoRAError as error:
        return [*findings, Finding("server", "bad", str(error))]
    findings.append(Finding("server", "ok", f"{superlink} answers"))
    if greeting.certificate is not None:
        findings.append(_certificate(greeting.certificate))
    fault = clock_fault(greeting.skew_s)
    near = "the server tells no time" if greeting.skew_s is None else f"within {abs(greeting.skew_s):.0f} s of the server's"
    return [*findings, Finding("clock", "bad", fault) if fault else Finding("clock", "ok", near)]


def _context(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the authority's certificate {ca} cannot be read: {error.strerror or error}. Check --ca") from None


def _distrust(error: ssl.SSLCertVerificationError, superlink: str, ca: Path | None) -> str:
    host, authority = split_address(superlink)[0], str(ca) if ca else "the system's authorities"
    if error.verify_code in (_OTHER_NAME, _OTHER_ADDRESS):
        return f"the certificate of {superlink} is not for '{host}'. Use a name it was made for, or make one with --host {host}"
    if error.verify_code in (_NOT_YET, _EXPIRED):
        when = "has expired" if error.verify_code == _EXPIRED else "is not valid yet"
        return f"the certificate of {superlink} {when}, or this device's clock ({datetime.now(UTC):%Y-%m-%d %H:%M} UTC) is wrong"
    return f"the certificate of {superlink} was not signed by {authority} ({error.verify_message}). Use this deployment's ca.crt"


def _speaks_tls(host: str, port: int, timeout: float) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), timeout) as plain, context.wrap_socket(plain, server_hostname=host):
            return True
    except OSError:
        return False


def _judged(name: str, check: Callable[[], None], fine: str) -> Finding:
    try:
        check()
    except FedLoRAError as error:
        return Finding(name, "bad", str(error))
    return Finding(name, "ok", fine)


def _amount(name: str, free: float, least: float, enough: float, text: str) -> Finding:
    level: Literal["ok", "warning", "bad"] = "bad" if free < least else "warning" if free < enough else "ok"
    needs = "" if level == "ok" else f"; a small model needs about {enough / 1e9:.1f} GB"
    return Finding(name, level, f"{free / 1e9:.1f} GB {text}{needs}")


def _memory() -> Finding:
    return _amount("memory", psutil.virtual_memory().available, _LEAST_MEMORY, _ENOUGH_MEMORY, "free")


def _disk(state: Path) -> Finding:
    there = next(path for path in [state.absolute(), *state.absolute().parents] if path.exists())
    if not os.access(there, os.W_OK):
        return Finding("disk", "bad", f"{there} cannot be written. Choose another folder with --state")
    return _amount("disk", shutil.disk_usage(there).free, _LEAST_DISK, _ENOUGH_DISK, f"free at {there}")


def _torch() -> Finding:
    try:
        import torch

        found = torch.tensor([1.0, 2.0]) @ torch.tensor([3.0, 4.0])
    except (ImportError, OSError, RuntimeError) as error:
        return Finding("torch", "bad", f"torch does not work here: {str(error).splitlines()[0]}")
    if float(found) != 11.0:
        return Finding("torch", "bad", f"torch {torch.__version__} computes wrongly on this processor; install another build")
    device = f"CUDA, {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return Finding("torch", "ok", f"torch {torch.__version__}, {device}")


def _certificate(certificate: dict[str, object]) -> Finding:
    ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    names = certificate.get("subjectAltName") or ()
    listed = ", ".join(str(name[1]) for name in names)  # type: ignore[attr-defined]
    text = f"trusted, for {listed}, until {datetime.fromtimestamp(ends, UTC):%Y-%m-%d}"
    soon = ends - time.time() < _EXPIRES_SOON_S
    return Finding("certificate", "warning" if soon else "ok", text + (": renew it soon" if soon else ""))
