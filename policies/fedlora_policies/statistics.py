"""Statistics of paired comparisons: bootstrap intervals, interquartile means, and scores between two yardsticks.

Scores are `[runs, episodes]`: one row per training run of a policy (one row where nothing is trained), one column per test
episode, the same episodes for all policies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora.streams import fast_stream

Floats = NDArray[np.float64]
_CHUNK = 2_000_000  # resampled numbers held at once


@dataclass(frozen=True)
class Interval:
    """An estimate with a bootstrap interval."""

    value: float
    low: float
    high: float

    def excludes(self, number: float) -> bool:
        """Return whether `number` lies outside."""
        return number < self.low or number > self.high

    def plain(self) -> dict[str, float]:
        """Return it as plain data."""
        return {"value": self.value, "low": self.low, "high": self.high}


def interquartile_mean(scores: Floats) -> Floats:
    """Return the mean of the middle half along the last axis; a quarter of n that is no whole number counts in part."""
    ordered = np.sort(scores, axis=-1)
    n = ordered.shape[-1]
    edges = np.arange(n + 1) / n
    weight = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return np.asarray(ordered @ (weight / weight.sum()))


def mean(scores: Floats) -> Floats:
    """Return the mean along the last axis."""
    return np.asarray(scores.mean(axis=-1))


def bootstrap(
    scores: Floats, statistic: Callable[[Floats], Floats] = mean, *, level: float = 0.95, draws: int = 5000, seed: int = 0
) -> Interval:
    """Return a statistic of all scores and its percentile interval.

    Episodes are drawn with replacement, the same ones for all runs; with more than one run, whole runs are drawn as well. A run
    is one trained policy in all of its episodes: drawing runs anew for each episode (as the stratified bootstrap of Agarwal et
    al., arXiv 2108.13264, does over tasks that are trained apart) would average out how much trainings differ.

    Args:
        scores: `[runs, episodes]`.
        statistic: Maps `[..., n]` to `[...]`.
        level: Coverage aimed at.
        draws: Resamples.
        seed: Of the resampling.
    """
    runs, episodes = scores.shape
    value = float(statistic(scores.reshape(-1)))
    if episodes == 1 and runs == 1:
        return Interval(value, value, value)
    rng = fast_stream(seed, "bootstrap", runs, episodes)
    found = []
    for count in _parts(draws, scores.size):
        column = rng.integers(episodes, size=(count, 1, episodes))
        row = _drawn_runs(rng, count, runs)
        found.append(statistic(scores[row, column].reshape(count, -1)))
    low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def difference(scores: Floats, reference: Floats, *, draws: int = 5000, seed: int = 0) -> Interval:
    """Return the mean paired difference to a reference policy, `[runs, episodes]` less the reference's mean over runs."""
    return bootstrap(scores - reference.mean(axis=0), draws=draws, seed=seed)


def normalised(scores: Floats, low: Floats, high: Floats, *, draws: int = 5000, seed: int = 0) -> Interval | None:
    """Return (J - J_low) / (J_high - J_low) of mean scores, 0 at `low` and 1 at `high`; None where these two do not differ.

    Episodes are drawn for all three together, so that what a lucky channel gives to all of them cancels.
    """
    own, bottom, top = (item.mean(axis=0) for item in (scores, low, high))
    span = float((top - bottom).mean())
    if not abs(span) > 1e-12:
        return None
    value = float((own - bottom).mean() / span)
    runs, episodes = scores.shape
    rng = fast_stream(seed, "bootstrap", runs, episodes)
    found = []
    for count in _parts(draws, scores.size):
        column = rng.integers(episodes, size=(count, 1, episodes))
        drawn = scores[_drawn_runs(rng, count, runs), column].mean(axis=(1, 2))
        base, best = bottom[column[:, 0]].mean(axis=1), top[column[:, 0]].mean(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append((drawn - base) / (best - base))
    ratios = np.concatenate(found)
    edges = np.quantile(ratios[np.isfinite(ratios)], [0.025, 0.975])
    return Interval(value, float(edges[0]), float(edges[1]))


def rank_correlation(x: Floats, y: Floats) -> float | None:
    """Return Spearman's rank correlation, ties at their mean rank; None where one of the two does not vary."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(_mean_ranks(x), _mean_ranks(y))[0, 1])


def _mean_ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])


def _drawn_runs(rng: np.random.Generator, count: int, runs: int) -> NDArray[np.int64]:
    """Return which runs each resample has, `[count, runs, 1]`: the same in all of its episodes."""
    return rng.integers(runs, size=(count, runs, 1))


def _parts(draws: int, size: int) -> list[int]:
    step = max(_CHUNK // max(size, 1), 1)
    return [min(step, draws - start) for start in range(0, draws, step)]
