"""Devices: the data file, mixes, compute times, memory."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import kstest

from fedlora.errors import ConfigError, UnknownNameError
from fedlora_envs.constants import constants
from fedlora_envs.devices import (
    Fleet,
    cycles_compute_s,
    jitter_factors,
    tier,
    tier_counts,
)


def fleet(clients: int, mix: dict[str, float], seed: int = 0) -> Fleet:
    return Fleet.mixed(clients, mix, np.random.default_rng(seed))


@pytest.mark.parametrize("name", constants("devices"))
def test_every_tier_has_plausible_figures(name: str) -> None:
    one = tier(name)
    numbers = {key: value for key, value in asdict(one).items() if key not in ("name", "kind")}
    assert all(isinstance(value, float) and value > 0 for value in numbers.values()), numbers
    assert one.kind in ("cpu", "gpu")
    assert 1e8 < one.fp32_flops < 1e14 and one.mfu == {"cpu": 0.5, "gpu": 0.25}[one.kind]
    assert one.idle_w < one.busy_w


@pytest.mark.parametrize("name", ["yang2021", "chen2021", "dinh2021"])
def test_every_number_of_the_papers_is_read_as_a_number(name: str) -> None:
    for key, value in constants("fl_papers")[name].items():
        if key not in ("source", "evidence"):
            assert all(isinstance(one, int | float) for one in (value if isinstance(value, list) else [value])), key


@pytest.mark.parametrize(("name", "seconds"), [("jetson_orin_nano_super", 7.7), ("raspberry_pi_5", 132.0)])
def test_a_billion_numbers_and_a_thousand_tokens(name: str, seconds: float) -> None:
    """4e12 operations: 7.7 s on an Orin Nano, about 130 s on a Raspberry Pi 5."""
    one = fleet(1, {name: 1})
    assert one.compute_s(4e9 * 1000, np.array([0]))[0] == pytest.approx(seconds, abs=0.5)


def test_mixed_has_the_shares_exactly_and_in_a_random_order() -> None:
    mixed = fleet(1000, {"raspberry_pi_4": 0.5, "jetson_nano": 0.3, "server_gpu": 0.2})
    assert np.bincount(mixed.tier).tolist() == [500, 300, 200]
    assert (mixed.flops == np.array([one.flops for one in mixed.tiers])[mixed.tier]).all()
    assert (mixed.memory_bytes == np.array([one.memory_bytes for one in mixed.tiers])[mixed.tier]).all()
    assert (mixed.power_w == np.array([7.2, 10.0, 700.0])[mixed.tier]).all()
    assert (mixed.idle_w < mixed.power_w).all()
    # Shuffled: of 500 neighbours as sorted, two of a kind would be nearly all; drawn at random they are 0.38.
    assert 0.30 < (np.diff(mixed.tier) == 0).mean() < 0.46
    assert (mixed.tier != fleet(1000, {"raspberry_pi_4": 0.5, "jetson_nano": 0.3, "server_gpu": 0.2}, seed=1).tier).any()


@pytest.mark.parametrize(
    ("clients", "shares", "counts"),
    [
        (10, [1, 1, 1], [4, 3, 3]),
        (7, [0.5, 0.3, 0.2], [4, 2, 1]),
        (3, [0.98, 0.01, 0.01], [3, 0, 0]),
        (5, [2, 0], [5, 0]),
        (4, [30, 10], [3, 1]),
        (1, [0.4, 0.6], [0, 1]),
    ],
)
def test_tier_counts_are_largest_remainders(clients: int, shares: list[float], counts: list[int]) -> None:
    assert tier_counts(clients, {f"tier{index}": share for index, share in enumerate(shares)}) == counts


def test_the_mix_does_not_change_what_is_drawn() -> None:
    one, two = np.random.default_rng(3), np.random.default_rng(3)
    Fleet.mixed(50, {"jetson_nano": 1}, one)
    Fleet.mixed(50, {"jetson_nano": 0.1, "rk3588": 0.9}, two)
    assert one.random() == two.random()


def test_unknown_tier_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown device tier 'raspberry_pi5'. Did you mean 'raspberry_pi_5'\?"):
        fleet(3, {"raspberry_pi5": 1})


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"rk3588": -0.5, "jetson_nano": 1.0}, "device tier 'rk3588' has a share of -0.5"),
        ({"rk3588": float("nan")}, "share of nan"),
        ({"rk3588": float("inf")}, "share of inf"),
        ({"rk3588": 0.0}, "add up to 0"),
        ({}, "add up to 0"),
    ],
)
def test_bad_shares_are_refused(mix: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fleet(3, mix)


def test_no_clients_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 client, got 0"):
        fleet(0, {"rk3588": 1})


def test_compute_time_is_operations_over_speed_times_jitter() -> None:
    mixed = fleet(4, {"raspberry_pi_4": 0.5, "server_gpu": 0.5})
    chosen = np.array([2, 0])
    seconds = mixed.compute_s([1e12, 2e12], chosen, [1.0, 3.0])
    assert seconds.tolist() == pytest.approx([1e12 / mixed.flops[2], 6e12 / mixed.flops[0]])
    assert mixed.compute_s(1e12, chosen).shape == (2,)


def test_memory_fits_by_tier() -> None:
    """A model of 1e9 numbers in 16 bits: not on a Pi Zero 2; 1e7 trained numbers take 160 MB more."""
    mixed = fleet(2, {"raspberry_pi_zero2": 1, "raspberry_pi_4": 1})
    assert mixed.fits(2.16e9).tolist() == (mixed.tier == 1).tolist()
    assert mixed.fits([0.5e9, 0.5e9]).all()


def test_jitter_has_its_law() -> None:
    uniforms = np.random.default_rng(0).random(100_000)
    assert kstest(np.log(jitter_factors("lognormal", 0.2, uniforms)), "norm", (0, 0.2)).pvalue > 1e-3
    assert kstest(jitter_factors("exponential", 0.5, uniforms), "expon", (1, 0.5)).pvalue > 1e-3
    assert (jitter_factors("none", 0.5, uniforms) == 1).all()


def test_jitter_slows_the_same_clients_down_whatever_its_kind() -> None:
    uniforms = np.array([0.9, 0.0, 0.5, 1 - 2.0**-53])
    for kind in ("lognormal", "exponential"):
        found = jitter_factors(kind, 0.3, uniforms)  # type: ignore[arg-type]
        assert np.argsort(found).tolist() == [1, 2, 0, 3]
        assert (found > 0).all() and np.isfinite(found).all()


def test_bad_jitter_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown jitter 'lognorm'\. Did you mean 'lognormal'"):
        jitter_factors("lognorm", 0.1, np.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="scale >= 0, got -1"):
        jitter_factors("lognormal", -1, np.zeros(1))


def test_cycles_model_of_yang2021() -> None:
    assert cycles_compute_s(2e4, 500, 2e9, epochs=4) == pytest.approx(0.02)
    assert cycles_compute_s([1e4, 3e4], [100, 200], 1e9).tolist() == pytest.approx([1e-3, 6e-3])
    with pytest.raises(ConfigError, match="frequency_hz must be above 0, got 0"):
        cycles_compute_s(1e4, 100, [1e9, 0.0])
