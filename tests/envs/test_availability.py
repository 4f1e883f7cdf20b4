"""Availability: the on-off chain's law, and exponential drop-outs."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest

from fedlora.errors import ConfigError
from fedlora_envs.availability import OnOff, drop_times
from zscores import LIMIT, z_mean, z_share

CLIENTS = 1_000_000


def test_on_off_starts_stationary_and_stays_so() -> None:
    rng = np.random.default_rng(0)
    chain = OnOff(600.0, 1200.0, rng.random(CLIENTS))
    assert abs(z_share(chain.on.sum(), CLIENTS, 1 / 3)) < LIMIT
    for _ in range(3):
        chain.step(100.0, rng.random(CLIENTS))
    assert abs(z_share(chain.on.sum(), CLIENTS, 1 / 3)) < LIMIT


def test_transitions_have_the_law_of_the_continuous_chain() -> None:
    """From on, P(on after dt) = s + (1 - s) e^{-(l+m) dt}; from off, s (1 - e^{-(l+m) dt})."""
    rng = np.random.default_rng(1)
    chain = OnOff(600.0, 1200.0, rng.random(CLIENTS))
    before = chain.on
    after = chain.step(300.0, rng.random(CLIENTS))
    memory = exp(-300 * (1 / 600 + 1 / 1200))
    assert abs(z_share(after[before].sum(), int(before.sum()), 1 / 3 + 2 / 3 * memory)) < LIMIT
    assert abs(z_share(after[~before].sum(), int((~before).sum()), 1 / 3 * (1 - memory))) < LIMIT


def test_many_short_steps_are_one_long_one() -> None:
    rng = np.random.default_rng(2)
    chain = OnOff(20.0, 50.0, rng.random(200_000))
    before = chain.on
    for _ in range(20):
        after = chain.step(1.0, rng.random(200_000))
    share = 50 / 70
    stays = (1 - share) + share * exp(-20 * (1 / 20 + 1 / 50))
    assert abs(z_share(after[before].sum(), int(before.sum()), stays)) < LIMIT


def test_clients_that_never_go_off_never_come_back_or_are_hardly_ever_on() -> None:
    rng = np.random.default_rng(3)
    chain = OnOff([np.inf, 1.0, 1e-9], [5.0, np.inf, 1.0], rng.random(3))
    assert chain.on.tolist() == [True, False, False]
    for _ in range(50):
        assert chain.step(10.0, rng.random(3)).tolist() == [True, False, False]


def test_no_time_is_no_change() -> None:
    rng = np.random.default_rng(4)
    chain = OnOff(1.0, 1.0, rng.random(1000))
    before = chain.on.copy()
    assert (chain.step(0.0, rng.random(1000)) == before).all()
    assert (chain.step(1.0, rng.random(1000)) != before).any()


@pytest.mark.parametrize(
    ("means", "message"),
    [((0.0, 1.0), "mean_on_s must be above 0 s .* got 0"), ((1.0, -2.0), "mean_off_s must be above 0 s .* got -2")],
)
def test_means_that_are_no_times_are_refused(means: tuple[float, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OnOff(*means, np.zeros(2))


def test_two_endless_states_are_refused() -> None:
    with pytest.raises(ConfigError, match="both inf"):
        OnOff(np.inf, np.inf, np.zeros(2))


def test_time_running_back_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot step by -1 s"):
        OnOff(1.0, 1.0, np.zeros(2)).step(-1.0, np.zeros(2))


def test_drop_times_are_exponential() -> None:
    times = drop_times(0.01, np.random.default_rng(5).random(CLIENTS))
    assert abs(z_mean(times, 100.0)) < LIMIT
    assert abs(z_share((times <= 50).sum(), CLIENTS, 1 - exp(-0.5))) < LIMIT


def test_a_rate_of_zero_never_drops_and_a_higher_rate_drops_sooner() -> None:
    found = drop_times([0.0, 0.1, 0.2], np.full(3, 0.5))
    assert found[0] == np.inf and found[1] == pytest.approx(2 * found[2])
    assert (drop_times(0.0, np.array([0.0, 0.9])) == np.inf).all()


@pytest.mark.parametrize("rate", [-0.1, np.nan, np.inf])
def test_bad_rates_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="drop-out rates must be finite numbers >= 0"):
        drop_times(rate, np.zeros(2))
