"""Schedulers that give the whole band to one client per slot, as media for the event clock.

Slot n is [t0 + n T, t0 + (n + 1) T) of virtual time. Whom it goes to is decided at its start, among the transfers then under
way, and is not revised: a transfer that begins inside a slot waits for the next one, and what a transfer leaves of its last
slot goes to nobody. Channels belong to slots, not to transfers: the gains of slot n are the n-th that the fading process
gives, whatever was sent before, so that two runs with other payloads see the same fades.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError, UnknownNameError

Floats = NDArray[np.float64]
KINDS = ("max_rate", "pf", "round_robin")
HOPELESS = 10.0
"""A client without any rate at a gain of 10 dB over its mean is never scheduled: one slot in 20000 would be its best."""
BLOCK_SLOTS = 32


class Fading(Protocol):
    """A fading process of K clients; the scheduler owns it and steps it once per slot."""

    def step(self) -> NDArray[np.float32]:
        """Return the power gains of the next slot, [K] (mean 1); may be a buffer that the next step overwrites."""
        ...


class SlotScheduler:
    """One client per slot: `max_rate` (the best), `pf` (proportional fair: the best against its own past), `round_robin`.

    Proportional fair serves argmax R / S and then S' = beta S + (1 - beta) R, R being 0 for those not served; a client's S
    rests while it has nothing to send.

    Args:
        kind: "max_rate", "pf" or "round_robin".
        fading: Gains per slot; read ahead by up to `BLOCK_SLOTS` slots.
        mean_snr: Mean SNR of each client over the whole band, linear, [K].
        efficiency: Maps SNRs (linear, any shape) to bit/s/Hz of the same shape; not decreasing.
        bandwidth_hz: The band.
        slot_s: Length of a slot.
        beta: Memory of proportional fair, 0 <= beta < 1 (0.98 as in Sionna's scheduler).
        start_s: Virtual time t0 at which slot 0 begins; nothing is served before. A scheduler that is first asked long after
            it steps the fading through all slots in between.

    Raises:
        UnknownNameError: No such kind.
        ConfigError: Bandwidth or slot not above 0, beta out of range, negative or non-finite SNR.
    """

    def __init__(
        self,
        kind: str,
        fading: Fading,
        mean_snr: Floats,
        efficiency: Callable[[Floats], Floats],
        bandwidth_hz: float,
        slot_s: float,
        beta: float = 0.98,
        start_s: float = 0.0,
    ) -> None:
        if kind not in KINDS:
            raise UnknownNameError("scheduler", kind, KINDS)
        for name, value in (("bandwidth_hz", bandwidth_hz), ("slot_s", slot_s)):
            if not 0 < value < np.inf:
                raise ConfigError(f"{name} must be a finite number above 0, got {value:g}")
        if not 0 <= beta < 1:
            raise ConfigError(f"the scheduler's beta must lie in [0, 1), got {beta:g}")
        self._mean_snr = np.asarray(mean_snr, dtype=np.float64)
        if self._mean_snr.ndim != 1 or not np.isfinite(self._mean_snr).all() or (self._mean_snr < 0).any():
            raise ConfigError("mean_snr must be one finite number >= 0 per client")
        self._kind, self._fading, self._efficiency = kind, fading, efficiency
        self._bandwidth_hz, self._slot_s, self._beta, self._start_s = bandwidth_hz, slot_s, beta, start_s
        clients = self._mean_snr.size
        self._reachable = np.asarray(efficiency(HOPELESS * self._mean_snr)) > 0
        self._past_bps = np.ones(clients)  # 1 bit/s: as good as never served
        self._last = clients - 1
        self._rates_bps = np.zeros((0, clients))
        self._first_slot = 0  # the slot of row 0 of the rates
        self._slot = -1  # the latest slot decided
        self._granted = -1
        self._granted_bps = 0.0

    def serve(self, now: float, until: float, bits: Floats) -> tuple[float, Floats]:
        """See `fedlora_envs.medium.Medium.serve`; between calls the slot under way keeps its client.

        Raises:
            ValueError: `now` lies before a slot that is decided already.
        """
        active = (bits > 0) & self._reachable
        left = np.array(bits, dtype=np.float64)
        if not active.any():
            return until, left
        clients = np.flatnonzero(active)
        # A caller whose clock has another zero may be a rounding error behind the slot that it was told.
        earliest = self._begin_s(max(0, self._slot))
        if self._slot >= 0 and now < earliest - 1e-6 * self._slot_s:
            raise ValueError(f"asked to serve from {now:g} s, but time has reached slot {self._slot} of {self._slot_s:g} s")
        now = max(now, earliest)
        slot = self._slot_of(now)
        while now < until:
            start, end = self._begin_s(slot), self._begin_s(slot + 1)
            if slot > self._slot and start >= now:
                self._decide(slot, clients)
            stop = min(end, until)
            chosen = self._granted if slot == self._slot else -1
            if chosen >= 0 and left[chosen] > 0:
                rate_bps = self._granted_bps
                if rate_bps > 0 and now + left[chosen] / rate_bps <= stop:
                    now += left[chosen] / rate_bps
                    left[chosen] = 0.0
                    return now, left
                # What rounding makes of the last fraction of a bit is not yet through: that is decided above.
                left[chosen] = max(left[chosen] - rate_bps * (stop - now), np.finfo(np.float64).tiny)
            now = stop
            slot += 1
        return until, left

    def _begin_s(self, slot: int) -> float:
        return self._start_s + slot * self._slot_s

    def _slot_of(self, now: float) -> int:
        """Return the slot that contains `now`, by the same sums that slots begin and end at."""
        slot = int((now - self._start_s) / self._slot_s)
        if self._begin_s(slot) > now:
            slot -= 1
        elif self._begin_s(slot + 1) <= now:
            slot += 1
        return slot

    def _decide(self, slot: int, clients: NDArray[np.intp]) -> None:
        """Grant a slot to one of `clients` (ascending)."""
        rates_bps = self._rates_of(slot)[clients]
        if self._kind == "round_robin":
            position = int(np.searchsorted(clients, self._last, side="right")) % clients.size
        elif self._kind == "max_rate":
            position = int(rates_bps.argmax())
        else:
            past = self._past_bps[clients]
            position = int((rates_bps / past).argmax())
            past *= self._beta
            past[position] += (1 - self._beta) * rates_bps[position]
            self._past_bps[clients] = np.maximum(past, 1.0)
        self._slot, self._granted, self._granted_bps = slot, int(clients[position]), float(rates_bps[position])
        self._last = self._granted

    def _rates_of(self, slot: int) -> Floats:
        """Return the rates of all clients in a slot, [K] in bit/s; slots that nobody used are passed over."""
        if slot >= self._first_slot + len(self._rates_bps):
            for _ in range(slot - self._first_slot - len(self._rates_bps)):
                self._fading.step()
            self._first_slot = slot
            gains = np.empty((BLOCK_SLOTS, self._mean_snr.size))
            for row in gains:
                row[:] = self._fading.step()
            self._rates_bps = self._bandwidth_hz * np.asarray(self._efficiency(self._mean_snr * gains), dtype=np.float64)
        rates_bps: Floats = self._rates_bps[slot - self._first_slot]
        return rates_bps
