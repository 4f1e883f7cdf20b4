"""Trainers and nodes as real processes, and the messages that a server would send them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict

import children  # noqa: F401 -- tells the server that trainers are forked from what to have imported
from fedlora.config import RunConfig
from fedlora.deploy.flower_private import message_for
from fedlora.deploy.settings import to_settings
from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.roll import call_roll
from fedlora.federation.strategy import RoundStrategy
from fedlora.federation.workbench import Workbench
from tiny_run import fresh_state

_context = multiprocessing.get_context("forkserver")


def wait_for(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something is true; fail after a while."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.05)


@dataclass
class TrainerProcess:
    """A trainer of its own process, its folder and what it prints."""

    folder: Path
    arguments: list[str] = field(default_factory=list)
    process: BaseProcess | None = None

    @property
    def socket(self) -> str:
        """The path of its socket."""
        return str(self.folder / "socket")

    @property
    def printed(self) -> str:
        """All that its processes printed so far."""
        return (self.folder / "out").read_text()

    def start(self) -> None:
        """Start it; messages may be sent at once."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "out").touch()
        arguments = ["--socket", self.socket, "--state", str(self.folder / "state"), *self.arguments]
        self.process = _context.Process(target=_run, args=(arguments, str(self.folder / "out")))
        self.process.start()

    def kill(self) -> None:
        """Kill it: SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.join()


def _run(arguments: list[str], out: str) -> None:
    file = os.open(out, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.argv = ["trainer", *arguments]
    runpy.run_module("fedlora.deploy.trainer", run_name="__main__", alter_sys=True)


@contextlib.contextmanager
def trainer_process(folder: Path, *arguments: str) -> Iterator[TrainerProcess]:
    """A running trainer, killed at the end."""
    trainer = TrainerProcess(folder, list(arguments))
    trainer.start()
    try:
        yield trainer
    finally:
        trainer.kill()


def context_of(config: RunConfig, client: int, run: str = "a run", state: RecordDict | None = None) -> Context:
    """Return what Flower gives a client app beside the message."""
    settings = {**to_settings(config), "out": "/srv/run", "resume": False, "run": run}
    return Context(1, client + 1, {"partition-id": client}, RecordDict({}) if state is None else state, settings)


def question(client: int) -> Message:
    """Return the message that asks a node who it is."""
    return message_for(RecordDict({}), MessageType.QUERY, 1, client + 1, "roll")


@dataclass
class Server:
    """The server's side of a round, by hand."""

    bench: Workbench

    def __post_init__(self) -> None:
        self.grid = BatchedGrid(self.bench)
        roster = call_roll(self.grid, self.bench.config.clients)
        self.strategy = RoundStrategy(self.bench, roster, fresh_state(self.bench))

    def messages(self, number: int) -> list[Message]:
        """Return the messages of a round, in order of clients."""
        return list(self.strategy.configure_train(number, ArrayRecord(), ConfigRecord(), self.grid))

    def aggregate(self, number: int, replies: list[Message]) -> list[str]:
        """Move on by a round; return what became of each reply."""
        self.strategy.aggregate_train(number, replies)
        return [row["status"] for row in self.strategy.record.clients]
