"""Bootstrap intervals cover what they should, and means by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fedlora_policies.statistics import (
    Interval,
    bootstrap,
    difference,
    interquartile_mean,
    normalised,
    rank_correlation,
)


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -100])) == pytest.approx(3.5)  # 2, 3, 4, 5 are the middle
    assert interquartile_mean(np.array([[0.0, 10, 20]])) == pytest.approx([10])
    assert interquartile_mean(np.array([0.0, 1, 2, 3, 40, 50])) == pytest.approx((0.5 * 1 + 2 + 3 + 0.5 * 40) / 3)


def test_intervals_cover_the_mean() -> None:
    """200 experiments of 50 skewed episodes; 95 % is aimed at, percentile intervals fall a little short of it."""
    rng = np.random.default_rng(0)
    hits = 0
    for number in range(200):
        found = bootstrap(rng.exponential(1.0, (1, 50)), draws=500, seed=number)
        hits += not found.excludes(1.0)
    assert 0.87 <= hits / 200 <= 0.99


def test_intervals_cover_with_several_runs() -> None:
    """Runs that differ by themselves: their spread counts as well."""
    rng = np.random.default_rng(1)
    hits, widths = 0, []
    for number in range(200):
        scores = rng.normal(0, 1, (5, 20)) + rng.normal(0, 1, (1, 20))
        found = bootstrap(scores, draws=400, seed=number)
        hits += not found.excludes(0.0)
        widths.append(found.high - found.low)
    assert 0.86 <= hits / 200 <= 0.995
    assert np.mean(widths) > 2 * 1.96 * np.sqrt(1 / 20) * 0.85


def test_pairing_removes_what_episodes_have_in_common() -> None:
    rng = np.random.default_rng(2)
    luck = rng.normal(0, 10, (1, 50))
    ours, theirs = luck + 0.5 + rng.normal(0, 0.1, (1, 50)), luck + rng.normal(0, 0.1, (1, 50))
    paired = difference(ours, theirs)
    assert paired.value == pytest.approx(float((ours - theirs).mean())) and paired.low > 0.4 and paired.high < 0.6
    assert bootstrap(ours).high - bootstrap(ours).low > 4
    assert difference(theirs, theirs) == Interval(0.0, 0.0, 0.0)


def test_the_reference_is_the_mean_of_its_runs() -> None:
    ours, theirs = np.array([[3.0, 5.0]]), np.array([[1.0, 1.0], [3.0, 5.0]])
    assert difference(ours, theirs).value == pytest.approx(((3 - 2) + (5 - 3)) / 2)


def test_normalised_scores_by_hand() -> None:
    low, high = np.array([[0.0, 2.0]]), np.array([[10.0, 4.0]])
    found = normalised(np.array([[5.0, 3.0], [7.0, 3.0]]), low, high)
    assert found is not None and found.value == pytest.approx((4.5 - 1) / 6) and found.low <= found.value <= found.high
    assert normalised(low, low, high) == Interval(0.0, 0.0, 0.0) and normalised(high, low, high) == Interval(1.0, 1.0, 1.0)
    assert normalised(high, low, low) is None


def test_the_seed_decides() -> None:
    scores = np.random.default_rng(3).normal(0, 1, (2, 30))
    assert bootstrap(scores, seed=1) == bootstrap(scores, seed=1) != bootstrap(scores, seed=2)
    assert bootstrap(np.array([[4.0]])) == Interval(4.0, 4.0, 4.0)


def test_rank_correlation_by_hand() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(x, x**3) == pytest.approx(1.0) and rank_correlation(x, -x) == pytest.approx(-1.0)
    assert rank_correlation(x, np.array([10.0, 10.0, 20.0, 20.0])) == pytest.approx(2 / np.sqrt(5))  # ties share 1.5 and 3.5
    assert rank_correlation(x, np.ones(4)) is None


def test_intervals_are_as_wide_as_trainings_differ() -> None:
    """Five trainings that differ by a standard deviation of one, on fifty episodes that hardly differ."""
    rng = np.random.default_rng(0)
    low, high = np.zeros(50), np.ones(50)
    inside = []
    for number in range(60):
        scores = rng.normal(size=(5, 1)) + 0.1 * rng.normal(size=(5, 50))
        found = bootstrap(scores, draws=400, seed=number)
        inside.append(not found.excludes(0.0))
        between = normalised(scores, low[None], high[None], draws=400, seed=number)
        assert between is not None and between.high - between.low > 0.8 * (found.high - found.low)
    # Percentiles of five numbers are too narrow by themselves (about 85 %); as if all were one sample they would hold 20 %.
    assert np.mean(inside) > 0.7
