"""One exchange: every way to be lost really happens, and times and joules are what a pencil gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlora.errors import ConfigError
from fedlora_envs.outcome import Fate
from fedlora_envs.world import RadioWorld
from worlds import GPU_FLOPS, GPU_W, STILL, make, round_of

# A second each for 1000 bytes down, a second's work of the GPU and 500 bytes up.
DOWN, UP, WORK = 1000, 500, GPU_FLOPS
RATES = {"downlink_bps": 8000.0, "uplink_bps": 4000.0}
# 23 dBm through an amplifier of 35 % that is on for a quarter of the time, and circuits of 0.1 W each way.
RECEIVE_W, SEND_W = 0.1, 0.1 + 10 ** (23 / 10 - 3) / 0.35 * 0.25


def seconds_world(clients: int = 3, **options: Any) -> RadioWorld:
    """Return a world in which each phase takes one second."""
    return make("ideal", clients=clients, fixed=RATES, **options)


def test_seconds_and_joules_by_hand() -> None:
    world = seconds_world()
    outcome = round_of(world, down=DOWN, up=np.array([500, 1000, 250]), work=np.array([1, 0.5, 2]) * WORK)
    np.testing.assert_allclose(outcome.downlink_s, 1)
    np.testing.assert_allclose(outcome.compute_s, [1, 0.5, 2])
    np.testing.assert_allclose(outcome.uplink_s, [1, 2, 0.5])
    np.testing.assert_allclose(outcome.energy_j, [RECEIVE_W + GPU_W * c + SEND_W * u for c, u in ((1, 1), (0.5, 2), (2, 0.5))])
    assert outcome.duration_s == pytest.approx(3.5) == pytest.approx(world.now_s)
    np.testing.assert_allclose(outcome.rate_bps, 4000)
    assert outcome.reason == [""] * 3
    assert world.round_row() == {
        "virtual_time_s": 3.5,
        "energy_j": pytest.approx(outcome.energy_j.sum()),
        "clients_dropped": 0,
        "clients_late": 0,
        "mean_rate_bps": 4000.0,
        "void": None,
    }
    rows = world.client_rows()
    assert rows[1]["uplink_s"] == pytest.approx(2) and rows[1]["device"] == "server_gpu" and "uplink_bytes" not in rows[1]
    round_of(world, down=DOWN, up=UP, work=WORK)
    assert world.now_s == pytest.approx(6.5)


def test_late_at_the_deadline() -> None:
    world = seconds_world(deadline_s=2.5)
    outcome = round_of(world, down=DOWN, up=np.array([500, 250, 1000]), work=WORK)
    assert outcome.fate.tolist() == [Fate.LATE, Fate.DONE, Fate.LATE] and not outcome.void
    assert outcome.uplink_bytes.tolist() == [250, 250, 250] and outcome.duration_s == 2.5
    assert outcome.reason_of(0) == "late: not through at the deadline of 2.5 s"
    np.testing.assert_allclose(outcome.energy_j, RECEIVE_W + GPU_W + SEND_W / 2)
    assert (world.round_row()["clients_late"], world.round_row()["clients_dropped"]) == (2, 0)
    assert world.client_rows()[0]["uplink_bytes"] == 250


def test_a_deadline_before_anybody_has_computed_voids_the_round() -> None:
    world = seconds_world(deadline_s=1.5)
    outcome = round_of(world, down=DOWN, up=UP, work=np.array([3, 0.75, 2]) * WORK)
    assert (outcome.fate == Fate.LATE).all() and outcome.duration_s == 1.5
    assert outcome.void == world.round_row()["void"]
    assert "the deadline of 1.5 s is too short for any client: the fastest needs 1.75 s" in outcome.void
    assert "0.75 s of it computing" in outcome.void and outcome.void.endswith("Raise the deadline")
    assert (outcome.uplink_bytes == 0).all() and np.isnan(outcome.rate_bps).all()


def test_a_message_that_is_late_already_is_not_delivered() -> None:
    world = seconds_world(deadline_s=0.5)
    assert not world.begin(np.arange(3), np.full(3, DOWN)).any()
    outcome = world.play(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))
    assert (outcome.fate == Fate.LATE).all() and (outcome.downlink_s == 0.5).all() and (outcome.compute_s == 0).all()
    np.testing.assert_allclose(outcome.energy_j, RECEIVE_W / 2)


def test_clients_leave_in_every_phase() -> None:
    world = seconds_world(300, availability={"dropouts_per_s": 0.3})
    leave_s = world.workers.leave_s(1)
    outcome = round_of(world, down=DOWN, up=UP, work=WORK)
    phases = [
        (0, 1, Fate.DROPPED_DOWNLOAD, "the download"),
        (1, 2, Fate.DROPPED_COMPUTE, "computing"),
        (2, 3, Fate.DROPPED_UPLOAD, "the upload"),
    ]
    for low, high, fate, words in phases:
        who = np.flatnonzero((leave_s > low) & (leave_s < high))
        assert who.size > 15 and (outcome.fate[who] == fate).all()
        spent_s = outcome.downlink_s[who] + outcome.compute_s[who] + outcome.uplink_s[who]
        np.testing.assert_allclose(spent_s, leave_s[who])
        reason = outcome.reason_of(int(who[0]))
        assert reason.startswith("dropped: left") and words in reason and reason.endswith(f"after {leave_s[who[0]]:.3g} s")
    assert (outcome.fate[leave_s > 3] == Fate.DONE).all()
    powers = np.array([RECEIVE_W, GPU_W, SEND_W])
    np.testing.assert_allclose(outcome.energy_j, powers @ np.stack([outcome.downlink_s, outcome.compute_s, outcome.uplink_s]))
    np.testing.assert_allclose(outcome.uplink_bytes, np.floor(outcome.uplink_s * 500 + 1e-9), atol=1)
    assert world.round_row()["clients_dropped"] == (outcome.fate != Fate.DONE).sum() > 100


def test_offline_clients_are_not_reached_and_pay_nothing() -> None:
    world = seconds_world(400, availability={"on_s": 100.0, "off_s": 300.0})
    shares = []
    for _ in range(3):
        reached = world.begin(np.arange(400), np.full(400, DOWN))
        there = np.flatnonzero(reached)
        outcome = world.play(there, np.full(there.size, WORK), np.full(there.size, UP))
        assert ((outcome.fate == Fate.OFFLINE) == ~reached).all() and (outcome.fate[reached] == Fate.DONE).all()
        assert (outcome.energy_j[~reached] == 0).all() and (outcome.energy_j[reached] > 0).all()
        assert outcome.reason_of(int(np.flatnonzero(~reached)[0])) == "dropped: offline at the start of the round"
        shares.append(reached.mean())
    assert 0.18 < np.mean(shares) < 0.32 and len(set(shares)) > 1


def test_nobody_there_voids_the_round() -> None:
    world = seconds_world(availability={"on_s": 1e-3, "off_s": 1e6})
    outcome = round_of(world, down=DOWN, up=UP, work=WORK)
    assert outcome.void == "nobody who was asked could be reached" and outcome.duration_s == 0.0


def test_replies_that_the_server_cannot_use_are_not_the_worlds_doing() -> None:
    world = seconds_world()
    outcome = round_of(world, down=DOWN, up=UP, work=WORK, silent=(1,))
    assert outcome.fate.tolist() == [Fate.DONE, Fate.NO_REPLY, Fate.DONE] and outcome.energy_j[1] == 0
    assert (outcome.count(late=False), outcome.count(late=True)) == (0, 0)
    assert round_of(world, silent=(0, 1, 2)).void == "no client that was reached sent a sound reply"


def test_a_battery_runs_empty_in_the_middle_of_an_upload() -> None:
    battery_j = RECEIVE_W + GPU_W + SEND_W / 2
    world = seconds_world(energy={"battery_j": battery_j, "recharge_w": 0.01})
    outcome = round_of(world, down=DOWN, up=np.array([500, 250, 100]), work=WORK)
    assert outcome.fate.tolist() == [Fate.BATTERY, Fate.DONE, Fate.DONE] and outcome.uplink_bytes[0] in (249, 250)
    assert outcome.uplink_s[0] == pytest.approx(0.5) and outcome.energy_j[0] == battery_j
    assert outcome.reason_of(0) == "dropped: battery empty after 2.5 s"
    left_j = battery_j - outcome.energy_j + 0.01 * outcome.duration_s
    np.testing.assert_allclose(world.battery.left_j, np.minimum(left_j, battery_j))


@pytest.mark.parametrize(("share", "phase"), [(0.5, "downlink_s"), (200.0, "compute_s")])
def test_a_battery_may_give_out_in_any_phase(share: float, phase: str) -> None:
    world = seconds_world(energy={"battery_j": share * RECEIVE_W})
    outcome = round_of(world, down=DOWN, up=UP, work=WORK)
    assert (outcome.fate == Fate.BATTERY).all() and (world.battery.left_j == 0).all()
    last = {"downlink_s": 0.5, "compute_s": (share - 1) * RECEIVE_W / GPU_W}[phase]
    np.testing.assert_allclose(getattr(outcome, phase), last)
    again = round_of(world, down=DOWN, up=UP, work=WORK)
    assert (again.fate == Fate.BATTERY).all() and again.reason_of(0) == "dropped: battery empty after 0 s"
    assert (again.energy_j == 0).all() and (again.downlink_s == 0).all()


def test_no_battery_is_left_almost_empty() -> None:
    """A rest of some 1e-13 J would let a client begin the next round only to die in it."""
    world = make(clients=40, energy={"battery_j": 20.0}, devices={"jitter": 0.3})
    for _ in range(6):
        round_of(world, up=200_000, work=3e11)
    left_j = world.battery.left_j
    assert (left_j == 0).sum() > 5 and not ((left_j > 0) & (left_j < 1e-6)).any()


def test_small_devices_drop_out_for_lack_of_memory() -> None:
    mix = {"mix": {"raspberry_pi_zero2": 0.5, "server_gpu": 0.5}, "jitter": 0.0}
    needs = {"memory_bytes": int(2e9)}
    world = make("ideal", clients=6, setup=needs, devices=mix)
    outcome = round_of(world)
    small = outcome.fate == Fate.MEMORY
    assert small.sum() == 3 and (outcome.fate[~small] == Fate.DONE).all() and (outcome.energy_j[small] == 0).all()
    reason = outcome.reason_of(int(np.flatnonzero(small)[0]))
    assert reason.startswith("dropped: out of memory, training needs 2 GB and raspberry_pi_zero2 has 0.5")
    assert world.notes == ["3 of 6 clients have too little memory for the model and drop out whenever they are drawn"]
    with pytest.raises(ConfigError, match=r"no device of world\.options\.devices\.mix holds the run's model: it needs 2 GB"):
        make("ideal", setup=needs, devices={"mix": {"raspberry_pi_zero2": 1.0}})
    free = make("ideal", setup=needs, devices={"mix": {"raspberry_pi_zero2": 1.0}, "check_memory": False})
    assert (round_of(free).fate == Fate.DONE).all() and free.notes == []


@pytest.mark.parametrize("direction", ["uplink", "downlink"])
def test_an_outage_is_named_and_nobody_waits_for_it(direction: str) -> None:
    world = make(clients=4, devices=STILL, **{direction: {"power_dbm": -150.0}})
    outcome = round_of(world, work=GPU_FLOPS)
    assert (outcome.fate == Fate.OUTAGE).all() and (outcome.uplink_bytes == 0).all()
    assert outcome.reason_of(2) == "dropped: outage, nothing gets through" and "without a link" in outcome.void
    assert outcome.duration_s == pytest.approx(0.0 if direction == "downlink" else 1.0, abs=0.2)
    assert (outcome.compute_s > 0).all() == (direction == "uplink")


def test_cycles_per_example_in_time_and_energy() -> None:
    """Yang et al.: C D / f seconds, kappa C D f^2 joules, 10 dBm without circuits."""
    world = make("yang2021", clients=6, fading={"model": "none"})
    examples = np.arange(1, 51) * 100.0
    outcome = round_of(world, work=examples)
    cycles = world.workers._cycles
    assert cycles is not None and 1e4 < cycles.min() < 1.3e4 and 2.7e4 < cycles.max() < 3e4
    np.testing.assert_allclose(outcome.compute_s, cycles * examples / 2e9)
    np.testing.assert_allclose(outcome.energy_j, 1e-28 * cycles * examples * 4e18 + 0.01 * outcome.uplink_s)
    slow = make("yang2021", clients=6, fading={"model": "none"}, devices={"jitter": 0.5, "jitter_law": "exponential"})
    late = round_of(slow, work=examples)
    assert (late.compute_s >= outcome.compute_s).all() and late.compute_s.mean() > 1.2 * outcome.compute_s.mean()
    np.testing.assert_allclose(late.energy_j - 0.01 * late.uplink_s, outcome.energy_j - 0.01 * outcome.uplink_s)


def test_jitter_has_its_law() -> None:
    world = make("ideal", clients=4000, devices={"mix": {"server_gpu": 1.0}, "jitter": 0.25})
    logs = np.log(round_of(world, work=GPU_FLOPS).compute_s)
    assert abs(logs.mean()) < 4.5 * 0.25 / 4000**0.5 and abs(logs.std() - 0.25) < 0.02
    assert world.now_s == pytest.approx(np.exp(logs.max()))


def test_ideal_takes_as_long_as_its_slowest_computer() -> None:
    world = make("ideal")
    outcome = round_of(world, work=np.arange(1, 13) * 1e13)
    assert (outcome.uplink_s == 0).all() and (outcome.downlink_s == 0).all() and np.isnan(outcome.rate_bps).all()
    assert outcome.duration_s == pytest.approx(12e13 / GPU_FLOPS)
    np.testing.assert_allclose(outcome.energy_j, GPU_W * outcome.compute_s)


def test_airllm_costs_what_its_paper_says() -> None:
    """Uplink 8 bytes K / (B log2(1 + snr)) seconds; the broadcast goes at the weakest client's rate."""
    world = make("airllm", clients=10)
    for _ in range(3):
        outcome = round_of(world, down=500_000, up=200_000)
        snr = 10 ** (world.links.measured()[1] / 10)
        np.testing.assert_allclose(outcome.uplink_s, 8 * 200_000 * 10 / (100e6 * np.log2(1 + snr)))
        np.testing.assert_allclose(outcome.downlink_s, 8 * 500_000 / (100e6 * np.log2(1 + snr.min())))
        np.testing.assert_allclose(outcome.snr_db, world.links.measured()[1])
        assert set(np.round(outcome.snr_db, 6)) <= {-5, 0, 5, 10, 15}
        ends = outcome.downlink_s + outcome.compute_s + outcome.uplink_s
        assert outcome.duration_s == pytest.approx(ends.max())
    few = round_of(world, np.arange(2), up=200_000)
    snr = 10 ** (world.links.measured()[1, :2] / 10)
    np.testing.assert_allclose(few.uplink_s, 8 * 200_000 * 2 / (100e6 * np.log2(1 + snr)))
