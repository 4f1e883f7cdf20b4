"""Charts as matplotlib figures, for papers: the same panels as on the page, on white, with their titles."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlora.files import disk_errors, write_atomic
from fedlora.report.charts import (
    COLOURS,
    INK,
    SHAPES,
    Axis,
    Band,
    Bars,
    Chart,
    Heat,
    Line,
    Mark,
    Panel,
    Points,
    Rules,
    View,
    cell_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES = ("-", "--", ":", "-.")
_MARKERS = dict(zip(SHAPES, ("o", "s", "^", "D", "P", "*"), strict=True))
_INCH = 80.0
"""Pixels of a panel's height that make an inch."""


def save_charts(charts: list[Chart], folder: Path, form: str) -> list[Path]:
    """Write a file per chart, KEY.png or KEY.svg, into a folder (made where it is not there); return their paths.

    Raises:
        RunFolderError: They cannot be written.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for chart in charts:
        picture = io.BytesIO()
        # Without a date in it, the same figure is the same file.
        matplotlib_figure(chart).savefig(picture, format=form, dpi=200, metadata={"Date": None} if form == "svg" else None)
        paths.append(folder / f"{chart.key}.{form}")
        write_atomic(paths[-1], picture.getvalue())
    return paths


def matplotlib_figure(chart: Chart, view: str | None = None) -> Figure:
    """Return one view of a chart (default: the first) as a matplotlib figure."""
    from matplotlib.figure import Figure

    panels: View = chart.views[view] if view is not None else chart.view
    heights = [panel.height for panel in panels]
    figure = Figure(figsize=(9.0 if chart.wide else 5.6, sum(heights) / _INCH + 0.9), layout="constrained")
    drawn = figure.subplots(len(panels), 1, sharex=len(panels) > 1, squeeze=False, height_ratios=heights)[:, 0]
    for place, (axes, panel) in enumerate(zip(drawn, panels, strict=True)):
        _panel(axes, panel, last=place == len(panels) - 1)
    named: dict[str, Any] = {}
    for axes in drawn:
        handles, labels = axes.get_legend_handles_labels()
        named |= {label: handle for handle, label in zip(handles, labels, strict=True) if label not in named}
    if len(named) > 1 or (named and any(panel.y.kind != "names" for panel in panels)):
        long = max(map(len, named)) > 18
        columns = 2 if long and not chart.wide else 4
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize="small")
    figure.suptitle(chart.title, fontsize="medium", fontweight="bold")
    return figure


def _colour(index: int) -> str:
    return COLOURS[index] if index < INK else "black" if index == INK else "0.55"


def _panel(axes: Axes, panel: Panel, last: bool) -> None:
    heat = any(isinstance(mark, Heat) for mark in panel.marks)
    stacked: dict[float, float] = {}
    for mark in panel.marks:
        _mark(axes, mark, stacked)
    axes.spines[["top", "right"]].set_visible(False)
    if not heat:
        axes.grid(color="0.9")
    axes.set_axisbelow(True)
    _scale(axes, panel.x, "x", panel)
    _scale(axes, panel.y, "y", panel)
    if not last:
        axes.set_xlabel("")
        axes.tick_params(labelbottom=False)


def _scale(axes: Axes, axis: Axis, which: str, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    own = axes.xaxis if which == "x" else axes.yaxis
    limits = axes.set_xlim if which == "x" else axes.set_ylim
    own.set_label_text(axis.label)
    if axis.kind == "log":
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    if axis.kind == "names":
        slanted = which == "x" and (len(axis.names) > 12 or max(map(len, axis.names), default=0) > 8)
        turn: dict[str, Any] = {"rotation": 40, "ha": "right"} if slanted else {}
        own.set_ticks(range(len(axis.names)), axis.names, fontsize="small", **turn)
        limits(-0.5, len(axis.names) - 0.5)
    elif axis.range is not None:
        limits(*axis.range)
    elif axis.zero:
        limits(0, None)
    if axis.whole:
        own.set_major_locator(MaxNLocator(integer=True))
    inverted = axes.xaxis_inverted if which == "x" else axes.yaxis_inverted
    if axis.reverse and not inverted():
        (axes.invert_xaxis if which == "x" else axes.invert_yaxis)()


def _mark(axes: Axes, mark: Mark, stacked: dict[float, float]) -> None:
    if isinstance(mark, Heat):
        _heat(axes, mark)
    elif isinstance(mark, Rules):
        for at in mark.at:
            axes.axvline(at, color="0.6", linewidth=0.7, linestyle=":")
    elif isinstance(mark, Band):
        axes.fill_between(mark.x, mark.low, mark.high, color=_colour(mark.colour), alpha=0.25, linewidth=0, label=mark.label)
    elif isinstance(mark, Line):
        few = mark.shape is not None and len(mark.x) <= 60
        axes.plot(
            mark.x, mark.y, _DASHES[mark.dash % len(_DASHES)], color=_colour(mark.colour), linewidth=1.6, markersize=4,
            marker=_MARKERS[SHAPES[(mark.shape or 0) % len(SHAPES)]] if few else None,
            drawstyle="steps-post" if mark.steps else "default", label=mark.label if mark.legend else "_hidden",
        )  # fmt: skip
    elif isinstance(mark, Points):
        ends = [
            None if found is None else [values - found[0], found[1] - values]
            for values, found in ((mark.x, mark.x_range), (mark.y, mark.y_range))
        ]
        label = mark.label if mark.legend else "_hidden"
        shape, size = _MARKERS[SHAPES[mark.shape % len(SHAPES)]], 5 if len(mark.x) <= 300 else 2
        axes.errorbar(
            mark.x, mark.y, xerr=ends[0], yerr=ends[1], fmt=shape, markersize=size, color=_colour(mark.colour),
            elinewidth=1, capsize=2, alpha=0.85, label=label, linestyle="none",
        )  # fmt: skip
    else:
        _bars(axes, mark, stacked)


def _bars(axes: Axes, mark: Bars, stacked: dict[float, float]) -> None:
    """Draw bars; those without a start of their own lie on what was drawn before them at the same place."""
    start = mark.start
    if start is None:
        start = np.array([stacked.get(at, 0.0) for at in mark.at.tolist()])
        stacked |= dict(zip(mark.at.tolist(), (start + np.nan_to_num(mark.length)).tolist(), strict=True))
    draw = axes.barh if mark.horizontal else axes.bar
    begin: dict[str, Any] = {"left": start} if mark.horizontal else {"bottom": start}
    draw(mark.at, mark.length, 0.75, color=_colour(mark.colour), label=mark.label, linewidth=0, **begin)


def _heat(axes: Axes, mark: Heat) -> None:
    from matplotlib.colors import ListedColormap

    edges = [np.concatenate([places - 0.5, places[-1:] + 0.5]) for places in (mark.x, mark.y)]
    shown = np.ma.masked_invalid(mark.z)
    line: dict[str, Any] = {"edgecolors": "white", "linewidth": 0.4} if mark.z.size <= 4000 else {}
    if mark.kinds:
        colours = ListedColormap([_colour(colour) for _, colour in mark.kinds])
        axes.pcolormesh(*edges, shown, cmap=colours, vmin=-0.5, vmax=len(mark.kinds) - 0.5, **line)
        for name, colour in mark.kinds:
            axes.scatter([], [], marker="s", color=_colour(colour), label=name)
        return
    known = mark.z[np.isfinite(mark.z)]
    low = mark.low if mark.low is not None else float(known.min()) if known.size else 0.0
    high = mark.high if mark.high is not None else float(known.max()) if known.size else 1.0
    image = axes.pcolormesh(*edges, shown, cmap=mark.scale, vmin=low, vmax=high if high > low else low + 1.0, **line)
    for row, column in np.argwhere(np.isfinite(mark.z)).tolist() if mark.written else []:
        value = float(mark.z[row, column])
        ink = "black" if value > low + 0.6 * (high - low) else "white"
        axes.text(
            float(mark.x[column]),
            float(mark.y[row]),
            cell_text(value),
            ha="center",
            va="center",
            color=ink,
            fontsize="small",
        )
    axes.figure.colorbar(image, ax=axes, label=mark.label, aspect=30, pad=0.02)
