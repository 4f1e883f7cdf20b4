"""A radio world: its channels are nobody's doing, its state is all there is to it, and it knows what it cannot be."""

from __future__ import annotations

import time
import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fedlora.errors import ConfigError
from fedlora_envs.outcome import Fate
from fedlora_envs.world import RadioWorld
from worlds import PRESETS, make, round_of, same

# All that can depend on what happened before: batteries, coming and going, jitter, old and wrong measurements.
RESTLESS: dict[str, Any] = {
    "availability": {"on_s": 300.0, "off_s": 100.0, "dropouts_per_s": 0.01},
    "csi": {"delay_rounds": 2, "error_db": 1.0},
    "energy": {"battery_j": 4.0, "recharge_w": 0.02},
    "devices": {"jitter": 0.3},
}


def restless(preset: str, seed: int = 0, **options: Any) -> RadioWorld:
    return make(preset, seed=seed, **RESTLESS, **options)


# -- channels depend on the seed and the round alone -------------------------------------------------------------------


def channels(world: RadioWorld, round_number: int) -> list[np.ndarray[Any, Any]]:
    """Return everything that chance decides about a round, the fades of each client included."""
    everyone = np.arange(world.clients)
    size = np.array([2_000])
    seconds = [world.links.download(round_number, everyone, everyone[place : place + 1], size).seconds for place in everyone]
    starts = np.zeros(1)
    rates = [
        world.links.upload(round_number, everyone, everyone[place : place + 1], size, starts).rates_bps for place in everyone
    ]
    present = world._presence.on if world._presence else np.ones(0)
    return [
        world.links.measured(),
        np.array(seconds),
        np.array(rates),
        present,
        world.workers.leave_s(round_number),
        world.workers.compute_s(round_number, everyone, np.ones(world.clients)),
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_sent_shifts_no_channel(preset: str) -> None:
    """Light messages and every reply, against heavy ones, empty batteries and replies that get lost."""
    light, heavy = restless(preset), restless(preset)
    for number in range(1, 6):
        ours = round_of(light, down=100, up=100, work=1.0)
        theirs = round_of(heavy, np.arange(2 * number), down=2_000_000, up=1_000_000, silent=(1, 5))
        assert not same(ours, theirs)
        for left, right in zip(channels(light, number), channels(heavy, number), strict=True):
            np.testing.assert_array_equal(left, right)
    assert not np.array_equal(light.battery.left_j, heavy.battery.left_j)


@pytest.mark.parametrize("transfer", ["quasi_static", "slotted"])
@pytest.mark.parametrize("model", ["block", "clarke"])
def test_an_empty_battery_shifts_nobodys_fades(model: str, transfer: str) -> None:
    """The fades of those that are still there are drawn as if all were."""
    fading = {"model": model, "transfer": transfer}
    options: dict[str, Any] = {"fading": fading, "downlink": {"quantile": 0.01}, "rate": {"model": "shannon"}}
    whole, some = make(**options), make(**options, energy={"battery_j": 100.0})
    ours = round_of(whole)
    # With the smallest quantile the best client alone hears the broadcast: who that is, and when, tells its fade.
    best = int(np.argmin(ours.downlink_s))
    others = np.flatnonzero(np.arange(12) != best)[[0, 3, 7]]
    some.battery.left_j[others] = 0.0
    theirs = round_of(some)
    assert (theirs.fate[others] == Fate.BATTERY).all() and (ours.fate == Fate.DONE).all()
    assert theirs.downlink_s[best] == ours.downlink_s[best]


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "ideal"])
def test_another_seed_is_another_world(preset: str) -> None:
    ours, theirs = restless(preset), restless(preset, seed=1)
    round_of(ours), round_of(theirs)
    measured, seconds, rates, present, leave_s, compute_s = (
        np.array_equal(left, right) for left, right in zip(channels(ours, 1), channels(theirs, 1), strict=True)
    )
    assert not (measured or seconds or rates or leave_s or compute_s or present)


def test_rounds_differ_where_something_moves() -> None:
    world = restless("umi-indoor")
    first = [round_of(world), channels(world, 1)][1]
    second = [round_of(world), channels(world, 2)][1]
    assert not any(np.array_equal(left, right) for left, right in zip(first, second, strict=True))


def test_at_rest_the_mean_stays_and_the_fades_go_on() -> None:
    world = make(cell={"speed_kmh": 0.0}, fading={"transfer": "quasi_static"})
    (measured, seconds, *_), (later, after, *_) = ([round_of(world), channels(world, number)][1] for number in (1, 2))
    np.testing.assert_array_equal(measured, later)
    assert not np.array_equal(seconds, after)


# -- state ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observed", [False, True], ids=["between-rounds", "after-a-look"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_restored_world_goes_on_bit_by_bit(preset: str, observed: bool) -> None:
    everyone = np.arange(12)
    whole = restless(preset)
    for after in range(4):
        if observed:
            whole.observe(after + 1, everyone)
        stored = {name: array.copy() for name, array in whole.state().items()}
        restored = restless(preset)
        restored.restore(stored)
        for number in (after + 1, after + 2):
            seen, again = whole.observe(number, everyone), restored.observe(number, everyone)
            mine, other = ({**vars(links), **vars(links.allowance)} for links in (seen, again))
            for name in mine.keys() - {"allowance"}:
                np.testing.assert_array_equal(mine[name], other[name])
            ours, theirs = round_of(whole), round_of(restored)
            assert same(ours, theirs) and whole.round_row() == restored.round_row()
            assert whole.client_rows() == restored.client_rows()
        states = whole.state(), restored.state()
        assert states[0].keys() == states[1].keys()
        assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
        whole.restore(stored)
        round_of(whole)


# -- what the server knows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0, 1, 3])
@pytest.mark.parametrize("preset", ["umi-indoor", "airllm-markov", "airllm", "trace"])
def test_the_server_sees_the_past(preset: str, delay: int) -> None:
    world = make(preset, csi={"delay_rounds": delay, "error_db": 0.0}, setup={"per_round": 4})
    chosen = np.array([2, 5, 11])
    truth = [world.links.measured()]
    for number in range(1, 7):
        seen = world.observe(number, chosen)
        truth.append(world.links.measured())
        age = min(delay, number)
        assert seen.age_rounds.tolist() == [age] * 3
        down_bps, up_bps, snr_db = (values[chosen] for values in world.links.expected(truth[number - age], 4))
        np.testing.assert_array_equal(seen.downlink_bps, down_bps)
        np.testing.assert_array_equal(seen.uplink_bps, up_bps)
        np.testing.assert_array_equal(seen.uplink_snr_db, snr_db)
        round_of(world)
    changed = [not np.array_equal(old, new) for old, new in pairwise(truth)]
    assert sum(changed) >= 5  # so that an old measurement is not the new one


def test_the_estimates_error_has_the_size_it_should() -> None:
    off_by, world = (
        [],
        make(clients=400, csi={"delay_rounds": 0, "error_db": 2.0}, rate={"model": "shannon"}, setup={"per_round": 1}),
    )
    everyone = np.arange(400)
    for number in (1, 2, 3):
        off_by.append(world.observe(number, everyone).uplink_snr_db - world.links.measured()[1])
        round_of(world, everyone[:3])
    errors = np.concatenate(off_by)
    assert abs(errors.mean()) < 0.3 and 1.8 < errors.std() < 2.2
    assert abs(np.corrcoef(off_by[0], off_by[1])[0, 1]) < 0.25


def test_the_server_knows_batteries_speeds_and_the_deadline() -> None:
    world = make(energy={"battery_j": 500.0}, deadline_s=40.0)
    round_of(world, up=300_000)
    seen = world.observe(2, np.array([3, 4]))
    np.testing.assert_array_equal(seen.energy_left_j, world.battery.left_j[[3, 4]])
    assert (seen.energy_left_j < 500).all() and seen.deadline_s == 40.0
    np.testing.assert_array_equal(seen.compute_bps, world.workers.speed()[[3, 4]])
    assert make().observe(1, np.array([0])).deadline_s == np.inf


@pytest.mark.parametrize("model", ["none", "clarke"])
def test_an_outage_that_is_foreseen_happens(model: str) -> None:
    """What the server expects and what the round does know the same outage, in both directions."""
    world = make(
        clients=60,
        csi={"delay_rounds": 0},
        uplink={"power_dbm": -20.0},
        fading={"model": model, "transfer": "ergodic", "rician": False},
    )
    foreseen = world.observe(1, np.arange(60)).outage
    fates = round_of(world, work=1.0).fate
    assert 5 < foreseen.sum() < 55
    lost = fates == Fate.OUTAGE
    assert (lost & ~foreseen).sum() == 0
    # Fewer share the uplink than the server had to expect, so that somebody may get through after all; not many.
    assert (foreseen & ~lost).sum() <= 0.2 * foreseen.sum()


# -- size and refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_plays(preset: str) -> None:
    world = make(preset)
    for number in range(1, 4):
        outcome = round_of(world)
        assert (outcome.fate == Fate.DONE).sum() >= 6 and not outcome.void
        row = world.round_row()
        assert row["virtual_time_s"] == pytest.approx(world.now_s) and world.round == number
        assert row["energy_j"] > 0 and row["clients_dropped"] + (outcome.fate == Fate.DONE).sum() == world.clients
    assert world.now_s > 0
    assert make(preset).config.summary


def test_a_large_world_takes_seconds_and_memory_in_proportion() -> None:
    def peak(clients: int) -> float:
        tracemalloc.start()
        world = make("umi-indoor", clients=clients, setup={"per_round": 10})
        chosen = np.arange(0, clients, clients // 10)
        world.observe(1, chosen)
        round_of(world, chosen)
        bytes_at_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return bytes_at_peak

    peak(2_000)  # tables are made once
    small = peak(20_000)
    began = time.process_time()
    large = peak(100_000)
    assert time.process_time() - began < 10
    assert large < 7 * small and large < 100_000 * 4_000


def test_fifty_clients_do_not_serve_sixty() -> None:
    with pytest.raises(ConfigError, match=r"^world 'yang2021' holds 50 clients, 60 were asked for: .*world\.options\.clients$"):
        make("yang2021", clients=60)
    assert make("yang2021", clients=30).clients == 50


def test_a_client_beyond_the_world_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"holds 12 clients, numbered from 0; client 12 was asked"):
        make().begin(np.array([3, 12]), np.array([10, 10]))


def test_a_client_is_asked_once() -> None:
    with pytest.raises(ConfigError, match="two messages in one exchange"):
        make().begin(np.array([3, 3]), np.array([10, 10]))


@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_payload_of_zero_bytes_is_refused(direction: str) -> None:
    world = make()
    with pytest.raises(ConfigError, match="message of client 4 has 0 bytes"):
        if direction == "down":
            world.begin(np.array([3, 4]), np.array([10, 0]))
        else:
            world.begin(np.array([3, 4]), np.array([10, 10]))
            world.play(np.array([3, 4]), np.ones(2), np.array([10, 0]))


def test_rounds_come_one_after_the_other() -> None:
    with pytest.raises(ConfigError, match="stands at round 0; round 2 is not the next one"):
        make().observe(2, np.array([0]))


@pytest.mark.parametrize(
    ("preset", "options", "says"),
    [
        ("umi-indoor", {"fading": {"model": "gauss_markov", "step_s": 0.2}}, "fD*T is 1.94"),
        ("umi-indoor", {"fading": {"model": "markov", "step_s": 0.01}}, "fD*T is 0.0972"),
        ("umi-indoor", {"uplink": {"sharing": "pf", "slot_s": 0.1}, "fading": {"model": "gauss_markov"}}, "fD*T"),
        ("umi-indoor", {"uplink": {"bandwidth_hz": -1}}, "world.options.uplink.bandwidth_hz = -1"),
        ("umi-indoor", {"uplink": {"bandwidth_hz": 200e6}}, "NR has"),
        ("umi-indoor", {"uplnk": {}}, "unknown key 'world.options.uplnk'. Did you mean 'world.options.uplink'?"),
        ("umi-indoor", {"uplink": {"sharing": "eqal"}}, "Did you mean 'equal'?"),
        ("umi-indoor", {"speed_kmh": 3}, "Did you mean 'world.options.cell.speed_kmh'?"),
        ("umi-indoor", {"deadline_s": 0}, "world.options.deadline_s = 0"),
        ("umi-indoor", {"devices": {"mix": {"raspbery_pi_5": 1.0}}}, "Did you mean 'raspberry_pi_5'?"),
        ("umi-indoor", {"cell": {"radius_m": 5.0}}, "no room"),
        ("airllm", {"uplink": {"sharing": "min_max"}}, "Use 'equal' or 'proportional', or links = 'cell'"),
        ("airllm", {"levels": {"values_db": [5.0, 0.0]}}, "does not rise"),
        ("ideal", {"uplink": {"sharing": "pf"}}, "Leave uplink.sharing at 'equal'"),
        ("trace", {"trace": {"path": "nowhere"}}, "nowhere"),
        ("yang2021", {"devices": {"cycles_per_example": [3e4, 1e4]}}, "is no range of cycles"),
    ],
)
def test_what_cannot_be_is_refused(preset: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(preset, **options)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_aircomp_is_named_in_both_places() -> None:
    for sharing, aggregator in (("aircomp", "ravan"), ("equal", "aircomp")):
        with pytest.raises(ConfigError, match="analogue transmission needs 'aircomp' in both places"):
            make(uplink={"sharing": sharing}, setup={"aggregator": aggregator})
    make(uplink={"sharing": "aircomp"}, setup={"aggregator": "aircomp"})


def test_the_markov_chain_is_rayleigh_even_where_links_are_rician() -> None:
    world = make("inh-office", fading={"model": "markov", "rician": True})
    assert (round_of(world).fate == Fate.DONE).sum() >= 10
