"""One exchange of messages: downloads begin, clients compute and upload, the clock runs, energy is spent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora_envs.clock import RoundPlan, RoundTimes, Status, closed_form, event_round
from fedlora_envs.energy import Battery, Energy, board_compute_j, round_energy
from fedlora_envs.links import Links, Upload
from fedlora_envs.medium import FixedRates, Medium
from fedlora_envs.outcome import Fate, Outcome
from fedlora_envs.workers import Workers

Floats = NDArray[np.float64]
Places = NDArray[np.intp]
_DROPPED = (Status.DROPPED_DOWNLOAD, Status.DROPPED_COMPUTE, Status.DROPPED_UPLOAD)


@dataclass
class Replies:
    """What came back over the wrapped grid, spread over all K clients that were asked; zero where nothing did."""

    there: NDArray[np.bool_]
    work: Floats
    sizes: NDArray[np.int64]


class Exchange:
    """One exchange from the first message down to the last one up.

    Args:
        outcome: What became of the clients so far: those that could be reached have the fate NO_REPLY.
        links: The radio.
        workers: The devices.
        sizes: Bytes of the messages down, [K].
        deadline_s: Of the round; inf for none.
        clock: "auto" or "event".
    """

    def __init__(
        self, outcome: Outcome, links: Links, workers: Workers, sizes: NDArray[np.int64], deadline_s: float, clock: str
    ) -> None:
        self.outcome, self.links, self.workers, self.deadline_s, self.clock = outcome, links, workers, deadline_s, clock
        count = len(outcome.clients)
        self.download_s, self.repeated = np.full(count, np.inf), np.zeros(count)
        there = np.flatnonzero(outcome.fate == Fate.NO_REPLY)
        if there.size:
            delivery = links.download(outcome.round_number, outcome.clients, there, sizes[there])
            self.download_s[there], self.repeated[there] = delivery.seconds, delivery.repeated
        self.leave_s = workers.leave_s(outcome.round_number)[outcome.clients]
        in_time = self.download_s <= np.minimum(self.leave_s, deadline_s)
        self.reached: NDArray[np.bool_] = (outcome.fate == Fate.NO_REPLY) & in_time & np.isfinite(self.download_s)
        """Who gets the message, and therefore computes, [K]."""

    def finish(self, replies: Replies, battery: Battery) -> Outcome:
        """Run the clock and write into the outcome what became of everybody.

        A client that was reached and brought no sound reply is left out: that is not the world's doing.
        """
        outcome = self.outcome
        part = np.flatnonzero(replies.there | ((outcome.fate == Fate.NO_REPLY) & ~self.reached))
        if part.size:
            self._run(part, replies, battery.left_j[outcome.clients[part]])
        if not outcome.void and len(outcome.clients) and not (outcome.fate == Fate.DONE).any():
            heard = ((outcome.fate == Fate.NO_REPLY) & self.reached).any()
            outcome.void = "no client that was reached sent a sound reply" if heard else "nobody who was asked could be reached"
        self._explain()
        return outcome

    def _run(self, part: Places, replies: Replies, left_j: Floats) -> None:
        """Time the clients at places `part`; where batteries give out on the way, once more without what comes after."""
        clients, there = self.outcome.clients[part], replies.there[part]
        compute_s = np.where(there, self.workers.compute_s(self.outcome.round_number, clients, replies.work[part]), 0.0)
        compute_w = self.workers.compute_w(clients, replies.work[part], compute_s)
        leave_s, bits = self.leave_s[part], np.where(there, 8.0 * np.maximum(replies.sizes[part], 1), 1.0)
        plan = RoundPlan(self.download_s[part], compute_s, bits, leave_s, self.deadline_s)
        upload = self._upload(part, plan, there)
        times = self._times(upload, plan)
        empty_s = _runs_empty(left_j, self._energy(times, upload, compute_w), times)
        if (empty_s < leave_s).any():
            plan = RoundPlan(self.download_s[part], compute_s, bits, np.minimum(leave_s, empty_s), self.deadline_s)
            upload = self._upload(part, plan, there)
            times = self._times(upload, plan)
        self._write(part, times, upload, there)
        self.outcome.energy_j[part] = np.minimum(self._energy(times, upload, compute_w).total_j, left_j)
        died = np.isin(times.status, _DROPPED) & (empty_s < leave_s)
        self.outcome.fate[part[died]] = Fate.BATTERY
        self.outcome.energy_j[part[died]] = left_j[died]  # to the last joule: rounding leaves no battery almost empty

    def _upload(self, part: Places, plan: RoundPlan, there: NDArray[np.bool_]) -> Upload:
        """Return the uplink of all in the plan; those that send nothing have no rate."""
        count, sends = len(part), np.flatnonzero(there)
        whole = Upload(np.zeros(count), None, np.zeros(count), np.full(count, np.nan), np.full(count, np.nan))
        if not sends.size:
            return whole
        sizes = (plan.bits_up[sends] / 8).astype(np.int64)
        starts_s = plan.uplink_start_s[sends]
        some = self.links.upload(self.outcome.round_number, self.outcome.clients, part[sends], sizes, starts_s)
        for name in ("rates_bps", "repeated", "snr_db", "airtime_s"):
            getattr(whole, name)[sends] = getattr(some, name)
        medium = None if some.medium is None else _Among(some.medium, sends, some.rates_bps > 0)
        return Upload(whole.rates_bps, medium, whole.repeated, whole.snr_db, whole.airtime_s)

    def _times(self, upload: Upload, plan: RoundPlan) -> RoundTimes:
        if upload.medium is not None:
            return event_round(upload.medium, plan)
        if self.clock == "event" and np.isfinite(upload.rates_bps).all():
            return event_round(FixedRates(upload.rates_bps), plan)
        return closed_form(upload.rates_bps, plan)

    def _energy(self, times: RoundTimes, upload: Upload, compute_w: Floats) -> Energy:
        """Return the energy of each phase; the amplifier is on for its direction's share of the upload, or of AirComp's part."""
        sending_s = np.where(np.isfinite(upload.airtime_s), np.minimum(times.uplink_s, upload.airtime_s), times.uplink_s)
        on_s = sending_s * self.workers.config.uplink.tdd_share
        compute_j = board_compute_j(compute_w, times.compute_s)
        return round_energy(self.workers.radio, times.downlink_s, compute_j, times.uplink_s, on_s)

    def _write(self, part: Places, times: RoundTimes, upload: Upload, there: NDArray[np.bool_]) -> None:
        outcome = self.outcome
        outcome.fate[part] = times.status
        outcome.downlink_s[part], outcome.compute_s[part] = times.downlink_s, times.compute_s
        outcome.uplink_s[part] = times.uplink_s
        outcome.retransmission_s[part] = self.repeated[part] * times.downlink_s + upload.repeated * times.uplink_s
        outcome.snr_db[part] = upload.snr_db
        outcome.uplink_bytes[part] = np.where(there, times.bits_sent / 8, 0).astype(np.int64)
        sent = there & (times.bits_sent > 0) & (times.uplink_s > 0)
        outcome.rate_bps[part[sent]] = times.bits_sent[sent] / times.uplink_s[sent]
        outcome.duration_s, outcome.void = times.duration_s, times.why

    def _explain(self) -> None:
        """Write why each client did not deliver."""
        outcome = self.outcome
        for place in np.flatnonzero(outcome.fate == Fate.DONE).tolist():
            outcome.reason[place] = ""
        spent_s = outcome.downlink_s + outcome.compute_s + outcome.uplink_s
        for place in np.flatnonzero(~np.isin(outcome.fate, [Fate.DONE, Fate.NO_REPLY])).tolist():
            fate, spent = Fate(int(outcome.fate[place])), f"after {spent_s[place]:.3g} s"
            if fate is Fate.MEMORY:
                outcome.reason[place] = f"dropped: {self.workers.too_small(int(outcome.clients[place]))}"
                continue
            outcome.reason[place] = {
                Fate.LATE: f"late: not through at the deadline of {self.deadline_s:g} s",
                Fate.OFFLINE: "dropped: offline at the start of the round",
                Fate.BATTERY: f"dropped: battery empty {spent}",
                Fate.OUTAGE: "dropped: outage, nothing gets through",
                Fate.DROPPED_DOWNLOAD: f"dropped: left during the download, {spent}",
                Fate.DROPPED_COMPUTE: f"dropped: left while computing, {spent}",
                Fate.DROPPED_UPLOAD: f"dropped: left during the upload, {spent}",
            }[fate]


class _Among:
    """A medium of n transfers, seen as one of K of which only those at `places` ever send.

    Who is in outage (`carries` False, [n]) takes nothing from the others: a medium would give it its turn.
    """

    def __init__(self, medium: Medium, places: Places, carries: NDArray[np.bool_]) -> None:
        self._medium, self._places, self._carries = medium, places, carries

    def serve(self, now: float, until: float, bits: Floats) -> tuple[float, Floats]:
        reached, left = self._medium.serve(now, until, np.where(self._carries, bits[self._places], 0.0))
        whole = bits.copy()
        whole[self._places] = np.where(self._carries, left, bits[self._places])
        return reached, whole


def _runs_empty(left_j: Floats, energy: Energy, times: RoundTimes) -> Floats:
    """Return when each battery is empty, [K], inf where it lasts; power is even within a phase."""
    spans = np.stack([times.downlink_s, times.compute_s, times.uplink_s])
    joules = np.stack([energy.downlink_j, energy.compute_j, energy.uplink_j])
    used = np.cumsum(joules, axis=0)
    before_j, before_s = used - joules, np.cumsum(spans, axis=0) - spans
    share = np.divide(left_j - before_j, joules, out=np.ones_like(joules), where=joules > 0)
    phase = np.argmax(used > left_j, axis=0)
    at = np.arange(len(left_j))
    moment: Floats = before_s[phase, at] + share[phase, at] * spans[phase, at]
    return np.where(used[-1] > left_j, moment, np.inf)
