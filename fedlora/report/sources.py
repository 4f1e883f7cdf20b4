"""What lies at a path: a run, a comparison of policies, a study's results, or the training of a policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlora.errors import RunFolderError, reason
from fedlora.report.policies import is_comparison
from fedlora.runs.folder import LOGS
from fedlora.runs.logs import Tail
from fedlora.runs.read import RunRecord, is_run, read_run

_RESULTS = ("compare.json", "results.json")


@dataclass
class Source:
    """One thing to report on.

    Attributes:
        name: What the report calls it.
        path: Where it lies.
        run: The run, where it is one.
        found: Plain data of a comparison or a study, where it is one.
        rows: Rows of a policy's training, where it is one.
    """

    name: str
    path: Path
    run: RunRecord | None = None
    found: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """Return what lies at each path; names are made different.

    Raises:
        RunFolderError: There is nothing at one of them that a report can be made of.
    """
    sources = [_find(path) for path in paths]
    for source in sources:
        same = [other for other in sources if other.name == source.name]
        if len(same) > 1:
            for number, other in enumerate(same, 1):
                parent = other.path.resolve().parent.name
                other.name = (
                    f"{parent}/{other.name}"
                    if len({one.path.resolve().parent.name for one in same}) == len(same)
                    else f"{other.name} ({number})"
                )
    return sources


def _find(path: Path) -> Source:
    if path.is_file():
        return _json(path, path.stem if path.stem not in ("compare", "results") else path.resolve().parent.name)
    if is_run(path):
        run = read_run(path)
        return Source(run.name, path, run)
    name = path.resolve().name
    for file in _RESULTS:
        if (path / file).is_file():
            return _json(path / file, name)
    rows = Tail(path / LOGS["metrics"]).read()
    if rows and "iteration" in rows[0]:
        return Source(name, path, rows=rows)
    if not path.exists():
        raise RunFolderError(f"{path}: there is no such folder or file. Give the folder that `fedlora simulate` printed")
    raise RunFolderError(
        f"{path} holds nothing to report on (no config.toml or metrics.jsonl, no compare.json, no results.json). "
        "Give the folder of a run or of a comparison, or a study's JSON file"
    )


def _json(path: Path, name: str) -> Source:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path} cannot be read as JSON: {reason(error)}. Give the folder of a run, or a study's JSON file"
        ) from None
    if not isinstance(found, dict):
        raise RunFolderError(
            f"{path} holds no results (a JSON object is wanted). Give the folder of a run, or a study's JSON file"
        )
    return Source(name, path, found=found)


def is_policies(source: Source) -> bool:
    """Return whether it is a comparison of policies."""
    return is_comparison(source.found)
