"""The uploads under way in one cell, as the event clock sees them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora_envs.medium import Medium

Floats = NDArray[np.float64]


@runtime_checkable
class Paced(Protocol):
    """A medium on which n transfers are all slowed down alike: each has `pace(n)` of the rate that it would have alone.

    Fixed rates (pace 1) and processor sharing (1/n) are. The order in which transfers end is then known when they start.
    """

    @property
    def rates_alone_bps(self) -> Floats:
        """Rate of each transfer on its own, [K], in bit/s."""
        ...

    def pace(self, transfers: int) -> float:
        """Return the share of its own rate that each of `transfers` >= 1 under way has."""
        ...


class Uplink(Protocol):
    """The uploads under way."""

    def join(self, client: int) -> None:
        """Let `client` start to send, at the time that `serve` reached last."""
        ...

    def leave(self, client: int) -> None:
        """Take `client`, which sends, off the air."""
        ...

    def sends(self, client: int) -> bool:
        """Return whether `client` is under way."""
        ...

    def idle(self) -> bool:
        """Return whether nobody is under way."""
        ...

    def serve(self, now: float, until: float) -> tuple[float, Sequence[int] | NDArray[np.intp]]:
        """Return the time reached, `until` or the next completion (inf: none ever), and the clients that are through then.

        Both times count from the start of the round; at least one client must be under way.
        """
        ...

    def sent(self) -> Floats:
        """Return the bits that got through so far, [K]."""
        ...


class ServedUplink:
    """Uploads over any medium, asked anew at each event.

    Args:
        medium: Serves the uploads.
        bits_up: Size of each, [K].
        start_s: What the medium's clock shows when the round's shows 0.
    """

    def __init__(self, medium: Medium, bits_up: Floats, start_s: float) -> None:
        self._medium, self._start_s, self._up = medium, start_s, bits_up
        self._bits = np.zeros(bits_up.size)
        self._left = bits_up.copy()
        self._active = 0

    def join(self, client: int) -> None:
        self._bits[client] = self._up[client]
        self._active += 1

    def leave(self, client: int) -> None:
        self._left[client], self._bits[client] = self._bits[client], 0.0
        self._active -= 1

    def sends(self, client: int) -> bool:
        return bool(self._bits[client] > 0)

    def idle(self) -> bool:
        return self._active == 0

    def serve(self, now: float, until: float) -> tuple[float, NDArray[np.intp]]:
        reached, bits = self._medium.serve(self._start_s + now, self._start_s + until, self._bits)
        through = np.flatnonzero((self._bits > 0) & (bits <= 0))
        self._bits, self._active = bits, self._active - through.size
        self._left[through] = 0.0
        # The medium's clock is coarser far from its zero: what reaches `until` there is exactly there here.
        after = until if reached >= self._start_s + until else max(now, reached - self._start_s)
        if after <= now < until and not through.size:
            raise RuntimeError(f"{type(self._medium).__name__}.serve came to a halt at {reached:g} s")
        return after, through

    def sent(self) -> Floats:
        left: Floats = np.where(self._bits > 0, self._bits, self._left)
        return self._up - left


class PacedUplink:
    """Uploads over a paced medium: a heap of how much service each needs, on a clock that counts service.

    Args:
        medium: Says how fast the uploads go together; its `serve` is not called.
        bits_up: Size of each, [K].

    Raises:
        ConfigError: A medium for another number of uploads.
    """

    def __init__(self, medium: Paced, bits_up: Floats) -> None:
        self._medium, self._bits = medium, bits_up
        if medium.rates_alone_bps.size != bits_up.size:
            raise ConfigError(
                f"{medium.rates_alone_bps.size} uplink rates for a round of {bits_up.size} clients; give one per client"
            )
        with np.errstate(divide="ignore"):
            self._needs: list[float] = (bits_up / medium.rates_alone_bps).tolist()
        self._service = 0.0
        self._ends: list[tuple[float, int]] = []
        self._joined: dict[int, float] = {}
        self._sent = np.zeros(bits_up.size)

    def join(self, client: int) -> None:
        self._joined[client] = self._service
        heapq.heappush(self._ends, (self._service + self._needs[client], client))

    def leave(self, client: int) -> None:
        # Its entry stays in the heap until it comes to the top.
        self._sent[client] = self._so_far(client, self._joined.pop(client))

    def sends(self, client: int) -> bool:
        return client in self._joined

    def idle(self) -> bool:
        return not self._joined

    def serve(self, now: float, until: float) -> tuple[float, list[int]]:
        ends, joined = self._ends, self._joined
        while ends and ends[0][1] not in joined:
            heapq.heappop(ends)
        pace = self._medium.pace(len(joined))
        end = ends[0][0]
        reached = now + max(0.0, end - self._service) / pace
        if reached > until or end == math.inf:
            if until < math.inf:
                self._service += (until - now) * pace
            return until, []
        self._service = max(self._service, end)
        through = []
        while ends and ends[0][0] <= self._service:
            client = heapq.heappop(ends)[1]
            if joined.pop(client, None) is not None:
                self._sent[client] = self._bits[client]
                through.append(client)
        return reached, through

    def sent(self) -> Floats:
        for client, service in self._joined.items():
            self._sent[client] = self._so_far(client, service)
        return self._sent

    def _so_far(self, client: int, joined_at: float) -> float:
        rate = float(self._medium.rates_alone_bps[client])
        return min(float(self._bits[client]), rate * (self._service - joined_at)) if rate > 0 else 0.0


def uplink_over(medium: Medium, bits_up: Floats, start_s: float) -> Uplink:
    """Return the uplink of K clients with `bits_up` [K] to send over `medium`, whose clock is `start_s` ahead of the round's."""
    return PacedUplink(medium, bits_up) if isinstance(medium, Paced) else ServedUplink(medium, bits_up, start_s)
