"""Processes that a node starts: they end with it, and it ends them in order."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


def end_with_parent(parent: int) -> None:
    """End this process, in order, soon after the process `parent` has ended without ending it (0: never)."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent:
        threading.Thread(target=watch, daemon=True).start()


def start_module(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path, heard: bool
) -> subprocess.Popen[bytes]:
    """Start `python -m module` in a session of its own.

    A session of its own, because Ctrl-C in a terminal goes to the whole group: the node says who ends when.

    Args:
        module: What to run.
        arguments: Its command line.
        environment: All of its environment.
        log: What it prints is appended here.
        heard: Its stdout is this process's instead, and only stderr goes to the log.
    """
    with log.open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=None if heard else errors,
            stderr=errors,
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes], patience: float = 8.0) -> None:
    """End a process that `start_module` started, and all that it started: asked first, killed after `patience` seconds."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(log: Path, most: int = 20_000) -> str:
    """Return the last line of a log that says something."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - most))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")
    return ""
