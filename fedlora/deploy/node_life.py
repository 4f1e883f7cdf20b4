"""What surrounds a node's life: the folder of its sockets, how it is told to stop, and what it says."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from fedlora.files import disk_errors

_SCRATCH = "fedlora-node-"
_LOG_BYTES = 5_000_000


class StoppedError(BaseException):
    """The node was told to stop."""


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for sockets and notes, gone at the end; those of nodes that were killed go now.

    It is not the node's own folder because a Unix socket's path may have a hundred letters at most.
    """
    for other in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError), (other / "lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a node that lives holds it
            shutil.rmtree(other, ignore_errors=True)
    with disk_errors(Path(tempfile.gettempdir())):
        # Its name comes with the lock: another node that starts now would take it for a dead one's.
        made = Path(tempfile.mkdtemp(prefix=f".{_SCRATCH}"))
        lock = (made / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = made.rename(made.with_name(made.name.removeprefix(".")))
    try:
        with lock:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM and a terminal that is closed raise StoppedError in the block, so that everything is ended in order."""

    def told(_signal: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # once is enough: the end is under way
        raise StoppedError

    # Whoever starts a node with nohup wants it to outlive the terminal.
    stops = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, told) for number in stops}
    try:
        yield
    except StoppedError:
        say("stopped")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shorten(log: Path) -> None:
    """Start a log anew once it is large, keeping the one before."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > _LOG_BYTES:
            os.replace(log, log.with_suffix(".old"))


def say(text: str) -> None:
    """Tell the user, or whoever reads the log."""
    with contextlib.suppress(OSError):  # a terminal that is closed, a log on a full disk
        print(text, flush=True)
