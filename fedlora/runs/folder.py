"""The run folder: everything that a run leaves behind, and what a resumed run starts from.

    config.toml          the resolved configuration
    environment.json     versions, commit, hardware, command
    metrics.jsonl        one row per round
    clients.jsonl        one row per client and round
    federation.json      labels per client, names and rank caps of the adapted sites
    label_mix.png        labels per client
    tensorboard/         the same numbers as events, in one file
    checkpoints/         see `checkpoint`
    adapter/             the final adapter as a stock PEFT folder

Logs grow by appending; everything else is written whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora.config import RunConfig, load_config
from fedlora.errors import ConfigError, RunFolderError
from fedlora.files import disk_errors, is_temporary, plain, sweep, write_atomic
from fedlora.runs.holding import hold

if TYPE_CHECKING:  # who only watches a run does without torch
    from fedlora.runs.checkpoint import Checkpoint

FEDERATION = "federation.json"
LOGS = {"metrics": "metrics.jsonl", "clients": "clients.jsonl", "events": "tensorboard/events.out.tfevents.0.fedlora"}
_OWN = {
    *(file.partition("/")[0] for file in LOGS.values()), FEDERATION, "config.toml", "environment.json", "label_mix.png",
    "checkpoints", "adapter", "trackers.json", "deployment.json", "emulation.jsonl", "emulation.json", "emulation.png",
}  # fmt: skip


class RunFolder:
    """One run's folder on disk.

    Args:
        path: The folder; `create` or `open` make the object.
        config: The run's configuration.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path, self.config = path, config

    @staticmethod
    def create(path: Path, config: RunConfig) -> RunFolder:
        """Make a new run folder.

        Raises:
            RunFolderError: The folder cannot be written, or holds something already.
        """
        refuse_taken(path)
        new = not path.exists()
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        try:
            write_atomic(path / "config.toml", config.to_toml())
        except RunFolderError:
            if new:
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise
        return RunFolder(path, config)

    @staticmethod
    def open(path: Path) -> RunFolder:
        """Open the folder of a run.

        Raises:
            RunFolderError: There is no run in it.
        """
        if not holds_run(path):
            raise RunFolderError(f"{path} holds no run (no config.toml in it). Give the folder that `fedlora simulate` printed")
        try:
            return RunFolder(path, load_config(path / "config.toml"))
        except ConfigError as error:
            raise RunFolderError(f"{path / 'config.toml'} is not what a run{_of_version(path)} wrote: {error}") from None

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Hold the run for this process (see `fedlora.runs.holding.hold`)."""
        return hold(self.path)

    def refuse_other(self, config: RunConfig) -> None:
        """Raise RunFolderError where a run of another configuration lives here."""
        if self.config != config:
            raise RunFolderError(
                f"{self.path} was started with another configuration ({_difference(self.config, config)}). "
                "Resume it unchanged, or start a new run with --out"
            )

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint, verified, or None before the first (RunFolderError where it is damaged)."""
        from fedlora.runs.checkpoint import list_checkpoints, load_checkpoint

        found = list_checkpoints(self.checkpoints)
        return load_checkpoint(found[-1]) if found else None

    def log(self, name: str) -> Path:
        """Return the file of a log."""
        return self.path / LOGS[name]

    def append(self, log: str, rows: list[dict[str, Any]]) -> None:
        """Append rows to metrics.jsonl or clients.jsonl and wait until the disk has them; what is not finite becomes null."""
        append_rows(self.log(log), rows)

    def rows(self, log: str = "metrics") -> list[dict[str, Any]]:
        """Return the rows of a log."""
        path = self.log(log)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def log_bytes(self) -> dict[str, int]:
        """Return the present length of each log."""
        return {log: path.stat().st_size if (path := self.log(log)).exists() else 0 for log in LOGS}

    def clean(self, lengths: dict[str, int]) -> None:
        """Cut the logs back to what they were at a checkpoint, and remove what a killed process left unfinished.

        Events may have been thrown away; the logs that numbers are read from may not.

        Raises:
            RunFolderError: A log is shorter than the checkpoint says, so rows were lost by other hands.
        """
        have = self.log_bytes()
        for log in ("metrics", "clients"):
            if have[log] < lengths.get(log, 0):
                raise RunFolderError(
                    f"{self.log(log)} has {have[log]} bytes, the checkpoint counts {lengths[log]}: rows were removed. "
                    "Restore the file to resume"
                )
        for log in LOGS:
            want = lengths.get(log, 0)
            if have[log] > want:
                cut(self.log(log), want)
        for folder in (self.path, self.checkpoints):
            if folder.is_dir():
                sweep(folder)


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a log of JSON lines and wait until the disk has them; what is not finite becomes null."""
    with disk_errors(path), path.open("ab") as file:
        file.write("".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())


def cut(path: Path, length: int) -> None:
    """Cut a log back to a length in bytes."""
    with disk_errors(path):
        os.truncate(path, length)


def _of_version(path: Path) -> str:
    """Return " of fedlora ..." where a run's folder says that another version wrote it."""
    this = version("fedlora")
    try:
        wrote = json.loads((path / "environment.json").read_text(encoding="utf-8"))["packages"]["fedlora"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" of this version ({this}; it was version {wrote})" if wrote != this else ""


def holds_run(path: Path) -> bool:
    """Return whether a run lives in `path`."""
    return (path / "config.toml").is_file()


def refuse_taken(path: Path, argument: str = "--out") -> None:
    """Raise RunFolderError where `path` cannot become a new folder; nothing is written.

    Args:
        path: The folder.
        argument: What the user calls it.
    """
    other = f"Choose another {argument}"
    with disk_errors(path):
        if path.is_dir() and any(not is_temporary(inside) for inside in path.iterdir()):
            if holds_run(path) and argument == "--out":
                raise RunFolderError(f"{path} already holds a run. Go on with it by --resume {path}, or choose another --out")
            raise RunFolderError(f"{path} already holds {'a run' if holds_run(path) else 'other files'}. {other}")
        nearest = next(folder for folder in [path, *path.absolute().parents] if folder.exists())
        if not nearest.is_dir():
            raise RunFolderError(f"{nearest} is a file, not a folder. {other}")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise RunFolderError(f"{nearest} cannot be written by this user. {other}")


def refuse_own_file(path: Path) -> None:
    """Raise ConfigError where `path` is, or lies in, what a run wrote and is read from; what else is in its folder may go."""
    inside = path.resolve()
    for folder in inside.parents:
        first = inside.relative_to(folder).parts[0]
        if first in _OWN and (holds_run(folder) or (folder / LOGS["metrics"]).is_file()):
            raise ConfigError(f"--out {path} would write over {first} of the run in {folder}. Give another --out")


def default_folder(config: RunConfig) -> Path:
    """Return a new folder under runs/ that says when it was begun and with what."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    parts = [Path(config.model.name).name, Path(config.data.name).stem, config.method or config.adapter.method]
    base = Path("runs") / "-".join([stamp, *parts])
    count, folder = 2, base
    while folder.exists():
        folder, count = base.with_name(f"{base.name}-{count}"), count + 1
    return folder


def _difference(old: RunConfig, new: RunConfig) -> str:
    """Name the first keys in which two configurations differ."""
    pairs = zip(_flat(old.model_dump()).items(), _flat(new.model_dump()).values(), strict=False)
    changed = [f"{key}: {was!r} there, {now!r} here" for (key, was), now in pairs if was != now]
    return "; ".join(changed[:3])


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and key != "options" else {prefix + key: value}
    return flat
