"""The clock of a round: its forms agree, processor sharing is exact, deadlines, drop-outs, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client_processes import client_processes
from fedlora.errors import ConfigError
from fedlora_envs.clock import RoundPlan, RoundTimes, Status, closed_form, event_round
from fedlora_envs.medium import FixedRates, PowerLimitedSharing, ProcessorSharing
from fedlora_envs.uplink import PacedUplink, ServedUplink, uplink_over

Floats = NDArray[np.float64]
INF = math.inf


class Paced:
    """A paced medium; the clock must not need its `serve`."""

    def __init__(self, rates_alone_bps: Floats, shared: bool) -> None:
        self.rates_alone_bps, self._shared = rates_alone_bps, shared

    def pace(self, transfers: int) -> float:
        return 1 / transfers if self._shared else 1.0

    def serve(self, now: float, until: float, bits: Floats) -> tuple[float, Floats]:
        raise AssertionError("asked to serve")


class Served:
    """Another medium behind nothing but `serve`, with a clock of its own, so that the clock has to ask at each event."""

    def __init__(self, medium: Any) -> None:
        self._medium = medium
        self.calls: list[float] = []

    def serve(self, now: float, until: float, bits: Floats) -> tuple[float, Floats]:
        self.calls.append(now)
        found: tuple[float, Floats] = self._medium.serve(now, until, bits)
        return found


def lattice_case(rng: np.random.Generator) -> tuple[Floats, RoundPlan]:
    """Return rates and a round in which all times are multiples of 0.5 s, so that most of them meet."""
    clients = int(rng.integers(1, 9))
    rates = rng.choice([0.0, 1000.0, 2000.0, 4000.0, INF], clients, p=[0.1, 0.3, 0.3, 0.2, 0.1])
    downlink = rng.choice([0.0, 0.5, 1.0, INF], clients, p=[0.3, 0.3, 0.3, 0.1])
    leave = np.where(rng.random(clients) < 0.5, INF, rng.integers(0, 9, clients) / 2)
    deadline = INF if rng.random() < 0.3 else rng.integers(1, 9) / 2
    bits = 1000.0 * rng.integers(1, 5, clients)
    return rates, RoundPlan(downlink, rng.integers(0, 5, clients) / 2, bits, leave, deadline)


def free_case(rng: np.random.Generator, most: int = 40) -> tuple[Floats, RoundPlan]:
    """Return rates and a round of times that never meet."""
    clients = int(rng.integers(1, most))
    rates = rng.lognormal(np.log(2e6), 1.5, clients) * (rng.random(clients) > 0.1)
    leave = np.where(rng.random(clients) < 0.6, INF, rng.exponential(60, clients))
    deadline = INF if rng.random() < 0.3 else float(rng.uniform(1, 120))
    compute = rng.lognormal(np.log(20), 1, clients)
    return rates, RoundPlan(rng.uniform(0, 10, clients), compute, rng.uniform(1e5, 1e8, clients), leave, deadline)


def assert_same(ours: RoundTimes, theirs: RoundTimes, bits: float = 1e-9) -> None:
    """Assert equal statuses, and times equal to 1e-9 s; `bits` is what the bits sent may differ by, as a share."""
    assert [Status(way).name for way in ours.status] == [Status(way).name for way in theirs.status]
    assert ours.duration_s == pytest.approx(theirs.duration_s, rel=0, abs=1e-9)
    for name in ("uplink_start_s", "finish_s", "downlink_s", "compute_s", "uplink_s"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=0, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(ours.bits_sent, theirs.bits_sent, rtol=bits, atol=1.0)
    assert ours.why == theirs.why


def assert_told(found: RoundTimes, rates: Floats, plan: RoundPlan) -> None:
    """Assert that one process per client tells the same."""
    stories, duration = client_processes(rates.tolist(), plan)
    assert [Status(way).name for way in found.status] == [story.status.name for story in stories if story.status is not None]
    assert found.duration_s == pytest.approx(duration, rel=0, abs=1e-9)
    for phase in ("downlink", "compute", "uplink"):
        theirs = [story.seconds[phase] for story in stories]
        np.testing.assert_allclose(getattr(found, f"{phase}_s"), theirs, rtol=0, atol=1e-9, err_msg=phase)
    np.testing.assert_allclose(found.finish_s, [story.finish_s for story in stories], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.bits_sent, [story.bits_sent for story in stories], rtol=1e-9, atol=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_all_forms_agree_where_times_meet(seed: int) -> None:
    rng = np.random.default_rng(seed)
    seen: set[Status] = set()
    for _ in range(250):
        rates, plan = lattice_case(rng)
        static = closed_form(rates, plan)
        assert_told(static, rates, plan)
        assert_same(event_round(Paced(rates, False), plan), static)
        if np.isfinite(rates).all():
            assert_same(event_round(Served(FixedRates(rates)), plan), static)
        seen |= {status for status, count in static.counts.items() if count}
    assert seen == set(Status)


@pytest.mark.parametrize("seed", range(4))
def test_all_forms_agree_at_any_times(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    for _ in range(60):
        rates, plan = free_case(rng)
        static = closed_form(rates, plan)
        assert_told(static, rates, plan)
        assert_same(event_round(Paced(rates, False), plan), static)
        assert_same(event_round(Served(FixedRates(rates)), plan), static)


@pytest.mark.parametrize("shape", ["served", "paced"])
def test_processor_sharing_of_simultaneous_uploads_is_the_closed_form(shape: str) -> None:
    """T_(j) = sum over i <= j of (w_i - w_(i-1)) (K - i + 1), with w the time that an upload takes alone."""
    rng = np.random.default_rng(1)
    clients = 200
    bits, rates = rng.uniform(1e6, 1e8, clients), rng.uniform(1e6, 1e8, clients)
    medium = Paced(rates, True) if shape == "paced" else Served(ProcessorSharing(rates))
    found = event_round(medium, RoundPlan(2.0, 3.0, bits))
    alone = np.sort(bits / rates)
    expected = 5 + np.cumsum(np.diff(alone, prepend=0.0) * np.arange(clients, 0, -1))
    np.testing.assert_allclose(np.sort(found.finish_s), expected, rtol=0, atol=1e-9)
    assert found.duration_s == pytest.approx(5 + alone.sum(), abs=1e-9)
    assert (found.bits_sent == bits).all()


def test_processor_sharing_is_the_same_whether_asked_at_each_event_or_from_a_heap() -> None:
    rng = np.random.default_rng(2)
    late = 0
    for _ in range(150):
        rates, plan = free_case(rng)
        served, paced = event_round(Served(ProcessorSharing(30 * rates)), plan), event_round(Paced(30 * rates, True), plan)
        assert_same(paced, served, bits=1e-6)
        late += int((served.status == Status.LATE).sum())
    assert late > 100


def test_an_upload_slows_the_other_down_while_both_are_under_way() -> None:
    """Alone, the first sends 2 of its 4 bits in 2 s; then both have half the rate until the second drops out at 5 s."""
    plan = RoundPlan(0.0, [0.0, 2.0], [4.0, 10.0], [INF, 5.0])
    for medium in (Paced(np.ones(2), True), Served(ProcessorSharing(np.ones(2)))):
        found = event_round(medium, plan)
        assert found.finish_s.tolist() == pytest.approx([5.5, INF], abs=1e-8)
        assert found.status.tolist() == [Status.DONE, Status.DROPPED_UPLOAD]
        assert found.bits_sent.tolist() == pytest.approx([4.0, 1.5], abs=1e-8)


def test_a_medium_that_is_not_paced_is_asked_at_every_event() -> None:
    """Two equal uploads in half the band each have more than half of what one has in the whole band."""
    medium = PowerLimitedSharing(np.array([2e6, 2e6]), 1e6)
    found = event_round(medium, RoundPlan(0.0, 0.0, [1e6, 1e6]))
    assert found.duration_s == pytest.approx(1e6 / (5e5 * math.log2(5)))
    assert isinstance(uplink_over(medium, np.ones(2), 0.0), ServedUplink)
    assert isinstance(uplink_over(Paced(np.ones(2), True), np.ones(2), 0.0), PacedUplink)


def test_every_way_to_end_a_round() -> None:
    """Worked by hand: 4 s to download, compute and send 2 bits each, at 1 bit/s, deadline 6 s."""
    plan = RoundPlan(
        [1, 1, 1, 1, 1, 1, INF],
        [1, 4, 1, 3, 1, 1, 1],
        [2, 2, 2, 2, 2, 2, 2],
        [INF, INF, 0.5, 3, 2.5, INF, INF],
        deadline_s=6,
    )
    found = closed_form([1, 1, 1, 1, 1, 0, 1], plan)
    ways = ["DONE", "LATE", "DROPPED_DOWNLOAD", "DROPPED_COMPUTE", "DROPPED_UPLOAD", "OUTAGE", "OUTAGE"]
    assert [Status(way).name for way in found.status] == ways
    assert found.finish_s.tolist() == [4.0, *[INF] * 6]
    assert found.downlink_s.tolist() == [1, 1, 0.5, 1, 1, 1, 6]
    assert found.compute_s.tolist() == [1, 4, 0, 2, 1, 1, 0]
    assert found.uplink_s.tolist() == [2, 1, 0, 0, 0.5, 4, 0]
    assert found.bits_sent.tolist() == [2, 1, 0, 0, 0.5, 0, 0]
    assert found.duration_s == 6
    assert found.done.tolist() == [True, *[False] * 6]
    assert found.counts[Status.OUTAGE] == 2
    assert found.why == ""


def test_without_a_deadline_the_round_closes_when_nothing_more_can_happen() -> None:
    assert closed_form(1.0, RoundPlan(1, [1, 2], 2)).duration_s == 5
    left = closed_form(1.0, RoundPlan(1, [1, 2], 2, [INF, 3.5]))
    assert (left.duration_s, left.status.tolist()) == (4, [Status.DONE, Status.DROPPED_UPLOAD])
    assert closed_form(1.0, RoundPlan(1, [1, 2], 2, [2.5, 4.5])).duration_s == 4.5
    dead = closed_form([1.0, 0.0], RoundPlan(1, [1, 9], 2))
    assert (dead.duration_s, dead.status.tolist()) == (10, [Status.DONE, Status.OUTAGE])


def test_a_round_that_all_finish_closes_before_the_deadline() -> None:
    assert closed_form(1.0, RoundPlan(1, [1, 2], 2, deadline_s=100)).duration_s == 5


@pytest.mark.parametrize("changes", [{"deadline_s": 4.0}, {"leave_s": 4.0}])
def test_through_at_the_deadline_or_on_leaving_counts_and_a_moment_later_does_not(changes: dict[str, float]) -> None:
    plan = RoundPlan(1, 1, 2, **changes)  # type: ignore[arg-type]
    for late, done in ((0.0, True), (1e-6, False)):
        for found in (
            closed_form(1 - late, plan),
            event_round(Paced(np.array([1 - late]), False), plan),
            event_round(Served(FixedRates(np.array([1 - late]))), plan),
        ):
            assert bool(found.done[0]) is done


def test_binary_fractions_do_not_miss_a_deadline_by_rounding() -> None:
    """Three uploads of 0.1 bits share a rate of 1 bit/s: 0.1 + 0.2 + 0.3 s, which is a little above 0.6 in binary numbers."""
    plan = RoundPlan(0.1, 0.2, np.full(3, 0.1), deadline_s=0.6)
    for found in (
        closed_form(1 / 3, plan),
        event_round(Paced(np.ones(3), True), plan),
        event_round(Served(ProcessorSharing(np.ones(3))), plan),
    ):
        assert found.done.all() and (found.finish_s <= 0.6).all()
        assert found.duration_s <= 0.6


def test_a_deadline_below_every_compute_time_voids_the_round_and_says_so() -> None:
    plan = RoundPlan(1, [20, 30], 1e6, deadline_s=10)
    for found in (closed_form(1e6, plan), event_round(Served(FixedRates(np.full(2, 1e6))), plan)):
        assert not found.done.any()
        assert found.duration_s == 10
        assert "deadline of 10 s" in found.why and "needs 21 s" in found.why and "20 s of it computing" in found.why


def test_a_void_round_counts_the_reasons() -> None:
    found = closed_form([1.0, 0.0, 1.0], RoundPlan(1, 1, 100, [INF, INF, 5], deadline_s=10))
    assert found.why == (
        "no reply arrived: 1 late (deadline 10 s), 1 dropped out during the upload, 1 without a link that carries anything"
    )


def test_a_round_without_clients_is_void() -> None:
    none = np.zeros(0)
    plan = RoundPlan(none, none, none, deadline_s=5)
    for found in (closed_form(none, plan), event_round(Served(FixedRates(none)), plan)):
        assert (found.duration_s, found.why) == (0, "no client takes part in the round")


def test_the_medium_is_asked_on_its_own_clock() -> None:
    medium = Served(FixedRates(np.array([1.0, 4.0])))
    found = event_round(medium, RoundPlan(1, [1, 2], 2, start_s=1000))
    assert medium.calls == [1002.0, 1003.0, 1003.5]
    assert found.finish_s.tolist() == [4, 3.5]


def test_a_medium_that_does_not_move_is_a_bug_and_no_endless_loop() -> None:
    class Stuck:
        def serve(self, now: float, until: float, bits: Floats) -> tuple[float, Floats]:
            return now, bits

    with pytest.raises(RuntimeError, match=r"Stuck.serve came to a halt at 2 s"):
        event_round(Stuck(), RoundPlan(1, 1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits_up": [1.0, 0.0]}, "bits_up must be finite and above 0 for every client, got 0"),
        ({"bits_up": INF}, "bits_up must be finite"),
        ({"deadline_s": 0.0}, "deadline_s must be above 0 s, got 0"),
        ({"deadline_s": -3.0}, "deadline_s must be above 0 s, got -3"),
        ({"deadline_s": math.nan}, "deadline_s must be above 0 s"),
        ({"compute_s": [1.0, INF]}, "compute_s must be finite"),
        ({"compute_s": -1.0}, "compute_s must be finite and >= 0 s for every client, got -1"),
        ({"downlink_s": [0.0, math.nan]}, "downlink_s must be >= 0 s"),
        ({"leave_s": -1.0}, "leave_s must be >= 0 s for every client, got -1"),
        ({"start_s": INF}, "start_s must be a finite time"),
        ({"bits_up": [1.0, 2.0, 3.0]}, r"one number per client in each of downlink_s \(2,\).* bits_up \(3,\)"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RoundPlan(**({"downlink_s": [1.0, 1.0], "compute_s": 1.0, "bits_up": 1.0} | change))


@pytest.mark.parametrize("rate", [-1.0, math.nan])
def test_closed_form_refuses_rates_below_zero(rate: float) -> None:
    with pytest.raises(ConfigError, match="rates_bps must be >= 0"):
        closed_form(rate, RoundPlan(1, 1, 1))


def test_rates_of_other_clients_than_the_rounds_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 uplink rates for a round of 3 clients"):
        closed_form([1.0, 1.0], RoundPlan(1, 1, [1, 1, 1]))
    with pytest.raises(ConfigError, match="2 uplink rates for a round of 3 clients"):
        event_round(Paced(np.ones(2), True), RoundPlan(1, 1, [1, 1, 1]))
