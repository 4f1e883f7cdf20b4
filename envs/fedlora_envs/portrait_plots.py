"""The pictures of a world's portrait, as PNG: the cell, the distribution of SNRs or rates, and how a link moves in time.

Each function returns whether there was anything to draw. Files appear whole or not at all.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedlora.files import write_atomic
from fedlora.streams import fast_stream
from fedlora_envs.band_links import BandLinks
from fedlora_envs.cell import Cell
from fedlora_envs.radio.fading import coherence_s, doppler_hz, make_fading
from fedlora_envs.rate_links import TraceLinks
from fedlora_envs.world import RadioWorld

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

# Okabe and Ito's palette: told apart with any colour vision.
_COLOURS = ("#0072B2", "#E69F00", "#009E73")
_MOST_POINTS = 2000
_STILL_S = 3.0  # how long a link at rest is drawn
_COHERENCE_TIMES = 25
_MOST_TRACE_S = 600.0
_MOST_ROUNDS = 60


def plot_cell(world: RadioWorld, path: Path) -> bool:
    """Draw where clients are, how well they hear the base station (colour) and what stands between (shape)."""
    cell = world.links.cell if isinstance(world.links, BandLinks) else None
    if cell is None:
        return False
    figure, axes = _sheet(7.6, 6.4)
    xy, snr_db = cell.walk.xy[:_MOST_POINTS], world.links.measured()[0, :_MOST_POINTS]
    low, high = np.percentile(snr_db, [2, 98])
    los, indoor = cell.los[:_MOST_POINTS], cell.indoor[:_MOST_POINTS]
    where = "outdoors, " if indoor.any() else ""
    kinds = [
        (f"{where}in line of sight", "o", los & ~indoor),
        (f"{where}out of sight", "^", ~los & ~indoor),
        ("indoors", "s", indoor),
    ]
    if world.config.cell.scenario == "literature":  # knows no line of sight
        kinds = [("clients", "o", np.ones(len(xy), bool))]
    for label, marker, chosen in kinds:
        if chosen.any():
            x, y = xy[chosen].T
            points = axes.scatter(x, y, c=snr_db[chosen], marker=marker, s=22, vmin=low, vmax=high, cmap="viridis", linewidths=0)
            axes.scatter([], [], marker=marker, color="0.45", s=30, label=f"{label} ({chosen.sum()})")
    axes.scatter([0], [0], marker="*", s=260, color="#D55E00", edgecolors="black", zorder=3, label="base station")
    _edge(axes, cell)
    axes.set(xlabel="x (m)", ylabel="y (m)", aspect="equal")
    shown = f"{len(xy):,} of {world.clients:,}" if len(xy) < world.clients else f"{world.clients:,}"
    axes.set_title(f"{world.name}: {shown} clients, {world.config.cell.scenario} at {world.config.cell.fc_ghz:g} GHz")
    figure.colorbar(points, ax=axes, label="downlink SNR (dB)", extend="both", shrink=0.8)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    _save(figure, path)
    return True


def _edge(axes: Axes, cell: Cell) -> None:
    from matplotlib.patches import Circle, Rectangle

    side = cell.config.area_m
    edge = Circle((0, 0), cell.config.radius_m) if side is None else Rectangle((-side / 2, -side / 2), side, side)
    edge.set(fill=False, edgecolor="0.5", linestyle="--", linewidth=1.0)
    axes.add_patch(edge)
    reach = 1.06 * (cell.config.radius_m if side is None else side / 2)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach))


def plot_distribution(world: RadioWorld, measured: Floats, expected: Floats, path: Path) -> bool:
    """Draw the distribution functions of the clients' SNRs; of their rates where the world has no SNR.

    Args:
        world: The world.
        measured: As `Links.measured` returns it, [2, n].
        expected: As `Links.expected` returns it, [3, n].
        path: Of the PNG file.
    """
    has_snr = world.config.links in ("cell", "levels")
    share = f"shared by {world.setup.per_round}"
    curves = (
        [("downlink", measured[0]), ("uplink, whole band", measured[1]), (f"uplink, band {share}", expected[2])]
        if has_snr
        else [("downlink", expected[0]), ("uplink", expected[1])]
    )
    if world.config.links == "levels":  # one SNR for both directions and any band
        curves = [("downlink and uplink", measured[0])]
    if not all(np.isfinite(values).all() for _, values in curves):
        return False
    figure, axes = _sheet(7.6, 4.6)
    styles = ("-", "--", ":")
    low = [] if has_snr else [values[values > 0].min() for _, values in curves if (values > 0).any()]
    for (label, values), colour, style in zip(curves, _COLOURS, styles, strict=False):
        rising = np.sort(values)
        above = np.arange(1, rising.size + 1) / rising.size
        axes.step(rising, above, where="post", color=colour, linestyle=style, linewidth=2, label=label)
    axes.set(ylim=(0, 1), ylabel="share of clients at or below")
    if has_snr:
        axes.set_xlabel("mean SNR (dB)")
        axes.set_xlim(*np.percentile(np.concatenate([values for _, values in curves]), [0.2, 99.8]) + np.array([-2, 2]))
    else:
        axes.set_xlabel("rate (bit/s)")
        axes.set_xscale("log")
        axes.set_xlim(left=min(low) / 1.5)
    axes.grid(color="0.9")
    axes.set_title(f"{world.name}: {'SNR' if has_snr else 'rates'} of {world.clients:,} clients")
    axes.legend(frameon=False)
    _save(figure, path)
    return True


def plot_fading(world: RadioWorld, path: Path) -> bool:
    """Draw the gain of three links over some coherence times, and mark one of these.

    `clarke` is drawn at a fine time step, which leaves its law as it is; the other models' laws belong to the step they have in
    the world, and their gains are drawn as what they are: held for a step.
    """
    links, config = world.links, world.config
    if not isinstance(links, BandLinks) or links.cell is None or config.fading.model == "none":
        return False
    speed_hz = float(doppler_hz(config.cell.speed_kmh, config.cell.fc_ghz))
    coherence = float(coherence_s(speed_hz))
    span_s = _COHERENCE_TIMES * coherence if np.isfinite(coherence) else _STILL_S
    rician = config.fading.rician and config.fading.model != "markov"
    chosen = _three(links.cell.k_factor if rician else np.zeros(world.clients))
    k_factor = links.cell.k_factor[chosen] if rician else np.zeros(len(chosen))
    step_s = span_s / 1500 if config.fading.model == "clarke" else links.fading_step_s
    span_s = max(span_s, 10 * step_s)
    process = make_fading(
        config.fading.model, len(chosen), fast_stream(world.setup.seed, "fading drawn"),
        doppler_hz=speed_hz, step_s=step_s, k_factor=k_factor,
    )  # fmt: skip
    count = int(np.ceil(span_s / step_s)) + 1
    gains_db = 10 * np.log10(np.maximum(np.array([process.step().copy() for _ in range(count)]), 1e-8))
    figure, axes = _sheet(8.4, 4.6)
    unit, scale = ("ms", 1e3) if span_s < 2 else ("s", 1.0)
    for link, k, values, colour in zip(chosen, k_factor, gains_db.T, _COLOURS, strict=False):
        law = f"Rician K = {10 * np.log10(k):.1f} dB" if k else "Rayleigh"
        drawstyle = "default" if config.fading.model == "clarke" else "steps-post"
        axes.plot(
            scale * step_s * np.arange(count),
            values,
            color=colour,
            linewidth=1.5,
            label=f"client {link}, {law}",
            drawstyle=drawstyle,
        )
    low, high = max(-45.0, float(gains_db.min())) - 2, float(gains_db.max()) + 6
    if np.isfinite(coherence):
        _mark(axes, scale * coherence, high - 2.5, f"coherence time {scale * coherence:.3g} {unit}")
    axes.set(xlim=(0, scale * span_s), ylim=(low, high), xlabel=f"time ({unit})", ylabel="power gain (dB)")
    axes.grid(color="0.9")
    axes.set_title(f"{world.name}: fading '{config.fading.model}', Doppler {speed_hz:.3g} Hz ({config.cell.speed_kmh:g} km/h)")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    _save(figure, path)
    return True


def _three(k_factor: Floats) -> NDArray[np.intp]:
    """Return a client with line of sight and two without, as far as there are such."""
    seen, unseen = np.flatnonzero(k_factor > 0), np.flatnonzero(k_factor == 0)
    first = seen[[np.argsort(k_factor[seen])[len(seen) // 2]]] if seen.size else seen
    chosen = np.concatenate([first, unseen[: 3 - len(first)]])
    more = seen[~np.isin(seen, chosen)][: 3 - len(chosen)]
    return np.concatenate([chosen, more])


def _mark(axes: Axes, length: float, height: float, label: str) -> None:
    start = 0.3 * length
    axes.annotate("", (start, height), (start + length, height), arrowprops={"arrowstyle": "|-|", "mutation_scale": 3})
    axes.annotate(label, (start + length, height), (6, 0), textcoords="offset points", va="center", fontsize=9)


def plot_levels(world: RadioWorld, followed: Floats, path: Path) -> bool:
    """Draw the SNR of three clients over rounds, for a world that draws it from levels.

    Args:
        world: The world.
        followed: Their downlink SNR in dB, [rounds, up to 3].
        path: Of the PNG file.
    """
    if world.config.links != "levels":
        return False
    shown = followed[:_MOST_ROUNDS]
    rounds = np.arange(len(shown) + 1) + 0.5
    kind = {"iid": "independent draws", "markov": "steps to neighbouring levels"}[world.config.levels.kind]
    figure, panels = _panels(shown.shape[1], f"{world.name}: SNR over rounds, {kind}", "SNR (dB)", "round")
    for client, (axes, values, colour) in enumerate(zip(panels, shown.T, _COLOURS, strict=False)):
        axes.stairs(values, rounds, baseline=None, color=colour, linewidth=1.8)
        axes.set(xlim=(rounds[0], rounds[-1]), yticks=world.config.levels.values_db)
        axes.margins(y=0.1)
        axes.set_title(f"client {client}", loc="right", fontsize=9)
    _save(figure, path)
    return True


def plot_traces(world: RadioWorld, path: Path) -> bool:
    """Draw the rates of the first traces over time, for a world that plays them back."""
    if not isinstance(world.links, TraceLinks):
        return False
    every = world.links.traces
    traces = sorted(every, key=lambda trace: -trace.end_s)[:3]
    title = f"{world.name}: {len(traces)} of {len(every)} trace{'s' if len(every) > 1 else ''}, downlink"
    figure, panels = _panels(len(traces), title, "rate (Mb/s)", "time (s)")
    for axes, trace, colour in zip(panels, traces, _COLOURS, strict=False):
        axes.stairs(trace.rate_bps / 1e6, trace.edges_s(), baseline=None, color=colour, linewidth=1.8)
        axes.set(xlim=(0, min(_MOST_TRACE_S, traces[0].end_s)), ylim=(0, 1.1 * trace.rate_bps.max() / 1e6))
        axes.set_title(trace.name, loc="right", fontsize=9)
    _save(figure, path)
    return True


def _sheet(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _panels(count: int, title: str, ylabel: str, xlabel: str) -> tuple[Figure, list[Axes]]:
    """Return a sheet of panels one above the other, for curves that would hide each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 1.2 + 1.5 * count), layout="constrained")
    panels: list[Axes] = list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    panels[-1].set_xlabel(xlabel)
    figure.supylabel(ylabel, fontsize="medium")
    figure.suptitle(title, fontsize="large")
    return figure, panels


def _save(figure: Figure, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomic(path, picture.getvalue())
