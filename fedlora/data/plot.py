"""A picture of who has what: the label mix of every client."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedlora.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette for up to eight classes, Krzywinski's for up to twelve: both are told apart with any colour vision.
_EIGHT = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
_TWELVE = ["#9F0162", "#009F81", "#FF5AAF", "#00FCCF", "#8400CD", "#008DF9", "#00C2F9", "#FFB2FD", "#A40122", "#E20134"]
_TWELVE += ["#FF6E3A", "#FFC33B"]


def count_labels(labels: NDArray[np.int64], parts: Sequence[NDArray[np.int64]], label_names: Sequence[str]) -> NDArray[np.int64]:
    """Return how many examples of each label every client has, `[clients, labels]`; one column where there are no labels.

    Args:
        labels: int64 [N], positions in `label_names`.
        parts: The clients' positions in `labels`.
        label_names: By label.
    """
    width = max(1, len(label_names))
    return np.stack([np.bincount(labels[part], minlength=width) for part in parts])


def plot_label_mix(
    labels: NDArray[np.int64], parts: Sequence[NDArray[np.int64]], label_names: Sequence[str], path: str | Path
) -> None:
    """Draw how many examples of each label every client has, as a PNG.

    Up to twelve labels become stacked bars, more a heat map. The file appears whole or not at all.

    Args:
        labels: int64 [N], positions in `label_names`.
        parts: The clients' positions in `labels`.
        label_names: By label; empty where there are no labels, then bars show how many examples each client has.
        path: Of the PNG file; its folder must exist.

    Raises:
        RunFolderError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    label_names = list(label_names) or ["text"]
    counts = count_labels(labels, parts, label_names)
    bars = len(label_names) <= len(_TWELVE)
    height = min(16.0, 1.8 + max(0.24 * len(parts), 0.16 * len(label_names) if bars else 2.0))
    figure = Figure(figsize=(9.0 if bars else max(9.0, 3.5 + 0.2 * len(label_names)), height), layout="constrained")
    axes = figure.add_subplot()
    if bars:
        _bars(axes, counts, label_names)
    else:
        _heat_map(axes, counts, label_names)
    axes.set_title(f"Label mix of {len(parts)} clients, {counts.sum():,} examples")
    axes.set_ylabel("client")
    step = -(-len(parts) // int(height / 0.14))  # as many client numbers as can be read
    axes.set_yticks(range(0, len(parts), step))
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.tick_params(labelsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomic(Path(path), picture.getvalue())


def _bars(axes: Axes, counts: NDArray[np.int64], names: Sequence[str]) -> None:
    colours = _EIGHT if len(names) <= len(_EIGHT) else _TWELVE
    clients, start = np.arange(len(counts)), np.zeros(len(counts))
    for label, name in enumerate(names):
        axes.barh(clients, counts[:, label], left=start, color=colours[label], label=name, linewidth=0)
        start += counts[:, label]
    axes.set_xlabel("examples")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="label", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)


def _heat_map(axes: Axes, counts: NDArray[np.int64], names: Sequence[str]) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    shades = colormaps["viridis_r"].with_extremes(bad="white")
    image = axes.imshow(
        np.ma.masked_equal(counts, 0), cmap=shades, norm=LogNorm(1, max(2, counts.max())), aspect="auto", interpolation="nearest"
    )
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_xlabel("label")
    axes.figure.colorbar(image, ax=axes, label="examples (white: none)", format="%d", aspect=30)
