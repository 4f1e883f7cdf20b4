"""An emulated run: what the world's model predicted beside what was measured on real sockets.

Rows are those of emulation.jsonl, which `fedlora_envs.emulation.compare` describes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedlora.report.charts import (
    GREY,
    INK,
    Axis,
    Band,
    Chart,
    Floats,
    Line,
    Mark,
    Panel,
    Points,
    Table,
    has_numbers,
    one,
    share_axis,
)
from fedlora.report.curves import ROUND
from fedlora.runs.read import RunRecord

_WAYS = (("down", "downlink", 0, 0), ("up", "uplink", 4, 2))


def emulated(run: RunRecord) -> list[Chart]:
    """Return airtimes, round times, bytes and accuracy, predicted and measured; nothing for a run that was not emulated."""
    clients = [row for row in run.emulation if row.get("kind") == "client" and row.get("status") == "ok"]
    rounds = [row for row in run.emulation if row.get("kind") == "round"]
    if not rounds:
        return []
    return [
        chart
        for chart in (_airtimes(clients), _airtime_by_round(clients), _times(rounds), _bytes(clients), _accuracy(rounds))
        if chart
    ]


def _numbers(rows: list[dict[str, Any]], key: str) -> Floats:
    return np.array([np.nan if row.get(key) is None else row[key] for row in rows], np.float64)


def _airtimes(clients: list[dict[str, Any]]) -> Chart | None:
    marks: list[Mark] = []
    drawn = np.zeros(0)
    for way, name, colour, shape in _WAYS:
        predicted, measured = (_numbers(clients, f"{what}_s_{way}") for what in ("predicted", "measured"))
        both = (predicted > 0) & (measured > 0)
        if both.any():
            notes = tuple(
                f"client {row['client']}, round {row['round']}" for row, good in zip(clients, both, strict=True) if good
            )
            marks.append(Points(predicted[both], measured[both], name, colour, shape, notes=notes))
            drawn = np.concatenate([drawn, predicted[both], measured[both]])
    if not marks:
        return None
    ends = np.geomspace(0.8 * drawn.min(), 1.25 * drawn.max(), 40)
    marks = [Band(ends, 0.85 * ends, 1.15 * ends, "within 15 %"), Line(ends, ends, "equal", GREY, 0, None), *marks]
    x, y = (Axis(f"{what} airtime (s)", "log", range=(float(ends[0]), float(ends[-1]))) for what in ("predicted", "measured"))
    return one("emulated-airtime", "Airtime of each client and round", Panel(x, y, tuple(marks), 340))


def _by_round(clients: list[dict[str, Any]], key: str, how: Callable[[Floats], float]) -> tuple[Floats, Floats]:
    """Return the rounds and one number of each, over its clients where the number is known."""
    rounds, values = _numbers(clients, "round"), _numbers(clients, key)
    numbers = np.unique(rounds)
    found = [values[(rounds == number) & np.isfinite(values)] for number in numbers]
    return numbers, np.array([how(part) if len(part) else np.nan for part in found])


def _pairs(clients: list[dict[str, Any]], key: str, how: Callable[[Floats], float], scale: float) -> list[Mark]:
    """Return predicted (dashed) and measured of both directions, round by round."""
    marks: list[Mark] = []
    for way, name, colour, shape in _WAYS:
        for what, dash in (("measured", 0), ("predicted", 1)):
            x, y = _by_round(clients, f"{what}_{key}_{way}", how)
            if has_numbers(y):
                marks.append(Line(x, scale * y, f"{name}, {what}", colour, dash, shape if what == "measured" else shape + 1))
    return marks


def _airtime_by_round(clients: list[dict[str, Any]]) -> Chart | None:
    marks = _pairs(clients, "s", lambda values: float(np.median(values)), 1.0)
    panel = Panel(ROUND, Axis("median over clients (s)", "log"), tuple(marks), 280)
    return one("emulated-airtime-rounds", "Airtime by round", panel) if marks else None


def _bytes(clients: list[dict[str, Any]]) -> Chart | None:
    marks = _pairs(clients, "bytes", lambda values: float(np.sum(values)), 1e-6)
    panel = Panel(ROUND, Axis("on the air, all clients (MB)", zero=True), tuple(marks), 280)
    caption = "Payload and what protocols add to it."
    return one("emulated-bytes", "Bytes by round", panel, caption=caption) if marks else None


def _times(rounds: list[dict[str, Any]]) -> Chart | None:
    number = _numbers(rounds, "round")
    marks = tuple(
        Line(number, values, what, colour, dash, shape)
        for what, colour, dash, shape in (("measured", 4, 0, 0), ("predicted", 0, 1, 1))
        if has_numbers(values := _numbers(rounds, f"{what}_s"))
    )
    panel = Panel(ROUND, Axis("seconds of the world", "log"), marks, 280)
    caption = (
        "Predicted: until the slowest reply is through. Measured: the whole round, Flower's and the server's own time included."
    )
    return one("emulated-times", "Time of a round", panel, caption=caption) if marks else None


def _accuracy(rounds: list[dict[str, Any]]) -> Chart | None:
    number = _numbers(rounds, "round")
    marks = tuple(
        Line(number, values, label, colour, dash, shape)
        for key, label, colour, dash, shape in (("accuracy", "measured", 4, 0, 0), ("simulated_accuracy", "simulated", INK, 1, 1))
        if has_numbers(values := _numbers(rounds, key))
    )
    panel = Panel(ROUND, share_axis("accuracy (share of examples)", (mark.y for mark in marks)), marks, 280)
    caption = "" if len(marks) == 2 else "No simulation of the same run lies beside it."
    return one("emulated-accuracy", "Test accuracy, emulated and simulated", panel, caption=caption) if marks else None


def errors(run: RunRecord) -> Table | None:
    """Return how far predictions were off, per direction; None for a run that was not emulated."""
    clients = [row for row in run.emulation if row.get("kind") == "client" and row.get("status") == "ok"]
    rows = []
    for way, name, _, _ in _WAYS:
        for what, unit in (("airtime", "s"), ("bytes", "bytes")):
            predicted, measured = (_numbers(clients, f"{key}_{unit}_{way}") for key in ("predicted", "measured"))
            both = (measured > 0) & np.isfinite(predicted)
            if both.any():
                off = np.abs(predicted[both] - measured[both]) / measured[both]
                cells = (f"{np.median(off):.1%}", f"{(off < 0.15).mean():.0%}", f"{off.max():.1%}", str(int(both.sum())))
                rows.append((f"{name}, {what}", *cells))
    head = ("", "median error", "within 15 %", "largest", "transfers")
    caption = "Error: |predicted - measured| / measured, of replies that counted."
    return Table("Predicted against measured", head, tuple(rows), caption) if rows else None
