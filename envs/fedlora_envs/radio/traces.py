"""Bandwidth traces: recorded or generated rates over time, played back for many links at once.

Files are read and written by `fedlora_envs.radio.trace_files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trace:
    """A rate that is constant between times: `rate_bps[i]` holds from `time_s[i]` to `time_s[i + 1]`.

    Attributes:
        time_s: Starts of the intervals, [M] in s, increasing, the first one 0.
        rate_bps: Rates, [M] in bit/s, >= 0, not all 0.
        name: Where it comes from, for messages.
        end_s: End of the last interval. Formats that name no end leave it out: the last interval is then as long as the one
            before it, or 1 s where there is only one.

    Raises:
        ConfigError: Not a trace: no intervals, time that does not move on, negative or non-finite rates, or all 0.
    """

    time_s: Floats
    rate_bps: Floats
    name: str
    end_s: float = np.nan

    def __post_init__(self) -> None:
        time_s, rate_bps = np.asarray(self.time_s, np.float64), np.asarray(self.rate_bps, np.float64)
        if time_s.ndim != 1 or time_s.shape != rate_bps.shape or time_s.size == 0:
            raise ConfigError(f"trace '{self.name}' needs one time and one rate per interval, and at least one interval")
        end_s = self.end_s
        if np.isnan(end_s):
            end_s = float(2 * time_s[-1] - time_s[-2]) if time_s.size > 1 else 1.0
        edges = np.append(time_s, end_s)
        if time_s[0] != 0 or not np.isfinite(edges).all() or not (np.diff(edges) > 0).all():
            raise ConfigError(f"the times of trace '{self.name}' must start at 0 and increase")
        if not np.isfinite(rate_bps).all() or (rate_bps < 0).any() or not rate_bps.any():
            raise ConfigError(f"the rates of trace '{self.name}' must be finite, >= 0 and not all 0")
        for name, value in (("time_s", time_s), ("rate_bps", rate_bps), ("end_s", float(end_s))):
            object.__setattr__(self, name, value)

    def edges_s(self) -> Floats:
        """Return starts and end of the intervals, [M + 1] in s; the last one is the length of the trace."""
        return np.append(self.time_s, self.end_s)

    def bits(self) -> Floats:
        """Return the bits that pass from the start until each edge, [M + 1]."""
        return np.concatenate([[0.0], np.cumsum(self.rate_bps * np.diff(self.edges_s()))])

    def mean_bps(self) -> float:
        """Return the rate over the whole trace."""
        return float(self.bits()[-1] / self.end_s)


class TracePlayer:
    """Plays traces to n links without end: link i loops trace i mod M, from a random offset of its own.

    All answers come from the cumulative integral of the rate, so a transfer over many loops costs what a short one does.

    Args:
        traces: M traces, at least one.
        n: Number of links.
        rng: Draws the offsets: n uniform variates, whatever the traces are.
    """

    def __init__(self, traces: Sequence[Trace], n: int, rng: np.random.Generator) -> None:
        if not traces:
            raise ConfigError("there is no trace to play; give at least one trace file")
        self._tables = [(trace.edges_s(), trace.bits(), trace.rate_bps) for trace in traces]
        self._links = [np.arange(first, n, len(traces)) for first in range(len(traces))]
        lengths_s = np.array([trace.end_s for trace in traces])[np.arange(n) % len(traces)]
        self.offset_s = rng.random(n) * lengths_s
        self.mean_bps = np.array([trace.mean_bps() for trace in traces])[np.arange(n) % len(traces)]

    def rate_bps(self, at_s: Floats | float) -> Floats:
        """Return the rate of each link at a time, [N] in bit/s; `at_s` is one time or one per link, >= 0."""
        at_s = np.broadcast_to(np.asarray(at_s, np.float64), self.offset_s.shape)
        found = np.empty(self.offset_s.shape)
        for links, (edges, _, rates) in zip(self._links, self._tables, strict=True):
            found[links] = rates[_interval(edges, self._phase(links, at_s, edges)[1])]
        return found

    def bits_between(self, start_s: Floats | float, stop_s: Floats | float) -> Floats:
        """Return what each link carries from `start_s` to `stop_s` (one time, or one per link), [N] in bit."""
        start_s = np.broadcast_to(np.asarray(start_s, np.float64), self.offset_s.shape)
        stop_s = np.broadcast_to(np.asarray(stop_s, np.float64), self.offset_s.shape)
        found = np.empty(self.offset_s.shape)
        for links, (edges, bits, rates) in zip(self._links, self._tables, strict=True):
            loops_from, phase_from = self._phase(links, start_s, edges)
            loops_to, phase_to = self._phase(links, stop_s, edges)
            inside = _bits_at(edges, bits, rates, phase_to) - _bits_at(edges, bits, rates, phase_from)
            found[links] = (loops_to - loops_from) * bits[-1] + inside
        return found

    def transfer_s(self, start_s: Floats | float, bits: Floats) -> Floats:
        """Return how long each link takes for its bits from its start, [N] in s; 0 for no bits.

        Args:
            start_s: Virtual time at which each transfer starts, one or [N], >= 0.
            bits: Bits to carry, [N], finite, >= 0.
        """
        start_s = np.broadcast_to(np.asarray(start_s, np.float64), self.offset_s.shape)
        bits = np.asarray(bits, np.float64)
        found = np.empty(self.offset_s.shape)
        for links, (edges, table, rates) in zip(self._links, self._tables, strict=True):
            phase = self._phase(links, start_s, edges)[1]
            # The remainder of a division is exact, so the loops cost no digits; the rest is below two loops.
            loops, rest = np.divmod(bits[links], table[-1])
            target = _bits_at(edges, table, rates, phase) + rest
            # Through at the end of a loop means before a pause at its end, or at the start of the next one.
            once_more = target > table[-1]
            backwards = (rest == 0) & (loops > 0) & (target == 0)
            target = np.where(once_more, target - table[-1], np.where(backwards, table[-1], target))
            loops = loops + once_more - backwards
            last = np.clip(np.searchsorted(table, target, side="left") - 1, 0, rates.size - 1)
            moment = edges[last] + np.divide(target - table[last], rates[last], out=np.zeros(last.shape), where=target > 0)
            seconds = loops * edges[-1] + (moment - phase)
            found[links] = np.where(bits[links] > 0, np.maximum(seconds, 0.0), 0.0)
        return found

    def _phase(self, links: NDArray[np.intp], at_s: Floats, edges: Floats) -> tuple[Floats, Floats]:
        """Return (loops done, time since the trace's start) of `links` at `at_s`."""
        loops, phase = np.divmod(self.offset_s[links] + at_s[links], edges[-1])
        return loops, phase


class TraceMedium:
    """Each link has its trace to itself: a `fedlora_envs.medium.Medium`.

    Args:
        player: The links.
    """

    def __init__(self, player: TracePlayer) -> None:
        self._player = player

    def serve(self, now: float, until: float, bits: Floats) -> tuple[float, Floats]:
        """See `fedlora_envs.medium.Medium.serve`."""
        left = np.array(bits, dtype=np.float64)
        active = left > 0
        if not active.any():
            return until, left
        needed_s = np.where(active, self._player.transfer_s(now, left), np.inf)
        first_s = float(needed_s.min())
        reached = min(until, now + first_s)
        through = active & (needed_s <= first_s) & (now + first_s <= until)
        sent = self._player.bits_between(now, reached)
        # Only the first is through: rounding must neither end another transfer nor send it more than it had.
        left[active] = np.maximum(left - sent, np.finfo(np.float64).tiny)[active]
        left[through] = 0.0
        return reached, left


def generate(
    seconds: float,
    step_s: float,
    mean_bps: float,
    rng: np.random.Generator,
    levels: Sequence[float] = (0.2, 0.6, 1.2, 2.0),
    hold_s: float = 10.0,
    sigma: float = 0.3,
    name: str = "generated",
) -> Trace:
    """Return a Markov-modulated lognormal trace: a slow walk between levels of quality, and scatter around them.

    The level steps to each neighbour with equal probability and stays at the ends, so that all levels are equally likely in
    the long run; each interval's rate is its level times a lognormal factor of mean 1.

    Args:
        seconds: Length, at least one step.
        step_s: Length of an interval, at most `hold_s`.
        mean_bps: Mean of the stationary law in bit/s.
        rng: Draws one uniform and one normal variate per interval, and one uniform for the first level.
        levels: Qualities, > 0; only their ratios matter.
        hold_s: Mean time between attempts to change the level.
        sigma: Standard deviation of the logarithm of the factor, >= 0.
        name: Name of the trace.

    Raises:
        ConfigError: Arguments out of range.
    """
    if not 0 < step_s <= seconds < np.inf or not step_s <= hold_s:
        raise ConfigError(f"a trace of {seconds:g} s in steps of {step_s:g} s, held {hold_s:g} s, needs 0 < step <= hold, length")
    quality = np.asarray(levels, dtype=np.float64)
    if not 0 < mean_bps < np.inf or not sigma >= 0 or quality.size == 0 or not (quality > 0).all():
        raise ConfigError("a generated trace needs a mean rate and levels above 0 and sigma >= 0")
    steps = int(seconds / step_s + 1e-9)
    level = int(rng.random() * quality.size)
    moves = rng.random(steps)
    scatter = np.exp(sigma * rng.standard_normal(steps) - sigma**2 / 2)
    chance = step_s / hold_s / 2
    path = np.empty(steps, dtype=np.intp)
    for step, move in enumerate(moves.tolist()):
        level += (move < chance) - (move > 1 - chance)
        level = min(max(level, 0), quality.size - 1)
        path[step] = level
    rate_bps: Floats = mean_bps * (quality / float(quality.mean()))[path] * scatter
    return Trace(np.arange(steps, dtype=np.float64) * step_s, rate_bps, name, steps * step_s)


def _interval(edges: Floats, phase: Floats) -> NDArray[np.intp]:
    found: NDArray[np.intp] = np.clip(np.searchsorted(edges, phase, side="right") - 1, 0, edges.size - 2)
    return found


def _bits_at(edges: Floats, bits: Floats, rates: Floats, phase: Floats) -> Floats:
    interval = _interval(edges, phase)
    carried: Floats = bits[interval] + rates[interval] * (phase - edges[interval])
    return carried
