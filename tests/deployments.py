"""Whole deployments on one machine, set up and started by the commands that their README names."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from safetensors.numpy import load_file

from fedlora.deploy.measured import REPORTED
from fedlora.deploy.status import Status, StatusFile
from runs_compared import losses, rows

_MEASURED = {"real_time_s", "mean_rate_bps", *REPORTED.values()} - {"tokens"}
_FEDLORA = [sys.executable, "-m", "fedlora"]


def wait_until(true: Callable[[], object], seconds: float = 120.0, what: str = "it") -> None:
    """Wait until something is true; fail after a while."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what} does not come about"
        time.sleep(0.1)


def assert_same_served(ours: Path, theirs: Path) -> None:
    """Compare two finished runs over real nodes: all but what a clock said, and that nothing else lies around."""
    for log in ("metrics.jsonl", "clients.jsonl"):
        left, right = (
            [{k: v for k, v in row.items() if k not in _MEASURED} for row in rows(run / log)] for run in (ours, theirs)
        )
        assert left == right, log
    for file in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "config.toml"):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes(), file
    names = [sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (ours, theirs)]
    assert names[0] == names[1]
    newest = [load_file(max((run / "checkpoints").iterdir()) / "state.safetensors") for run in (ours, theirs)]
    for name in newest[0].keys() | newest[1].keys():
        assert name.startswith("world/") or np.array_equal(newest[0][name], newest[1][name]), name
    assert losses(ours) == losses(theirs)


@dataclass
class Command:
    """A command that runs, and what it printed.

    Args:
        arguments: The command line.
        folder: Working directory.
        name: Of the files with its output.
    """

    arguments: list[str]
    folder: Path
    name: str

    def __post_init__(self) -> None:
        self.files = [self.folder / f"{self.name}.{stream}" for stream in ("out", "err")]
        with self.files[0].open("wb") as out, self.files[1].open("wb") as err:
            # Of its own session: a Ctrl-C at pytest is not for it.
            self.process = subprocess.Popen(self.arguments, cwd=self.folder, stdout=out, stderr=err, start_new_session=True)

    @property
    def out(self) -> str:
        """What it printed on stdout so far."""
        return self.files[0].read_text()

    @property
    def error(self) -> str:
        """What it printed on stderr, which must be one error."""
        text = self.files[1].read_text()
        assert text.startswith("error: "), text
        return text.removeprefix("error: ").strip()

    def wait(self, seconds: float = 400.0) -> int:
        """Wait for its end and return its exit code."""
        return self.process.wait(seconds)

    def wait_for(self, text: str, seconds: float = 400.0) -> None:
        """Wait until it has printed something."""
        wait_until(lambda: text in self.out or self.process.poll() is not None, seconds, text)
        assert text in self.out, (self.out, self.files[1].read_text())

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self) -> None:
        """End it, and all that it started."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(40)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Deployment:
    """A deployment folder and its nodes; everything lies below one folder.

    Args:
        folder: An empty folder.
        settings: `key=value` arguments of its run.
        nodes: How many nodes it has.
    """

    folder: Path
    settings: list[str]
    nodes: int = 2
    running: list[Command] = field(default_factory=list)
    served: int = 0

    def __post_init__(self) -> None:
        self.path = self.folder / "lab"
        made = subprocess.run(
            [
                *_FEDLORA,
                "deploy",
                "init",
                "lab",
                *self.settings,
                "--host",
                "localhost",
                "--port",
                "0",
                "--nodes",
                str(self.nodes),
            ],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr

    def instructions(self) -> list[list[str]]:
        """Return the commands of the README's blocks, in order."""
        blocks = re.findall(r"```\n(.*?)```", (self.path / "README.md").read_text(), re.DOTALL)
        return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]

    def hand_out(self) -> None:
        """Give each device its files, as the README says."""
        for command in self.instructions():
            if command[0] == "scp":
                where = self._device(command[-1].partition(":")[2])
                where.mkdir(parents=True, exist_ok=True)
                for file in command[1:-1]:
                    if file != "-p":
                        shutil.copy(self.path / file, where)

    def start_nodes(self) -> None:
        """Start a node on each device, as the README says."""
        for number, command in enumerate(self.node_commands()):
            self.running.append(self.start_node(number, command))

    def start_node(self, number: int, command: list[str] | None = None, *more: str, wrapper: Sequence[str] = ()) -> Command:
        """Start one node by the README's arguments.

        Args:
            number: Which.
            command: The README's arguments of this node; None looks them up.
            more: Further arguments, which win over the README's.
            wrapper: What the command is given to.
        """
        command = command or self.node_commands()[number]
        own = [str(self._device(part)) if part.startswith("/etc") else part for part in command]
        own += ["--state", f"state-{number}", "--max-retries", "1000"]  # a machine that runs many tests starts servers slowly
        lives = len(list(self.folder.glob(f"node-{number}*.out")))
        name = f"node-{number}-again-{lives}" if lives else f"node-{number}"
        return Command([*wrapper, *_FEDLORA, *own, *more], self.folder, name)

    def node_commands(self) -> list[list[str]]:
        """Return the README's arguments of each node."""
        return [line[1:] for line in self.instructions() if line[:2] == ["/opt/fedlora/bin/fedlora", "node"]]

    def _device(self, path: str) -> Path:
        return self.folder / "device" / path.lstrip("/")

    def serve(self, *arguments: str) -> Command:
        """Start `fedlora serve`."""
        self.served += 1
        command = Command([*_FEDLORA, "serve", "--deployment", "lab", *arguments], self.folder, f"serve-{self.served}")
        self.running.append(command)
        return command

    @property
    def status(self) -> Status:
        """What the server app told last."""
        return StatusFile(self.path / "state" / "status.json").read() or Status()

    def left(self) -> list[str]:
        """Return the command lines of the server's processes that still run."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or [])
            if str(self.path / "certificates") in line and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(line)
        return found

    def server_process(self, name: str) -> psutil.Process:
        """Return the process of one of Flower's programs."""
        for process in psutil.process_iter(["cmdline", "status"]):
            line = process.info["cmdline"] or []
            here = any(str(self.path / "certificates") in part for part in line)
            if here and any(part.endswith(name) for part in line[:3]) and process.info["status"] != psutil.STATUS_ZOMBIE:
                return process
        raise AssertionError(f"no {name} runs")


@contextlib.contextmanager
def deployment(folder: Path, settings: list[str], nodes: int = 2) -> Iterator[Deployment]:
    """A deployment whose processes end with the block."""
    made = Deployment(folder, settings, nodes)
    try:
        yield made
    finally:
        for command in reversed(made.running):
            command.end()
