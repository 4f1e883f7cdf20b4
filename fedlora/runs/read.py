"""A run's folder as tables, for reports and notebooks: what is there is read, what is not is named.

Nothing here trains, and nothing needs torch. A folder that is half written, that another version wrote or that lost a file gives
what it has; only a folder without any run is refused.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedlora.config import RunConfig, load_config
from fedlora.errors import ConfigError, RunFolderError
from fedlora.runs import fields
from fedlora.runs.folder import FEDERATION, LOGS
from fedlora.runs.logs import Tail
from fedlora.runs.rows import amount, spans_text, usable
from fedlora.runs.summary import summary

if TYPE_CHECKING:
    from pandas import DataFrame

EMULATION = "emulation.jsonl"
"""What `fedlora emulate` predicted and measured."""


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth
class Federation:
    """Who takes part and what is trained: federation.json.

    Attributes:
        labels: Names of the labels; empty where the data have none.
        counts: Examples of each label that each client has, `[clients, labels]` (`[clients, 1]` without labels).
        sites: Names of the adapted projections, in the order of rank vectors.
        caps: Largest rank of each.
    """

    labels: list[str]
    counts: NDArray[np.int64]
    sites: list[str]
    caps: list[int]


@dataclass(frozen=True, eq=False)  # tables do not either: a record is the same as itself
class RunRecord:
    """What is known of a run.

    Attributes:
        path: Its folder, absolute, so that it is found from wherever the process goes.
        config: Its configuration; None where this version cannot read it.
        config_text: config.toml as it stands; empty where there is none.
        metrics: One row per round, round 0 being the untouched model: the columns of metrics.jsonl.
        clients: One row per client and round: the columns of clients.jsonl; `ranks` holds lists.
        environment: Versions, commit, hardware and command; empty where it was not written.
        federation: Labels per client and names of sites; None where it was not written.
        emulation: Rows of emulation.jsonl; empty for a run that was not emulated.
        missing: What a whole run folder has and this one has not, a sentence each.
        given: The folder as it was named, for texts; None: as `path`.
    """

    path: Path
    config: RunConfig | None
    config_text: str
    metrics: DataFrame
    clients: DataFrame
    environment: dict[str, Any] = field(default_factory=dict)
    federation: Federation | None = None
    emulation: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    given: Path | None = None

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    @property
    def shown(self) -> Path:
        """The folder as it was named."""
        return self.given or self.path

    @property
    def rounds_done(self) -> int:
        """Rounds that are in the log."""
        return int(self.metrics["round"].max()) if len(self.metrics) else 0

    @property
    def rounds(self) -> int | None:
        """Rounds that the run was to have, where its configuration says so."""
        return self.config.rounds if self.config else None

    @property
    def complete(self) -> bool:
        """Whether all rounds are there and the adapter is exported."""
        return self.rounds is not None and self.rounds_done >= self.rounds and (self.path / "adapter").is_dir()

    def rows(self, log: str = "metrics") -> list[dict[str, Any]]:
        """Return the rows of "metrics" or "clients" as plain data, None for what was not measured."""
        frame = self.metrics if log == "metrics" else self.clients
        return [{key: None if _void(value) else value for key, value in row.items()} for row in frame.to_dict("records")]

    def summary(self) -> dict[str, Any]:
        """Return the run's outcome in a few numbers; empty before its first row, None for what no row has."""
        rows = self.rows()
        unknown = {name for name in self.metrics if self.metrics[name].isna().all()}
        return {name: None if name in unknown else value for name, value in summary(rows).items()} if rows else {}

    def adapter(self) -> Path:
        """Return the folder of the final adapter, for `peft.PeftModel.from_pretrained(model, run.adapter())`.

        Raises:
            RunFolderError: The run has not ended.
        """
        folder = self.path / "adapter"
        if not folder.is_dir():
            raise RunFolderError(
                f"{self.path} has no adapter yet: the run has not ended. Resume it, or take a checkpoint's by "
                f"`fedlora export {self.path} OUT`"
            )
        return folder


def read_run(path: str | Path) -> RunRecord:
    """Return what is known of the run in a folder.

    Raises:
        RunFolderError: There is no run in it.
    """
    path = Path(path)
    if not is_run(path):
        raise RunFolderError(f"{path} holds no run ({_why(path)}). Give the folder that `fedlora simulate` printed")
    missing: list[str] = []
    config, text = _config(path, missing)
    metrics, clients = (_table(path, log, missing) for log in ("metrics", "clients"))
    record = RunRecord(
        path.resolve(), config, text, metrics, clients, _environment(path, missing), _federation(path, missing),
        Tail(path / EMULATION).read(), missing, path,
    )  # fmt: skip
    if record.rounds is not None and record.rounds_done < record.rounds:
        left = spans_text([(record.rounds_done + 1, record.rounds)])
        missing.append(f"{left} of {record.rounds}: the run goes on, or was cut off")
    elif not (path / "adapter").is_dir():
        missing.append("adapter/: the final adapter was not exported")
    return record


def is_run(path: Path) -> bool:
    """Return whether a folder holds a federated run, or what is left of one."""
    row = _first_row(path / LOGS["metrics"])
    if row is not None and not row.keys().isdisjoint(("round", "iteration")):
        return "round" in row
    if not (path / "config.toml").is_file():
        return False
    try:  # a run that has no row yet; the folder of a policy's training has a config.toml of its own kind
        return "model" in tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True


def _why(path: Path) -> str:
    if not path.exists():
        return "there is no such folder"
    return "no config.toml or metrics.jsonl in it" if path.is_dir() else "it is a file"


def _first_row(path: Path) -> dict[str, Any] | None:
    try:
        with path.open(encoding="utf-8") as file:
            row = json.loads(file.readline())
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) else None


def _config(path: Path, missing: list[str]) -> tuple[RunConfig | None, str]:
    file = path / "config.toml"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        missing.append(f"config.toml: {_reason(error)}")
        return None, ""
    try:
        return load_config(file), text
    except ConfigError as error:
        missing.append(f"config.toml, as typed keys: {error} (another version wrote it, or a hand)")
        return None, text


def _table(path: Path, log: str, missing: list[str]) -> DataFrame:
    """Return a log as a table; one without any row still has the columns that a summary asks for."""
    import pandas

    file = path / LOGS[log]
    tail = Tail(file)
    found = tail.read()
    if not file.is_file():
        missing.append(f"{LOGS[log]}: there is no such file")
    elif not found and log == "metrics":
        missing.append(f"{LOGS[log]}: no round is in it yet")
    if tail.damaged:
        missing.append(f"{LOGS[log]}: {amount(tail.damaged, 'damaged line')} passed over")
    frame = pandas.DataFrame(usable(found, log, missing))
    wanted = fields.METRICS if log == "metrics" else fields.CLIENTS
    measured = (fields.METRICS | fields.WORLD_METRICS | fields.NODE_METRICS) if log == "metrics" else fields.CLIENTS
    for column in [*wanted, *(name for name in frame if name in measured and name not in wanted)]:
        numeric = column not in fields.TEXTS
        if column not in frame:
            frame[column] = pandas.Series([np.nan if numeric else None] * len(frame), dtype=float if numeric else object)
        elif numeric:
            frame[column] = pandas.to_numeric(frame[column], errors="coerce")
    return frame.astype(dict.fromkeys(("round",) if log == "metrics" else ("round", "client"), int)) if len(frame) else frame


def _environment(path: Path, missing: list[str]) -> dict[str, Any]:
    try:
        found = json.loads((path / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        missing.append(f"environment.json: {_reason(error)}")
        return {}
    return found if isinstance(found, dict) else {}


def _federation(path: Path, missing: list[str]) -> Federation | None:
    """Return labels per client and sites, or None where they are not there in one shape."""
    try:
        found = json.loads((path / FEDERATION).read_text(encoding="utf-8"))
        counts = np.array(found["counts"], np.int64)
        labels, sites = [str(name) for name in found["labels"]], [str(name) for name in found["sites"]]
        if counts.ndim != 2 or counts.shape[1] != max(1, len(labels)):
            raise ValueError("labels and counts differ")
        return Federation(labels, counts, sites, [int(cap) for cap in found["caps"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        missing.append(f"{FEDERATION}, labels per client and names of sites: {_reason(error)}")
        return None


def _reason(error: Exception) -> str:
    return "there is no such file" if isinstance(error, FileNotFoundError) else f"it cannot be read ({error})"


def _void(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))
