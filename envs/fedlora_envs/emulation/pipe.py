"""One direction of one emulated link: a transmitter with a rate that changes, a bounded queue, delay, jitter and loss.

Nothing here reads a clock or a socket: times come in as arguments, in seconds of one monotonic clock. That is what makes the
relay testable without root.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BIN_S = 0.02
"""Length of a row of the relay's log."""

_FRACTION = 1e-6  # bits: what rounding leaves of a packet is through
_TICK = 1e-9  # seconds: a moment that rounding leaves before an edge is the edge


@dataclass(frozen=True)
class Impairment:
    """What a link does to packets beside its rate.

    Attributes:
        delay_s: Propagation delay of each direction.
        jitter_s: Largest deviation from it, uniform to both sides; packets stay in order.
        loss: Probability that a packet is lost on the air, after it took its airtime.
        queue_bytes: Bytes that may wait for the transmitter; what comes on top is dropped.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    queue_bytes: int = 256 * 1024


class Channel:
    """The rate of one direction during one round.

    A transmission sees rates in the order of its bits, wherever in the round it begins: so does the simulated world, whose
    fading begins with the transfer.

    Args:
        segments: (bits, bit/s) in order: so many bits at that rate. The last rate holds for all that comes after.
        outages: (start, end) in seconds since the channel was set, in order, disjoint: nothing is sent then.
    """

    def __init__(self, segments: Sequence[tuple[float, float]], outages: Sequence[tuple[float, float]] = ()) -> None:
        self.segments, self.outages = tuple(segments), tuple(outages)
        self._rates = [rate for _, rate in self.segments]
        self._ends: list[float] = []
        for bits, _ in self.segments[:-1]:
            self._ends.append(bits + (self._ends[-1] if self._ends else 0.0))
        self._edges = [edge for window in self.outages for edge in window]

    def piece(self, bits: float) -> tuple[float, float]:
        """Return the rate after so many bits of the round, and up to how many bits it holds."""
        place = bisect_right(self._ends, bits + _FRACTION) if self._ends else 0
        return self._rates[place], self._ends[place] if place < len(self._ends) else math.inf

    def open_until(self, since_s: float) -> tuple[bool, float]:
        """Return whether the link is up so many seconds after the channel was set, and until when."""
        if not self._edges:
            return True, math.inf
        place = bisect_right(self._edges, since_s + _TICK)
        return place % 2 == 0, self._edges[place] if place < len(self._edges) else math.inf

    def to_json(self) -> dict[str, Any]:
        """Return the channel as plain data; an outage without end has the end null."""
        ends = [[start, end if math.isfinite(end) else None] for start, end in self.outages]
        return {"segments": [list(segment) for segment in self.segments], "outages": ends}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Channel:
        """Return the channel that `to_json` described."""
        outages = [(start, math.inf if end is None else end) for start, end in tree["outages"]]
        return cls([(float(bits), float(rate)) for bits, rate in tree["segments"]], outages)


class Bins:
    """What went over one direction, in rows of `BIN_S` seconds; rows in which nothing happened are left out."""

    def __init__(self) -> None:
        self._rows: dict[int, list[float]] = {}

    def busy(self, start: float, end: float) -> None:
        """Count airtime from `start` to `end`."""
        first, last = int(start / BIN_S), int(end / BIN_S)
        for place in range(first, last + 1):
            self._row(place)[1] += min(end, (place + 1) * BIN_S) - max(start, place * BIN_S)

    def sent(self, at: float, size: int) -> None:
        """Count a packet whose airtime is over."""
        row = self._row(int(at / BIN_S))
        row[0] += size
        row[2] += 1

    def dropped(self, at: float, kind: int) -> None:
        """Count a packet that was lost on the air (0), or found the queue full (1)."""
        self._row(int(at / BIN_S))[3 + kind] += 1

    def take(self, before: float = math.inf) -> list[dict[str, float]]:
        """Return and forget the rows that end before that time."""
        done = sorted(place for place in self._rows if (place + 1) * BIN_S <= before)
        names = ("bytes", "busy_s", "packets", "lost", "full")
        rows = []
        for place in done:
            values = self._rows.pop(place)
            rows.append({"t": round(place * BIN_S, 3), **{name: round(v, 6) for name, v in zip(names, values, strict=True)}})
        return rows

    def _row(self, place: int) -> list[float]:
        row = self._rows.get(place)
        if row is None:
            row = self._rows[place] = [0, 0.0, 0, 0, 0]
        return row


class Pipe:
    """One direction of one link.

    Args:
        impairment: Delay, jitter, loss and queue.
        channel: The rate to begin with.
        seed: Of loss and jitter.
        now: The time.
    """

    def __init__(self, impairment: Impairment, channel: Channel, seed: str, now: float) -> None:
        self.impairment, self.bins = impairment, Bins()
        self._random = random.Random(seed).random
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._flight: deque[tuple[float, bytes]] = deque()
        self._clock = now  # up to here, service is accounted for
        self._left = 0.0  # bits of the first packet in the queue
        self.set_channel(now, channel)

    def set_channel(self, now: float, channel: Channel) -> None:
        """Change the rate; the packet on the air goes on at the new one."""
        self.settle(now)
        self._channel, self._set_at, self._bits = channel, now, 0.0

    def push(self, now: float, packet: bytes) -> None:
        """Take a packet in."""
        if self._queued + len(packet) > self.impairment.queue_bytes:
            self.bins.dropped(now, 1)
            return
        if not self._queue:
            self._clock, self._left = now, 8.0 * len(packet)
        self._queue.append(packet)
        self._queued += len(packet)

    def settle(self, now: float) -> None:
        """Account for the airtime up to now."""
        if self._queue:
            self._serve(now)

    def due(self, now: float) -> list[bytes]:
        """Return the packets that arrive at the far end by `now`, in order."""
        if self._queue:
            self._serve(now)
        flight, arrived = self._flight, []
        while flight and flight[0][0] <= now:
            arrived.append(flight.popleft()[1])
        return arrived

    def next_event(self) -> float:
        """Return when to look again, inf where nothing is under way; `due` must have been called at this time."""
        at = self._flight[0][0] if self._flight else math.inf
        if self._queue:
            is_open, until = self._channel.open_until(self._clock - self._set_at)
            rate, bits = self._channel.piece(self._bits)
            end = self._clock + min(self._left, bits - self._bits) / rate if rate > 0 and is_open else math.inf
            at = min(at, end, self._set_at + until)
        return at

    def _serve(self, now: float) -> None:
        """Account for the airtime up to `now`."""
        queue, channel = self._queue, self._channel
        while queue and self._clock < now:
            is_open, until = channel.open_until(self._clock - self._set_at)
            stop = min(now, self._set_at + until)
            rate, bits = channel.piece(self._bits)
            if rate <= 0 or not is_open:
                self._clock = stop
                continue
            part = min(self._left, bits - self._bits)
            end = self._clock + part / rate
            if end > stop and part > _FRACTION:
                end, part = stop, (stop - self._clock) * rate
            self.bins.busy(self._clock, end)
            self._clock = end
            self._bits += part
            self._left -= part
            if self._left <= _FRACTION:
                self._through(queue.popleft())
                self._left = 8.0 * len(queue[0]) if queue else 0.0

    def _through(self, packet: bytes) -> None:
        """Send off a packet whose airtime is over."""
        size, impairment = len(packet), self.impairment
        self._queued -= size
        self.bins.sent(self._clock, size)
        if impairment.loss and self._random() < impairment.loss:
            self.bins.dropped(self._clock, 0)
            return
        at = self._clock + impairment.delay_s
        if impairment.jitter_s:
            at = max(self._clock, at + (2 * self._random() - 1) * impairment.jitter_s)
        if self._flight and at < self._flight[-1][0]:
            at = self._flight[-1][0]
        self._flight.append((at, packet))
