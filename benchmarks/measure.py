"""What the benchmarks share: clocks, medians and Markdown tables."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from fedlora.files import write_atomic
from fedlora.runs.environment import environment

FIELD = ("torch", "transformers", "peft", "flwr", "ray", "pfl", "sionna-no-rt", "mobile-env")
"""What fedlora is measured against, and with."""


@dataclass
class Timings:
    """Seconds of one contender, a value per round; the first round warms up and is kept apart."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    first: float = 0.0

    def add(self, wall: float, cpu: float, warm: bool) -> None:
        """Take one round."""
        if not warm:
            self.first = wall
            return
        self.wall.append(wall)
        self.cpu.append(cpu)


def timed(work: Callable[[], None], with_children: bool = False) -> tuple[float, float]:
    """Return (wall seconds, CPU seconds of this process) of `work`; `with_children` counts all processes that it started too."""
    before = _children_seconds() if with_children else 0.0
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, cpu + (_children_seconds() - before if with_children else 0.0)


def _children_seconds() -> float:
    seconds = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:  # it ended meanwhile
            continue
        seconds += times.user + times.system
    return seconds


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return (median, smallest, largest)."""
    return statistics.median(values), min(values), max(values)


def span(values: Sequence[float], digits: int = 2) -> str:
    """Return "median (smallest-largest)"."""
    median, low, high = spread(values)
    return f"{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column left, the others right."""
    widths = [max(len(row[index]) for row in [head, *rows]) for index in range(len(head))]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([line(head), line(rule), *map(line, rows)])


def compared(
    against: str,
    work: str,
    unit: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    times: Sequence[float] | None,
    check: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return one comparison as the summary of all benchmarks lists it (`run.py`).

    Args:
        against: Who fedlora is beside.
        work: What both did.
        unit: Of the figures, more is better.
        ours: fedlora's figures, one per turn.
        theirs: The other's, of the same turns.
        times: How many times as fast fedlora is, one per turn; None: the figures' ratios.
        check: The largest differences between what the two computed; None where they compute different things.
    """
    if times is None:
        times = [left / right for left, right in zip(ours, theirs, strict=True)]
    figures = {"ours": list(ours), "theirs": list(theirs), "times": list(times)}
    return {"against": against, "work": work, "unit": unit, **figures, "check": check}


def save(
    path: Path | None,
    results: dict[str, Any],
    comparisons: Sequence[dict[str, Any]] = (),
    left_out: dict[str, str] | None = None,
) -> None:
    """Write results with what they were measured on as JSON; None writes nothing.

    Args:
        path: Where to.
        results: All that was measured.
        comparisons: What of it the summary lists (see `compared`).
        left_out: Who could not be measured, and why.
    """
    if path is None:
        return
    content = {"environment": measured_on(), "comparisons": list(comparisons), "left_out": left_out or {}, **results}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, indent=1) + "\n", "measure again")


def versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> str:
    """Return one line that says what the figures were measured on."""
    return described(measured_on())


def measured_on() -> dict[str, Any]:
    """Return fedlora's record of an environment, with the versions of those that it is measured against."""
    found = environment()
    found["packages"] |= versions(FIELD)
    return found


def described(found: dict[str, Any]) -> str:
    """Return an environment in one line."""
    named = ", ".join(f"{name} {found['packages'][name]}" for name in FIELD if name in found["packages"])
    hardware = f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB"
    return f"{hardware}; Python {found['python']}, {named}; commit {found['commit']}"
