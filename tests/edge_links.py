"""A real SuperLink on loopback, with TLS and node keys, and real nodes that join it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_nodes import wait_for
from fedlora.config import RunConfig
from fedlora.deploy.app_folder import write_app
from fedlora.deploy.certificates import write_authority, write_node_key, write_server_certificate

_BIN = Path(sys.executable).parent


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class EdgeLink:
    """A SuperLink of its own process.

    Args:
        folder: Where its keys, database and logs go.
        plain: Without TLS and keys.
    """

    folder: Path
    plain: bool = False
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ca = self.folder / "ca.crt"
        write_authority(self.ca, self.folder / "ca.key")
        write_server_certificate(
            self.folder / "server.crt", self.folder / "server.key", self.ca, self.folder / "ca.key", ["localhost"]
        )
        home = self.folder / "flwr"
        home.mkdir()
        trust = "insecure = true" if self.plain else f'root-certificates = "{self.ca}"'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "{self.address}"\n{trust}\n')
        path = f"{_BIN}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "FLWR_HOME": str(home), "PATH": path, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it listens."""
        command = [sys.executable, "-m", "fedlora.deploy.superlink_process", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--disable-runtime-dependency-installation", "--database", str(self.folder / "state.db")]
        if self.plain:
            command += ["--insecure"]
        else:
            command += ["--ssl-ca-certfile", str(self.ca), "--ssl-certfile", str(self.folder / "server.crt")]
            command += ["--ssl-keyfile", str(self.folder / "server.key"), "--enable-supernode-auth"]
        with (self.folder / "superlink.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        wait_for(self._listens)

    def _listens(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.folder / "superlink.log").read_text()[-2000:]
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """End it and all that it started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """Run one of Flower's commands and return what it answers as JSON."""
        command = [str(_BIN / "flwr"), *arguments, "--format", "json"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(done.stdout[done.stdout.index("{") :])
        assert isinstance(found, dict)
        return found

    def new_key(self, name: str, register: bool = True) -> Path:
        """Make a node's key; return the private half."""
        private = self.folder / name
        write_node_key(private, self.folder / f"{name}.pub", name)
        if register:
            self.flwr("supernode", "register", f"{private}.pub", "lab", "--name", name)
        return private

    def online(self) -> list[int]:
        """Return the nodes that are online."""
        return [int(node["node-id"]) for node in self.flwr("supernode", "list", "lab")["nodes"] if node["status"] == "online"]

    def run(
        self, config: RunConfig, out: Path, seconds: float = 120.0, name: str = "a run", done: Callable[[], object] | None = None
    ) -> str:
        """Run a deployment's app to its end; return Flower's word for how it ended.

        Args:
            config: The run.
            out: Its folder.
            seconds: Most to wait.
            name: By which nodes keep what is theirs.
            done: Cheap to ask; Flower, whose command takes a second of processor time, is asked once this is true.
        """
        write_app(self.folder / "app", config)
        self.flwr("run", str(self.folder / "app"), "lab", "-c", f'out="{out}" run="{name}"')
        ended: list[str] = []

        if done is not None:
            wait_for(done, seconds)

        def finished() -> bool:
            ended.append(self.flwr("ls", "lab")["runs"][0]["status"])
            return ended[-1].startswith("finished")

        wait_for(finished, seconds)
        return ended[-1]


@contextlib.contextmanager
def edge_link(folder: Path, plain: bool = False) -> Iterator[EdgeLink]:
    """A running SuperLink, ended at the end."""
    link = EdgeLink(folder, plain)
    try:
        link.start()
        yield link
    finally:
        link.stop()


@dataclass
class NodeProcess:
    """`fedlora node` as its own process."""

    arguments: list[str]
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "out").open("ab") as out, (self.folder / "err").open("ab") as err:
            command = [sys.executable, "-m", "fedlora", "node", "--state", str(self.folder / "state"), *self.arguments]
            self.process = subprocess.Popen(command, stdout=out, stderr=err)

    @property
    def printed(self) -> str:
        """All of its stdout so far."""
        return (self.folder / "out").read_text()

    @property
    def errors(self) -> list[str]:
        """The lines of its stderr so far."""
        return (self.folder / "err").read_text().splitlines()

    def wait(self, seconds: float = 60.0) -> int:
        """Wait for its end; return its exit code."""
        assert self.process is not None
        return self.process.wait(seconds)

    def wait_online(self, seconds: float = 60.0) -> None:
        """Wait until it says that it is online."""

        def online() -> bool:
            assert self.process is not None and self.process.poll() is None, (self.printed, self.errors)
            return "online at " in self.printed

        wait_for(online, seconds)

    def stop(self) -> int:
        """Tell it to stop, as a service manager does; return its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


@contextlib.contextmanager
def nodes(folder: Path, *arguments: list[str]) -> Iterator[list[NodeProcess]]:
    """Nodes with these command lines, stopped at the end."""
    started = [NodeProcess(given, folder / f"node-{number}") for number, given in enumerate(arguments)]
    try:
        for node in started:
            node.start()
        yield started
    finally:
        for node in started:
            node.stop()


def join(link: EdgeLink, key: Path | None, client: int = 0, *more: str) -> list[str]:
    """Return the arguments of a node that joins properly."""
    own = [] if key is None else ["--key", str(key)]
    trust = ["--insecure-plain-text"] if link.plain else ["--ca", str(link.ca)]
    return ["--superlink", link.address, *trust, *own, "--client", str(client), *more]


def timed_wait(node: NodeProcess, seconds: float) -> tuple[int, float]:
    """Return (exit code, seconds until it ended)."""
    began = time.monotonic()
    return node.wait(seconds), time.monotonic() - began
