"""Fading processes against the closed forms of their laws and of their correlation in time."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import exp1, j0
from scipy.stats import ncx2

from fedlora.errors import ConfigError
from fedlora.streams import fast_stream
from fedlora_envs.radio.fading import (
    MARKOV_STATES,
    PATHS,
    Clarke,
    Fading,
    GaussMarkov,
    coherence_s,
    doppler_hz,
    make_fading,
    markov_crossings,
    markov_gains,
)
from fedlora_envs.radio.rates import Shannon
from zscores import LIMIT, z_mean, z_share

N = 1_000_000


def process(model: str, n: int = N, *, fd: float = 10.0, step_s: float = 0.001, k: float | NDArray[np.float64] = 0.0) -> Fading:
    return make_fading(model, n, fast_stream(5, "fading"), doppler_hz=fd, step_s=step_s, k_factor=k)


def step64(fading: Fading) -> NDArray[np.float64]:
    return fading.step().astype(np.float64)


# --- laws -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["block", "gauss_markov"])
def test_rayleigh_outage_and_capacity_have_their_closed_forms(model: str) -> None:
    gains, mean_snr = step64(process(model)), 10.0
    threshold = (2**2 - 1) / mean_snr
    assert abs(z_share(np.count_nonzero(gains < threshold), N, 1 - np.exp(-threshold))) <= LIMIT
    assert abs(z_mean(Shannon().efficiency(mean_snr * gains), np.exp(1 / mean_snr) * exp1(1 / mean_snr) / np.log(2))) <= LIMIT
    assert abs(z_mean(gains, 1.0)) <= LIMIT


@pytest.mark.parametrize("model", ["block", "gauss_markov"])
def test_rician_outage_and_variance_have_their_closed_forms(model: str) -> None:
    k, threshold = 10**0.9, 0.3
    gains = step64(process(model, k=k))
    below = ncx2.cdf(2 * (k + 1) * threshold, 2, 2 * k)
    assert abs(z_share(np.count_nonzero(gains < threshold), N, below)) <= LIMIT
    assert abs(z_mean((gains - 1) ** 2, (1 + 2 * k) / (1 + k) ** 2)) <= LIMIT
    assert (1 + 2 * k) / (1 + k) ** 2 == pytest.approx(0.21113, abs=1e-5)


def test_a_rician_k_per_link_gives_each_link_its_law() -> None:
    k = np.tile([0.0, 4.0], N // 2)
    for model in ("block", "gauss_markov"):
        gains = step64(process(model, k=k))
        assert abs(z_mean((gains[::2] - 1) ** 2, 1.0)) <= LIMIT
        assert abs(z_mean((gains[1::2] - 1) ** 2, 9 / 25)) <= LIMIT


def test_worst_and_best_of_twenty_have_their_closed_forms() -> None:
    n, mean_snr = 20, 10.0
    gains = step64(process("block")).reshape(-1, n)
    worst, best = gains.min(axis=1), gains.max(axis=1)
    rate = Shannon().efficiency
    assert abs(z_mean(worst, 1 / n)) <= LIMIT
    assert abs(z_mean(rate(mean_snr * worst), np.exp(n / mean_snr) * exp1(n / mean_snr) / np.log(2))) <= LIMIT
    assert abs(z_mean(best, sum(1 / i for i in range(1, n + 1)))) <= LIMIT
    expected = sum((-1) ** (i + 1) * comb(n, i) * np.exp(i / mean_snr) * exp1(i / mean_snr) for i in range(1, n + 1)) / np.log(2)
    assert expected == pytest.approx(5.131, abs=0.001)
    assert abs(z_mean(rate(mean_snr * best), expected)) <= LIMIT


def test_truncated_inversion_has_its_closed_form() -> None:
    gains, least = step64(process("block")), 0.1
    inverse = np.where(gains > least, 1 / np.maximum(gains, least), 0.0)
    assert abs(z_mean(inverse, float(exp1(least)))) <= LIMIT


@pytest.mark.parametrize("k", [0.0, 3.0])
def test_clarke_has_mean_one_and_the_variance_of_finitely_many_paths(k: float) -> None:
    gains = step64(process("clarke", 400_000, k=k))
    assert abs(z_mean(gains, 1.0)) <= LIMIT
    # The diffuse part's own variance shrinks by 1/P; the cross term with the line of sight does not.
    variance = ((1 - 1 / PATHS) + 2 * k) / (1 + k) ** 2
    assert abs(z_mean((gains - 1) ** 2, variance)) <= LIMIT


# --- time -------------------------------------------------------------------------------------------------------------------


def test_clarke_is_correlated_as_j0_at_every_lag() -> None:
    # Far beyond the first zero of J0, and over more links than one chunk holds.
    fading = process("clarke", 120_000, fd=10.0, step_s=0.005)
    assert isinstance(fading, Clarke)
    start = fading.complex_gains().astype(np.complex128)
    for lag in range(1, 41):
        fading.step()
        if lag in (1, 2, 5, 10, 20, 40):
            product = start * fading.complex_gains().conj()
            assert abs(z_mean(product.real, float(j0(2 * np.pi * 10 * 0.005 * lag)))) <= LIMIT, lag
            assert abs(z_mean(product.imag, 0.0)) <= LIMIT, lag


def test_gauss_markov_is_correlated_as_j0_at_one_step_and_geometrically_beyond() -> None:
    fading = process("gauss_markov", 300_000, fd=10.0, step_s=0.005)
    assert isinstance(fading, GaussMarkov)
    start = fading.complex_gains().astype(np.complex128)
    a = float(j0(2 * np.pi * 0.05))
    for lag in range(1, 11):
        fading.step()
        if lag in (1, 2, 10):
            assert abs(z_mean((start * fading.complex_gains().conj()).real, a**lag)) <= LIMIT, lag
    assert a**10 == pytest.approx(0.773, abs=0.012)  # Clarke's own, J0, is -0.304 there


def test_doppler_per_link_moves_each_link_at_its_own_pace() -> None:
    fd = np.tile([0.0, 30.0], 100_000)
    for model in ("clarke", "gauss_markov"):
        fading = make_fading(model, fd.size, fast_stream(5, "fading"), doppler_hz=fd, step_s=0.005)
        assert isinstance(fading, Clarke | GaussMarkov)
        start = fading.complex_gains().astype(np.complex128)
        fading.step()
        product = (start * fading.complex_gains().conj()).real
        assert np.allclose(product[::2], np.abs(start[::2]) ** 2, rtol=1e-4, atol=1e-5)
        assert abs(z_mean(product[1::2], float(j0(2 * np.pi * 0.15)))) <= LIMIT


def test_clarke_crosses_a_level_as_often_and_fades_as_long_as_theory_says() -> None:
    fd, step_s, steps, level = 10.0, 0.002, 2000, 0.1
    fading = process("clarke", 3000, fd=fd, step_s=step_s)
    below, crossings, faded = fading.step() < level, 0, 0
    for _ in range(steps):
        now = fading.step() < level
        crossings += np.count_nonzero(below & ~now)
        faded += np.count_nonzero(now)
        below = now.copy()
    rate = crossings / (3000 * steps * step_s)
    r = np.sqrt(level)
    assert rate == pytest.approx(np.sqrt(2 * np.pi) * fd * r * np.exp(-level), rel=0.05)
    assert faded * step_s / crossings == pytest.approx((np.exp(level) - 1) / (r * fd * np.sqrt(2 * np.pi)), rel=0.05)


def test_clarke_keeps_its_amplitudes_over_many_steps() -> None:
    k = np.tile([0.0, 4.0], 64)
    fading = process("clarke", 128, fd=97.0, step_s=0.0043, k=k)
    assert isinstance(fading, Clarke)
    for _ in range(20_500):
        fading.step()
    amplitude = np.abs(fading._z[0])
    assert np.allclose(amplitude[:PATHS], np.sqrt(1 / (PATHS * (1 + k))), rtol=2e-4)
    assert np.allclose(amplitude[PATHS], np.sqrt(k / (1 + k)), rtol=2e-4)


# --- finite-state Markov ----------------------------------------------------------------------------------------------------


def upward_share(doppler_steps: float) -> NDArray[np.float64]:
    """Return P(one bin up after one step) of Rayleigh fading itself, from pairs of gains that correlate as J0."""
    rng, rho = fast_stream(5, "pairs"), float(j0(2 * np.pi * doppler_steps))
    normals = rng.standard_normal((4, N)) * np.sqrt(0.5)
    start = normals[0] ** 2 + normals[1] ** 2
    later = (rho * normals[:2] + np.sqrt(1 - rho**2) * normals[2:]) ** 2
    edges = -np.log(1 - np.arange(1, MARKOV_STATES) / MARKOV_STATES)
    before, after = np.searchsorted(edges, start), np.searchsorted(edges, later.sum(axis=0))
    counts = np.bincount(before, minlength=MARKOV_STATES)
    return (np.bincount(before[after == before + 1], minlength=MARKOV_STATES) / counts)[:-1]


@pytest.mark.parametrize("doppler_steps", [0.005, 0.01, 0.02])
def test_markov_moves_as_rayleigh_fading_does_within_its_range(doppler_steps: float) -> None:
    p = markov_crossings(MARKOV_STATES) * doppler_steps
    error = np.abs(upward_share(doppler_steps) - p)
    assert np.all(error <= 0.003 + LIMIT * np.sqrt(p * (1 - p) * MARKOV_STATES / N))


def test_markov_is_wrong_beyond_the_range_that_it_is_refused_for() -> None:
    assert np.abs(upward_share(0.05) - markov_crossings(MARKOV_STATES) * 0.05).max() > 0.15


def test_markov_chain_has_its_transition_probabilities_and_stays_uniform() -> None:
    fading = process("markov", N, fd=10.0, step_s=0.002)
    state = np.searchsorted(markov_gains(MARKOV_STATES), fading.step() * 0.999)
    later = np.searchsorted(markov_gains(MARKOV_STATES), fading.step() * 0.999)
    p = markov_crossings(MARKOV_STATES) * 0.02
    for k in range(MARKOV_STATES):
        here = np.count_nonzero(state == k)
        assert abs(z_share(here, N, 1 / MARKOV_STATES)) <= LIMIT
        if k < MARKOV_STATES - 1:
            assert abs(z_share(np.count_nonzero((state == k) & (later == k + 1)), here, p[k])) <= LIMIT
        if k > 0:
            assert abs(z_share(np.count_nonzero((state == k) & (later == k - 1)), here, p[k - 1])) <= LIMIT
    assert np.abs(later - state).max() == 1


def test_markov_gains_have_mean_one() -> None:
    assert markov_gains(MARKOV_STATES).mean() == pytest.approx(1.0, abs=1e-12)
    assert np.all(np.diff(markov_gains(MARKOV_STATES)) > 0)


# --- the common interface ---------------------------------------------------------------------------------------------------

ALL = ["block", "gauss_markov", "clarke", "markov"]


@pytest.mark.parametrize("model", ALL)
def test_a_reset_repeats_the_channel_and_steps_reuse_one_buffer(model: str) -> None:
    fading = process(model, 500)
    first = fading.step()
    seen = [first.copy(), fading.step().copy()]
    assert first.dtype == np.float32 and fading.step() is first
    assert not np.array_equal(seen[0], seen[1])
    fading.reset(fast_stream(5, "fading"))
    assert [np.array_equal(fading.step(), gains) for gains in seen] == [True, True]


@pytest.mark.parametrize("model", ALL)
def test_links_that_are_kept_fade_as_if_the_others_were_still_there(model: str) -> None:
    n = 130_000 if model == "clarke" else 700  # more than one chunk
    k = 0.0 if model == "markov" else np.linspace(0, 3, n)
    whole, kept = process(model, n, k=k), process(model, n, k=k)
    first, second = np.arange(0, n, 3), np.array([5, 1, 7])
    whole.step()
    kept.step()
    kept.keep(first)
    assert np.allclose(kept.step(), whole.step()[first], rtol=1e-4, atol=1e-6)
    kept.keep(second)
    assert np.allclose(kept.step(), whole.step()[first[second]], rtol=1e-4, atol=1e-6)
    assert kept.n == 3 and np.array_equal(kept.k_factor, whole.k_factor[first[second]])
    kept.reset(fast_stream(5, "fading"))
    assert kept.n == n and kept.step().size == n


def test_rician_links_do_not_shift_what_rayleigh_links_see() -> None:
    k = np.zeros(400)
    k[1::2] = 5.0
    for model in ("clarke", "gauss_markov"):
        assert np.allclose(process(model, 400).step()[::2], process(model, 400, k=k).step()[::2], rtol=1e-5, atol=1e-7)


def test_doppler_and_coherence_time() -> None:
    assert doppler_hz(3.0, 3.5) == pytest.approx(9.729, abs=0.001)
    assert doppler_hz(np.array([0.0, 30.0]), 3.5) == pytest.approx([0.0, 97.29], abs=0.01)
    assert coherence_s(doppler_hz(30.0, 3.5)) == pytest.approx(4.35e-3, abs=1e-5)
    assert coherence_s(0.0) == np.inf


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("markov", {"fd": 21.0}, r"markov: fD\*T is 0.021, above 0.02, .* step_s of at most 0.000952 s"),
        ("gauss_markov", {"fd": 400.0}, r"gauss_markov: fD\*T is 0.4, .* step_s below 0.000957 s"),
        ("markov", {"k": 2.0}, "Rayleigh only"),
        ("clarke", {"fd": -1.0}, "doppler_hz must be finite and not negative"),
        ("block", {"k": -1.0}, "k_factor must be finite and not negative"),
        ("block", {"k": np.zeros(7)}, "one per link"),
        ("clarke", {"step_s": 0.0}, "positive number of seconds"),
        ("clarke", {"n": 0}, "at least one"),
        ("clark", {}, "unknown fading model 'clark'. Did you mean 'clarke'?"),
    ],
)
def test_what_no_model_can_do_is_refused(model: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        process(model, **{"n": 10, **options})  # type: ignore[arg-type]
