"""Charts as plotly figures, for the page and for notebooks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlora.errors import ConfigError
from fedlora.report.charts import (
    COLOURS,
    DASHES,
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
    from plotly.graph_objects import Figure

# The page's script puts white in its place on a dark screen; no other colour of ours is this one.
INK_COLOUR, GREY_COLOUR = "#010203", "#8a8a8a"
_SYMBOLS = dict(zip(SHAPES, ("circle", "square", "triangle-up", "diamond", "cross", "star"), strict=True))
_GAP, _TOP, _BOTTOM, _COLOUR_BAR = 26, 12, 46, 44
_MOST_RULES = 200
_MOST_TEXTS = 20_000


def plotly_figure(chart: Chart, view: str | None = None) -> Figure:
    """Return one view of a chart (default: the first) as a plotly figure.

    Raises:
        ConfigError: plotly is not installed, or the chart has no such view.
    """
    go = graph_objects()
    if view is not None and view not in chart.views:
        raise ConfigError(f"chart '{chart.key}' has no view '{view}'. Its views: {', '.join(chart.views)}")
    figure = go.Figure(draw(chart.views[view] if view is not None else chart.view))
    figure.update_layout(title=chart.title, showlegend=True, margin={"t": 60}, template="simple_white")
    return figure


def graph_objects() -> Any:
    """Return plotly's module of figures (ConfigError where plotly is not installed)."""
    try:
        import plotly.graph_objects as go
    except ImportError:
        raise ConfigError("interactive figures need plotly: pip install 'fedlora[report]', or take png or svg") from None
    return go


def colour_of(index: int) -> str:
    """Return the colour of a position in `COLOURS`, ink or grey."""
    return COLOURS[index] if index < INK else INK_COLOUR if index == INK else GREY_COLOUR


def draw(view: View) -> dict[str, Any]:
    """Return the panels of a view, one above the other, as plotly's data and layout.

    `layout.meta` is for the page: `legend` lists label, look and traces of every entry, `cells` says that nothing but tables of
    colours is drawn.
    """
    bars = [_COLOUR_BAR if any(isinstance(mark, Heat) and not mark.kinds for mark in panel.marks) else 0 for panel in view]
    gaps = [_GAP + bar if place else bar for place, bar in enumerate(bars)]
    inner = sum(panel.height for panel in view) + sum(gaps)
    layout: dict[str, Any] = {
        "height": inner + _TOP + _BOTTOM,
        "margin": {"l": 8, "r": 8, "t": _TOP, "b": 8, "pad": 2},
        "hovermode": "closest",
        "barmode": "overlay"
        if any(isinstance(mark, Bars) and mark.start is not None for panel in view for mark in panel.marks)
        else "stack",
        "bargap": 0.25,
        "shapes": [],
    }
    traces: list[dict[str, Any]] = []
    legend: list[dict[str, Any]] = []
    top = float(inner)
    heats = [any(isinstance(mark, Heat) for mark in panel.marks) for panel in view]
    for place, (panel, gap) in enumerate(zip(view, gaps, strict=True)):
        top -= gap
        domain = [max(0.0, (top - panel.height) / inner), top / inner]
        top -= panel.height
        suffix = "" if place == 0 else str(place + 1)
        last = place == len(view) - 1
        long = panel.x.kind == "names" and sum(map(len, panel.x.names)) > 60
        layout[f"xaxis{suffix}"] = {
            **_axis(panel.x, _reach(panel, 0)), "anchor": f"y{suffix}", "tickangle": -40 if long else 0,
            **({"matches": "x"} if place else {}), **({} if last else {"showticklabels": False, "title": {"text": ""}}),
        }  # fmt: skip
        layout[f"yaxis{suffix}"] = {**_axis(panel.y, _reach(panel, 1)), "anchor": f"x{suffix}", "domain": domain}
        if heats[place]:
            layout[f"xaxis{suffix}"]["showgrid"] = layout[f"yaxis{suffix}"]["showgrid"] = False
        for mark in panel.marks:
            if isinstance(mark, Rules):
                layout["shapes"] += [_rule(at, suffix) for at in mark.at[:_MOST_RULES].tolist()]
                continue
            drawn = [{**trace, "xaxis": f"x{suffix}", "yaxis": f"y{suffix}"} for trace in _traces(mark, domain[1], panel)]
            _explain(mark, legend, range(len(traces), len(traces) + len(drawn)))
            traces += drawn
    layout["meta"] = {"legend": legend, "cells": all(heats)}
    return {"data": traces, "layout": layout}


def _reach(panel: Panel, which: int) -> tuple[float, float]:
    """Return how far the data of the x axis (0) or the y axis (1) reach; 0, 0 where that is not known."""
    ends = [end for mark in panel.marks for end in _ends(mark, which)]
    return (min(ends), max(ends)) if ends else (0.0, 0.0)


def _ends(mark: Mark, which: int) -> Iterator[float]:
    values = mark.at if isinstance(mark, Rules | Bars) else None if isinstance(mark, Band) else (mark.x, mark.y)[which]
    if values is not None and np.isfinite(values).any():
        yield from (float(np.nanmin(values)), float(np.nanmax(values)))


def _axis(axis: Axis, reach: tuple[float, float]) -> dict[str, Any]:
    """Return an axis whose data reach from the first number to the second as plotly's."""
    found: dict[str, Any] = {"title": {"text": escape(axis.label), "standoff": 6}, "automargin": True, "zeroline": False}
    if axis.kind == "log":
        ticks = _log_ticks(*(axis.range or reach))
        found |= {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    if axis.kind == "names":
        count = len(axis.names)
        found |= {"tickvals": list(range(count)), "ticktext": [escape(name) for name in axis.names], "showgrid": False}
        found["range"] = [count - 0.5, -0.5] if axis.reverse else [-0.5, count - 0.5]
    elif axis.range is not None:
        ends = [math.log10(end) for end in axis.range] if axis.kind == "log" else list(axis.range)
        found["range"] = ends[::-1] if axis.reverse else ends
    elif axis.reverse:
        found["autorange"] = "reversed"
    if axis.whole:
        found |= {"dtick": 1, "tick0": 0} if reach[1] - reach[0] <= 10 else {"tickformat": "d"}
    if axis.zero:
        found["rangemode"] = "tozero"
    return found


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5, 10, ... around positive data, or powers of ten alone where they span many."""
    if not 0 < low <= high:
        return []
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    return [step * 10.0**power for power in range(first, last + 1) for step in steps]


def _rule(at: float, suffix: str) -> dict[str, Any]:
    line = {"color": GREY_COLOUR, "width": 1, "dash": "dot"}
    return {"type": "line", "x0": at, "x1": at, "xref": f"x{suffix}", "y0": 0, "y1": 1, "yref": f"y{suffix} domain", "line": line}


def _traces(mark: Mark, top: float, panel: Panel) -> list[dict[str, Any]]:
    """Return a mark as plotly's traces."""
    if isinstance(mark, Heat):
        return [_heat(mark, top, panel)]
    assert not isinstance(mark, Rules)
    common = {"name": escape(mark.label), "showlegend": getattr(mark, "legend", True)}
    colour = colour_of(mark.colour)
    if isinstance(mark, Line):
        few = mark.shape is not None and len(mark.x) <= 60
        look = {"color": colour, "width": 2, "dash": DASHES[mark.dash % len(DASHES)], "shape": "hv" if mark.steps else "linear"}
        return [
            {
                "type": "scatter", "x": mark.x, "y": mark.y, **common, "mode": "lines+markers" if few else "lines",
                "line": look,
                "marker": {"symbol": _SYMBOLS[SHAPES[(mark.shape or 0) % len(SHAPES)]], "size": 6, "color": colour},
            }
        ]  # fmt: skip
    if isinstance(mark, Points):
        marker = {
            "symbol": _SYMBOLS[SHAPES[mark.shape % len(SHAPES)]],
            "size": 8 if len(mark.x) <= 300 else 4,
            "color": colour,
            "opacity": 0.85,
        }
        notes = {"text": [escape(note) for note in mark.notes], "hoverinfo": "x+y+name+text"} if mark.notes else {}
        errors = {
            key: _error(values, ends, colour)
            for key, values, ends in (("error_x", mark.x, mark.x_range), ("error_y", mark.y, mark.y_range))
            if ends is not None
        }
        return [{"type": "scatter", "mode": "markers", "x": mark.x, "y": mark.y, "marker": marker, **common, **notes, **errors}]
    if isinstance(mark, Bars):
        return [_bars(mark, common, colour)]
    clear = {"type": "scatter", "x": mark.x, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    fill = {"fill": "tonexty", "fillcolor": "rgba(138,138,138,0.25)"}
    return [{**clear, "y": mark.low, "showlegend": False}, {**clear, "y": mark.high, **fill, **common}]


def _error(values: Any, ends: tuple[Any, Any], colour: str) -> dict[str, Any]:
    return {
        "type": "data", "symmetric": False, "array": ends[1] - values, "arrayminus": values - ends[0],
        "color": colour, "thickness": 1.5, "width": 4,
    }  # fmt: skip


def _bars(mark: Bars, common: dict[str, Any], colour: str) -> dict[str, Any]:
    along, across = ("x", "y") if mark.horizontal else ("y", "x")
    trace = {
        "type": "bar", along: mark.length, across: mark.at, "orientation": "h" if mark.horizontal else "v",
        "marker": {"color": colour, "line": {"width": 0}}, **common,
    }  # fmt: skip
    if mark.start is not None:
        trace["base"] = mark.start
        trace["customdata"] = mark.length
        trace["hovertemplate"] = (
            f"{escape(mark.label)}: %{{customdata:.3g}} s<br>client %{{{across}}}<br>%{{text}}<extra></extra>"
        )
        trace["textposition"] = "none"
    if mark.notes:
        trace["text"] = [escape(note) for note in mark.notes]
    return trace


def _heat(mark: Heat, top: float, panel: Panel) -> dict[str, Any]:
    many, wide = mark.z.size > _MOST_TEXTS, 0 if mark.z.size > 4000 else 1
    trace: dict[str, Any] = {
        "type": "heatmap", "x": mark.x, "y": mark.y, "z": mark.z.astype(np.float32) if many else mark.z,
        "xgap": wide, "ygap": wide, "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip
    if many:  # as many texts would be most of the page
        number = "" if mark.kinds else f"<br>{escape(mark.label)}: %{{z:.4g}}"
        trace["hovertemplate"] = f"{escape(panel.y.label)} %{{y}}, {escape(panel.x.label)} %{{x}}{number}<extra></extra>"
    else:
        trace["text"] = _cells(mark, panel)
    if mark.written:
        shown = [[cell_text(value) or " " for value in row] for row in mark.z.tolist()]
        trace |= {
            "hovertext": trace.pop("text"),
            "hovertemplate": "%{hovertext}<extra></extra>",
            "text": shown,
            "texttemplate": "%{text}",
        }
    if mark.kinds:
        count = len(mark.kinds)
        steps = [
            [end, colour_of(colour)]
            for place, (_, colour) in enumerate(mark.kinds)
            for end in (place / count, (place + 1) / count)
        ]
        return trace | {"colorscale": steps, "zmin": -0.5, "zmax": count - 0.5, "showscale": False}
    known = mark.z[np.isfinite(mark.z)]
    low = mark.low if mark.low is not None else float(known.min()) if known.size else 0.0
    high = mark.high if mark.high is not None else float(known.max()) if known.size else 1.0
    bar = {
        "orientation": "h", "x": 0, "xanchor": "left", "len": 1, "y": top, "yanchor": "bottom", "thickness": 9, "ypad": 4,
        "xpad": 0, "title": {"text": escape(mark.label), "side": "top"}, "outlinewidth": 0, "nticks": 6,
    }  # fmt: skip
    return trace | {
        "colorscale": mark.scale.capitalize(),
        "zmin": low,
        "zmax": high if high > low else low + 1.0,
        "colorbar": bar,
    }


def _cells(mark: Heat, panel: Panel) -> list[list[str]]:
    """Return what is said of every cell under the pointer."""
    columns, rows = (axis.names if axis.kind == "names" else () for axis in (panel.x, panel.y))
    across = [columns[int(x)] if columns else f"{panel.x.label} {x:g}" for x in mark.x.tolist()]
    down = [rows[int(y)] if rows else f"{panel.y.label} {y:g}" for y in mark.y.tolist()]
    said = []
    for row, name in enumerate(down):
        line = []
        for place, head in enumerate(across):
            value = mark.z[row, place]
            note = str(mark.notes[row, place]) if mark.notes is not None else ""
            amount = "" if mark.kinds else f"<br>{escape(mark.label)}: {value:.4g}"
            if not np.isfinite(value):  # who was asked and sent nothing has a note
                amount = ""
            said_nothing = not np.isfinite(value) and not note
            line.append("" if said_nothing else f"{escape(name)}, {escape(head)}{amount}<br>{escape(note[:200])}")
        said.append(line)
    return said


def _explain(mark: Mark, legend: list[dict[str, Any]], places: range) -> None:
    """Add what a mark looks like to the legend; the same label twice is one entry."""
    if isinstance(mark, Heat):
        legend += [{"label": name, "colour": colour_of(colour), "look": "cell", "traces": []} for name, colour in mark.kinds]
        return
    assert not isinstance(mark, Rules)
    if not getattr(mark, "legend", True):
        return
    known = next((entry for entry in legend if entry["label"] == mark.label), None)
    if known is not None:
        known["traces"] += list(places)
        return
    entry: dict[str, Any] = {"label": mark.label, "colour": colour_of(mark.colour), "traces": list(places)}
    if isinstance(mark, Line):
        entry |= {
            "look": "line",
            "dash": mark.dash % len(DASHES),
            "shape": None if mark.shape is None else SHAPES[mark.shape % len(SHAPES)],
        }
    elif isinstance(mark, Points):
        entry |= {"look": "point", "shape": SHAPES[mark.shape % len(SHAPES)]}
    else:
        entry["look"] = "cell"
    legend.append(entry)


def escape(text: str) -> str:
    """Return text in which plotly sees no markup: names and reasons may come from other machines."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
