"""A run on another machine is followed through ssh: here through a real sshd on loopback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlora.cli.watch import elsewhere
from fedlora.config import load_config

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("lab:runs/one", ("lab", "runs/one")),
        ("me@lab.example:/data/run", ("me@lab.example", "/data/run")),
        ("me@[fe80::1]:run", ("me@fe80::1", "run")),
        ("runs/one", None),
        ("./a:b", None),
        ("C:\\runs", None),
        ("lab:", None),
    ],
)
def test_what_is_on_another_machine(text: str, found: tuple[str, str] | None) -> None:
    assert elsewhere(text) == found


def _run_folder(path: Path) -> None:
    """A finished run, as far as who watches looks."""
    (path / "adapter").mkdir(parents=True)
    (path / "config.toml").write_text(load_config(None, ["rounds=1"]).to_toml())
    row = {"test_accuracy": 0.75, "test_loss": 0.5, "train_loss": 0.7, "clients_accuracy": None, "uplink_bytes": 1000,
           "downlink_bytes": 2000, "clients_selected": 5, "clients_failed": 0, "wall_time_s": 0.5}  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps({"round": number, **row}) + "\n" for number in range(2)))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment in which `ssh lab` leads to this machine, and this tree's fedlora is `there/fedlora`."""
    if SSHD is None or os.getuid() != 0:
        pytest.skip("needs sshd, and root to start it")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    options = {
        "HostKey": tmp_path / "host", "AuthorizedKeysFile": tmp_path / "user.pub", "PidFile": "none", "StrictModes": "no",
        "UsePAM": "no", "ListenAddress": f"127.0.0.1:{port}", "PermitRootLogin": "prohibit-password",
    }  # fmt: skip
    command = [SSHD, "-D", "-e", "-f", "/dev/null", *(f"-o{key}={value}" for key, value in options.items())]
    (tmp_path / "config").write_text(
        f"Host lab\n HostName 127.0.0.1\n Port {port}\n User root\n IdentityFile {tmp_path / 'user'}\n IdentitiesOnly yes\n"
        f" StrictHostKeyChecking accept-new\n UserKnownHostsFile {tmp_path / 'known'}\n LogLevel ERROR\n"
        "Host gone\n HostName 127.0.0.1\n Port 1\n LogLevel QUIET\n"
    )
    (tmp_path / "bin").mkdir()
    for path, text in (
        # ssh reads the settings of the account, not of $HOME; so they are handed to it.
        (tmp_path / "bin" / "ssh", f'exec {shutil.which("ssh")} -F {tmp_path / "config"} "$@"'),
        (tmp_path / "bin" / "fedlora", f'PYTHONPATH={os.environ.get("PYTHONPATH", "")} exec {sys.executable} -m fedlora "$@"'),
    ):
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    finally:
        server.terminate()
        server.wait(10)


def _watch(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedlora", "watch", *arguments],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_through_a_real_sshd(machine: dict[str, str], tmp_path: Path) -> None:
    _run_folder(tmp_path / "a run")
    program = str(tmp_path / "bin" / "fedlora")
    done = _watch(machine, f"lab:{tmp_path / 'a run'}", "--program", program, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["summary"]["accuracy_after"] == 0.75 and "round 1/1" in done.stderr
    refused = _watch(machine, f"lab:{tmp_path / 'nowhere'}", "--program", program, "--timeout", "0")
    assert refused.returncode == 1 and "no run began in" in refused.stderr
    unknown = _watch(machine, "lab:run", "--program", "/nowhere/fedlora")
    assert (
        unknown.returncode == 1 and "error: lab knows no command '/nowhere/fedlora'. Say where it is: --program" in unknown.stderr
    )
    gone = _watch(machine, "gone:run")
    assert gone.returncode == 1 and gone.stderr.splitlines()[-1].startswith("error: ssh could not reach gone. Try `ssh gone`")
