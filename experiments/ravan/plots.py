"""The plots of the Ravan study, as SVG; told apart with any colour vision: Okabe and Ito's palette, shapes and dashes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from experiments.common import spread
from experiments.ravan.cells import METHODS_ALL
from experiments.ravan.results import BESIDE, SPLIT_NAMES, Results, paper_gain
from fedlora.files import write_atomic

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
_SHAPES = ("o", "s", "^", "D", "v", "P")


def style(label: str) -> dict[str, Any]:
    """Return how a method is drawn, the same in all plots; Ravan black and thick, the ceiling grey."""
    if label == "ravan":
        return {"color": "black", "marker": "*", "linewidth": 2.2, "markersize": 9, "zorder": 5}
    if label == "full":
        return {"color": "0.55", "marker": "X", "linestyle": ":"}
    index = [name for name in METHODS_ALL if name not in ("ravan", "full")].index(label)
    dashes = "-" if index < len(_COLOURS) else "--"
    return {"color": _COLOURS[index % 6], "marker": _SHAPES[index % 6], "linestyle": dashes}


def curves(found: Results) -> Figure:
    """Accuracy against all bytes that crossed so far, mean over seeds; few clients, low budget."""
    figure = Figure(figsize=(10.5, 3.6 * len(found.tasks)), layout="constrained")
    for row, task in enumerate(found.tasks):
        for column, split in enumerate(SPLIT_NAMES):
            axes = figure.add_subplot(len(found.tasks), 2, 2 * row + column + 1)
            for label in METHODS_ALL:
                runs = list(found.cells(task, split, found.few, "low", label).values())
                runs = [run for run in runs if None not in run["accuracy"]]
                if runs:
                    both = np.mean([np.add(run["up"], run["down"]) for run in runs], axis=0) / 1e6
                    accuracy = 100 * np.mean([run["accuracy"] for run in runs], axis=0)
                    # Before the first round nothing has been sent, which a logarithm does not show.
                    axes.plot(both[1:], accuracy[1:], label=label, **{"markersize": 5, "linewidth": 1.2, **style(label)})
            axes.set_xscale("log")
            axes.set_title(f"{task}, {SPLIT_NAMES[split]}")
            axes.set_xlabel("MB sent, both ways, all clients")
            axes.set_ylabel("test accuracy, %")
            axes.grid(alpha=0.3)
    handles, labels = max((axes.get_legend_handles_labels() for axes in figure.axes), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize="small")
    return figure


def gains(found: Results) -> Figure:
    """Ravan's gain over each method in this study, with its 95 % interval, and in the paper."""
    others = [label for label in METHODS_ALL if label not in ("ravan", "fedsa-lora")]
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    for column, task in enumerate(found.tasks):
        axes = figure.add_subplot(1, len(found.tasks), column + 1)
        for offset, (split, name) in zip((0.18, -0.18), SPLIT_NAMES.items(), strict=True):
            colour = _COLOURS[0] if split == "iid" else _COLOURS[3]
            shape = "o" if split == "iid" else "s"
            for index, label in enumerate(others):
                ours = found.less(found.settings(task, split), "ravan", label)
                if ours:
                    mean, half = spread(ours)
                    axes.errorbar(mean, index + offset, xerr=half, fmt=shape, color=colour, capsize=2,
                                  label=f"here, {name}" if index == 0 else None)  # fmt: skip
                theirs = paper_gain(BESIDE[task], split, label)
                if theirs is not None:
                    axes.plot(
                        theirs,
                        index + offset,
                        shape,
                        mfc="none",
                        color=colour,
                        label=f"paper, {name}" if label == "full" else None,
                    )
        axes.axvline(0, color="0.5", linewidth=1)
        axes.set_yticks(range(len(others)), others if column == 0 else [""] * len(others))
        axes.set_title(f"{task} (paper: {', '.join(BESIDE[task])})")
        axes.set_xlabel("Ravan less the method, points")
        axes.grid(alpha=0.3, axis="x")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return figure


def heads(found: Results) -> Figure:
    """Accuracy against the number of heads at equal budget, non-IID."""
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.add_subplot(1, 1, 1)
    for index, task in enumerate(found.tasks):
        counts, means, halves = [], [], []
        for count in (1, 2, 4, 8, 16):
            label = "ravan" if count == 4 else f"h={count}"
            values = list(found.final(task, "dirichlet", found.few, "low", label).values())
            if values:
                mean, half = spread(values)
                counts.append(count)
                means.append(mean)
                halves.append(half or 0.0)
        line, colour = f"{_SHAPES[index]}-", _COLOURS[3 * index]
        axes.errorbar(counts, means, yerr=halves, fmt=line, color=colour, capsize=3, label=task)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.set_xlabel("heads at equal budget")
    axes.set_ylabel("test accuracy, non-IID, %")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)
    return figure


PLOTS: dict[str, tuple[str, Callable[[Results], Figure], str]] = {
    "bytes": ("curves.svg", curves, "Accuracy against bytes"),
    "gains": ("gains.svg", gains, "Ravan's gain over each method, here and in the paper"),
    "ablations": ("heads.svg", heads, "Accuracy against the number of heads"),
}


def draw_all(found: Results, folder: Path) -> dict[str, str]:
    """Draw all plots into `folder`; return the Markdown that shows each, by the section that it belongs to."""
    links = {}
    for section, (file, draw, words) in PLOTS.items():
        picture = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": "fedlora", "svg.fonttype": "none"}):  # the same numbers give the same bytes
            draw(found).savefig(picture, format="svg", metadata={"Date": None})
        write_atomic(folder / file, picture.getvalue())
        links[section] = f"![{words}]({file})"
    return links
