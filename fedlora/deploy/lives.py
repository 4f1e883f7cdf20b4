"""How often each node has come to a SuperLink: what was delivered to an earlier life of a node is lost with it.

The SuperLink counts in one small file, beside its own process number; a server app that waits for a node looks there.
"""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

from fedlora.errors import FedLoRAError
from fedlora.files import write_json

SUPERLINK = "superlink.pid"
"""File of a deployment's state with the process of the SuperLink."""

LIVES = "lives.json"
"""File of a deployment's state with the times that each node has come, by Flower's id."""


class Lives:
    """Counts the times that each node comes.

    Args:
        path: The file; what is there is counted on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._counts = _read(path)
        self._lock = threading.Lock()

    def begin(self, node: int) -> None:
        """A node has come, by the id that Flower knows it by; where that cannot be written, nobody is told."""
        with self._lock:
            self._counts[str(node)] = self._counts.get(str(node), 0) + 1
            with contextlib.suppress(FedLoRAError):
                write_json(self.path, self._counts)


def lives(folder: Path, nodes: list[int]) -> list[str]:
    """Return what tells one life of each node's connection from the next: the SuperLink's, and the node's own.

    Args:
        folder: The deployment's state.
        nodes: Flower's ids.
    """
    superlink = ""
    with contextlib.suppress(OSError):
        superlink = (folder / SUPERLINK).read_text()
    counts = _read(folder / LIVES)
    return [f"{superlink} {counts.get(str(node), 0)}" for node in nodes]


def _read(path: Path) -> dict[str, int]:
    try:
        return {str(node): int(count) for node, count in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
