"""Follow a run by the files that it writes, from any process that can read them."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from fedlora.config import RunConfig
from fedlora.errors import FedLoRAError, RunFolderError, reason
from fedlora.runs.folder import FEDERATION, LOGS, RunFolder, holds_run
from fedlora.runs.holding import HOLDER, Held, held
from fedlora.runs.logs import Tail
from fedlora.runs.progress import Progress
from fedlora.runs.read import is_run
from fedlora.runs.rows import amount, numbers_only, placed

GRACE_S = 5.0
"""Seconds for which nobody may hold an unfinished run before it is called stopped: processes take turns at a run too."""

_SILENCE_S = 120.0

# A copy of a run that is under way may have any of these before it has config.toml.
_OF_A_RUN = {"adapter", "checkpoints", "environment.json", "label_mix.png", "tensorboard", FEDERATION, HOLDER, *LOGS.values()}


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
                _refuse_others(self.path)
                return False
            if not is_run(self.path):
                raise RunFolderError(
                    f"{self.path} is the folder of something else than a federated run, such as the training of a policy. "
                    "Give the folder that `fedlora simulate` printed"
                )
            self.config = RunFolder.open(self.path).config
            self.progress.start(self.config, [])
        rows = self._sound(self._metrics, "metrics")  # first: a round's clients are written before its own row
        for client in self._sound(self._clients, "clients"):
            self._waiting[client["round"]].append(client)
        for row in map(numbers_only, rows):
            number = row["round"]
            self.progress.round(row, self._waiting.pop(number, []))
            self._rows = [*(old for old in self._rows if old["round"] < number), row]
            self.last = number
        return bool(rows)

    def _sound(self, tail: Tail, log: str) -> list[dict[str, Any]]:
        """Return the new rows of a log that have a place; say how many have none, and what is no row at all."""
        before = tail.damaged
        rows = tail.read()
        good = [row for row in rows if placed(row, log)]
        if bad := len(rows) - len(good) + tail.damaged - before:
            self.progress.say(f"{LOGS[log]}: {amount(bad, 'damaged row')} passed over")
        return good

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
    warned = waiting = False
    while True:
        fresh, now = follower.look(), time.monotonic()
        if follower.config is None and not waiting:
            progress.say(f"waiting for {path}: there is no run yet")
            waiting = True
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


def _refuse_others(path: Path) -> None:
    """Raise RunFolderError where no run can begin: a folder without a run that holds other things, or no folder."""
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file, not the folder of a run")
    try:
        names = sorted(inside.name for inside in path.iterdir() if not inside.name.startswith("."))
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {reason(error)}") from None
    if LOGS["metrics"] in names:
        raise RunFolderError(
            f"{path} has {LOGS['metrics']} but no config.toml, so it is no run that goes on. "
            "`fedlora report` shows what is there; a run's whole folder can be followed"
        )
    if names and _OF_A_RUN.isdisjoint(names):
        found = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise RunFolderError(f"{path} holds no run but {found}. Give the folder that `fedlora simulate` printed")


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
