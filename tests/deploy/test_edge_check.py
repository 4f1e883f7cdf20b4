"""Whether a device can join: real TLS servers that are right, wrong, plain, silent and gone."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from typer.testing import CliRunner

from edge_links import free_port
from fedlora.cli import app
from fedlora.deploy.certificates import write_authority, write_node_key, write_server_certificate
from fedlora.deploy.edge_check import (
    ClockError,
    Greeting,
    RefusedError,
    UnreachableError,
    check_edge,
    check_key,
    clock_fault,
    greet,
    reach,
    split_address,
)
from fedlora.errors import ConfigError, FedLoRAError


class _Server(BaseHTTPRequestHandler):
    """Answers at a time of its own."""

    offset_s = 0.0

    def do_GET(self) -> None:
        """Say nothing but the time."""
        self.send_response(404)
        self.end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The server's clock."""
        return super().date_time_string(time.time() + self.offset_s)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@contextlib.contextmanager
def _serving(certificate: Path | None, offset_s: float = 0.0) -> Iterator[str]:
    """A server with this certificate (and the key beside it), or in plain text; yields 127.0.0.1:PORT."""
    handler = type("Handler", (_Server,), {"offset_s": offset_s})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.handle_error = lambda *_: None  # type: ignore[method-assign]
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
            http.socket = context.wrap_socket(http.socket, server_side=True)
        thread = threading.Thread(target=http.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, and certificates of the first."""
    folder = tmp_path_factory.mktemp("pki")
    for name in ("ca", "other"):
        write_authority(folder / f"{name}.crt", folder / f"{name}.key", name)
    write_server_certificate(folder / "good.crt", folder / "good.key", folder / "ca.crt", folder / "ca.key", ["127.0.0.1"])
    for name, begin, end in (("expired", -30, -1), ("early", 1, 30), ("soon", -1, 7)):
        _dated(folder, name, begin, end)
    _dated(folder, "elsewhere", -1, 300, host="lab.example")
    return folder


def _dated(folder: Path, name: str, begin: int, end: int, host: str = "") -> None:
    """Write a certificate like the good one, valid between these days from now, and for another host."""
    good = x509.load_pem_x509_certificate((folder / "good.crt").read_bytes())
    signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(good.subject).issuer_name(good.issuer).public_key(good.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now + timedelta(days=begin)).not_valid_after(now + timedelta(days=end))
    for extension in good.extensions:
        if host and isinstance(extension.value, x509.SubjectAlternativeName):
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        else:
            builder = builder.add_extension(extension.value, extension.critical)
    made = builder.sign(signer, hashes.SHA384())  # type: ignore[arg-type]
    (folder / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes((folder / "good.key").read_bytes())


def test_a_server_that_is_right(pki: Path) -> None:
    with _serving(pki / "good.crt") as address:
        greeting = greet(address, pki / "ca.crt")
        assert greeting.certificate is not None and clock_fault(greeting.skew_s) is None
    with _serving(None) as address:
        assert greet(address, None, plain=True).certificate is None


@pytest.mark.parametrize(
    ("certificate", "authority", "plain", "reason"),
    [
        ("good.crt", "other.crt", False, r"was not signed by .*other\.crt"),
        ("good.crt", None, False, r"was not signed by the system's authorities"),
        ("expired.crt", "ca.crt", False, r"has expired, or this device's clock \(\d{4}-"),
        ("early.crt", "ca.crt", False, r"is not valid yet, or this device's clock"),
        ("elsewhere.crt", "ca.crt", False, r"is not for '127\.0\.0\.1'.*--host 127\.0\.0\.1"),
        (None, "ca.crt", False, r"speaks plain text, this node TLS"),
        ("good.crt", None, True, r"speaks TLS, this node plain text"),
    ],
    ids=["authority", "system", "expired", "early", "name", "tls-to-plain", "plain-to-tls"],
)
def test_servers_that_are_refused(pki: Path, certificate: str | None, authority: str | None, plain: bool, reason: str) -> None:
    with (
        _serving(pki / certificate if certificate else None) as address,
        pytest.raises((RefusedError, ClockError), match=reason) as error,
    ):
        greet(address, pki / authority if authority else None, plain)
    # A device that starts without a clock has the right time later: to try again may help then.
    assert error.value.exit_code == (9 if certificate == "early.crt" else 8) and "\n" not in str(error.value)


def test_nobody_there_is_tried_a_bounded_number_of_times() -> None:
    address, said = f"127.0.0.1:{free_port()}", []
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=rf"^{address} cannot be reached: Connection refused.*\(tried 3 times\)$"):
        reach(lambda: greet(address, None), 2, said.append)
    assert len(said) == 2 and 3 <= time.monotonic() - began < 8


def test_a_server_that_says_nothing_is_given_up(pki: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UnreachableError, match="timed out"):
        greet(f"127.0.0.1:{silent.getsockname()[1]}", pki / "ca.crt", timeout=0.5)


def test_a_server_that_comes_up_is_reached() -> None:
    answers: list[Greeting | None] = [None, Greeting(0.0, None)]

    def greeting() -> Greeting:
        found = answers.pop(0)
        if found is None:
            raise UnreachableError("not yet")
        return found

    assert reach(greeting, 5, lambda _: None) == Greeting(0.0, None)


@pytest.mark.parametrize("address", ["lab", "lab:", ":80", "lab:0", "lab:99999", "https://lab:80", "lab:eighty"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        split_address(address)


def test_addresses() -> None:
    assert split_address("lab.example:8800") == ("lab.example", 8800) and split_address("[::1]:8800") == ("::1", 8800)


@pytest.mark.parametrize(("skew", "fault"), [(None, False), (0, False), (4, False), (6, True), (-300, False), (-310, True)])
def test_clocks_are_judged_as_flower_judges_signatures(skew: float | None, fault: bool) -> None:
    assert (clock_fault(skew) is not None) is fault


def _key(folder: Path, name: str = "n0") -> Path:
    write_node_key(folder / name, folder / f"{name}.pub", name)
    return folder / name


def test_keys_that_are_refused(tmp_path: Path, pki: Path) -> None:
    key = _key(tmp_path)
    check_key(key)
    key.chmod(0o640)
    with pytest.raises(ConfigError, match=r"can be read by others \(mode 0640\)\. Run: chmod 600 "):
        check_key(key)
    key.write_text("nonsense")
    for path in (key, tmp_path / "n0.pub", pki / "ca.key"):
        with pytest.raises(ConfigError, match=r"is not a private ECDSA key in OpenSSH format"):
            check_key(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        check_key(tmp_path / "gone")


def test_a_key_that_systemd_hands_over_is_guarded_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = _key(tmp_path)
    key.chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    check_key(key)


def test_each_thing_a_node_needs_is_one_finding(tmp_path: Path, pki: Path) -> None:
    key = _key(tmp_path)
    with _serving(pki / "good.crt") as address:
        found = {item.name: item for item in check_edge(address, pki / "ca.crt", key, tmp_path / "new" / "state")}
    assert list(found) == ["memory", "disk", "torch", "key", "server", "certificate", "clock"]
    assert {found[name].level for name in ("torch", "key", "server", "certificate", "clock")} == {"ok"}
    assert "127.0.0.1" in found["certificate"].text
    with _serving(pki / "soon.crt", offset_s=-60) as address:
        found = {item.name: item for item in check_edge(address, pki / "ca.crt", key, tmp_path)}
    assert found["certificate"].level == "warning" and "renew it soon" in found["certificate"].text
    assert found["clock"].level == "bad" and "ahead of the server's" in found["clock"].text


def test_doctor_edge_tells_by_its_exit_code(tmp_path: Path, pki: Path) -> None:
    key, run = _key(tmp_path), CliRunner()
    with _serving(pki / "good.crt") as address:
        common = ["doctor", "--edge", "--superlink", address, "--key", str(key), "--state", str(tmp_path)]
        good = run.invoke(app, [*common, "--ca", str(pki / "ca.crt")])
        bad = run.invoke(app, [*common, "--ca", str(pki / "other.crt"), "--format", "json"])
    assert good.exit_code == 0 and len(good.stdout.splitlines()) == 7 and "bad" not in good.stdout
    found = {item["name"]: item["level"] for item in json.loads(bad.stdout)}
    assert bad.exit_code == 1 and found["certificate"] == "bad" and found["server"] == "ok"


def test_doctor_edge_without_a_server_checks_the_device(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--edge", "--state", str(tmp_path)])
    assert result.exit_code == 0 and [line.split()[1] for line in result.stdout.splitlines()] == ["memory", "disk", "torch"]
    gone = CliRunner().invoke(app, ["doctor", "--edge", "--superlink", f"127.0.0.1:{free_port()}"])
    assert gone.exit_code == 1 and "cannot be reached: Connection refused" in gone.stdout


def test_an_authority_that_is_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("nonsense")
    for path in (tmp_path / "ca.crt", tmp_path / "gone.crt"):
        with pytest.raises(FedLoRAError, match=r"the authority's certificate .* cannot be read"):
            greet("127.0.0.1:1", path)


def test_errors_are_one_line_and_an_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedlora", "node", "--superlink", "127.0.0.1:1", "--state", str(tmp_path / "s")]
    cases = {
        ("--client", "0", "--key", str(tmp_path / "gone")): 2,
        ("--client", "0", "--data", str(tmp_path / "gone")): 3,
        (): 2,
    }
    for arguments, code in cases.items():
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
