"""A world's radio: every rule of sharing under every way of fading, in the order that theory puts them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlora_envs.outcome import Fate
from fedlora_envs.radio.budget import nr_rate_bps, prb_hz
from fedlora_envs.radio.rates import make_rate_model
from fedlora_envs.world import RadioWorld
from worlds import STILL, make, round_of, same

SHARING = ("equal", "proportional", "min_max", "processor", "round_robin", "pf", "max_rate", "aircomp")
STATIC = ("equal", "proportional", "min_max", "aircomp")
SCHEDULED = ("round_robin", "pf", "max_rate")
TRANSFERS = ("quasi_static", "slotted", "ergodic")
PURE: dict[str, Any] = {"rate": {"model": "shannon"}, "fading": {"model": "none", "transfer": "quasi_static"}}
"""Shannon capacity without fading: what the formulas are of."""


def near(
    clients: int = 8, sharing: str = "equal", seed: int = 0, cell: dict[str, Any] | None = None, **options: Any
) -> RadioWorld:
    """Return a small cell in which everybody has a link."""
    place = {"radius_m": 60.0, "indoor_fraction": 0.0, **(cell or {})}
    uplink = {"sharing": sharing, **options.pop("uplink", {})}
    return make(clients=clients, seed=seed, cell=place, uplink=uplink, **{"devices": STILL, **options})


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("sharing", SHARING)
def test_every_rule_under_every_way_of_fading(sharing: str, transfer: str) -> None:
    world, lossy = (near(sharing=sharing, fading={"transfer": transfer}) for _ in range(2))
    for _ in range(2):
        outcome = round_of(world, up=np.arange(1, 9) * 5_000)
        assert (outcome.fate == Fate.DONE).all() and (outcome.uplink_s > 0).all()
        assert (outcome.retransmission_s >= 0).all()
        assert (outcome.retransmission_s < outcome.uplink_s + outcome.downlink_s).all()
        assert outcome.uplink_bytes.tolist() == [5_000 * k for k in range(1, 9)]
        # No client gets more than the whole band at the best modulation.
        assert (outcome.rate_bps < 51 * 360e3 * 6 * 0.25).all() or sharing == "aircomp"
    # Some replies never come: the others are timed as a round of their own, with the very same fades.
    fewer = round_of(lossy, up=np.arange(1, 9) * 5_000, silent=(0, 5))
    assert (fewer.fate[[0, 5]] == Fate.NO_REPLY).all() and (np.delete(fewer.fate, [0, 5]) == Fate.DONE).all()


def makespan(sharing: str, seed: int, **options: Any) -> float:
    """Return when the last of eight uploads of one size is through, which all begin together."""
    world = near(sharing=sharing, seed=seed, **{**PURE, **options})
    outcome = round_of(world, up=200_000, work=0.0)
    assert (outcome.fate == Fate.DONE).all()
    return float(outcome.uplink_s.max())


@pytest.mark.parametrize("seed", range(5))
def test_better_rules_end_sooner(seed: int) -> None:
    equal, least, processor = (makespan(rule, seed) for rule in ("equal", "min_max", "processor"))
    assert least < equal and processor < equal
    # Proportional shares help where clients differ: they are between the two.
    assert least <= makespan("proportional", seed) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_min_max_lets_all_finish_together_whenever_they_begin(seed: int) -> None:
    world = near(sharing="min_max", seed=seed, **PURE)
    outcome = round_of(world, up=np.arange(1, 9) * 100_000, work=np.arange(8) * 1e11)
    ends = outcome.downlink_s + outcome.compute_s + outcome.uplink_s
    np.testing.assert_allclose(ends, ends[0], rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_schedulers_that_look_at_the_channel_send_more(seed: int) -> None:
    """Mean time of the first half of the clients to be through: max rate before round robin; fairness costs something."""
    half = {}
    for rule in SCHEDULED:
        world = near(20, rule, seed, fading={"model": "block"}, rate={"model": "shannon"}, cell={"radius_m": 20.0})
        half[rule] = np.sort(round_of(world, up=200_000, work=0.0).uplink_s)[:10].mean()
    assert half["max_rate"] < half["pf"] < half["round_robin"]


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("sharing", STATIC)
def test_the_event_clock_agrees_with_the_closed_form(sharing: str, transfer: str) -> None:
    options: dict[str, Any] = {
        "fading": {"transfer": transfer},
        "availability": {"dropouts_per_s": 0.05},
        "energy": {"battery_j": 12.0},
        "deadline_s": 6.0,
        "devices": {"jitter": 0.5},
    }
    worlds = [make(clients=30, uplink={"sharing": sharing}, clock=clock, **options) for clock in ("auto", "event")]
    fates = set()
    for _ in range(3):
        ours, theirs = (round_of(world, up=60_000, work=1e11) for world in worlds)
        for name in ("downlink_s", "compute_s", "uplink_s", "energy_j", "retransmission_s", "duration_s"):
            np.testing.assert_allclose(getattr(theirs, name), getattr(ours, name), atol=1e-9, rtol=1e-9)
        assert (ours.fate == theirs.fate).all() and (abs(ours.uplink_bytes - theirs.uplink_bytes) <= 1).all()
        fates |= set(ours.fate.tolist())
    assert len(fates) >= 3


@pytest.mark.parametrize("preset", ["ideal", "trace", "airllm"])
def test_the_event_clock_agrees_on_rates_of_their_own(preset: str) -> None:
    worlds = [make(preset, clock=clock, availability={"dropouts_per_s": 0.02}) for clock in ("auto", "event")]
    ours, theirs = (round_of(world, work=1e10) for world in worlds)
    np.testing.assert_allclose(theirs.uplink_s, ours.uplink_s, atol=1e-9, rtol=1e-9)
    assert (ours.fate == theirs.fate).all()


# -- outages -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transfer", ["quasi_static", "ergodic", "slotted"])
@pytest.mark.parametrize("sharing", ["processor", *SCHEDULED])
def test_who_is_in_outage_takes_nothing_from_the_others(sharing: str, transfer: str) -> None:
    """And nobody waits for it, though there is no deadline."""
    world, alone = (
        make(
            clients=30,
            uplink={"sharing": sharing, "power_dbm": -14.0},
            fading={"transfer": transfer, "model": "block"},
            devices=STILL,
        )
        for _ in range(2)
    )
    outcome = round_of(world, up=300, work=0.0)
    lost = np.flatnonzero(outcome.fate == Fate.OUTAGE)
    assert 3 < lost.size < 27 and (np.delete(outcome.fate, lost) == Fate.DONE).all()
    # The same round in which they never get as far as sending.
    without = round_of(alone, up=300, work=0.0, silent=tuple(lost.tolist()))
    served = np.setdiff1d(np.arange(30), lost)
    np.testing.assert_allclose(outcome.uplink_s[served], without.uplink_s[served])
    assert np.isfinite(outcome.duration_s) and outcome.duration_s == pytest.approx(without.duration_s)


# -- bands -------------------------------------------------------------------------------------------------------------------


def test_a_narrower_band_has_a_higher_snr() -> None:
    """Shannon: exactly by the share; resource blocks: by at least the share, since a client may leave blocks unused."""
    for options, exact in ((PURE, True), ({"fading": PURE["fading"]}, False)):
        alone, shared = (near(20, **options) for _ in range(2))
        wide, narrow = round_of(alone, np.array([4])).snr_db[0], round_of(shared).snr_db[4]
        gain_db = narrow - wide
        assert gain_db == pytest.approx(10 * np.log10(20)) if exact else gain_db >= 0
    far = make(clients=1, seed=3, uplink={"power_dbm": -20.0}, fading=PURE["fading"])
    round_of(far)
    assert far.outcome.snr_db[0] > far.links.measured()[1, 0] + 3  # it spreads its power over few blocks


def test_more_clients_than_resource_blocks_take_turns() -> None:
    clients = 80  # 51 blocks of 30 kHz subcarriers in 20 MHz
    world = near(clients, fading={"model": "none", "transfer": "quasi_static"})
    outcome = round_of(world)
    assert (outcome.fate == Fate.DONE).all()
    efficiency = make_rate_model("cqi", margin_db=2.0).efficiency(10 ** (outcome.snr_db / 10))
    wanted_bps = efficiency * nr_rate_bps(1.0, 1, 30, 0.08, tdd_share=0.25) * 51 / clients
    np.testing.assert_allclose(outcome.rate_bps, wanted_bps, rtol=1e-6)
    # One block has all the power.
    over_one_db = world.links.measured()[1] + 10 * np.log10(51)
    np.testing.assert_allclose(outcome.snr_db, over_one_db)
    assert prb_hz(30) * 51 <= 20e6


# -- downlink ----------------------------------------------------------------------------------------------------------------


def levels(values_db: list[float], **downlink: Any) -> tuple[RadioWorld, np.ndarray[Any, Any]]:
    """Return a world of 6 clients at levels, and what each would have of the band alone, bit/s."""
    world = make("airllm", clients=6, levels={"values_db": values_db}, downlink=downlink, devices=STILL)
    world.observe(1, np.arange(6))
    return world, 100e6 * np.log2(1 + 10 ** (world.links.measured()[0] / 10))


def test_a_broadcast_is_heard_when_the_weakest_has_it() -> None:
    world, alone_bps = levels([-5.0, 0.0, 5.0, 10.0, 15.0])
    assert len(set(alone_bps)) > 2
    np.testing.assert_allclose(round_of(world, down=10**6).downlink_s, 8e6 / alone_bps.min())


def test_a_broadcast_to_the_better_half_and_unicast_to_the_rest() -> None:
    world, alone_bps = levels([-5.0, 0.0, 5.0, 10.0, 15.0], quantile=0.5)
    down_s = round_of(world, down=10**6).downlink_s
    order = np.argsort(-alone_bps, kind="stable")
    first_s = 8e6 / alone_bps[order[2]]
    np.testing.assert_allclose(down_s[order[:3]], first_s)
    # The three others share the band afterwards: the best of them ends first, three sharing until then, then two, then one.
    alone_s = 8e6 / alone_bps[order[3:]]
    through_s = np.cumsum(np.diff(alone_s, prepend=0.0) * [3, 2, 1])
    np.testing.assert_allclose(down_s[order[3:]], first_s + through_s)


def test_unicast_shares_the_band() -> None:
    world, alone_bps = levels([-5.0, 0.0, 5.0, 10.0, 15.0], sharing="unicast")
    down_s = round_of(world, down=10**6).downlink_s
    order = np.argsort(-alone_bps, kind="stable")
    alone_s = 8e6 / alone_bps[order]
    np.testing.assert_allclose(down_s[order], np.cumsum(np.diff(alone_s, prepend=0.0) * np.arange(6, 0, -1)))


def test_a_broadcast_is_as_long_as_its_largest_message() -> None:
    world, alone_bps = levels([10.0])
    world.begin(np.arange(6), np.array([10, 50, 1000, 3, 7, 9]))
    assert world._exchange is not None
    np.testing.assert_allclose(world._exchange.download_s, 8000 / alone_bps[0])


# -- AirComp ----------------------------------------------------------------------------------------------------------------


def test_aircomp_takes_the_time_of_one_client_whatever_their_number() -> None:
    """All numbers of one adapter, two a symbol, from when the slowest is ready; the amplifier is on for that alone."""
    for clients in (2, 20):
        world = near(clients, "aircomp", fading={"transfer": "ergodic"})
        work = np.zeros(clients)
        work[0] = 2e13
        outcome = round_of(world, up=400_000, work=work)
        useful_hz = float(nr_rate_bps(1.0, 51, 30, 0.08, tdd_share=0.25))
        airtime_s = 400_000 / 4 / (2 * useful_hz)
        waits_s = 2e13 / (67e12 * 0.25)
        np.testing.assert_allclose(outcome.uplink_s[0], airtime_s)
        np.testing.assert_allclose(outcome.uplink_s[1:], airtime_s + waits_s)
        sending_w = 10 ** (23 / 10 - 3) / 0.35 * 0.25
        np.testing.assert_allclose(
            outcome.energy_j[1:], 0.1 * outcome.downlink_s[1:] + 0.1 * outcome.uplink_s[1:] + sending_w * airtime_s
        )


def test_int8_numbers_are_four_times_as_many_on_the_air() -> None:
    world = near(3, "aircomp")
    small = make(
        clients=3,
        setup={"number_bytes": 1},
        cell={"radius_m": 60.0, "indoor_fraction": 0.0},
        uplink={"sharing": "aircomp"},
        devices=STILL,
    )
    np.testing.assert_allclose(round_of(small, work=0.0).uplink_s, 4 * round_of(world, work=0.0).uplink_s)


# -- fading ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["block", "clarke", "gauss_markov", "markov"])
def test_long_payloads_forget_the_model(model: str) -> None:
    """Bits that run through thousands of fades take the ergodic time; one fade for all of them does not."""

    def mean_s(transfer: str) -> np.ndarray[Any, Any]:
        fading = {"model": model, "transfer": transfer, "rician": False}
        world = near(40, rate={"model": "shannon"}, fading=fading, cell={"speed_kmh": 30.0}, uplink={"power_dbm": 0.0})
        return round_of(world, up=300_000, work=0.0).uplink_s

    slotted, ergodic, still = (mean_s(transfer) for transfer in TRANSFERS[1:] + TRANSFERS[:1])
    assert abs(np.log(slotted / ergodic)).max() < 0.35 < abs(np.log(still / ergodic)).max()
    assert abs(np.log(slotted / ergodic).mean()) < 0.05


def test_at_rest_a_fade_lasts() -> None:
    """At 0 km/h bits run through one gain, so that slots and one gain for all give the same."""
    still, slotted = (
        near(fading={"model": "clarke", "transfer": transfer}, cell={"speed_kmh": 0.0}) for transfer in TRANSFERS[:2]
    )
    ours, theirs = round_of(still), round_of(slotted)
    # Resource blocks are chosen for the mean in both; the gains are the same.
    np.testing.assert_allclose(ours.uplink_s, theirs.uplink_s, rtol=1e-5)


def test_two_worlds_of_one_seed_play_alike() -> None:
    for sharing in SHARING:
        ours, theirs = near(sharing=sharing), near(sharing=sharing)
        assert all(same(round_of(ours), round_of(theirs)) for _ in range(2))


@pytest.mark.parametrize("sharing", SCHEDULED)
def test_a_scheduler_sees_a_gain_per_slot(sharing: str) -> None:
    """Gains are drawn for the slots' own length, whatever the step of other transfers."""
    # Unicast goes at the mean rate, so that uploads begin at the same moment whatever the step.
    pure: dict[str, Any] = {"cell": {"speed_kmh": 30.0}, "rate": {"model": "shannon"}, "downlink": {"sharing": "unicast"}}
    short, long = (near(sharing=sharing, fading={"step_s": step_s}, uplink={"slot_s": 0.002}, **pure) for step_s in (1e-4, 3e-3))
    ours, theirs = (round_of(world, up=100_000, work=0.0) for world in (short, long))
    np.testing.assert_array_equal(ours.uplink_s, theirs.uplink_s)
    other = round_of(near(sharing=sharing, uplink={"slot_s": 0.003}, **pure), up=100_000, work=0.0)
    assert not np.allclose(other.uplink_s, ours.uplink_s, rtol=1e-3)
