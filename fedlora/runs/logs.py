"""Logs of JSON lines as readers find them: whole, still growing, cut off, or damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Tail:
    """The rows that a log of JSON lines has gained since the last look.

    Args:
        path: The log; it may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._at = path, 0
        self.damaged = 0
        """Lines that were no rows, and were passed over."""

    def read(self) -> list[dict[str, Any]]:
        """Return the new rows; a line that is still being written waits for the next look.

        A log that has become shorter was cut back by a resumed run: what comes after the cut is new.
        """
        try:
            with self.path.open("rb") as file:
                self._at = min(self._at, file.seek(0, 2))
                file.seek(self._at)
                new = file.read()
        except OSError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        rows = []
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                rows.append(row)
            else:
                self.damaged += 1
        return rows
