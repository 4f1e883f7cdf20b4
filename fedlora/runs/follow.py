"""Follow a run by the files that it writes, from any process that can read them."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from fedlora.config import RunConfig
from fedlora.errors import FedLoRAError, RunFolderError
from fedlora.runs.folder import LOGS, RunFolder, holds_run
from fedlora.runs.holding import Held, held
from fedlora.runs.logs import Tail
from fedlora.runs.progress import Progress

GRACE_S = 5.0
"""Seconds for which nobody may hold an unfinished run before it is called stopped: processes take turns at a run too."""

_SILENCE_S = 120.0


class StoppedError(FedLoRAError):
    """A run that ended, or went silent, before its last round."""


class Follower:
    """Tells a `Progress` what happens to a run.

    Args:
        path: The run's folder; it may not be there yet.
        progress: Who is told.
    """

    def __init__(self, path: Path, progress: Progress) -> None:
        self.path, self.progress = path, progress
        self.config: RunConfig | None = None
        self.last = -1
        """The newest round that was told."""
        self._rows: list[dict[str, Any]] = []
        self._metrics, self._clients = Tail(path / LOGS["metrics"]), Tail(path / LOGS["clients"])
        self._waiting: dict[int, list[dict[str, Any]]] = defaultdict(list)

    def look(self) -> bool:
        """Tell what is new; return whether there was anything.

        Raises:
            RunFolderError: The folder holds something else than a run.
        """
        if self.config is None:
            if not holds_run(self.path):
                if self.path.exists() and not self.path.is_dir():
                    raise RunFolderError(f"{self.path} is a file, not the folder of a run")
                return False
            self.config = RunFolder.open(self.path).config
            self.progress.start(self.config, [])
        done = self._metrics.read()  # first: a round's clients are written before its own row
        for client in self._clients.read():
            self._waiting[int(client["round"])].append(client)
        for row in done:
            number = int(row["round"])
            self.progress.round(row, self._waiting.pop(number, []))
            self._rows = [*(old for old in self._rows if old["round"] < number), row]
            self.last = number
        return bool(done)

    @property
    def complete(self) -> bool:
        """Whether all rounds are done and the adapter is there."""
        return self.config is not None and self.last >= self.config.rounds and (self.path / "adapter").is_dir()

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl that were told, each round once."""
        return self._rows


def follow(path: Path, progress: Progress, *, poll_s: float = 0.5, patience_s: float | None = None) -> list[dict[str, Any]]:
    """Follow a run until it ends; return its rows of metrics.jsonl.

    Args:
        path: The run's folder; where there is none yet, this waits for it.
        progress: Who is told.
        poll_s: Seconds between two looks.
        patience_s: Seconds without news after which this gives up; None: never.

    Raises:
        StoppedError: The run ended before its last round, or there was no news for `patience_s`.
        RunFolderError: The folder holds something else than a run.
    """
    follower = Follower(path, progress)
    news = free_since = time.monotonic()
    warned = False
    if not holds_run(path):
        progress.say(f"waiting for {path}: there is no run yet")
    while True:
        fresh, now = follower.look(), time.monotonic()
        if follower.complete:
            progress.stop(path, follower.rows())
            return follower.rows()
        if fresh:
            news, warned = now, False
        if follower.config is not None:
            state = held(path)
            if state is not Held.no or fresh:
                free_since = now
            elif now - free_since > GRACE_S:
                raise StoppedError(_ended(follower))
            if state is Held.unknown and now - news > _SILENCE_S and not warned:
                progress.say("nothing new for 2 minutes; whether the run still works cannot be seen from this machine")
                warned = True
        else:
            free_since = now
        if patience_s is not None and now - news > patience_s:
            what = f"no round of {path} ended" if follower.config else f"no run began in {path}"
            raise StoppedError(f"{what} within {patience_s:g} s. Look after it where it runs, or give --timeout more")
        time.sleep(poll_s)


def _ended(follower: Follower) -> str:
    """Say how far a run came that nobody works on any more."""
    path, config = follower.path, follower.config
    assert config is not None
    command = "fedlora serve --deployment DIR" if config.engine == "deployment" else "fedlora simulate"
    again = f"Go on with: {command} --resume {path}"
    if follower.last >= config.rounds:
        return f"all {config.rounds} rounds of {path} are done, but the adapter was not exported. {again}"
    done = (
        f"after round {follower.last} of {config.rounds}" if follower.last >= 0 else f"before the first of {config.rounds} rounds"
    )
    return f"nobody works on {path} any more: it stopped {done}. {again}"
