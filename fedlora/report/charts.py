"""What a figure shows, as plain data that plotly and matplotlib draw alike.

A chart has one or more views (what a reader chooses between); a view is a column of panels that share their x axis; a panel holds
marks. Colours are positions in `COLOURS`, so that the same run or policy has the same colour everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Okabe and Ito's palette, told apart with any colour vision; the sixth is black on paper and white on a dark screen.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = len(COLOURS)
"""The colour of text: what every curve is compared with."""
GREY = len(COLOURS) + 1
DASHES = ("solid", "dash", "dot", "dashdot")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")

STATUSES = {"ok": 2, "late": 4, "dropped": 1, "failed": 3, "rejected": 5, "no reply": GREY}
"""What became of a client's reply, and the colour of each."""


@dataclass(frozen=True)
class Axis:
    """One axis of a panel.

    Attributes:
        label: Name and unit.
        kind: "linear", "log", or "names" for positions 0, 1, ... that have names.
        names: Names of the positions.
        whole: Only whole numbers get a tick.
        zero: The axis begins at 0.
        reverse: Numbers grow downwards, or to the left.
        range: What is shown; None: everything.
    """

    label: str
    kind: Literal["linear", "log", "names"] = "linear"
    names: tuple[str, ...] = ()
    whole: bool = False
    zero: bool = False
    reverse: bool = False
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """A curve; NaN interrupts it. `steps` holds each value until the next."""

    x: Floats
    y: Floats
    label: str
    colour: int = 0
    dash: int = 0
    shape: int | None = 0
    steps: bool = False
    legend: bool = True


@dataclass(frozen=True)
class Points:
    """Single points, each with its interval where there is one (`x_range`, `y_range`: lower and upper ends)."""

    x: Floats
    y: Floats
    label: str
    colour: int = 0
    shape: int = 0
    x_range: tuple[Floats, Floats] | None = None
    y_range: tuple[Floats, Floats] | None = None
    notes: tuple[str, ...] = ()
    legend: bool = True


@dataclass(frozen=True)
class Bars:
    """Bars from `start` (0 where None) of length `length` at `at`; horizontal ones lie along x."""

    at: Floats
    length: Floats
    label: str
    colour: int = 0
    start: Floats | None = None
    horizontal: bool = False
    stacked: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Band:
    """The area between two curves."""

    x: Floats
    low: Floats
    high: Floats
    label: str
    colour: int = GREY


@dataclass(frozen=True)
class Rules:
    """Thin lines across the panel at these places of the x axis."""

    at: Floats


@dataclass(frozen=True)
class Heat:
    """A table of numbers as colours; NaN stays blank.

    Attributes:
        z: `[rows, columns]`.
        x: Place of each column.
        y: Place of each row.
        label: What the colour means, with its unit.
        scale: "viridis" or "cividis".
        kinds: For whole numbers that are kinds and not amounts: the name and colour of each.
        low, high: Ends of the colour scale; None: those of the numbers.
        notes: What is said of a cell beside its number, `[rows, columns]`.
        written: The numbers stand in their cells.
    """

    z: Floats
    x: Floats
    y: Floats
    label: str
    scale: Literal["viridis", "cividis"] = "viridis"
    kinds: tuple[tuple[str, int], ...] = ()
    low: float | None = None
    high: float | None = None
    notes: NDArray[Any] | None = None
    written: bool = False


def cell_text(value: float) -> str:
    """Return a number as short as a cell is; nothing for NaN."""
    return "" if not np.isfinite(value) else f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"


Mark = Line | Points | Bars | Band | Rules | Heat


@dataclass(frozen=True)
class Panel:
    """One drawing area, `height` pixels high."""

    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    height: int = 250


View = tuple[Panel, ...]


@dataclass(frozen=True)
class Chart:
    """One figure.

    Attributes:
        key: Its name in file names and addresses.
        title: What it shows.
        views: What a reader chooses between, by name; papers get the first.
        caption: What to know when reading it.
        wide: It needs the page's whole width.
        choice: What the names of the views are.
    """

    key: str
    title: str
    views: dict[str, View]
    caption: str = ""
    wide: bool = False
    choice: str = ""

    @property
    def view(self) -> View:
        """The first view."""
        return next(iter(self.views.values()))


@dataclass(frozen=True)
class Table:
    """Numbers for people: a title, the heads of the columns and rows of text."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass
class Section:
    """A part of the page: figures and tables under one heading."""

    key: str
    title: str
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def one(key: str, title: str, *panels: Panel, caption: str = "", wide: bool = False) -> Chart:
    """Return a chart of one view."""
    return Chart(key, title, {"": panels}, caption, wide)


def style(index: int) -> tuple[int, int, int]:
    """Return colour, dash and shape of the curve number `index`; dashes let a curve be seen that lies under another."""
    turn = index // (INK + 1)
    return index % (INK + 1), (index + turn) % len(DASHES), (index + turn) % len(SHAPES)


def has_numbers(values: Any) -> bool:
    """Return whether there is a finite number among the values."""
    array = np.asarray(values, np.float64)
    return bool(array.size and np.isfinite(array).any())


def share_axis(label: str, curves: Iterable[Floats]) -> Axis:
    """Return an axis for shares that shows the curves and never leaves 0 to 1; flat curves get a tenth around them."""
    known = np.concatenate([np.zeros(0), *(curve[np.isfinite(curve)] for curve in curves)])
    if not known.size:
        return Axis(label, range=(0.0, 1.0))
    low, high = float(known.min()), float(known.max())
    margin = max(0.06 * (high - low), 0.05 - (high - low) / 2)
    return Axis(label, range=(max(0.0, low - margin), min(1.0, high + margin)))
