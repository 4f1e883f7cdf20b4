"""Processes of a deployment: who may start them, how they end, and what an earlier server left behind."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from fedlora.errors import FedLoRAError
from fedlora.files import disk_errors, write_json

STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a process to end."""

_STOP_S = 10.0


@contextlib.contextmanager
def alone(state: Path) -> Iterator[None]:
    """Hold a deployment for this process; the system lets go of it however the process ends."""
    with disk_errors(state), (state / "lock").open("ab") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FedLoRAError(f"another `fedlora serve` works on {state.parent}. Wait until it ends, or stop it") from None
        except ImportError:  # not everywhere are there locks
            pass
        yield


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Do what must be finished: who asks again to stop has been heard already."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_use(state: Path) -> bool:
    """Return whether a server works on a deployment right now."""
    try:
        with alone(state):
            return False
    except FedLoRAError:
        return True


def note(path: Path, pids: list[int]) -> None:
    """Write down which processes were started, and when, so that a later server knows them from strangers with their numbers."""
    started = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            started[str(pid)] = psutil.Process(pid).create_time()
    write_json(path, started)


def end_leftovers(path: Path) -> None:
    """End what a server that was killed left running."""
    try:
        noted = {int(pid): float(started) for pid, started in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return
    for pid, started in noted.items():
        with contextlib.suppress(psutil.Error):
            if abs(psutil.Process(pid).create_time() - started) < 1:
                end(children(pid))
                end(find([pid]))
    path.unlink(missing_ok=True)


def children(pid: int) -> list[psutil.Process]:
    """Return all that a process started, and what those started."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def find(pids: list[int]) -> list[psutil.Process]:
    """Return the processes that are there."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(pid))
    return found


def end(processes: list[psutil.Process]) -> None:
    """Ask processes to end, and end those that do not."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGTERM)
    for process in _wait(processes):
        with contextlib.suppress(psutil.Error):
            process.kill()
    _wait(processes)


def lives(pid: int) -> bool:
    """Return whether a process is there and does something; one that its parent has not buried yet does nothing."""
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def _wait(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those that are still there after a while."""
    deadline = time.monotonic() + _STOP_S
    left = [process for process in processes if lives(process.pid)]
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [process for process in left if process.is_running() and lives(process.pid)]
    return left
