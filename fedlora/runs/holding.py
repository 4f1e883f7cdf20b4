"""One process at a time works on a run, and others can tell whether one does."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from fedlora.errors import RunFolderError

HOLDER = "holder.json"
"""There while a process works on a run, or after one was killed; says on which boot of which machine."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Held(Enum):
    """Whether a process works on a run."""

    yes = "yes"
    no = "no"
    unknown = "unknown"
    """It was begun on another machine, or before this one started anew."""


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the folder of a run for this process; the system lets go of it however the process ends.

    Raises:
        RunFolderError: Another process works on it.
    """
    with (path / "config.toml").open("rb") as file:
        try:
            _lock(file.fileno())
        except BlockingIOError:
            raise RunFolderError(f"another process works on {path}. Wait until it ends, or stop it") from None
        except (ImportError, OSError):  # not everywhere are there locks
            pass
        with contextlib.suppress(OSError):  # a run goes on without it
            (path / HOLDER).write_text(json.dumps({"boot": _boot(), "pid": os.getpid()}) + "\n", encoding="utf-8")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (path / HOLDER).unlink()


def held(path: Path) -> Held:
    """Return whether a process works on the run in a folder; looking disturbs nobody."""
    try:
        boot = json.loads((path / HOLDER).read_text(encoding="utf-8"))["boot"]
    except FileNotFoundError:
        return Held.no
    except (OSError, ValueError, KeyError, TypeError):  # it is being written
        return Held.unknown
    if boot is None or boot != _boot():
        return Held.unknown
    try:
        import fcntl

        with (path / "config.toml").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return Held.no
    except BlockingIOError:
        return Held.yes
    except (ImportError, OSError):
        return Held.unknown


def _lock(handle: int) -> None:
    """Take the lock, or raise BlockingIOError; somebody who only looks has it for a moment."""
    import fcntl

    for patience in (0.05, 0.1, 0.2, 0.0):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not patience:
                raise
            time.sleep(patience)


def _boot() -> str | None:
    """Return what names this boot of this machine, or None where the system does not say."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return None
