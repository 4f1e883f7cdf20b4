"""Ranks beside the channel that caused them, and when each client received, computed and sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedlora.report.charts import (
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
from fedlora.report.curves import ROUND, begins, clock
from fedlora.runs.read import RunRecord

_MOST_VIEWS = 40
_MOST_BARS = 1500
_MOST_POINTS = 3000
_PHASES = (("downlink", "downlink_s", 5), ("compute", "compute_s", 2), ("uplink", "uplink_s", 4))


def channel_of(run: RunRecord) -> tuple[Floats, Axis] | None:
    """Return what is known of each reply's link, `[rows]`: its SNR, or its goodput where a world has no SNR."""
    snr = numbers(run, "snr_db")
    if has_numbers(snr):
        return snr, Axis("uplink SNR (dB)")
    rate = numbers(run, "rate_bps") / 1e6
    return (rate, Axis("uplink goodput (Mbit/s)", "log")) if has_numbers(rate) else None


@dataclass(frozen=True)
class _Replies:
    """The rows of clients.jsonl as arrays, `[rows]`.

    Attributes:
        clients, rounds: Who was asked, and when.
        kinds: What became of the reply, a position in `KINDS`.
        vectors: Its ranks, `[rows, sites]`.
        link: What is known of its link, and the axis for it; None where nothing is.
    """

    clients: NDArray[np.int64]
    rounds: NDArray[np.int64]
    kinds: NDArray[np.int64]
    vectors: NDArray[np.int64]
    link: tuple[Floats, Axis] | None

    @property
    def columns(self) -> Floats:
        """Every round from the first to the last."""
        return np.arange(self.rounds.min(), self.rounds.max() + 1.0)


def ranks(run: RunRecord) -> list[Chart]:
    """Return the ranks of each site over rounds, above the links of the same rounds: of all clients, and of each."""
    run, vectors = _with_vectors(run)
    if not vectors.size:
        return []
    clients, rounds = (run.clients[name].to_numpy(np.int64) for name in ("client", "round"))
    replies = _Replies(clients, rounds, kind_of(run.clients["status"].tolist()), vectors, channel_of(run))
    names = short_names(run.federation.sites) if run.federation else ()
    if len(names) != vectors.shape[1]:
        names = tuple(f"site {site}" for site in range(vectors.shape[1]))
    asked = np.bincount(clients)
    shown = sorted(np.argsort(-asked, kind="stable")[: min(_MOST_VIEWS, int((asked > 0).sum()))].tolist())
    whose = {"all clients, mean": np.ones(len(clients), bool)} | {f"client {who}": clients == who for who in shown}
    views = {label: _over_time(replies, rows, names) for label, rows in whose.items()}
    caption = "Rank of each adapted projection; below, the link of each reply in the same round." if replies.link else ""
    if (asked > 0).sum() > _MOST_VIEWS:
        caption += f" Single clients: the {_MOST_VIEWS} that were asked most often."
    title = "Ranks per site over time" + (", and the channel" if replies.link else "")
    return [Chart("ranks", title, views, caption, wide=True, choice="clients"), *_against_channel(run, replies)]


def _with_vectors(run: RunRecord) -> tuple[RunRecord, NDArray[np.int64]]:
    """Return the run with those of its client rows that have a rank per site, and their rank vectors, `[rows, sites]`."""
    found = run.clients["ranks"].tolist()
    lengths = [len(vector) if isinstance(vector, list) and all(type(rank) is int for rank in vector) else 0 for vector in found]
    sites = max(set(lengths) - {0}, key=lengths.count, default=0)
    there = np.array([sites > 0 and length == sites for length in lengths], bool)
    vectors = [vector for vector, good in zip(found, there.tolist(), strict=True) if good]
    return replace(run, clients=run.clients[there]), np.array(vectors, np.int64).reshape(len(vectors), sites)


def short_names(sites: Sequence[str]) -> tuple[str, ...]:
    """Return names of sites without the parts that all of them share: `encoder.layer.0.attention.self.query` -> `0.query`."""
    parts = [site.split(".") for site in sites]
    if len({len(part) for part in parts}) != 1 or len(sites) < 2:
        return tuple(sites)
    differ = [place for place in range(len(parts[0])) if len({part[place] for part in parts}) > 1]
    return tuple(".".join(part[place] for place in differ) for part in parts)


def _over_time(replies: _Replies, rows: NDArray[np.bool_], names: tuple[str, ...]) -> View:
    """Return ranks of the chosen rows, a column per round, above their links."""
    vectors, columns = replies.vectors, replies.columns
    at = replies.rounds[rows] - int(columns[0])
    total = np.zeros((len(columns), vectors.shape[1]))
    np.add.at(total, at, vectors[rows])
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (total / np.bincount(at, minlength=len(columns))[:, None]).T
    high = max(1.0, float(vectors.max()))
    heat = Heat(z, columns, np.arange(float(len(names))), "rank", "viridis", low=0.0, high=high)
    sites = Axis("", "names", names, reverse=True)
    ranks_panel = Panel(ROUND, sites, (heat,), int(np.clip(70 + 17 * len(names), 170, 620)))
    if replies.link is None:
        return (ranks_panel,)
    return (ranks_panel, Panel(ROUND, replies.link[1], tuple(_links(replies, replies.link[0], rows)), 190))


def _links(replies: _Replies, values: Floats, rows: NDArray[np.bool_]) -> list[Mark]:
    """Return each chosen reply's link by what became of it, and the median of every round where all are chosen."""
    marks: list[Mark] = []
    drawn = _thin(rows & np.isfinite(values))
    for place, (name, colour) in enumerate(KINDS):
        chosen = drawn & (replies.kinds == place)
        if chosen.any():
            notes = tuple(f"client {client}" for client in replies.clients[chosen].tolist())
            marks.append(Points(replies.rounds[chosen].astype(float), values[chosen], name, colour, place, notes=notes))
    if rows.all():
        middle = np.array([_median(values[replies.rounds == number]) for number in replies.columns])
        marks.append(Line(replies.columns, middle, "median", INK, 0, None))
    return marks


def _thin(rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return every k-th of the chosen rows, so that no more are left than a browser draws with ease."""
    every = -(-int(rows.sum()) // _MOST_POINTS)
    return rows & (np.cumsum(rows) % every == 0) if every > 1 else rows


def _median(values: Floats) -> float:
    return float(np.median(values[np.isfinite(values)])) if has_numbers(values) else np.nan


def _against_channel(run: RunRecord, replies: _Replies) -> list[Chart]:
    """Return the mean rank and the upload's time of each reply against its link, where they differ at all."""
    if replies.link is None:
        return []
    link, axis = replies.link
    uploads = numbers(run, "uplink_s")
    sending = np.where(uploads > 0, uploads, np.nan)  # the others were lost before
    found = (
        ("rank-channel", "Rank against the channel", replies.vectors.mean(axis=1), Axis("mean rank over sites", zero=True)),
        ("upload-channel", "Time of the upload against the channel", sending, Axis("upload (s)", zero=True)),
    )
    every = -(-len(link) // _MOST_POINTS)
    each = "One point per client and round" if every <= 1 else f"One of {every} of the {len(link):,} replies"
    caption = f"{each}. The policy saw a measurement of an earlier round, not the link that the upload met."
    return [
        one(key, title, Panel(axis, y, tuple(_by_outcome(replies, link, values)), 280), caption=caption)
        for key, title, values, y in found
        if np.unique(values[np.isfinite(values)]).size > 1
    ]


def _by_outcome(replies: _Replies, x: Floats, y: Floats) -> list[Mark]:
    """Return a point per reply, told apart by what became of it."""
    drawn = _thin(np.isfinite(x) & np.isfinite(y))
    marks: list[Mark] = []
    for place, (name, colour) in enumerate(KINDS):
        chosen = drawn & (replies.kinds == place)
        if chosen.any():
            pairs = zip(replies.clients[chosen].tolist(), replies.rounds[chosen].tolist(), strict=True)
            notes = tuple(f"client {client}, round {number}" for client, number in pairs)
            marks.append(Points(x[chosen], y[chosen], name, colour, place, notes=notes))
    return marks


def timeline(run: RunRecord) -> list[Chart]:
    """Return when each client received, computed and sent, on the run's clock; nothing for a run without one."""
    ends, which = clock(run)
    if which == "wall time" or not len(run.clients) or not any(has_numbers(numbers(run, key)) for _, key, _ in _PHASES):
        return []
    pairs = zip(run.metrics["round"].tolist(), begins(run, ends).tolist(), strict=True)
    began = {number: start for number, start in pairs if np.isfinite(start)}
    rounds, clients = (run.clients[name].to_numpy(np.int64) for name in ("round", "client"))
    known = np.isin(rounds, list(began))
    if not known.any():
        return []
    per_round = np.bincount(rounds[known])
    recent = np.cumsum(per_round[::-1])[::-1] <= _MOST_BARS  # the last rounds that can be read, at least one
    first = int(np.argmax(recent)) if recent.any() else int(rounds.max())
    chosen = known & (rounds >= max(first, 1))
    start = np.array([began[number] for number in rounds[chosen].tolist()])
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
    marks.append(Rules(np.unique([began[number] for number in set(rounds[chosen].tolist())])))
    span = f" Rounds {int(rounds[chosen].min())} to {int(rounds[chosen].max())} of {run.rounds_done}." if first > 1 else ""
    most = max(int(at.max()) + 1, run.config.clients if run.config else 0)
    who = Axis("client", whole=True, reverse=True, range=(-0.6, most - 0.4))
    panel = Panel(Axis(f"{which} (s)"), who, tuple(marks), int(np.clip(90 + 16 * most, 240, 640)))
    caption = f"Vertical lines: a round begins.{span}"
    return [one("timeline", "Downlink, compute and uplink of each client", panel, caption=caption, wide=True)]
