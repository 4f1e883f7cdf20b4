"""What a run achieved and what it cost, round by round: one run with its details, several as curves side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedlora.report.charts import STATUSES, Axis, Bars, Chart, Floats, Line, Mark, Panel, has_numbers, one, share_axis, style
from fedlora.runs.read import RunRecord

Runs = Sequence[tuple[str, RunRecord]]
"""Runs, each with the name that it has in the report."""

ROUND = Axis("round", whole=True)


def clock(run: RunRecord) -> tuple[Floats, str]:
    """Return the time at the end of each round in seconds, and which clock it is: the world's, the nodes', or the simulator's."""
    if "virtual_time_s" in run.metrics:
        return column(run, "virtual_time_s"), "virtual time"
    if "real_time_s" in run.metrics:
        return column(run, "real_time_s"), "real time"
    return so_far(run, column(run, "wall_time_s")), "wall time"


def column(run: RunRecord, name: str) -> Floats:
    """Return a column of metrics.jsonl, `[rounds]`; NaN where it is not there."""
    if name not in run.metrics:
        return np.full(len(run.metrics), np.nan)
    return np.asarray(run.metrics[name].astype(float), np.float64)


def so_far(run: RunRecord, values: Floats) -> Floats:
    """Return the sum of the values until the end of each round, `[rounds]`; NaN from the first round on that is not known."""
    rounds = column(run, "round")
    return np.cumsum(np.where(rounds == np.arange(len(rounds)), values, np.nan))


def megabytes(run: RunRecord) -> Floats:
    """Return the bytes that crossed the link until the end of each round, both ways, MB `[rounds]`; NaN as in `so_far`."""
    return so_far(run, column(run, "uplink_bytes") + column(run, "downlink_bytes")) / 1e6


def progress(runs: Runs) -> list[Chart]:
    """Return accuracy and loss against rounds, bytes, seconds and joules, as far as they were recorded."""
    clocks = {clock(run)[1] for _, run in runs}
    seconds = clocks.pop() if len(clocks) == 1 else "time on the run's clock"
    joules = [so_far(run, column(run, "energy_j")) for _, run in runs]
    axes = [
        ("rounds", "rounds", ROUND, [column(run, "round") for _, run in runs]),
        ("bytes", "bytes sent", Axis("sent so far, up and down (MB)", zero=True), [megabytes(run) for _, run in runs]),
        ("seconds", seconds, Axis(f"{seconds} (s)", zero=True), [clock(run)[0] for _, run in runs]),
        (
            "joules",
            "energy",
            Axis("energy of the clients so far (J)", zero=True),
            joules,
        ),
    ]
    charts = []
    for key, title, axis, xs in axes:
        if not any(np.nanmax(x, initial=0) > 0 for x in xs):
            continue
        panels = [panel for name in ("accuracy", "loss") if (panel := _curves(name, axis, runs, xs))]
        if panels:
            what = " and ".join(panel.y.label.partition(" (")[0] for panel in panels)
            charts.append(one(f"progress-{key}", f"{what.capitalize()} against {title}", *panels))
    return charts


_SHOWN = {
    "accuracy": (("test_accuracy", "server's test set", 0), ("clients_accuracy", "clients' held-out parts", 1)),
    "loss": (("test_loss", "server's test set", 0), ("train_loss", "clients' training", 2)),
}


def _curves(name: str, axis: Axis, runs: Runs, xs: list[Floats]) -> Panel | None:
    """Return a panel with a curve per run that has one; a run alone gets what its clients measured too."""
    marks: list[Line] = []
    for index, ((label, run), x) in enumerate(zip(runs, xs, strict=True)):
        alone = len(runs) == 1
        there = [(column(run, key), what, place) for key, what, place in _SHOWN[name] if has_numbers(column(run, key))]
        for values, what, place in there if alone else there[:1]:
            colour, dash, shape = style(place if alone else index)
            known = np.isfinite(values) & np.isfinite(x)
            if known.any():
                marks.append(Line(x[known], values[known], what if alone else label, colour, place if alone else dash, shape))
    y = share_axis("accuracy (share)", (mark.y for mark in marks)) if name == "accuracy" else Axis("loss (nats)")
    return Panel(axis, y, tuple(marks), 190) if marks else None


def costs(runs: Runs) -> list[Chart]:
    """Return what each round cost: bytes, replies, time, energy, ranks."""
    charts = [*_bytes(runs), *_replies(runs)]
    for key, title, label, values in (
        ("round-time", "Time of a round", "seconds", [_round_s(run) for _, run in runs]),
        ("energy", "Energy of a round's clients", "joules", [column(run, "energy_j") for _, run in runs]),
        ("rate", "Mean goodput of the uploads", "Mbit/s", [column(run, "mean_rate_bps") / 1e6 for _, run in runs]),
        ("rank", "Mean rank over clients and sites", "rank", [column(run, "mean_rank") for _, run in runs]),
    ):
        marks = [
            Line(number, value[asked], name, *style(index))
            for index, ((name, run), value) in enumerate(zip(runs, values, strict=True))
            for number, asked in [_asked(run)]
            if has_numbers(value[asked]) and np.nanmax(np.abs(value[asked])) > 0
        ]
        if marks:
            charts.append(one(key, title, Panel(ROUND, Axis(label, zero=True), tuple(marks))))
    return charts


def _asked(run: RunRecord) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the numbers of the rounds in which clients were asked, and which rows they are: all but the untouched model's."""
    number = column(run, "round")
    return number[number > 0], number > 0


def _round_s(run: RunRecord) -> Floats:
    """Return how long each round took on the run's clock, seconds `[rounds]`; NaN where the round before is not there."""
    ends, which = clock(run)
    return column(run, "wall_time_s") if which == "wall time" else ends - begins(run, ends)


def begins(run: RunRecord, ends: Floats) -> Floats:
    """Return when each round began, seconds `[rounds]`: when the one before ended; NaN where that one is not there."""
    rounds = column(run, "round")
    before = np.concatenate([[0.0], ends])[: len(ends)]
    return np.where(np.diff(rounds, prepend=-1.0) == 1, before, np.nan)


def _bytes(runs: Runs) -> list[Chart]:
    marks: list[Mark] = []
    for index, (name, run) in enumerate(runs):
        number, asked = _asked(run)
        up, down = (column(run, key)[asked] / 1e6 for key in ("uplink_bytes", "downlink_bytes"))
        if len(runs) == 1:
            marks += [Bars(number, sent, way, hue) for sent, way, hue in ((up, "up", 0), (down, "down", 4)) if has_numbers(sent)]
        elif has_numbers(up):
            marks.append(Line(number, up, name, *style(index)))
    title = "Bytes of a round" if len(runs) == 1 else "Bytes sent up in a round"
    return [one("bytes", title, Panel(ROUND, Axis("MB", zero=True), tuple(marks)))] if marks else []


def _replies(runs: Runs) -> list[Chart]:
    """Return what became of the replies, as bars for one run, and as the share that counted for several."""
    lost = {"late": "clients_late", "dropped": "clients_dropped", "failed": "clients_failed"}
    marks: list[Mark] = []
    for index, (name, run) in enumerate(runs):
        number, rows = _asked(run)
        # A column that is nowhere is of a kind that the run does not have; a number that one row lacks is not known.
        counts = {kind: column(run, key)[rows] for kind, key in lost.items() if has_numbers(column(run, key)[rows])}
        asked = column(run, "clients_selected")[rows]
        sound = asked - sum(counts.values())
        if len(runs) == 1:
            shown = {"ok": sound} | {kind: count for kind, count in counts.items() if np.nansum(count) > 0}
            marks += [Bars(number, count, kind, STATUSES[kind]) for kind, count in shown.items()]
        elif np.nansum(asked) > 0:
            with np.errstate(invalid="ignore"):
                marks.append(Line(number, sound / asked, name, *style(index)))
    if not any(has_numbers(mark.length if isinstance(mark, Bars) else mark.y) for mark in marks):  # type: ignore[union-attr]
        return []
    if len(runs) == 1:
        return [one("replies", "What became of the replies", Panel(ROUND, Axis("clients", zero=True), tuple(marks)))]
    return [one("replies", "Replies that counted", Panel(ROUND, Axis("share of those asked", zero=True), tuple(marks)))]
