"""The timing of one federated round: when each client's reply arrives, who drops out or is late, and when the round closes.

A client downloads, computes and uploads, in that order, until it is done, drops out or meets the deadline. Two forms give the
same times to 1e-9 s: `closed_form` for fixed rates, arrays only, and `event_round` for any `Medium`, where transfers that start
or end change the rates of others. All times count from the start of the round.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import simpy
from numpy.typing import ArrayLike, NDArray

from fedlora.errors import ConfigError
from fedlora_envs.medium import Medium
from fedlora_envs.uplink import Uplink, uplink_over

Floats = NDArray[np.float64]

TIE_S = 1e-9
"""Seconds of rounding that a reply may come after the deadline, or after its client leaves, and still count."""

_END = -1


class Status(IntEnum):
    """How a client's round ended."""

    DONE = 0
    LATE = 1
    DROPPED_DOWNLOAD = 2
    DROPPED_COMPUTE = 3
    DROPPED_UPLOAD = 4
    OUTAGE = 5
    """Nothing came through: no model, or not one bit of the reply in all the time it was sending."""


class RoundPlan:
    """What is known of a round when it starts; a number stands for all K clients.

    Args:
        downlink_s: When each client has the model, [K], >= 0; inf: never.
        compute_s: How long each computes, [K], finite, >= 0.
        bits_up: Size of each reply, [K], above 0.
        leave_s: When each drops out, [K], >= 0; inf: never. A reply that is through at that moment counts.
        deadline_s: When the server closes the round at the latest, above 0; inf: never. A reply at that moment counts.
        start_s: Where the round starts on the medium's own clock.

    Raises:
        ConfigError: A value outside its range, or lengths that differ.
    """

    def __init__(
        self,
        downlink_s: ArrayLike,
        compute_s: ArrayLike,
        bits_up: ArrayLike,
        leave_s: ArrayLike = math.inf,
        deadline_s: float = math.inf,
        start_s: float = 0.0,
    ) -> None:
        if not deadline_s > 0:
            raise ConfigError(f"deadline_s must be above 0 s, got {deadline_s:g}; leave it out for a round without a deadline")
        if not math.isfinite(start_s):
            raise ConfigError(f"start_s must be a finite time, got {start_s:g}")
        given = {"downlink_s": downlink_s, "compute_s": compute_s, "bits_up": bits_up, "leave_s": leave_s}
        arrays = {name: np.atleast_1d(np.asarray(value, dtype=np.float64)) for name, value in given.items()}
        sizes = {array.size for array in arrays.values()} - {1}
        if len(sizes) > 1 or any(array.ndim > 1 for array in arrays.values()):
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise ConfigError(f"a round needs one number per client in each of {shapes}")
        self.clients = sizes.pop() if sizes else 1
        self.downlink_s, self.compute_s, self.bits_up, self.leave_s = (
            np.broadcast_to(array, (self.clients,)) for array in arrays.values()
        )
        self.deadline_s, self.start_s = float(deadline_s), float(start_s)
        self._check()

    @property
    def uplink_start_s(self) -> Floats:
        """When each client has computed and would start to send, [K]."""
        return self.downlink_s + self.compute_s

    def _check(self) -> None:
        # min and max refuse NaN as well: every comparison with it is false.
        if self.clients == 0:
            return
        for name in ("downlink_s", "leave_s"):
            if not (low := getattr(self, name).min()) >= 0:
                raise ConfigError(f"{name} must be >= 0 s for every client, got {low:g}")
        if not (low := self.compute_s.min()) >= 0 or not (high := self.compute_s.max()) < math.inf:
            raise ConfigError(f"compute_s must be finite and >= 0 s for every client, got {low if not low >= 0 else high:g}")
        if not (low := self.bits_up.min()) > 0 or not self.bits_up.max() < math.inf:
            raise ConfigError(
                f"bits_up must be finite and above 0 for every client, got {low if not low > 0 else math.inf:g}; "
                "a client that has nothing to send takes no part in the round"
            )


@dataclass(frozen=True)
class RoundTimes:
    """What became of a round with K clients.

    Attributes:
        uplink_start_s: When each client would start to send had it not dropped out, [K]; inf without a model.
        finish_s: When each reply is through, [K]; inf if never or too late.
        status: A `Status` per client, [K], int8.
        duration_s: When the server closes the round: at the last reply if all arrive, otherwise at the deadline, otherwise
            (no deadline) when nothing more can happen.
        downlink_s: Seconds really spent on the download until done, dropped out or closed, [K].
        compute_s: The same for computing, [K].
        uplink_s: The same for the upload, [K].
        bits_sent: Bits of the reply that got through, [K], whether they were of use or not.
        why: Empty; if no client is done (the round is void), the reason.
    """

    uplink_start_s: Floats
    finish_s: Floats
    status: NDArray[np.int8]
    duration_s: float
    downlink_s: Floats
    compute_s: Floats
    uplink_s: Floats
    bits_sent: Floats
    why: str

    @property
    def done(self) -> NDArray[np.bool_]:
        """Which clients' replies count, [K]."""
        done: NDArray[np.bool_] = self.status == Status.DONE
        return done

    @property
    def counts(self) -> dict[Status, int]:
        """How many clients ended in each status."""
        found = np.bincount(self.status, minlength=len(Status))
        return {status: int(found[status]) for status in Status}


def closed_form(rates_bps: ArrayLike, plan: RoundPlan) -> RoundTimes:
    """Time a round in which each client has a rate of its own, whoever else is sending.

    Args:
        rates_bps: Uplink rates, [K] or one number, >= 0; inf: the upload takes no time; 0: it never ends.
        plan: The round.

    Raises:
        ConfigError: A rate that is negative or NaN, or rates of another number of clients.
    """
    given = np.asarray(rates_bps, dtype=np.float64)
    if given.size not in (1, plan.clients):
        raise ConfigError(f"{given.size} uplink rates for a round of {plan.clients} clients; give one per client")
    rates = np.broadcast_to(given, (plan.clients,))
    if not (rates >= 0).all():
        raise ConfigError("rates_bps must be >= 0 for every client")
    starts = plan.uplink_start_s
    with np.errstate(divide="ignore", invalid="ignore"):
        finish = plan.bits_up / rates
        finish += starts
        sending_s = np.minimum(plan.leave_s, plan.deadline_s)
        sending_s -= starts
        np.maximum(sending_s, 0.0, out=sending_s)
        sent = np.multiply(rates, sending_s, out=sending_s)
    # 0 x inf: without a rate nothing is sent, however long; without a time nothing is, however fast.
    np.copyto(sent, 0.0, where=np.isnan(sent))
    np.minimum(sent, plan.bits_up, out=sent)
    return _settle(plan, starts, finish, sent)


def event_round(medium: Medium, plan: RoundPlan) -> RoundTimes:
    """Time a round over a shared medium: one SimPy process for the cell, events at arrivals, completions, departures and the end.

    Args:
        medium: Serves the K uploads; one that is `Paced` costs O(log K) per event, any other
            one O(K).
        plan: The round.
    """
    starts = plan.uplink_start_s
    finish = np.full(plan.clients, np.inf)
    uplink = uplink_over(medium, plan.bits_up, plan.start_s)
    env = simpy.Environment()
    env.process(_cell(env, uplink, plan, starts, finish))
    env.run()
    return _settle(plan, starts, finish, uplink.sent())


def _cell(
    env: simpy.Environment, uplink: Uplink, plan: RoundPlan, starts: Floats, finish: Floats
) -> Generator[simpy.Event, None, None]:
    """Run the uplink of one cell; write when each reply is through into `finish`."""
    now = 0.0
    for until, client, joins in _agenda(plan, starts):
        if client != _END and not joins and not uplink.sends(client):
            continue
        while now < until:
            if uplink.idle() and client == _END:
                return
            reached, through = (until, []) if uplink.idle() else uplink.serve(now, until)
            if reached == math.inf:
                return
            yield env.timeout(max(0.0, reached - env.now))
            finish[through] = reached
            now = reached
        if client == _END:
            return
        if joins:
            uplink.join(client)
        elif uplink.sends(client):
            uplink.leave(client)


def _agenda(plan: RoundPlan, starts: Floats) -> Iterator[tuple[float, int, bool]]:
    """Yield (time, client, whether it joins or leaves) in order of time, and the end of the round as client `_END`."""
    stop = np.minimum(plan.leave_s, plan.deadline_s)
    joining = np.flatnonzero((starts <= stop) & (starts < math.inf))
    leaving = joining[plan.leave_s[joining] < plan.deadline_s]
    times = np.concatenate([starts[joining], plan.leave_s[leaving] + TIE_S])
    clients = np.concatenate([joining, leaving])
    order = np.argsort(times, kind="stable")
    yield from zip(times[order].tolist(), clients[order].tolist(), (order < joining.size).tolist(), strict=True)
    yield plan.deadline_s + TIE_S, _END, False


def _settle(plan: RoundPlan, starts: Floats, finish: Floats, sent: Floats) -> RoundTimes:
    """Say how each client's round ended; `finish` [K] is written over.

    Args:
        plan: The round.
        starts: When each upload starts, [K].
        finish: When each reply is through, [K]; later than allowed or inf: not in time.
        sent: Bits that got through until the client left or the round closed, [K].
    """
    deadline, leave = plan.deadline_s, plan.leave_s
    stop = np.minimum(leave, deadline)
    done = (finish <= stop + TIE_S) & (starts <= stop) & (finish < math.inf)
    np.minimum(finish, stop, out=finish)
    missing = np.flatnonzero(~done)
    finish[missing] = np.inf
    sent = np.where(done, plan.bits_up, sent)
    status = np.zeros(plan.clients, dtype=np.int8)
    status[missing] = _ways_to_miss(plan, starts, sent, missing)

    outage = missing[status[missing] == Status.OUTAGE]
    if missing.size and deadline < math.inf:
        duration = deadline
    else:
        last = [finish[done], leave[missing][leave[missing] < math.inf], starts[outage][starts[outage] < math.inf]]
        duration = max((float(times.max()) for times in last if times.size), default=0.0)

    end = finish.copy()
    end[missing] = np.minimum(leave[missing], duration)
    spent_down = np.minimum(plan.downlink_s, end)
    spent_up = np.maximum(end - starts, 0.0)
    # What is neither download nor upload; of a client that never got the model, nothing.
    spent_compute = np.clip(end - plan.downlink_s, 0.0, plan.compute_s)
    why = "" if missing.size < plan.clients else _why(plan, starts, status)
    return RoundTimes(starts, finish, status, duration, spent_down, spent_compute, spent_up, sent, why)


def _ways_to_miss(plan: RoundPlan, starts: Floats, sent: Floats, missing: NDArray[np.intp]) -> NDArray[np.int8]:
    leave, has_model, starts = plan.leave_s[missing], plan.downlink_s[missing], starts[missing]
    dropped = np.where(
        leave < has_model,
        Status.DROPPED_DOWNLOAD,
        np.where(leave < starts, Status.DROPPED_COMPUTE, Status.DROPPED_UPLOAD),
    )
    silent = (sent[missing] <= 0) & (starts < plan.deadline_s)
    never = silent | (has_model == math.inf) | (plan.deadline_s == math.inf)
    found = np.where(leave < plan.deadline_s, dropped, np.where(never, Status.OUTAGE, Status.LATE))
    return found.astype(np.int8)


def _why(plan: RoundPlan, starts: Floats, status: NDArray[np.int8]) -> str:
    """Return why no client is done."""
    if plan.clients == 0:
        return "no client takes part in the round"
    fastest = float(starts.min())
    if plan.deadline_s < fastest < math.inf:
        compute_s = float(plan.compute_s[starts.argmin()])
        computing = f", {compute_s:g} s of it computing" if compute_s else ""
        return (
            f"the deadline of {plan.deadline_s:g} s is too short for any client: the fastest needs {fastest:g} s "
            f"until it can start to send{computing}. Raise the deadline"
        )
    words = {
        Status.LATE: f"late (deadline {plan.deadline_s:g} s)",
        Status.DROPPED_DOWNLOAD: "dropped out during the download",
        Status.DROPPED_COMPUTE: "dropped out while computing",
        Status.DROPPED_UPLOAD: "dropped out during the upload",
        Status.OUTAGE: "without a link that carries anything",
    }
    found = np.bincount(status, minlength=len(Status))
    listed = ", ".join(f"{found[way]} {text}" for way, text in words.items() if found[way])
    return f"no reply arrived: {listed}"
