"""What a server app tells the process that watches it: one small file, written in place.

The file has its full size from the start and is overwritten, never grown, so that an error about a full disk can still be told.
A reader that meets a half-written file sees that it does not parse and looks again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from fedlora.files import disk_errors

_SIZE = 16384


@dataclass
class Status:
    """How far a server app is.

    Attributes:
        pid: Its process; 0: none has started yet.
        phase: "starting", "waiting" (for nodes), "running", "done" or "failed".
        said: What it said beside the rounds' results, for people, oldest first.
        nodes: Ids of the nodes that are online.
        first: Rounds that were done before it began; -1: not known yet.
        round: The round it works on.
        replies: Replies of that round that are there.
        asked: Clients that the round asked.
        waiting: Ids of the nodes whose replies are not there yet.
        last_error: The newest thing that went wrong at a client, for people.
        error: Why it failed; one or two sentences.
        exit_code: The exit code that belongs to `error`.
    """

    pid: int = 0
    phase: str = "starting"
    said: list[str] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    first: int = -1
    round: int = 0
    replies: int = 0
    asked: int = 0
    waiting: list[int] = field(default_factory=list)
    last_error: str = ""
    error: str = ""
    exit_code: int = 0


class StatusFile:
    """A status on disk.

    Args:
        path: Where it lies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        """Make the file, with all the room it will ever need (RunFolderError where there is none)."""
        with disk_errors(self.path):
            self.path.write_bytes(_packed(Status()))

    def write(self, status: Status) -> None:
        """Overwrite the status; where even that fails, nothing is told."""
        try:
            handle = os.open(self.path, os.O_WRONLY)
        except OSError:
            return
        try:
            os.pwrite(handle, _packed(status), 0)
        except OSError:
            pass
        finally:
            os.close(handle)

    def read(self) -> Status | None:
        """Return the status, or None where it cannot be read just now."""
        try:
            found = json.loads(self.path.read_bytes())
            return Status(**{entry.name: found[entry.name] for entry in fields(Status)})
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _packed(status: Status) -> bytes:
    body = asdict(status)
    data = json.dumps(body).encode()
    if len(data) > _SIZE:  # thousands of nodes: their names give way, what went wrong stays
        short = {key: value[:1000] for key, value in body.items() if isinstance(value, str)}
        data = json.dumps(body | short | {"nodes": body["nodes"][:300], "waiting": body["waiting"][:100]}).encode()
    return data.ljust(_SIZE)
