"""Doorbell: one process of a node tells another that there is work, so that the other need not look all the time.

A named pipe: whoever rings writes a byte, whoever waits sleeps until there is one. Where a system has none the wait is a sleep.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from pathlib import Path

DOORBELL = "FEDLORA_DOORBELL"
"""Environment variable with the path of the node's doorbell."""


class Doorbell:
    """A bell at a path that both sides know.

    Args:
        path: Made by whoever comes first.
    """

    def __init__(self, path: Path) -> None:
        self._pipe: int | None = None
        with contextlib.suppress(OSError, AttributeError):
            with contextlib.suppress(FileExistsError):
                os.mkfifo(path, 0o600)
            self._pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # both ways: it never blocks and never ends

    def ring(self) -> None:
        """Wake whoever waits; who is not waiting yet will not wait."""
        if self._pipe is not None:
            with contextlib.suppress(OSError):  # full of rings that nobody heard
                os.write(self._pipe, b"!")

    def wait(self, seconds: float) -> None:
        """Sleep until it rings, at most so many seconds."""
        if self._pipe is None:
            time.sleep(seconds)
        elif select.select([self._pipe], [], [], seconds)[0]:
            os.read(self._pipe, 1 << 12)
