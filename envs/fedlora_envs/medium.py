"""Media: how the transfers under way at one moment share the air, as the event clock sees it.

A medium is asked to serve a set of transfers until something happens: the first of them is through, or the caller's own next
event (an arrival, a deadline) comes up. Between two such moments the rates of these media are constant, so each answer is
exact; media whose rates move on a slot grid of their own are in `fedlora_envs.radio.schedulers`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError

Floats = NDArray[np.float64]


class Medium(Protocol):
    """What the event clock asks of a shared medium with K places, one per transfer."""

    def serve(self, now: float, until: float, bits: Floats) -> tuple[float, Floats]:
        """Serve the transfers with bits > 0 from `now`; stop at `until`, or earlier when the first of them is through.

        Args:
            now: Virtual time in s; calls never go back in time.
            until: Virtual time in s at which the caller's set of transfers changes; may be inf.
            bits: Bits still to be sent, [K]; 0 for a transfer that has not started or is over. Not changed.

        Returns:
            The time reached in s and the bits left, [K]; a transfer that is through has exactly 0. (inf, bits) where
            `until` is inf and nobody ever gets through.
        """
        ...


class FixedRates:
    """Static shares: each transfer has a rate of its own, whoever else is under way.

    Args:
        rates_bps: Rate of each transfer, [K], in bit/s; 0 for a transfer that cannot be served.
    """

    def __init__(self, rates_bps: Floats) -> None:
        self.rates_alone_bps = self._rates_bps = _rates(rates_bps, "rates_bps")

    def pace(self, transfers: int) -> float:
        """Return the share of its rate that each transfer under way has: all of it (see `fedlora_envs.uplink.Paced`)."""
        return 1.0

    def serve(self, now: float, until: float, bits: Floats) -> tuple[float, Floats]:
        """See `Medium.serve`."""
        active = np.flatnonzero(bits > 0)
        return serve_at_rates(now, until, bits, active, self._rates_bps[active])


class ProcessorSharing:
    """Time sharing: each of the n transfers under way gets 1/n of the rate that it would have alone.

    Args:
        rates_alone_bps: Rate of each transfer when it has the whole medium, [K], in bit/s.
    """

    def __init__(self, rates_alone_bps: Floats) -> None:
        self.rates_alone_bps = self._rates_alone_bps = _rates(rates_alone_bps, "rates_alone_bps")

    def pace(self, transfers: int) -> float:
        """Return the share of its rate that each of `transfers` under way has (see `fedlora_envs.uplink.Paced`)."""
        return 1.0 / transfers

    def serve(self, now: float, until: float, bits: Floats) -> tuple[float, Floats]:
        """See `Medium.serve`."""
        active = np.flatnonzero(bits > 0)
        return serve_at_rates(now, until, bits, active, self._rates_alone_bps[active] / max(1, active.size))


class PowerLimitedSharing:
    """Band sharing under a power limit: n transfers have B/n each, and a narrower band has less noise in it.

    The rate of a transfer in bandwidth b is b log2(1 + a / (gap b)), so that two transfers get more than half each.

    Args:
        a_hz: Power received over noise density P g / N0 of each transfer, [K], in Hz.
        bandwidth_hz: The band B that is shared.
        gap: SNR gap to capacity, linear, >= 1.
    """

    def __init__(self, a_hz: Floats, bandwidth_hz: float, gap: float = 1.0) -> None:
        if not bandwidth_hz > 0:
            raise ConfigError(f"bandwidth_hz must be above 0, got {bandwidth_hz:g}")
        self._a_hz = _rates(a_hz, "a_hz") / gap
        self._bandwidth_hz = bandwidth_hz

    def serve(self, now: float, until: float, bits: Floats) -> tuple[float, Floats]:
        """See `Medium.serve`."""
        active = np.flatnonzero(bits > 0)
        share_hz = self._bandwidth_hz / max(1, active.size)
        rates_bps = share_hz * np.log1p(self._a_hz[active] / share_hz) / np.log(2.0)
        return serve_at_rates(now, until, bits, active, rates_bps)


def serve_at_rates(now: float, until: float, bits: Floats, active: NDArray[np.intp], rates_bps: Floats) -> tuple[float, Floats]:
    """Serve the transfers `active` at constant rates: the arithmetic that all media with constant rates share.

    Args:
        now: Virtual time in s.
        until: Virtual time in s to stop at; may be inf.
        bits: Bits left of all transfers, [K].
        active: Indices [n] of the transfers with bits > 0.
        rates_bps: Their rates, [n]; 0 for one that is not served.

    Returns:
        As `Medium.serve`.
    """
    left = bits.copy()
    if active.size == 0:
        return until, left
    with np.errstate(divide="ignore"):
        needed_s = bits[active] / rates_bps
    first_s = float(needed_s.min())
    if now + first_s > until or first_s == np.inf:
        if until < np.inf:
            left[active] = np.maximum(0.0, bits[active] - rates_bps * (until - now))
        return until, left
    # The first is through by definition, not by a subtraction that may leave a rest of some 1e-10 bits.
    left[active] = np.where(needed_s <= first_s, 0.0, np.maximum(0.0, bits[active] - rates_bps * first_s))
    return now + first_s, left


def _rates(values: Floats, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all() or (array < 0).any():
        raise ConfigError(f"{name} must be one finite number >= 0 per transfer")
    return array
