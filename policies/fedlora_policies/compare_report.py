"""What a comparison is written as: a table per world, JSON, and a picture of score against bytes."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from fedlora.files import disk_errors, write_atomic
from fedlora.runs.progress import size
from fedlora_policies.compare import CompareConfig, Comparison, Row
from fedlora_policies.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, then shapes: told apart with any colour vision.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_SHAPES = ("o", "s", "^", "D", "v", "P", "X")


def tables(found: Comparison) -> list[Table]:
    """Return one table per world, and one of what equal accuracy (or loss) takes where it was measured; intervals are 95 %."""
    tables = []
    for world, rows in found.worlds.items():
        tables.append(_table(found, world, rows))
        measure = next((key for key in ("accuracy", "loss") if all(key in row.reach for row in rows)), None)
        if measure is not None:
            tables.append(_reach_table(found.config.reference, world, rows, measure))
    return tables


def _table(found: Comparison, world: str, rows: list[Row]) -> Table:
    config = found.config
    table = Table(
        title=f"{world}: {config.metric} over {config.episodes} test episodes", title_justify="left", title_style="bold"
    )
    table.add_column("policy")
    for head in (
        config.metric,
        f"less {config.reference}",
        "normalised",
        "accuracy",
        "sent",
        "airtime",
        "feasible",
        "rank",
        "ρ(SNR)",
    ):
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(
            row.label + _options(row),
            f"{row.score.value:.4g}",
            "-" if row.label == config.reference else _about(row.difference) + (" *" if row.difference.excludes(0.0) else "  "),
            "-" if row.normalised is None else f"{row.normalised.value:.3f}",
            "-" if row.terms["accuracy"] is None else f"{row.terms['accuracy']:.3f}",
            size(row.bytes.value),
            f"{row.terms['latency_s']:.2f} s",
            f"{100 * (row.terms['feasible'] or 0.0):.1f} %",
            f"{row.terms['mean_rank']:.2f}",
            "-" if row.snr_correlation is None else f"{row.snr_correlation:.2f}",
        )
    return table


def _reach_table(reference: str, world: str, rows: list[Row], measure: str) -> Table:
    title = f"{world}: until the {measure} that {reference} ends with"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("policy")
    for head in ("get there", "sent", f"less {reference}", "airtime", f"less {reference}"):
        table.add_column(head, justify="right")
    for row in rows:
        found, own = row.reach[measure], row.label == reference
        sent, airtime = found.less["bytes"], found.less["latency_s"]
        table.add_row(
            row.label,
            f"{100 * found.share:.0f} %",
            size(found.spent["bytes"].value),
            "-" if own else _share(sent, found.spent["bytes"].value - sent.value),
            f"{found.spent['latency_s'].value:.2f} s",
            "-" if own else _share(airtime, found.spent["latency_s"].value - airtime.value),
        )
    return table


def _share(interval: Interval, base: float) -> str:
    """Return a difference and half its interval in percent of what the reference takes."""
    if base <= 0:
        return "-"
    half = (interval.high - interval.low) / 2
    return f"{100 * interval.value / base:+.1f} ± {100 * half / base:.1f} %" + (" *" if interval.excludes(0.0) else "  ")


def _options(row: Row) -> str:
    return "".join(f" {key}={value:g}" for key, value in row.options.items() if isinstance(value, int | float))


def _about(interval: Interval) -> str:
    """Return the value and half the width of its interval; JSON has both ends."""
    return f"{interval.value:+.3g} ± {(interval.high - interval.low) / 2:.2g}"


def write(found: Comparison, folder: Path) -> list[Path]:
    """Write compare.json and pareto.png to a folder; return their paths."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    report, picture = folder / "compare.json", folder / "pareto.png"
    write_atomic(report, json.dumps(_finite(found.plain()), indent=1) + "\n")
    write_atomic(picture, _picture(found))
    return [report, picture]


def _finite(value: object) -> object:
    """Return plain data with null for what is no number: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _picture(found: Comparison) -> bytes:
    from matplotlib.figure import Figure

    worlds = list(found.worlds.items())
    figure = Figure(figsize=(1.5 + 4.2 * len(worlds), 4.6), dpi=120, layout="constrained")
    for index, (world, rows) in enumerate(worlds):
        axes = figure.add_subplot(1, len(worlds), index + 1)
        _draw(axes, rows, found.config)
        axes.set_title(world)
        axes.set_xlabel("bytes per episode")
        axes.set_ylabel(found.config.metric if index == 0 else "")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw(axes: Axes, rows: list[Row], config: CompareConfig) -> None:
    """Draw score against bytes with 95 % intervals, and the line that no policy but the clairvoyant one lies above.

    What is far below the lower yardstick is left out of the frame: it would press all others together.
    """
    for index, row in enumerate(rows):
        x, y = row.bytes, row.score
        axes.errorbar(
            x.value, y.value, xerr=[[x.value - x.low], [x.high - x.value]], yerr=[[y.value - y.low], [y.high - y.value]],
            fmt=_SHAPES[index // len(_COLOURS) % len(_SHAPES)], color=_COLOURS[index % len(_COLOURS)], label=row.label,
            markersize=6, elinewidth=1, capsize=2,
        )  # fmt: skip
    bound = {label for label, entry in config.policies.items() if (entry.name or label) == "oracle"}
    front = pareto([(row.bytes.value, row.score.value) for row in rows if row.label not in bound])
    axes.plot(*zip(*front, strict=True), color="0.6", linewidth=1, zorder=0)
    axes.grid(alpha=0.3)
    low, high = (next(row.score.value for row in rows if row.label == label) for label in (config.low, config.high))
    least = low - (high - low)
    if high > low and (hidden := [row.label for row in rows if row.score.high < least]):
        axes.set_ylim(least, max(row.score.high for row in rows) + 0.1 * (high - low))
        axes.text(0.02, 0.02, f"below: {', '.join(hidden)}", transform=axes.transAxes, fontsize="small")


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (bytes, score) that no other one beats in both, by bytes."""
    front: list[tuple[float, float]] = []
    for sent, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((sent, score))
    return front
