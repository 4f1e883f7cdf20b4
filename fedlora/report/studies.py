"""Results of studies as JSON of any shape: what looks like intervals, repetitions or courses is drawn.

An interval is {"value", "low", "high"} or {"mean", "half_width_95"}; repetitions are numbers under seeds (keys that are whole
numbers) or short lists; a course is a list of at least `_COURSE` numbers. Numbers of one name share a figure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedlora.report.charts import Axis, Chart, Line, Mark, Panel, Points, Section, one, style

_COURSE = 8
_MOST_CHARTS = 30
_MOST_LINES = 21
_MOST_ENTRIES = 60
_NOT_RESULTS = {"environment", "config", "seeds"}


@dataclass
class _Metric:
    """Everything found under one name: label -> interval, repetitions, or course."""

    intervals: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    courses: dict[str, list[float]] = field(default_factory=dict)


def study(name: str, found: dict[str, Any]) -> Section:
    """Return what can be drawn of a study's results."""
    metrics: dict[str, _Metric] = {}
    for key, value in found.items():
        if key not in _NOT_RESULTS:
            _walk((key,), value, metrics)
    charts = [chart for metric, entry in metrics.items() for chart in _charts(metric, entry)]
    section = Section("study", name, charts[:_MOST_CHARTS])
    if len(charts) > _MOST_CHARTS:
        section.notes.append(f"{len(charts) - _MOST_CHARTS} more figures were left out.")
    if not charts:
        section.notes.append("Nothing in it looks like intervals, repetitions or courses; its JSON is below.")
    return section


def _walk(path: tuple[str, ...], value: Any, metrics: dict[str, _Metric]) -> None:
    if isinstance(value, dict):
        interval = _interval(value)
        if interval is not None:
            name, label = _named(path)
            metrics.setdefault(name, _Metric()).intervals[label] = interval
        else:
            for key, item in value.items():
                _walk((*path, str(key)), item, metrics)
    elif _numeric(value):
        name, label = _named(path)
        if any(part.isdigit() for part in path[1:]):
            metrics.setdefault(name, _Metric()).samples.setdefault(label, []).append(float(value))
    elif isinstance(value, list) and value and all(_numeric(item) for item in value):
        name, label = _named(path)
        entry = metrics.setdefault(name, _Metric())
        if len(value) >= _COURSE:
            seed = next((part for part in path if part.isdigit()), "")
            entry.courses[f"{label}, {seed}" if seed else label] = [float(item) for item in value]
        else:
            entry.samples.setdefault(label, []).extend(float(item) for item in value)


def _interval(value: dict[str, Any]) -> tuple[float, float, float] | None:
    if all(_numeric(value.get(key)) for key in ("value", "low", "high")):
        return float(value["value"]), float(value["low"]), float(value["high"])
    if all(_numeric(value.get(key)) for key in ("ratio", "low", "high")):
        return float(value["ratio"]), float(value["low"]), float(value["high"])
    if _numeric(value.get("mean")) and "half_width_95" in value:
        half = float(value["half_width_95"] or 0.0)
        return float(value["mean"]), float(value["mean"]) - half, float(value["mean"]) + half
    return None


def _named(path: tuple[str, ...]) -> tuple[str, str]:
    """Return the metric of a path, its last word that is no number, and the other words as a label."""
    words = [part for part in path if not part.isdigit()]
    return words[-1], ", ".join(words[:-1]) or words[-1]


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _charts(metric: str, entry: _Metric) -> Iterator[Chart]:
    title = metric.replace("_", " ")
    if entry.intervals or any(len(values) > 1 for values in entry.samples.values()):
        yield _ladder(metric, title, entry)
    if entry.courses:
        marks: list[Mark] = []
        for index, (label, values) in enumerate(list(entry.courses.items())[:_MOST_LINES]):
            x = np.arange(float(len(values)))
            marks.append(Line(x, np.array(values), label, *style(index)))
        yield one(f"course-{metric}", title, Panel(Axis("step", whole=True), Axis(title), tuple(marks), 300))


def _ladder(metric: str, title: str, entry: _Metric) -> Chart:
    """Return one line per label: its interval, and every repetition as a point."""
    names = list(dict.fromkeys([*entry.intervals, *(label for label, values in entry.samples.items() if len(values) > 1)]))[
        :_MOST_ENTRIES
    ]
    at = {name: float(place) for place, name in enumerate(names)}
    marks: list[Mark] = []
    points = [(value, at[name]) for name, values in entry.samples.items() if name in at for value in values]
    if points:
        x, y = np.array(points).T
        marks.append(Points(x, y, "single runs", 5, 1))
    intervals = {name: interval for name, interval in entry.intervals.items() if name in at}
    if intervals:
        value, low, high = np.array(list(intervals.values())).T
        places = np.array([at[name] for name in intervals])
        marks.append(Points(value, places, "mean and interval", 0, 0, x_range=(low, high)))
    panel = Panel(Axis(title), Axis("", "names", tuple(names), reverse=True), tuple(marks), 90 + 24 * len(names))
    return one(f"results-{metric}", title, panel, caption="")
