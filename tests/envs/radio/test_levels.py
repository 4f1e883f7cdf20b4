"""SNR level channels: uniform in the long run, one step at a time."""

from __future__ import annotations

import numpy as np
import pytest

from fedlora.errors import ConfigError
from fedlora.streams import stream
from fedlora_envs.radio.levels import LevelChannel
from zscores import LIMIT, z_mean, z_share

LEVELS = [-5.0, 0.0, 5.0, 10.0, 15.0]
N = 1_000_000


@pytest.mark.parametrize("kind", ["iid", "markov"])
def test_both_kinds_start_and_stay_uniform(kind: str) -> None:
    channel, rng = LevelChannel(kind, LEVELS, 0.2), stream(5, "levels")
    state = channel.first(N, rng)
    for _ in range(3):
        for level in range(5):
            assert abs(z_share(np.count_nonzero(state == level), N, 0.2)) <= LIMIT
        state = channel.next(state, rng)
    assert set(np.unique(channel.snr_db(state))) == set(LEVELS)


@pytest.mark.parametrize("p", [0.2, 1.0])
def test_markov_steps_to_neighbours_only_and_forgets_at_its_second_eigenvalue(p: float) -> None:
    channel, rng = LevelChannel("markov", LEVELS, p), stream(5, "levels")
    state = channel.first(N, rng)
    later = channel.next(state, rng)
    assert np.abs(later - state).max() == 1
    inner = (state > 0) & (state < 4)
    assert abs(z_share(np.count_nonzero((later == state + 1) & inner), np.count_nonzero(inner), p / 2)) <= LIMIT
    eigenvalue = 1 - p * (1 - np.cos(np.pi / 5))
    assert eigenvalue == pytest.approx({0.2: 0.962, 1.0: 0.809}[p], abs=5e-4)
    vector = np.sqrt(2) * np.cos(np.pi * (np.arange(5) + 0.5) / 5)
    assert abs(z_mean(vector[state] * vector[later], eigenvalue)) <= LIMIT


def test_iid_forgets_at_once() -> None:
    channel, rng = LevelChannel("iid", LEVELS), stream(5, "levels")
    state = channel.first(N, rng)
    later = channel.next(state, rng)
    assert abs(z_share(np.count_nonzero(later == state), N, 0.2)) <= LIMIT


def test_both_kinds_draw_one_variate_per_link_and_step() -> None:
    ends = []
    for kind, p in (("iid", 0.2), ("markov", 0.2), ("markov", 1.0)):
        channel, rng = LevelChannel(kind, LEVELS, p), stream(5, "levels")
        channel.next(channel.first(100, rng), rng)
        ends.append(rng.random())
    assert len(set(ends)) == 1


def test_one_level_never_moves() -> None:
    channel, rng = LevelChannel("markov", [10.0], 1.0), stream(5, "levels")
    assert not channel.next(channel.first(50, rng), rng).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("markow", LEVELS, 0.2), "Did you mean 'markov'?"),
        (("markov", LEVELS, 0.0), "p is 0.0"),
        (("markov", LEVELS, 1.5), "p is 1.5"),
        (("iid", [], 0.2), "no rising list"),
        (("iid", [5.0, 0.0], 0.2), "no rising list"),
    ],
)
def test_what_is_no_channel_is_refused(arguments: tuple[str, list[float], float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LevelChannel(*arguments)
