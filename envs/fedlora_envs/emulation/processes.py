"""Processes that an emulation starts: they end with it, even where it is killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tethered(command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` so that the kernel ends it (SIGTERM) when this process dies."""
    return [sys.executable, "-m", "fedlora_envs.emulation.processes", str(os.getpid()), *command]


def _tether(parent: int, command: list[str]) -> None:
    """Become `command`, tied to `parent`."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == parent:  # it may have died before it was asked for
        os.execvp(command[0], command)


def stop(process: subprocess.Popen[str], patience_s: float = 10.0) -> int:
    """End a process: wait, then SIGTERM, then SIGKILL; return its exit code.

    Args:
        process: The process.
        patience_s: How long to wait after SIGTERM; a third of it before.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(patience_s / 3)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(patience_s)
    process.kill()
    return process.wait()


def started_at(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None where there is no such process.

    With the number it names a process for good: numbers are used again.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    # A zombie has ended, whoever has not yet asked for its exit code.
    return None if fields[0] in "ZX" else int(fields[19])


def owner_name() -> str:
    """Return what names this process for good, to be put into the names of what it makes outside of itself."""
    return f"{os.getpid()}-{started_at(os.getpid())}"


def owner_is_gone(name: str) -> bool:
    """Return whether the process that `owner_name` named so has ended."""
    pid, _, started = name.partition("-")
    return started_at(int(pid)) != int(started)


def end_all(pids: list[int], patience_s: float = 5.0) -> None:
    """End processes by number: SIGTERM, and SIGKILL for those that are still there after a while."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        until = time.monotonic() + patience_s
        while (pids := [pid for pid in pids if started_at(pid) is not None]) and time.monotonic() < until:
            time.sleep(0.05)
        if not pids:
            return


if __name__ == "__main__":
    _tether(int(sys.argv[1]), sys.argv[2:])
