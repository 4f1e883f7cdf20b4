"""What the benchmarks share: clocks, medians and Markdown tables."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fedlora.runs.environment import environment


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


def save(path: Path | None, results: dict[str, Any]) -> None:
    """Write results with what they were measured on as JSON; None writes nothing."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"environment": environment(), **results}, indent=1) + "\n", encoding="utf-8")


def machine() -> str:
    """Return one line that says what the figures were measured on."""
    found = environment()
    versions = ", ".join(
        f"{name} {found['packages'].get(name, '-')}" for name in ("torch", "transformers", "peft", "flwr", "ray")
    )
    hardware = f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB"
    return f"{hardware}; Python {found['python']}, {versions}; commit {found['commit']}"
