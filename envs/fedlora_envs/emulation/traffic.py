"""What the relay's log says of one client's round: the exchange of its message and reply, told apart from looks for work."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fedlora_envs.emulation.pipe import BIN_S
from fedlora_envs.emulation.relay import DOWN, UP

_MOST = 0.9  # of a payload's bytes: the shortest stretch of time that holds them is the transfer
_GAP_S = 0.4  # of silence both ways: what comes after it belongs to something else (nodes look for work twice a second)

Window = tuple[float, float]


@dataclass
class Traffic:
    """What one client's link carried in one direction.

    Attributes:
        bytes: On the air.
        busy_s: Real seconds that the transmitter was on.
        lost: Packets lost on the air.
        full: Packets that found the queue full.
        bins: (time, bytes, busy seconds) of rows of the relay's log.
    """

    bytes: float = 0.0
    busy_s: float = 0.0
    lost: int = 0
    full: int = 0
    bins: list[tuple[float, float, float]] = field(default_factory=list)

    def within(self, window: Window) -> Traffic:
        """Return what was carried inside a window (losses and drops stay those of the whole)."""
        bins = [row for row in self.bins if window[0] <= row[0] <= window[1]]
        return Traffic(sum(row[1] for row in bins), sum(row[2] for row in bins), self.lost, self.full, bins)

    def transfer(self, payload: int) -> tuple[Window, float] | None:
        """Return the shortest window that holds most of a payload's bytes and the busy seconds in it; None where none does.

        It is known to two rows of the log.
        """
        bins = sorted(self.bins)
        best: tuple[Window, float] | None = None
        first, held, busy_s = 0, 0.0, 0.0
        for time, size, span in bins:
            held, busy_s = held + size, busy_s + span
            while held - bins[first][1] >= _MOST * payload:
                held, busy_s, first = held - bins[first][1], busy_s - bins[first][2], first + 1
            start, end = bins[first][0], time + BIN_S
            if held >= _MOST * payload and (best is None or end - start < best[0][1] - best[0][0]):
                best = (start, end), busy_s
        return best


def traffic(log: Iterable[dict[str, Any]]) -> dict[tuple[int, int, str], Traffic]:
    """Return what a relay's log says of each (round, client, direction)."""
    found: dict[tuple[int, int, str], Traffic] = defaultdict(Traffic)
    for row in log:
        if "way" in row:
            one = found[row["round"], row["node"], row["way"]]
            one.bytes += row["bytes"]
            one.busy_s += row["busy_s"]
            one.lost += int(row["lost"])
            one.full += int(row["full"])
            one.bins.append((row["t"], row["bytes"], row["busy_s"]))
    return found


@dataclass(frozen=True)
class Transfer:
    """One message or reply on the air.

    Attributes:
        bytes: On the air in its direction while message and reply were exchanged.
        busy_s: Real seconds that the transmitter was on for them.
        span_s: Real seconds from the first to the last of most of the payload, waiting included; 0 where it never got through.
        span_busy_s: Real seconds of them in which the transmitter was on.
        other_bytes: What else went over the link in the round: looks for work, heartbeats.
        lost: Packets lost on the air in the round.
        full: Packets that found the queue full in the round.
    """

    bytes: float
    busy_s: float
    span_s: float
    span_busy_s: float
    other_bytes: float
    lost: int
    full: int


def transfers(link: dict[str, Traffic], payload: dict[str, int]) -> dict[str, Transfer]:
    """Return the message down and the reply up of one client and round, by direction.

    Args:
        link: What the link carried, by direction.
        payload: Bytes of message and reply, by direction.
    """
    found = {way: link[way].transfer(payload[way]) for way in (DOWN, UP)}
    window = _exchange([one[0] for one in found.values() if one], [row[0] for one in link.values() for row in one.bins])
    result = {}
    for way, whole in link.items():
        part, best = whole.within(window), found[way]
        span_s, busy_s = (best[0][1] - best[0][0], best[1]) if best else (0.0, 0.0)
        result[way] = Transfer(part.bytes, part.busy_s, span_s, busy_s, whole.bytes - part.bytes, whole.lost, whole.full)
    return result


def _exchange(transfers: list[Window], times: list[float]) -> Window:
    """Return the time from the first transfer to the last, with what came before and after it without a silence.

    A node does not look for work from the moment it has a message until its reply is through.
    """
    if not transfers:
        return math.inf, -math.inf
    start, end = min(one[0] for one in transfers), max(one[1] for one in transfers)
    for time in sorted((time for time in times if time < start), reverse=True):
        if start - time > _GAP_S + BIN_S:
            break
        start = time
    for time in sorted(time for time in times if time > end):
        if time - end > _GAP_S + BIN_S:
            break
        end = time
    return start, end
