"""Each client of a run, round by round: what it was asked, what became of it, what it has."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedlora.report.charts import STATUSES, Axis, Bars, Chart, Floats, Heat, Panel, has_numbers, one
from fedlora.report.curves import ROUND
from fedlora.runs.read import RunRecord

KINDS = tuple(STATUSES.items())
_CLIENT = Axis("client", whole=True, reverse=True)


def kind_of(statuses: list[Any]) -> NDArray[np.int64]:
    """Return the position in `KINDS` of each status of clients.jsonl, `[rows]`; -1 for none, and failed for an unknown one."""
    places = {name: place for place, name in enumerate(STATUSES)}
    return np.array([_kind(status, places) for status in statuses], np.int64)


def _kind(status: Any, places: dict[str, int]) -> int:
    if not isinstance(status, str):
        return -1
    return next((place for name, place in places.items() if status.startswith(name)), places["failed"])


def numbers(run: RunRecord, name: str) -> Floats:
    """Return a column of clients.jsonl as numbers, `[rows]`; NaN where it is not there."""
    if name not in run.clients:
        return np.full(len(run.clients), np.nan)
    import pandas

    return np.asarray(pandas.to_numeric(run.clients[name], errors="coerce"), np.float64)


def heat_maps(run: RunRecord) -> list[Chart]:
    """Return a table of clients and rounds for each thing that was recorded, and who has which labels."""
    charts = []
    if len(run.clients):
        kinds = kind_of(run.clients["status"].tolist())
        notes = np.array([status if isinstance(status, str) else "" for status in run.clients["status"]], object)
        outcomes = np.where(kinds < 0, np.nan, kinds)
        charts.append(_table(run, "outcomes", "What became of each client's reply", outcomes, "", KINDS, notes))
        wanted = (
            ("ranks", "Mean rank of each client", "mean_rank", "mean rank over sites", 1.0),
            ("losses", "Training loss of each client", "train_loss", "mean loss over local steps (nats)", 1.0),
            ("accuracies", "Accuracy on each client's held-out part", "held_accuracy", "share of examples", 1.0),
            ("snr", "Uplink SNR of each client", "snr_db", "mean SNR of the upload (dB)", 1.0),
            ("rates", "Goodput of each client's upload", "rate_bps", "Mbit/s", 1e-6),
            ("energies", "Energy of each client", "energy_j", "joules", 1.0),
        )
        for key, title, name, label, scale in wanted:
            values = scale * numbers(run, name)
            if has_numbers(values) and not (key == "rates" and has_numbers(numbers(run, "snr_db"))):
                charts.append(_table(run, key, title, values, label, (), notes))
    return [*charts, *_skew(run)]


def _table(
    run: RunRecord, key: str, title: str, values: Floats, label: str, kinds: tuple[tuple[str, int], ...], notes: NDArray[Any]
) -> Chart:
    """Return clients against rounds; who was not asked, or sent no such number, stays blank."""
    clients, rounds = (run.clients[name].to_numpy(np.int64) for name in ("client", "round"))
    most = max(int(clients.max()) + 1, run.config.clients if run.config else 0)
    first, last = int(rounds.min()), int(rounds.max())
    z = np.full((most, last - first + 1), np.nan)
    said = np.full(z.shape, "", object)
    z[clients, rounds - first], said[clients, rounds - first] = values, notes
    scale: Literal["viridis", "cividis"] = "cividis" if key in ("snr", "rates", "energies") else "viridis"
    present = tuple((name, colour) for place, (name, colour) in enumerate(kinds) if (z == place).any())
    if kinds:  # only kinds that occur are in the legend, so positions move
        places = {place: position for position, place in enumerate(np.unique(z[np.isfinite(z)]))}
        z = np.vectorize(lambda value: places.get(value, np.nan), otypes=[float])(z)
    low, high = _ends(run, key, values)
    heat = Heat(z, np.arange(first, last + 1.0), np.arange(float(most)), label, scale, present, low, high, said)
    caption = "Blank: not asked in that round" + (", or no number came back." if np.isnan(values).any() else ".")
    return one(f"clients-{key}", title, Panel(ROUND, _CLIENT, (heat,), _height(most)), caption=caption)


def _ends(run: RunRecord, key: str, values: Floats) -> tuple[float | None, float | None]:
    """Return the ends of a colour scale that is the same for every run of a kind; None: those of the numbers."""
    if key == "accuracies":
        return 0.0, 1.0
    if key == "ranks":
        caps = run.federation.caps if run.federation else []
        return 0.0, max(1.0, *map(float, caps), float(np.nanmax(values)))
    return None, None


def _height(rows: int) -> int:
    return int(np.clip(60 + 16 * rows, 200, 620))


def _skew(run: RunRecord) -> list[Chart]:
    """Return how many examples of each label every client has; one number per client where data have no labels."""
    who = run.federation
    if who is None:
        return []
    clients, total = np.arange(float(len(who.counts))), who.counts.sum()
    title = f"Data of {len(who.counts)} clients, {total:,} examples"
    if not who.labels:
        bars = Bars(clients, who.counts[:, 0].astype(float), "examples", horizontal=True)
        return [one("skew", title, Panel(Axis("examples", zero=True), _CLIENT, (bars,), _height(len(clients))))]
    counts = np.where(who.counts > 0, who.counts, np.nan)
    share = who.counts / np.maximum(1, who.counts.sum(axis=1, keepdims=True))
    notes = np.array([[f"{value:.0%} of this client's" for value in row] for row in share], object)
    axis = Axis("label", "names", tuple(who.labels))
    heat = Heat(counts, np.arange(float(len(who.labels))), clients, "examples", "cividis", low=0.0, notes=notes)
    chart = one("skew", title, Panel(axis, _CLIENT, (heat,), _height(len(clients)) + 30), caption="Blank: none of that label.")
    return [chart]
