"""What the columns of a run's logs mean: the reference of metrics.jsonl and clients.jsonl is written from here.

Tests hold the names to those of real runs.
"""

from __future__ import annotations

from typing import NamedTuple


class Column(NamedTuple):
    """One column of a log.

    Attributes:
        unit: Unit of its numbers; empty for counts, names and texts.
        meaning: What it says.
    """

    unit: str
    meaning: str


METRICS: dict[str, Column] = {
    "round": Column("", "from 0, the untouched model"),
    "test_accuracy": Column("share", "on the server's test set (causal LM: of tokens); null in rounds without evaluation"),
    "test_loss": Column("nats", "on the server's test set (causal LM: per token); null in rounds without evaluation"),
    "train_loss": Column("nats", "mean over clients of their mean over local steps"),
    "clients_accuracy": Column("share", "the received adapter on the participating clients' own held-out parts"),
    "uplink_bytes": Column(
        "bytes", "encoded messages, summed over the round's clients; rejected replies count, they crossed the link"
    ),
    "downlink_bytes": Column("bytes", "encoded messages, summed over the round's clients"),
    "clients_selected": Column("", "asked"),
    "clients_failed": Column("", "failed, rejected or silent"),
    "mean_rank": Column("", "over clients and sites"),
    "coverage": Column("share", "entries of the adapter that at least one client sent"),
    "wall_time_s": Column("s", "the whole round, evaluation included"),
}
"""metrics.jsonl of every run."""

WORLD_METRICS: dict[str, Column] = {
    "virtual_time_s": Column("s", "the virtual clock at the end of the round, from 0"),
    "energy_j": Column("J", "spent by the round's clients, lost ones included"),
    "clients_dropped": Column("", "lost on the way or never there; `clients_failed` does not count them"),
    "clients_late": Column("", "beyond the deadline; `clients_failed` does not count them"),
    "mean_rate_bps": Column("bit/s", "mean goodput of the uploads"),
    "void": Column("", "why no reply counted, or null"),
}
"""What a radio world adds to metrics.jsonl."""

NODE_METRICS: dict[str, Column] = {
    "real_time_s": Column("s", "the clock on the wall at the end of the round, from 0"),
    "mean_rate_bps": Column("bit/s", "mean goodput of the uploads that nodes told"),
}
"""What real nodes add to metrics.jsonl where links are measured."""

CLIENTS: dict[str, Column] = {
    "round": Column("", "from 1"),
    "client": Column("", "its number, from 0"),
    "status": Column("", "`ok`, `failed: …`, `rejected: …`, `no reply`; in a world also `dropped: …`, `late: …`"),
    "ranks": Column("", "one per site, in the order of federation.json"),
    "mean_rank": Column("", "over sites"),
    "downlink_bytes": Column("bytes", "the message to it"),
    "uplink_bytes": Column("bytes", "its reply; of a lost one what was sent in vain"),
}
"""clients.jsonl of every run."""

REPLY_COLUMNS: dict[str, Column] = {
    "train_loss": Column("nats", "mean over its local steps"),
    "steps": Column("", "local steps"),
    "tokens": Column("", "real ones, padding not counted"),
    "seconds": Column("s", "its share of the stacked batch's time"),
    "examples": Column("", "training examples it holds"),
    "held_accuracy": Column("share", "the received adapter on its own held-out part"),
    "held_loss": Column("nats", "the same"),
    "held_examples": Column("", "examples of that part"),
    "ranks_kept": Column("", "under `hetlora`: the ranks that it settled at, where lower than those asked for"),
}
"""What a sound reply adds to clients.jsonl."""

WORLD_COLUMNS: dict[str, Column] = {
    "downlink_s": Column("s", "virtual seconds of receiving, until the client was done, lost or late"),
    "compute_s": Column("s", "of computing"),
    "uplink_s": Column("s", "of sending"),
    "retransmission_s": Column("s", "the part of downlink and uplink that HARQ repeats took"),
    "energy_j": Column("J", "spent by the client"),
    "rate_bps": Column("bit/s", "goodput of the upload"),
    "snr_db": Column("dB", "mean uplink SNR over the band that the client had; null where the world has none"),
    "device": Column("", "its tier"),
}
"""What a radio world adds to clients.jsonl."""

NODE_COLUMNS: dict[str, Column] = {
    "rate_bps": Column("bit/s", "goodput of the largest upload of late"),
    "downlink_bps": Column("bit/s", "goodput of the largest download of late"),
    "uplink_s": Column("s", "of sending"),
    "downlink_s": Column("s", "of receiving"),
    "compute_s": Column("s", "of training"),
    "battery": Column("share", "where the system tells it"),
    "rssi_dbm": Column("dBm", "level of the radio, where the system tells it"),
}
"""What real nodes may tell of themselves in clients.jsonl."""

TEXTS = frozenset({"void", "status", "ranks", "device", "ranks_kept"})
"""Columns that do not hold numbers."""
