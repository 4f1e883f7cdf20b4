"""`python -m fedlora ...` in processes that can be killed: forked from a server that has the slow imports behind it.

A fresh interpreter spends ten seconds on imports before the first round; a child of the server behaves the same and starts at
once. A child may be told to kill itself when it is about to touch the disk for the n-th time, or to have little room on it.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

_DISK_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
_context = multiprocessing.get_context("forkserver")
# What a run imports when it gets there.
_context.set_forkserver_preload(
    [
        "datasets",
        "fedlora.cli",
        "fedlora.runs.simulate",
        "flwr_datasets.partitioner",
        "matplotlib.figure",
        "tensorboard.compat.proto.event_pb2",
        "transformers.models.bert.modeling_bert",
    ]
)


@dataclass(frozen=True)
class Finished:
    """How a child ended: exit code (negative: the signal that killed it), and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that a refused command prints on stderr, without "error: "; fails where there is anything else."""
        lines = self.err.splitlines()
        assert self.code > 0 and len(lines) == 1 and lines[0].startswith("error: "), (self.code, self.err)
        return lines[0].removeprefix("error: ")


class Child:
    """One started command.

    Args:
        arguments: What follows `fedlora` on the command line.
        folder: Working directory.
        kill_at: Kill the process when it is about to touch something under `folder` for that many-th time; 0: never.
        file_size: Largest file that it may write, bytes: a disk that is full, as far as the process can tell.
    """

    _count = 0

    def __init__(self, arguments: Sequence[str], folder: Path, kill_at: int = 0, file_size: int = 0) -> None:
        Child._count += 1
        self.printed = [folder / f".printed-{Child._count}-{stream}" for stream in ("out", "err")]
        target: BaseProcess = _context.Process(
            target=_run, args=(list(arguments), str(folder), [str(path) for path in self.printed], kill_at, file_size)
        )
        self.process = target
        self.process.start()

    def kill(self) -> None:
        """Kill it as the machine's owner would: SIGKILL."""
        self.process.kill()

    def wait(self, seconds: float = 120.0) -> Finished:
        """Wait for its end."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "the command hangs"
        printed = [path.read_text() if path.exists() else "" for path in self.printed]
        for path in self.printed:
            path.unlink(missing_ok=True)
        return Finished(self.process.exitcode, printed[0], printed[1])


def fedlora_command(arguments: Sequence[str], folder: Path, kill_at: int = 0, file_size: int = 0) -> Finished:
    """Run a command to its end (see `Child`)."""
    return Child(arguments, folder, kill_at, file_size).wait()


def _run(arguments: list[str], folder: str, printed: list[str], kill_at: int, file_size: int) -> None:
    os.chdir(folder)
    # Whoever starts the tests in the background starts them deaf to SIGINT, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, path in zip((1, 2), printed, strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.argv = ["fedlora", *arguments]
    if kill_at:
        _die_at(kill_at, folder)
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    runpy.run_module("fedlora", run_name="__main__", alter_sys=True)


def _die_at(event: int, folder: str) -> None:
    left = event

    def hook(name: str, details: tuple[object, ...]) -> None:
        nonlocal left
        if name in _DISK_EVENTS and os.path.abspath(str(details[0])).startswith(folder):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
