"""A served run that goes on and on, with faults put into it: what was said of each, and after how many seconds."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from deployments import Command, Deployment, deployment, wait_until
from fedlora.deploy.deploy_folder import DeployFolder
from relays import Relay

PATIENCE_S = 300.0
"""Longest wait for anything: Flower takes about a minute to notice what is dead, and the machine may be shared."""


@dataclass
class Lines:
    """The lines of a file that grows, each with the moment it was first seen."""

    path: Path
    seen: list[tuple[float, str]] = field(default_factory=list)
    ended: bool = False

    def __post_init__(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.ended:
            with contextlib.suppress(OSError):
                whole = self.path.read_text(errors="replace").split("\n")[:-1]
                now = time.monotonic()
                self.seen += [(now, line) for line in whole[len(self.seen) :]]
            time.sleep(0.05)

    def wait(self, pattern: str, since: float, seconds: float = PATIENCE_S) -> tuple[str, float]:
        """Return the first line since a moment that a pattern is found in, and how many seconds after the moment it came."""
        found: list[tuple[float, str]] = []

        def there() -> bool:
            found[:] = [(moment, line) for moment, line in self.seen if moment >= since and re.search(pattern, line)]
            return bool(found)

        wait_until(there, seconds, pattern)
        moment, line = found[0]
        return line.strip(), moment - since


class FaultyRun:
    """A run over nodes that can be told apart, each behind a relay.

    Args:
        lab: The deployment.
        scratch: What its nodes take for the device's folder of temporary files; its path is short, as a socket's must be.
    """

    def __init__(self, lab: Deployment, scratch: Path) -> None:
        self.lab, self.out, self.scratch = lab, lab.folder / "run", scratch
        port = int(lab.node_commands()[0][2].rpartition(":")[2])
        self.relays = [Relay(port) for _ in range(lab.nodes)]
        self.nodes: dict[int, Command] = {}
        self.wrappers: dict[int, Sequence[str]] = {}
        self.said: dict[int, Lines] = {}

    def serve(self, *arguments: str) -> None:
        """Start the server."""
        self.server = self.lab.serve(*(arguments or ("--out", "run")))
        self.told = Lines(self.server.files[0])

    def start_node(self, number: int, *more: str, wrapper: Sequence[str] = ()) -> None:
        """Start a node; what it is given to stays the same for its later lives."""
        self.wrappers[number] = wrapper or self.wrappers.get(number, ())
        here = ["--superlink", f"localhost:{self.relays[number].port}", "--poll-s", "0.2", *more]
        own = ["env", f"TMPDIR={self.scratch}", *self.wrappers[number]]
        self.nodes[number] = self.lab.start_node(number, None, *here, wrapper=own)
        self.lab.running.append(self.nodes[number])
        self.said[number] = Lines(self.nodes[number].files[0])

    def trainer(self, node: int) -> psutil.Process:
        """Return a node's trainer."""
        return self.child(node, "fedlora.deploy.trainer")

    def child(self, node: int, module: str) -> psutil.Process:
        """Return a process of a node."""
        found: list[psutil.Process] = []

        def there() -> bool:
            with contextlib.suppress(psutil.Error):
                here = psutil.Process(self.nodes[node].process.pid).children(recursive=True)
                found[:] = [child for child in here if module in child.cmdline()]
            return bool(found)

        wait_until(there, 60, module)
        return found[0]

    def messages(self, node: int) -> list[psutil.Process]:
        """Return the processes of the messages that a node works on, oldest first: those forked for them."""
        found = []
        for child in psutil.Process(self.nodes[node].process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                parent = child.parent()
                if parent is not None and "forkserver" in " ".join(parent.cmdline()):
                    found.append(child)
        return sorted(found, key=lambda child: child.create_time())

    def rows(self, log: str = "clients") -> list[dict[str, Any]]:
        """Return the rows of clients.jsonl, or of another log, so far."""
        try:
            text = (self.out / f"{log}.jsonl").read_text()
        except OSError:
            return []
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def status(self, number: int, client: int) -> str:
        """Return what became of a client in a round, waiting for it."""
        found: list[str] = []

        def there() -> bool:
            found[:] = [row["status"] for row in self.rows() if row["round"] == number and row["client"] == client]
            return bool(found)

        wait_until(there, PATIENCE_S, f"round {number}")
        return found[0]

    def failure(self, since: int, client: int) -> str:
        """Return what clients.jsonl says of the first round from `since` on in which a client failed, waiting for it."""
        found: list[str] = []

        def there() -> bool:
            # A line on the server's screen comes with the reply, the row of the log only when the round ends.
            hit = (row for row in self.rows() if row["round"] >= since and row["client"] == client)
            found[:] = [row["status"] for row in hit if row["status"] != "ok"]
            return bool(found)

        wait_until(there, PATIENCE_S, f"a failure of client {client}")
        return found[0]

    @property
    def round(self) -> int:
        """The round that is under way."""
        return self.lab.status.round

    def whole(self, since: float, clients: Sequence[int]) -> float:
        """Wait for a round that began after this call, and in which all these clients' updates count; return seconds `since`."""
        first = self.round

        def there() -> bool:
            good = [(row["round"], row["client"]) for row in self.rows() if row["status"] == "ok" and row["round"] > first]
            return any(all((number, client) in good for client in clients) for number, _ in good)

        wait_until(there, PATIENCE_S, f"a round with clients {list(clients)}")
        return time.monotonic() - since

    @contextlib.contextmanager
    def in_the_middle(self, node: int) -> Iterator[int]:
        """A round that waits for one node only, which has its message and is stopped; it goes on after that."""
        trainer, name = self.trainer(node), DeployFolder.open(self.lab.path).registered()[f"node-{node}"]
        trainer.suspend()
        try:
            wait_until(lambda: self.lab.status.waiting == [name], PATIENCE_S, f"a round that waits for node {node} only")
            wait_until(lambda: self.messages(node), 60, f"a message at node {node}")
            time.sleep(2.0)  # its process has been to the trainer by now
            yield self.round
        finally:
            with contextlib.suppress(psutil.Error):
                trainer.resume()

    def fill_server_disk(self) -> None:
        """Leave the server app too little room for its next checkpoint."""
        newest = max((self.out / "checkpoints").glob("round-*/state.safetensors"))
        limit = newest.stat().st_size - 1
        assert limit > 20_000, "the status file must still fit"
        psutil.Process(self.lab.status.pid).rlimit(psutil.RLIMIT_FSIZE, (limit, limit))

    def end(self) -> None:
        """Stop the relays; the deployment ends the processes."""
        for each in self.relays:
            each.end()
        for lines in [self.told, *self.said.values()]:
            lines.ended = True


@contextlib.contextmanager
def faulty_run(folder: Path, settings: list[str], nodes: int) -> Iterator[FaultyRun]:
    """A run whose processes end with the block; nothing is started yet."""
    with tempfile.TemporaryDirectory(prefix="faulty-") as scratch, deployment(folder, settings, nodes) as lab:
        lab.hand_out()
        made = FaultyRun(lab, Path(scratch))
        try:
            yield made
        finally:
            made.end()
