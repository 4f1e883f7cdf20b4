"""Comparisons of policies (`fedlora compare`): scores with their intervals, and what was sent for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedlora.report.charts import GREY, Axis, Chart, Floats, Heat, Line, Mark, Panel, Points, Section, Table, one, style
from fedlora.runs.progress import size

Rows = Sequence[Mapping[str, Any]]


def is_comparison(found: Any) -> bool:
    """Return whether plain data hold policies in worlds as `fedlora compare` writes them."""
    worlds = found.get("worlds") if isinstance(found, dict) else None
    return isinstance(worlds, dict) and bool(worlds) and all(_are_rows(rows) for rows in worlds.values())


def _are_rows(rows: Any) -> bool:
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(isinstance(row, dict) and "policy" in row and "score" in row for row in rows)
    )


def comparison(name: str, found: dict[str, Any]) -> list[Section]:
    """Return a section per world, and one of all worlds together where there are several.

    Args:
        name: What the comparison is called in the report; empty where it is the only thing in it.
        found: compare.json, or a study that holds `worlds` in the same form and conditions of them under `unlike`.
    """
    config: dict[str, Any] = found["config"] if isinstance(found.get("config"), dict) else {}
    worlds: dict[str, Rows] = dict(found["worlds"])
    prefix = f"{name}: " if name else ""
    sections = [_world(prefix + world, world, rows, config) for world, rows in worlds.items()]
    for world, conditions in (found.get("unlike") or {}).items():
        worlds |= {f"{world}, {condition}": rows for condition, rows in conditions.items() if _are_rows(rows)}
    if len(worlds) > 1:
        sections.insert(0, Section("worlds", f"{prefix}all worlds", [_overview(worlds, config)]))
    return sections


def _world(title: str, world: str, rows: Rows, config: Mapping[str, Any]) -> Section:
    charts = [_scores(rows, config), _differences(rows, config), _pareto(rows, config)]
    return Section(f"world-{world}", title, [chart for chart in charts if chart], [_table(rows, config)])


def _interval(row: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    """Return value, low and high of an interval; NaN where it was not measured."""
    found = row.get(key)
    if not isinstance(found, dict):
        return (np.nan, np.nan, np.nan)
    return tuple(np.nan if found.get(part) is None else float(found[part]) for part in ("value", "low", "high"))  # type: ignore[return-value]


def _columns(rows: Rows, key: str) -> Floats:
    """Return value, low and high of all rows, `[3, rows]`."""
    return np.array([_interval(row, key) for row in rows]).reshape(-1, 3).T


def _frame(rows: Rows, config: Mapping[str, Any]) -> tuple[tuple[float, float] | None, list[str]]:
    """Return the range of scores to show, and who is below it: one policy far below the lower yardstick would hide all others."""
    value, _, high = _columns(rows, "score")
    names = [row["policy"] for row in rows]
    yardsticks = [names.index(config[key]) for key in ("low", "high") if config.get(key) in names]
    if len(yardsticks) == 2 and value[yardsticks[1]] > value[yardsticks[0]]:
        least = value[yardsticks[0]] - (value[yardsticks[1]] - value[yardsticks[0]])
    else:
        middle = np.nanmedian(value)
        least = middle - 3 * (np.nanmax(value) - middle) if np.nanmax(value) > middle else -np.inf
    hidden = [name for name, top in zip(names, high, strict=True) if top < least]
    if not hidden:
        return None, []
    margin = 0.05 * (np.nanmax(high) - least)
    return (float(least), float(np.nanmax(high) + margin)), hidden


def _ladder(rows: Rows, key: str, label: str, shown: tuple[float, float] | None, dropped: Sequence[str] = ()) -> Panel:
    """Return one line per policy: the mean and its interval along x."""
    value, low, high = _columns(rows, key)
    names = tuple(row["policy"] for row in rows)
    keep = np.array([name not in dropped for name in names]) & np.isfinite(value)
    at = np.arange(float(len(rows)))
    marks: list[Mark] = [Points(value[keep], at[keep], label, 0, 0, x_range=(low[keep], high[keep]), legend=False)]
    height = int(90 + 26 * len(rows))
    return Panel(Axis(label, range=shown), Axis("", "names", names, reverse=True), tuple(marks), height)


def _scores(rows: Rows, config: Mapping[str, Any]) -> Chart:
    metric = str(config.get("metric", "score"))
    shown, hidden = _frame(rows, config)
    caption = (
        f"Mean over {config['episodes']} test episodes and its 95 % interval." if "episodes" in config else "Mean, 95 % interval."
    )
    if hidden:
        caption += f" Too low to be shown: {', '.join(hidden)}."
    return one("scores", f"{metric.capitalize()} of each policy", _ladder(rows, "score", metric, shown, hidden), caption=caption)


def _pareto(rows: Rows, config: Mapping[str, Any]) -> Chart | None:
    score, sent = _columns(rows, "score"), _columns(rows, "bytes") / 1e6
    if not np.isfinite(sent[0]).any():
        return None
    _, hidden = _frame(rows, config)
    entries = config.get("policies") or {}
    marks: list[Mark] = []
    for index, row in enumerate(rows):
        if row["policy"] not in hidden:
            x, y = sent[:, index : index + 1], score[:, index : index + 1]
            colour, _, shape = style(index)
            marks.append(Points(x[0], y[0], row["policy"], colour, shape, (x[1], x[2]), (y[1], y[2])))
    bound = {label for label, entry in entries.items() if (entry.get("name") or label) == "oracle"} | {"oracle"}
    points = [(sent[0, index], score[0, index]) for index, row in enumerate(rows) if row["policy"] not in {*bound, *hidden}]
    front = np.array(_front(points))
    if len(front) > 1:
        marks.insert(0, Line(front[:, 0], front[:, 1], "best for its bytes", GREY, 0, None))
    panel = Panel(Axis("sent per episode (MB)"), Axis(str(config.get("metric", "score"))), tuple(marks), 420)
    caption = "Means and 95 % intervals; the line joins policies that no other one beats in both (without the oracle)."
    return one("pareto", "Score against bytes", panel, caption=caption, wide=True)


def _front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (bytes, score) that no other one beats in both, by bytes."""
    front: list[tuple[float, float]] = []
    for sent, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((sent, score))
    return front


def _differences(rows: Rows, config: Mapping[str, Any]) -> Chart | None:
    reference = config.get("reference")
    others = [row for row in rows if row["policy"] != reference and row["policy"] not in _frame(rows, config)[1]]
    if not others or not np.isfinite(_columns(others, "difference")[0]).any():
        return None
    label = f"paired difference to {reference}" if reference else "paired difference to the reference"
    panel = _ladder(others, "difference", label, None)
    caption = "On the same channels; 95 % intervals. An interval that leaves out 0 is a difference."
    zero = Line(np.zeros(2), np.array([-0.5, len(others) - 0.5]), "0", GREY, 1, None, legend=False)
    panel = Panel(panel.x, panel.y, (zero, *panel.marks), panel.height)
    return one("differences", "Difference to the reference", panel, caption=caption)


def _overview(worlds: Mapping[str, Rows], config: Mapping[str, Any]) -> Chart:
    """Return normalised scores of every policy in every world as one table of colours."""
    names = list(dict.fromkeys(row["policy"] for rows in worlds.values() for row in rows))
    z = np.full((len(names), len(worlds)), np.nan)
    for place, rows in enumerate(worlds.values()):
        for row in rows:
            z[names.index(row["policy"]), place] = _interval(row, "normalised")[0]
    heat = Heat(
        z,
        np.arange(float(len(worlds))),
        np.arange(float(len(names))),
        "normalised score",
        "viridis",
        low=-0.5,
        high=1.0,
        written=True,
    )
    x, y = Axis("", "names", tuple(worlds)), Axis("", "names", tuple(names), reverse=True)
    low, high = config.get("low", "random-feasible"), config.get("high", "oracle")
    caption = f"0: {low}; 1: {high}. What is below -0.5 has the colour of -0.5. Blank: not run there, or not normalised."
    return one(
        "normalised", "Normalised score in each world", Panel(x, y, (heat,), 190 + 24 * len(names)), caption=caption, wide=True
    )


def _table(rows: Rows, config: Mapping[str, Any]) -> Table:
    head = (
        "policy",
        str(config.get("metric", "score")),
        "difference",
        "normalised",
        "accuracy",
        "sent",
        "airtime",
        "feasible",
        "rank",
        "ρ(SNR)",
    )
    cells = [
        (
            row["policy"]
            + "".join(f" {key}={value:g}" for key, value in (row.get("options") or {}).items() if _is_number(value)),
            f"{_interval(row, 'score')[0]:.4g}",
            _about(_interval(row, "difference")),
            _cell(_interval(row, "normalised")[0], "{:.3f}"),
            _cell(row.get("accuracy"), "{:.3f}"),
            size(_interval(row, "bytes")[0]) if np.isfinite(_interval(row, "bytes")[0]) else "-",
            _cell(row.get("latency_s"), "{:.2f} s"),
            _cell(row.get("feasible"), "{:.1%}"),
            _cell(row.get("mean_rank"), "{:.2f}"),
            _cell(row.get("snr_correlation"), "{:.2f}"),
        )
        for row in rows
    ]
    note = (
        "± is half a 95 % interval; * marks paired differences whose interval leaves out 0; ρ: rank correlation of rank and SNR."
    )
    return Table("Policies in numbers", head, tuple(cells), note)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any, form: str) -> str:
    return form.format(value) if _is_number(value) and np.isfinite(value) else "-"


def _about(interval: tuple[float, float, float]) -> str:
    value, low, high = interval
    if not np.isfinite(value) or low == value == high:
        return "-"
    return f"{value:+.3g} ± {(high - low) / 2:.2g}" + (" *" if low > 0 or high < 0 else "")
