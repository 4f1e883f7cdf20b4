"""Rows of a run's logs as readers can use them: each place once, in order, and every gap named."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from fedlora.runs import fields
from fedlora.runs.folder import LOGS

Rows = list[dict[str, Any]]

_PLACE = {"metrics": ("round",), "clients": ("round", "client")}
# What every row has a number for, so that null is a gap too: sums and clocks are made of these.
_NUMBERS = {
    "metrics": {
        "uplink_bytes", "downlink_bytes", "clients_selected", "clients_failed", "wall_time_s", "virtual_time_s", "real_time_s",
        "energy_j", "clients_dropped", "clients_late",
    },
    "clients": {"mean_rank", "downlink_bytes", "uplink_bytes"},
}  # fmt: skip
_KINDS = {"status": str, "ranks": list}
_MEASURED = (fields.METRICS | fields.WORLD_METRICS | fields.NODE_METRICS).keys() - fields.TEXTS
_MOST_SPANS = 6


def placed(row: dict[str, Any], log: str) -> bool:
    """Return whether a row of "metrics" or "clients" says where it belongs: its round, and its client."""
    return all(type(row.get(key)) is int and row[key] >= 0 for key in _PLACE[log])


def numbers_only(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of "metrics" with None where a column of numbers holds something else."""
    return {name: None if name in _MEASURED and not isinstance(value, int | float) else value for name, value in row.items()}


def usable(rows: Rows, log: str, missing: list[str]) -> Rows:
    """Return the rows that have a place, each place once, in order; say in `missing` what was left out, and what is not there.

    Args:
        rows: Rows of a log as they stand in it.
        log: "metrics" or "clients".
        missing: What the run's folder lacks, a phrase each; more are added.
    """
    key, file = _PLACE[log], LOGS[log]
    good = [row for row in rows if placed(row, log)]
    if len(good) < len(rows):
        missing.append(f"{file}: {amount(len(rows) - len(good), 'row')} without {' or '.join(key)} passed over")
    newest = {tuple(row[part] for part in key): row for row in good}
    if len(newest) < len(good):
        times = Counter(tuple(row[part] for part in key) for row in good)
        again = {place[0] for place, count in times.items() if count > 1}
        missing.append(f"{file}: rows of {rounds_text(again)} are there more than once; the last of each counts")
    kept = [newest[place] for place in sorted(newest)]
    if log == "metrics":
        kept = [numbers_only(row) for row in kept]
        known = [row["round"] for row in kept]
        absent = [(one + 1, two - 1) for one, two in zip([-1, *known], known, strict=False) if two > one + 1]
        if absent:
            missing.append(f"{file}: {spans_text(absent)}; sums are of the others")
    missing += [f"{file}: {text}" for text in _lacking(kept, log)]
    return kept


def _lacking(rows: Rows, log: str) -> list[str]:
    """Return which fields which rows do not have."""
    known = fields.METRICS if log == "metrics" else fields.CLIENTS
    others = [name for row in rows for name in row] if log == "metrics" else []  # a client's row depends on what became of it
    wanted = dict.fromkeys([*known, *others])
    names: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name in wanted:
        gaps = tuple(place for place, row in enumerate(rows) if _gap(row, name, log))
        if gaps:
            names[gaps].append(name)
    found = []
    for gaps, lacked in names.items():
        if len(gaps) == len(rows):
            where = "every row"
        elif log == "metrics":
            where = rounds_text(rows[place]["round"] for place in gaps)
        else:
            where = amount(len(gaps), "row")
        found.append(f"{', '.join(lacked)} of {where}")
    return found


def _gap(row: dict[str, Any], name: str, log: str) -> bool:
    value = row.get(name)
    if name in _NUMBERS[log]:
        return not isinstance(value, int | float) or not math.isfinite(value)
    return not isinstance(value, _KINDS[name]) if name in _KINDS else name not in row


def rounds_text(rounds: Iterable[int]) -> str:
    """Return rounds as people write them: "round 3", "rounds 0 to 2, 5"."""
    spans: list[tuple[int, int]] = []
    for number in sorted(rounds):
        if spans and number == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    return spans_text(spans)


def spans_text(spans: Sequence[tuple[int, int]]) -> str:
    """Return spans of rounds, first and last, as people write them."""
    texts = [f"{first}" if first == last else f"{first} to {last}" for first, last in spans[:_MOST_SPANS]]
    more = ", ..." if len(spans) > _MOST_SPANS else ""
    return f"round{'' if texts == [str(spans[0][0])] else 's'} {', '.join(texts)}{more}"


def amount(count: int, what: str) -> str:
    """Return "1 row" or "3 rows"."""
    return f"{count} {what}{'' if count == 1 else 's'}"
