"""Correlation of shadowing between clients and along a walk, and of the LOS state behind it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from fedlora.errors import ConfigError
from fedlora_envs.radio.shadowing import EXACT_CLIENTS, correlated_normals, gudmundson, los_state
from zscores import LIMIT, z_mean, z_share

D0_M = 50.0
LAGS = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0])


def pairs(centres, rng):
    """Clients [2 * len(LAGS) * centres, 2]: for every lag, pairs that far apart in random directions."""
    first = rng.uniform(0, 50 * D0_M, (len(LAGS), centres, 2))
    angle = rng.uniform(0, 2 * np.pi, (len(LAGS), centres))
    second = first + D0_M * LAGS[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return np.stack([first, second]).reshape(-1, 2)


def test_exact_field_has_the_exponential_correlation():
    rng = np.random.default_rng(1)
    xy = pairs(8, rng)
    assert len(xy) <= EXACT_CLIENTS
    fields = (correlated_normals(xy, D0_M, rng).reshape(2, len(LAGS), -1) for _ in range(2000))
    products = np.array([(first * second).mean(axis=1) for first, second in fields])
    for lag, sample in zip(LAGS, products.T, strict=True):
        assert abs(z_mean(sample, np.exp(-lag))) <= LIMIT


def test_grid_field_is_within_three_hundredths():
    rng = np.random.default_rng(2)
    xy = pairs(2000, rng)
    assert len(xy) > EXACT_CLIENTS
    fields = (correlated_normals(xy, D0_M, rng).reshape(2, len(LAGS), -1) for _ in range(40))
    # Half the mean squared difference is 1 - correlation, and at short distances far less noisy than the mean product.
    found = np.array([1 - ((first - second) ** 2).mean(axis=1) / 2 for first, second in fields])
    error = found.std(axis=0) / np.sqrt(40)
    assert error[:6].max() < 0.004
    np.testing.assert_allclose(found.mean(axis=0)[:6], np.exp(-LAGS[:6]), atol=0.02)
    np.testing.assert_allclose(found.mean(axis=0), np.exp(-LAGS), atol=0.03)


def test_grid_field_is_standard_normal():
    rng = np.random.default_rng(3)
    # One far-apart client each: a spacing of 8 distances makes them practically independent.
    x, y = np.meshgrid(np.arange(20.0), np.arange(80.0))
    xy = 8 * D0_M * np.stack([x.ravel(), y.ravel()], axis=1) + rng.uniform(0, D0_M, (1600, 2))
    samples = np.concatenate([correlated_normals(xy, D0_M, rng) for _ in range(5)])
    assert abs(z_mean(samples, 0)) <= LIMIT
    assert abs(z_mean(samples**2, 1)) <= LIMIT
    assert kstest(samples, "norm").pvalue > 1e-4


def test_far_clients_are_independent_of_each_other():
    rng = np.random.default_rng(4)
    xy = np.array([[0.0, 0.0], [20 * D0_M, 0.0]])
    draws = np.array([correlated_normals(xy, D0_M, rng) for _ in range(20_000)])
    assert abs(z_mean(draws[:, 0] * draws[:, 1], 0)) <= LIMIT


def test_clients_at_one_place_share_its_shadow():
    shadow = correlated_normals(np.zeros((40, 2)), D0_M, np.random.default_rng(5))
    assert np.ptp(shadow) < 1e-3
    grid = correlated_normals(np.zeros((4000, 2)), D0_M, np.random.default_rng(5))
    assert grid.std() == pytest.approx(np.sqrt(0.03), rel=0.1)  # the white share alone


def test_wide_fields_cost_no_more_memory():
    rng = np.random.default_rng(6)
    shadow = correlated_normals(rng.uniform(-1e6, 1e6, (20_000, 2)), 10.0, rng)
    assert abs(z_mean(shadow, 0)) <= LIMIT
    assert abs(z_mean(shadow**2, 1)) <= LIMIT


def test_gudmundson_lag():
    rng = np.random.default_rng(7)
    n = 1_000_000
    field = rng.standard_normal(n)
    moved = 3 / 3.6 * 10.0  # 10 s at 3 km/h
    after = gudmundson(field, moved, 36.0, rng.standard_normal(n))
    assert np.exp(-moved / 36.0) == pytest.approx(0.7934, abs=1e-4)
    assert abs(z_mean(field * after, np.exp(-moved / 36.0))) <= LIMIT
    assert abs(z_mean(after**2, 1)) <= LIMIT
    later = gudmundson(after, 2 * moved, 36.0, rng.standard_normal(n))
    assert abs(z_mean(field * later, np.exp(-3 * moved / 36.0))) <= LIMIT


def test_gudmundson_takes_each_clients_own_way():
    old, new = np.array([1.0, 1.0, 1.0]), np.array([0.5, 0.5, 0.5])
    after = gudmundson(old, np.array([0.0, 50.0, 1e9]), 50.0, new)
    assert after.tolist() == pytest.approx([1.0, np.exp(-1) + 0.5 * np.sqrt(1 - np.exp(-2)), 0.5])


def test_innovations_with_a_field_keep_the_correlation_between_clients():
    rng = np.random.default_rng(8)
    xy = np.array([[0.0, 0.0], [25.0, 0.0]])
    products = []
    for _ in range(20_000):
        field = correlated_normals(xy, D0_M, rng)
        for _ in range(3):
            field = gudmundson(field, 40.0, D0_M, correlated_normals(xy, D0_M, rng))
        products.append(field[0] * field[1])
    assert abs(z_mean(np.array(products), np.exp(-0.5))) <= LIMIT


def test_los_state_has_its_probability_and_is_correlated():
    rng = np.random.default_rng(9)
    n = 1_000_000
    field = rng.standard_normal(n)
    near = gudmundson(field, 5.0, D0_M, rng.standard_normal(n))
    for p in (0.03, 0.5, 0.9):
        los = los_state(field, np.full(n, p))
        assert abs(z_share(int(los.sum()), n, p)) <= LIMIT
    # Two normals of correlation rho are both below their median with probability 1/4 + asin(rho) / (2 pi).
    both = los_state(field, np.full(n, 0.5)) & los_state(near, np.full(n, 0.5))
    assert abs(z_share(int(both.sum()), n, 0.25 + np.arcsin(np.exp(-0.1)) / (2 * np.pi))) <= LIMIT
    assert los_state(np.array([-9.0, 0.0, 3.0]), np.array([0.0, 0.0, 1.0])).tolist() == [False, False, True]


@pytest.mark.parametrize("n", [100, 3000])
def test_draws_depend_on_the_number_of_clients_alone(n):
    states, fields = [], []
    for width, d0 in ((100.0, 50.0), (1000.0, 7.0), (100.0, 50.0)):
        rng = np.random.default_rng(10)
        xy = np.random.default_rng(11).uniform(0, width, (n, 2))
        fields.append(correlated_normals(xy, d0, rng))
        states.append(rng.bit_generator.state)
    assert states[0] == states[1] == states[2]
    np.testing.assert_array_equal(fields[0], fields[2])


def test_a_decorrelation_of_zero_is_refused():
    with pytest.raises(ConfigError, match="must be positive"):
        correlated_normals(np.zeros((3, 2)), 0.0, np.random.default_rng(0))
