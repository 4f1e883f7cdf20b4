"""Ranks beside the channel that caused them, and when each client received, computed and sent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedlora.report.charts import (
    GREY,
    INK,
    Axis,
    Bars,
    Chart,
    Floats,
    Heat,
    Line,
    Mark,
    Panel,
    Points,
    Rules,
    View,
    has_numbers,
    one,
)
from fedlora.report.clients import KINDS, kind_of, numbers
from fedlora.report.curves import ROUND, clock
from fedlora.runs.read import RunRecord

_MOST_VIEWS = 40
_MOST_BARS = 1500
_PHASES = (("downlink", "downlink_s", 5), ("compute", "compute_s", 2), ("uplink", "uplink_s", 4))


def channel_of(run: RunRecord) -> tuple[Floats, Axis] | None:
    """Return what is known of each reply's link, `[rows]`: its SNR, or its goodput where a world has no SNR."""
    snr = numbers(run, "snr_db")
    if has_numbers(snr):
        return snr, Axis("uplink SNR (dB)")
    rate = numbers(run, "rate_bps") / 1e6
    return (rate, Axis("uplink goodput (Mbit/s)", "log")) if has_numbers(rate) else None


def ranks(run: RunRecord) -> list[Chart]:
    """Return the ranks of each site over rounds, above the links of the same rounds: of all clients, and of each."""
    vectors = _vectors(run)
    if vectors is None:
        return []
    names = short_names(run.federation.sites) if run.federation else ()
    if len(names) != vectors.shape[1]:
        names = tuple(f"site {site}" for site in range(vectors.shape[1]))
    clients, rounds = (run.clients[name].to_numpy(np.int64) for name in ("client", "round"))
    low, high = float(vectors.min()), float(vectors.max())
    views: dict[str, View] = {}
    asked = np.bincount(clients)
    shown = sorted(np.argsort(-asked, kind="stable")[: min(_MOST_VIEWS, int((asked > 0).sum()))].tolist())
    whose = {"all clients, mean": np.ones(len(clients), bool)}
    whose |= {f"client {who}": clients == who for who in shown}
    for label, rows in whose.items():
        views[label] = _over_time(run, vectors, rounds, rows, names, (low, high))
    caption = "Rank of each adapted projection; below, the link of each reply in the same round." if channel_of(run) else ""
    if (asked > 0).sum() > _MOST_VIEWS:
        caption += f" Single clients: the {_MOST_VIEWS} that were asked most often."
    title = "Ranks per site over time" + (", and the channel" if channel_of(run) else "")
    return [Chart("ranks", title, views, caption, wide=True, choice="clients"), *_against_channel(run, vectors)]


def _vectors(run: RunRecord) -> NDArray[np.int64] | None:
    """Return the rank vector of each row of clients.jsonl, `[rows, sites]`; None where they are not there in one length."""
    found = run.clients["ranks"].tolist()
    lengths = {len(vector) if isinstance(vector, list) else 0 for vector in found}
    return np.array(found, np.int64) if len(lengths) == 1 and lengths != {0} else None


def short_names(sites: Sequence[str]) -> tuple[str, ...]:
    """Return names of sites without the parts that all of them share: `encoder.layer.0.attention.self.query` -> `0.query`."""
    parts = [site.split(".") for site in sites]
    if len({len(part) for part in parts}) != 1 or len(sites) < 2:
        return tuple(sites)
    differ = [place for place in range(len(parts[0])) if len({part[place] for part in parts}) > 1]
    return tuple(".".join(part[place] for place in differ) for part in parts)


def _over_time(
    run: RunRecord, vectors: NDArray[np.int64], rounds: NDArray[np.int64], rows: NDArray[np.bool_], names: tuple[str, ...],
    ends: tuple[float, float],
) -> View:  # fmt: skip
    """Return ranks of the chosen rows, a column per round, above their links."""
    first, last = int(rounds.min()), int(rounds.max())
    count = np.bincount(rounds[rows] - first, minlength=last - first + 1)
    total = np.zeros((last - first + 1, vectors.shape[1]))
    np.add.at(total, rounds[rows] - first, vectors[rows])
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (total / count[:, None]).T
    columns, places = np.arange(first, last + 1.0), np.arange(float(len(names)))
    heat = Heat(z, columns, places, "rank", "viridis", low=min(0.0, ends[0]), high=max(1.0, ends[1]))
    sites = Axis("", "names", names, reverse=True)
    ranks_panel = Panel(ROUND, sites, (heat,), int(np.clip(70 + 17 * len(names), 170, 620)))
    link = channel_of(run)
    if link is None:
        return (ranks_panel,)
    values, axis = link
    return (ranks_panel, Panel(ROUND, axis, tuple(_links(run, values, rounds, rows, columns)), 190))


def _links(run: RunRecord, values: Floats, rounds: NDArray[np.int64], rows: NDArray[np.bool_], columns: Floats) -> list[Mark]:
    """Return each reply's link by what became of it, and the median of every round."""
    kinds = kind_of(run.clients["status"].tolist())
    clients = run.clients["client"].to_numpy(np.int64)
    marks: list[Mark] = []
    if rows.all():
        middle = np.array([_median(values[rounds == number]) for number in columns])
        marks.append(Line(columns, middle, "median", GREY, 0, None))
    for place, (name, colour) in enumerate(KINDS):
        chosen = rows & (kinds == place) & np.isfinite(values)
        if chosen.any():
            notes = tuple(f"client {client}" for client in clients[chosen].tolist())
            marks.append(Points(rounds[chosen].astype(float), values[chosen], name, colour, place, notes=notes))
    return marks


def _median(values: Floats) -> float:
    return float(np.median(values[np.isfinite(values)])) if has_numbers(values) else np.nan


def _against_channel(run: RunRecord, vectors: NDArray[np.int64]) -> list[Chart]:
    """Return the mean rank and the upload's time of each reply against its link, where they differ at all."""
    link = channel_of(run)
    if link is None:
        return []
    uploads = numbers(run, "uplink_s")
    sending = np.where(uploads > 0, uploads, np.nan)  # the others were lost before
    found = (
        ("rank-channel", "Rank against the channel", vectors.mean(axis=1), Axis("mean rank over sites", zero=True)),
        ("upload-channel", "Time of the upload against the channel", sending, Axis("upload (s)", zero=True)),
    )
    caption = (
        "One point per client and round. The policy saw a measurement of an earlier round, not the link that the upload met."
    )
    return [
        one(key, title, Panel(link[1], axis, tuple(_by_outcome(run, link[0], values)), 280), caption=caption)
        for key, title, values, axis in found
        if np.unique(values[np.isfinite(values)]).size > 1
    ]


def _by_outcome(run: RunRecord, x: Floats, y: Floats) -> list[Mark]:
    """Return one point per row of clients.jsonl, told apart by what became of the reply."""
    kinds = kind_of(run.clients["status"].tolist())
    marks: list[Mark] = []
    for place, (name, colour) in enumerate(KINDS):
        chosen = (kinds == place) & np.isfinite(x) & np.isfinite(y)
        if chosen.any():
            pairs = zip(run.clients["client"][chosen], run.clients["round"][chosen], strict=True)
            notes = tuple(f"client {client}, round {number}" for client, number in pairs)
            marks.append(Points(x[chosen], y[chosen], name, colour, place, notes=notes))
    return marks


def timeline(run: RunRecord) -> list[Chart]:
    """Return when each client received, computed and sent, on the run's clock; nothing for a run without one."""
    ends, which = clock(run)
    if which == "wall time" or not len(run.clients) or not any(has_numbers(numbers(run, key)) for _, key, _ in _PHASES):
        return []
    begins = dict(zip(run.metrics["round"].tolist(), np.concatenate([[0.0], ends[:-1]]).tolist(), strict=True))
    rounds, clients = (run.clients[name].to_numpy(np.int64) for name in ("round", "client"))
    known = np.isin(rounds, list(begins))
    per_round = np.bincount(rounds[known])
    recent = np.cumsum(per_round[::-1])[::-1] <= _MOST_BARS  # the last rounds that can be read, at least one
    first = int(np.argmax(recent)) if recent.any() else int(rounds.max())
    chosen = known & (rounds >= max(first, 1))
    start = np.array([begins[number] for number in rounds[chosen].tolist()])
    at, notes = clients[chosen].astype(float), tuple(f"round {number}" for number in rounds[chosen].tolist())
    marks: list[Mark] = []
    for label, key, colour in _PHASES:
        length = np.nan_to_num(numbers(run, key)[chosen])
        marks.append(Bars(at, length, label, colour, start.copy(), horizontal=True, notes=notes))
        start = start + length
    lost = kind_of(run.clients["status"].tolist())[chosen] > 0
    if lost.any():
        said = tuple(run.clients["status"][chosen][lost].astype(str))
        marks.append(Points(start[lost], at[lost], "lost here", INK, 4, notes=said))
    marks.append(Rules(np.unique([begins[number] for number in set(rounds[chosen].tolist())])))
    span = f" Rounds {int(rounds[chosen].min())} to {int(rounds[chosen].max())} of {run.rounds_done}." if first > 1 else ""
    most = max(int(at.max()) + 1, run.config.clients if run.config else 0)
    who = Axis("client", whole=True, reverse=True, range=(-0.6, most - 0.4))
    panel = Panel(Axis(f"{which} (s)"), who, tuple(marks), int(np.clip(90 + 16 * most, 240, 640)))
    caption = f"Vertical lines: a round begins.{span}"
    return [one("timeline", "Downlink, compute and uplink of each client", panel, caption=caption, wide=True)]
