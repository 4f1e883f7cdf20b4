"""What the studies share: intervals over few seeds, what a given accuracy cost, numbers for git, tables inside a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from fedlora.files import write_atomic


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and the half width of the 95 % interval by Student's t; None for a single value."""
    half = None
    if len(values) > 1:
        half = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return float(np.mean(values)), half


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Return the same as plain data."""
    mean, half = spread(values)
    return {"mean": mean, "half_width_95": half}


def first_reached(accuracy: Sequence[float | None], target: float) -> int | None:
    """Return the position of the first accuracy that is no less than the target, or None; None is an accuracy not measured."""
    return next((index for index, value in enumerate(accuracy) if value is not None and value >= target), None)


def lean(tree: Any, drop: Sequence[str] = (), digits: int = 6) -> Any:
    """Return a tree of plain data with numbers to a few digits and without the keys in `drop`."""
    if isinstance(tree, Mapping):
        return {key: lean(value, drop, digits) for key, value in tree.items() if key not in drop}
    if isinstance(tree, list | tuple):
        return [lean(item, drop, digits) for item in tree]
    return float(f"{tree:.{digits}g}") if isinstance(tree, float) else tree


def write_rows(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a tree as JSON, atomically, with one line for each item of its lists: short for git, and each change is one line."""
    parts = []
    for key, value in tree.items():
        if isinstance(value, list):
            text = "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]" if value else "[]"
        else:
            text = json.dumps(value, indent=2).replace("\n", "\n  ")
        parts.append(f"  {json.dumps(key)}: {text}")
    write_atomic(path, "{\n" + ",\n".join(parts) + "\n}\n")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table; the first `left` columns are aligned to the left, the others to the right."""
    rule = [":--" if index < left else "--:" for index in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


def fill(page: Path, sections: Mapping[str, str]) -> None:
    """Write texts between a page's markers `<!-- name -->` and `<!-- /name -->`; ValueError where a marker is missing."""
    text = page.read_text(encoding="utf-8")
    for name, content in sections.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not begin or not end:
            raise ValueError(f"{page} has no markers <!-- {name} --> and <!-- /{name} -->")
        text = f"{before}{begin}{content.strip()}\n{end}{after}"
    write_atomic(page, text)
