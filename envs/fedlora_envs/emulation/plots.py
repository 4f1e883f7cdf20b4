"""The picture of an emulated run: predicted against measured."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora.files import write_atomic
from fedlora_envs.emulation.relay import DOWN, UP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart with any colour vision.
_COLOURS = {DOWN: "#0072B2", UP: "#E69F00"}
_NAMES = {DOWN: "downlink", UP: "uplink"}
_GREEN = "#009E73"


def plot_emulation(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw airtimes, round times and accuracies, predicted and measured, as a PNG (rows as in emulation.jsonl).

    Raises:
        RunFolderError: The file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(14.0, 4.6), layout="constrained")
    airtimes, times, accuracy = figure.subplots(1, 3)
    _airtimes(airtimes, [row for row in rows if row["kind"] == "client" and row["status"] == "ok"])
    rounds = [row for row in rows if row["kind"] == "round"]
    _times(times, rounds)
    _accuracy(accuracy, rounds)
    for axes in (times, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomic(path, picture.getvalue())


def _airtimes(axes: Axes, clients: list[dict[str, Any]]) -> None:
    drawn: list[float] = []
    for way, marker in ((DOWN, "o"), (UP, "^")):
        pairs = [(row[f"predicted_s_{way}"], row[f"measured_s_{way}"]) for row in clients]
        pairs = [pair for pair in pairs if all(pair)]
        if pairs:
            predicted, measured = zip(*pairs, strict=True)
            axes.scatter(predicted, measured, s=26, marker=marker, color=_COLOURS[way], alpha=0.8, label=_NAMES[way])
            drawn += [value for pair in pairs for value in pair]
    if drawn:
        ends = [0.8 * min(drawn), 1.25 * max(drawn)]
        axes.plot(ends, ends, color="0.4", linewidth=1, label="equal")
        low, high = ([factor * end for end in ends] for factor in (0.85, 1.15))
        axes.fill_between(ends, low, high, color="0.5", alpha=0.2, label="± 15 %")
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
        axes.legend(frameon=False, fontsize=9)
    axes.set(xlabel="predicted airtime (s)", ylabel="measured airtime (s)", title="airtime of each client and round")


def _times(axes: Axes, rounds: list[dict[str, Any]]) -> None:
    numbers = [row["round"] for row in rounds]
    nan = float("nan")
    for key, style, way in (("measured", "o-", UP), ("predicted", "s-", DOWN)):
        seconds = [row[f"{key}_s"] or nan for row in rounds]
        axes.plot(numbers, seconds, style, markersize=4, color=_COLOURS[way], label=key)
    axes.set(xlabel="round", ylabel="seconds", title="round time", ylim=(0, None))
    axes.legend(frameon=False, fontsize=9)


def _accuracy(axes: Axes, rounds: list[dict[str, Any]]) -> None:
    for key, name, style in (("accuracy", "measured", "o-"), ("simulated_accuracy", "simulated", "s--")):
        points = [(row["round"], row[key]) for row in rounds if row.get(key) is not None]
        if points:
            colour = _COLOURS[UP] if key == "accuracy" else _GREEN
            axes.plot(*zip(*points, strict=True), style, markersize=4, label=name, color=colour)
            axes.legend(frameon=False, fontsize=9)
    axes.set(xlabel="round", ylabel="test accuracy", title="accuracy")
