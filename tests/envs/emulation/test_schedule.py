"""The world's channel as the relay plays it: the same seconds for the same bytes."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fedlora.config import RunConfig, load_config
from fedlora.errors import ConfigError
from fedlora.federation.strategy import RoundStrategy
from fedlora_envs.emulation.follow import Expected
from fedlora_envs.emulation.pipe import Channel, Impairment, Pipe
from fedlora_envs.emulation.schedule import CEILING_BPS, IDLE_BPS, Charges, Schedule, transfer_s, world_of
from fedlora_envs.outcome import Fate

DOWN, UP = np.array([300_000, 300_000, 300_000]), np.array([250_000, 40_000, 5_000])


def config(world: str = "umi-indoor", *changes: str) -> RunConfig:
    return load_config(None, [f"world.name={world}", "clients=5", "clients_per_round=3", "seed=3", *changes])


def charges(schedule: Schedule, number: int) -> Charges:
    return schedule.charges(number, schedule.draw(number), DOWN, UP, np.full(3, 0.5))


def played_s(channel: Channel, size: int) -> float:
    """Return how long a pipe takes for so many bytes."""
    pipe = Pipe(Impairment(queue_bytes=10**9), channel, "seed", 0.0)
    for start in range(0, size, 1500):
        pipe.push(0.0, bytes(min(1500, size - start)))
    now = 0.0
    while (at := pipe.next_event()) < math.inf:
        now = at
        pipe.due(now)
    return now


def test_the_draw_is_the_strategys() -> None:
    run = config()
    strategy = SimpleNamespace(roster=dict.fromkeys(range(5)), bench=SimpleNamespace(config=run))
    schedule = Schedule(run)
    for number in range(1, 20):
        assert schedule.draw(number).tolist() == RoundStrategy.draw(cast(RoundStrategy, strategy), number).tolist()


@pytest.mark.parametrize(
    "world",
    ["umi-indoor", "uma-macro", "airllm", "trace", "inh-office", "umi-indoor/pf", "umi-indoor/min_max", "umi-indoor/processor"],
)
def test_it_charges_what_the_world_charges_and_the_relay_plays_it(world: str) -> None:
    name, _, sharing = world.partition("/")
    run = config(name, *([f"world.options.uplink.sharing={sharing}"] if sharing else []))
    schedule, real = Schedule(run), world_of(run)
    real.workers.compute_s = lambda number, clients, work: np.full(len(work), 0.5)  # type: ignore[method-assign,assignment]
    through = 0
    for number in range(1, 6):
        found = charges(schedule, number)
        reached = real.begin(found.clients, DOWN)
        outcome = real.play(found.clients[reached], np.ones(reached.sum()), UP[reached])
        channels = schedule.channels(found)
        for place, client in enumerate(found.clients.tolist()):
            if outcome.fate[place] != Fate.DONE:
                assert not np.isfinite(found.down_s[place] + found.up_s[place])
                continue
            through += 1
            assert found.down_s[place] == pytest.approx(outcome.downlink_s[place], rel=1e-9)
            assert found.up_s[place] == pytest.approx(outcome.uplink_s[place], rel=1e-6)
            for way, pieces, size, seconds in (
                ("down", found.down[place], DOWN[place], found.down_s[place]),
                ("up", found.up[place], UP[place], found.up_s[place]),
            ):
                # A profile has some ten pieces, and a small message is but one of them.
                assert transfer_s(pieces, 8.0 * size) == pytest.approx(seconds, rel=0.25 if size < 30_000 else 0.06)
                if all(rate < CEILING_BPS for _, rate in pieces):
                    assert played_s(channels[client][way], int(size)) == pytest.approx(transfer_s(pieces, 8.0 * size), rel=0.05)
    assert through >= 8


def test_rounds_may_be_asked_again_and_give_the_same() -> None:
    schedule = Schedule(config())
    first = charges(schedule, 1)
    again = charges(schedule, 1)
    assert (first.up_s == again.up_s).all()
    assert first.down == again.down
    later = charges(schedule, 2)
    assert later.up_s.tolist() != first.up_s.tolist()


def test_clients_that_are_offline_or_drop_out_have_outages_and_those_not_drawn_idle() -> None:
    schedule = Schedule(config("umi-indoor", "world.options.availability.on_s=10", "world.options.availability.off_s=10",
                               "world.options.availability.dropouts_per_s=0.1"))  # fmt: skip
    away = 0
    for number in range(1, 8):
        found = charges(schedule, number)
        channels = schedule.channels(found)
        for place, client in enumerate(found.clients.tolist()):
            start = 0.0 if found.away[place] else found.leave_s[place]
            assert channels[client]["up"].outages == ((start, math.inf),)
            away += bool(found.away[place])
        for client in set(range(5)) - set(found.clients.tolist()):
            assert channels[client]["down"].segments == ((0.0, IDLE_BPS),)
            assert channels[client]["down"].outages == ()
    assert 3 < away < 18


def test_out_of_reach_nothing_is_sent() -> None:
    schedule = Schedule(config("umi-indoor", "world.options.downlink.power_dbm=-80", "world.options.uplink.power_dbm=-80"))
    found = charges(schedule, 1)
    assert np.isinf(found.up_s).all()
    assert {channel["up"].segments for client, channel in schedule.channels(found).items() if client in found.clients} == {
        ((0.0, 0.0),)
    }


def test_the_time_scale_stretches_everything() -> None:
    run = config("umi-indoor", "world.options.availability.dropouts_per_s=0.1")
    fast, slow = Schedule(run), Schedule(run, scale=4.0)
    at = {scale: one.channels(charges(one, 1)) for scale, one in ((1, fast), (4, slow))}
    for client in fast.draw(1).tolist():
        for way in ("down", "up"):
            assert [rate for _, rate in at[4][client][way].segments] == pytest.approx(
                [rate / 4 for _, rate in at[1][client][way].segments]
            )
            assert at[4][client][way].outages[0][0] == pytest.approx(4 * at[1][client][way].outages[0][0])


def test_what_cannot_be_emulated_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set world\.name"):
        Schedule(load_config(None, ["clients=5"]))
    with pytest.raises(ConfigError, match="sockets carry packets"):
        Schedule(config("umi-indoor", "world.options.uplink.sharing=aircomp", "aggregator.method=aircomp"))
    with pytest.raises(ConfigError, match="time scale"):
        Schedule(config(), scale=0.0)


def test_sizes_are_expected_as_simulated_then_as_they_were_last() -> None:
    expected = Expected(simulated={(2, 0): {"uplink_bytes": 7, "downlink_bytes": 9}})
    row: dict[str, Any] = {"client": 1, "status": "ok", "uplink_bytes": 5, "downlink_bytes": 6, "seconds": 2.5}
    expected.learn([row, {**row, "client": 0, "status": "no reply", "uplink_bytes": 0}])
    assert expected.bytes(2, 0, "up") == 7
    assert expected.bytes(3, 1, "down") == 6
    assert expected.bytes(3, 0, "up") == 5, "as another client's, where its own is not known"
    assert expected.compute_s(1) == 2.5
    assert json.loads(json.dumps(expected.compute_s(4))) == 2.5
