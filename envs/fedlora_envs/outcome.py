"""What became of the clients of one exchange, and what it cost them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_envs.clock import Status

Floats = NDArray[np.float64]


class Fate(IntEnum):
    """How an exchange ended for a client: done, too late, lost on the way (as the clock says), or never begun."""

    DONE = Status.DONE
    LATE = Status.LATE
    DROPPED_DOWNLOAD = Status.DROPPED_DOWNLOAD
    DROPPED_COMPUTE = Status.DROPPED_COMPUTE
    DROPPED_UPLOAD = Status.DROPPED_UPLOAD
    OUTAGE = Status.OUTAGE
    OFFLINE = 10
    BATTERY = 11
    MEMORY = 12
    NO_REPLY = 13
    """The wrapped grid brought no sound reply: not the world's doing."""


PARTS = ("downlink_s", "compute_s", "uplink_s", "retransmission_s", "energy_j")
"""Columns of clients.jsonl that hold seconds or joules; retransmission is part of downlink and uplink."""


@dataclass
class Outcome:
    """One exchange; arrays over the clients that were asked, [K].

    Attributes:
        round_number: Number of the exchange, from 1.
        clients: Client numbers.
        fate: A `Fate` each.
        reason: Why a client did not deliver, as its error reply says; empty where it did.
        downlink_s, compute_s, uplink_s: Seconds spent in each phase.
        retransmission_s: Seconds of downlink and uplink that HARQ retransmissions took.
        energy_j: Energy spent.
        uplink_bytes: Bytes of the reply that were sent, whether they were of use or not.
        rate_bps: Mean goodput of the upload; NaN where nothing was sent, or it took no time.
        snr_db: Mean SNR of the uplink over the band it had; NaN where the world has no SNR.
        away: Who was not even sent the message: offline, battery empty, device too small.
        duration_s: How long the round took on the virtual clock.
        void: Why no client delivered; empty where one did.
    """

    round_number: int
    clients: NDArray[np.int64]
    fate: NDArray[np.int8]
    reason: list[str]
    downlink_s: Floats
    compute_s: Floats
    uplink_s: Floats
    retransmission_s: Floats
    energy_j: Floats
    uplink_bytes: NDArray[np.int64]
    rate_bps: Floats
    snr_db: Floats
    away: NDArray[np.bool_]
    duration_s: float = 0.0
    void: str = ""

    @classmethod
    def of(cls, round_number: int, clients: NDArray[np.int64]) -> Outcome:
        """Return an exchange in which nothing has happened yet."""
        count = len(clients)
        fate, sent = np.full(count, Fate.NO_REPLY, np.int8), np.zeros(count, np.int64)
        down, compute, up, repeated, energy = np.zeros((5, count))
        rate, snr = np.full((2, count), np.nan)
        reasons, away = ["no reply"] * count, np.zeros(count, bool)
        return cls(round_number, clients, fate, reasons, down, compute, up, repeated, energy, sent, rate, snr, away)

    def fate_of(self, client: int) -> Fate:
        """Return what became of one client."""
        return Fate(int(self.fate[self._place(client)]))

    def reason_of(self, client: int) -> str:
        """Return why a client did not deliver."""
        return self.reason[self._place(client)]

    def count(self, late: bool) -> int:
        """Return how many clients were late, or dropped."""
        if late:
            return int((self.fate == Fate.LATE).sum())
        return int((~np.isin(self.fate, [Fate.DONE, Fate.LATE, Fate.NO_REPLY])).sum())

    def rows(self) -> dict[int, dict[str, Any]]:
        """Return the columns of clients.jsonl by client number."""
        rows = {}
        for place, client in enumerate(self.clients.tolist()):
            row: dict[str, Any] = {name: round(float(getattr(self, name)[place]), 9) for name in PARTS}
            row |= {name: _number(getattr(self, name)[place]) for name in ("rate_bps", "snr_db")}
            if self.away[place]:
                row["downlink_bytes"] = 0
            if self.fate[place] not in (Fate.DONE, Fate.NO_REPLY):
                row["uplink_bytes"] = int(self.uplink_bytes[place])
            rows[client] = row
        return rows

    def _place(self, client: int) -> int:
        return int(np.flatnonzero(self.clients == client)[0])


def _number(value: float) -> float | None:
    return round(float(value), 3) if np.isfinite(value) else None
