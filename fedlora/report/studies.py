"""Results of studies as JSON of any shape: what looks like intervals, repetitions or courses is drawn.

An interval is {"value", "low", "high"} or {"mean", "half_width_95"}; repetitions are numbers under seeds (keys that are whole
numbers) or short lists; a course is a list of at least `_COURSE` numbers. Numbers of one name share a figure.
"""

from __future__ import annotations

import re
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
_QUANTITIES = {
    "accuracy", "loss", "return", "returns", "reward", "score", "bytes", "rank", "correlation", "feasible", "share", "rate",
    "round", "seconds", "s", "j", "joules", "energy", "time", "latency", "airtime", "late", "error", "norm", "cosine",
    "similarity", "difference", "minutes", "ms",
}  # fmt: skip
"""Words that are measured; other words of a path say of whom, or when."""


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
        _walk((key,), value, metrics)
    charts = [chart for metric, entry in metrics.items() for chart in _charts(metric, entry)]
    section = Section("study", name, charts[:_MOST_CHARTS])
    if len(charts) > _MOST_CHARTS:
        section.notes.append(f"{len(charts) - _MOST_CHARTS} more figures were left out.")
    if not charts:
        section.notes.append("Nothing in it looks like intervals, repetitions or courses; its JSON is below.")
    return section


def _walk(path: tuple[str, ...], value: Any, metrics: dict[str, _Metric]) -> None:
    if path[-1] in _NOT_RESULTS:
        return
    name, label, seed = _named(path)
    if isinstance(value, dict):
        interval = _interval(value)
        if interval is not None:
            name = f"{name} ratio" if "ratio" in value else name
            metrics.setdefault(name, _Metric()).intervals[label] = interval
        else:
            for key, item in value.items():
                _walk((*path, str(key)), item, metrics)
    elif _numeric(value):
        if seed:
            metrics.setdefault(name, _Metric()).samples.setdefault(label, []).append(float(value))
    elif isinstance(value, list) and any(map(_numeric, value)) and all(item is None or _numeric(item) for item in value):
        entry = metrics.setdefault(name, _Metric())
        numbers = [np.nan if item is None else float(item) for item in value]
        if len(value) >= _COURSE:
            entry.courses[f"{label}, {seed}" if seed else label] = numbers
        else:
            entry.samples.setdefault(label, []).extend(numbers)


def _interval(value: dict[str, Any]) -> tuple[float, float, float] | None:
    middle = next((value[key] for key in ("value", "ratio") if _numeric(value.get(key))), None)
    if middle is not None and all(_numeric(value.get(key)) for key in ("low", "high")):
        return float(middle), float(value["low"]), float(value["high"])
    if _numeric(value.get("mean")) and "half_width_95" in value:
        half = float(value["half_width_95"] or 0.0)
        return float(value["mean"]), float(value["mean"]) - half, float(value["mean"]) + half
    return None


def _named(path: tuple[str, ...]) -> tuple[str, str, str]:
    """Return what a number measures, the other words of its path as a label, and its seed (empty: none).

    The seed is the last whole number of the path, unless nothing but numbers stands before it. What is measured is the last word
    that sounds like a quantity, or the last word.
    """
    seeds = [place for place, part in enumerate(path) if place and part.isdigit()]
    seed = seeds[-1] if seeds else -1
    words = [part for place, part in enumerate(path) if place != seed]
    sounding = [
        place for place, word in enumerate(words) if any(part in _QUANTITIES for part in re.split(r"[_\W]", word.lower()))
    ]
    place = sounding[-1] if sounding else len(words) - 1
    return words[place], ", ".join(words[:place] + words[place + 1 :]) or words[place], path[seed] if seeds else ""


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _charts(metric: str, entry: _Metric) -> Iterator[Chart]:
    title = metric[:1].upper() + metric[1:].replace("_", " ")
    repeated = [label for label, values in entry.samples.items() if len(values) > 1]
    if entry.intervals or len(repeated) > 1:
        yield _ladder(metric, title, entry)
    if entry.courses:
        marks: list[Mark] = []
        for index, (label, values) in enumerate(list(entry.courses.items())[:_MOST_LINES]):
            course = np.array(values)
            known = np.isfinite(course)
            marks.append(Line(np.flatnonzero(known).astype(float), course[known], label, *style(index)))
        yield one(f"course-{metric}", title, Panel(Axis("step", whole=True), Axis(title), tuple(marks), 300))


def _ladder(metric: str, title: str, entry: _Metric) -> Chart:
    """Return one line per label: its interval, and every repetition as a point."""
    repeated = [label for label, values in entry.samples.items() if len(values) > 1]
    labels = list(dict.fromkeys([*entry.intervals, *repeated]))[:_MOST_ENTRIES]
    at = {label: float(place) for place, label in enumerate(labels)}
    marks: list[Mark] = []
    points = [(value, at[label]) for label, values in entry.samples.items() if label in at for value in values]
    if points:
        x, y = np.array(points).T
        marks.append(Points(x, y, "single runs", 5, 1))
    intervals = {label: interval for label, interval in entry.intervals.items() if label in at}
    if intervals:
        value, low, high = np.array(list(intervals.values())).T
        places = np.array([at[label] for label in intervals])
        marks.append(Points(value, places, "mean and interval", 0, 0, x_range=(low, high)))
    names = Axis("", "names", _without_shared_words(labels), reverse=True)
    return one(f"results-{metric}", title, Panel(Axis(title), names, tuple(marks), 90 + 24 * len(labels)))


def _without_shared_words(labels: list[str]) -> tuple[str, ...]:
    """Return labels without the words that all of them have."""
    words = [label.split(", ") for label in labels]
    shared = set(words[0]).intersection(*words) if len(labels) > 1 else set()
    return tuple(", ".join(word for word in own if word not in shared) or label for own, label in zip(words, labels, strict=True))
