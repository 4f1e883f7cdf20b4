"""Gains as every task reports them: not rising along a site, and nowhere quite zero."""

from __future__ import annotations

import numpy as np

from fedlora_envs.tasks.base import Floats, Ranks

# What is added to every component, as a share of the mean: worth little, but not nothing, so that it is tried once.
_PRIOR = 1e-3


def falling(values: Floats, caps: Ranks) -> Floats:
    """Return the isotonic regression of `values` `[E, L, cap]` that does not rise along the last axis; beyond the caps 0.

    By the min-max formula: least over the starts a <= j of the greatest over the ends b >= j of the mean of values a to b.
    """
    levels = values.shape[-1]
    values = np.where(np.arange(levels) < caps[:, None], values, 0.0)  # >= 0 before, so that the rest stays last
    total = np.cumsum(np.pad(values, [(0, 0)] * (values.ndim - 1) + [(1, 0)]), axis=-1)
    result = np.full(values.shape, np.inf)
    for start in range(levels):
        means = (total[..., start + 1 :] - total[..., start, None]) / np.arange(1, levels - start + 1)
        greatest = np.maximum.accumulate(means[..., ::-1], axis=-1)[..., ::-1]
        result[..., start:] = np.minimum(result[..., start:], greatest)
    return result


def with_prior(gains: Floats, caps: Ranks) -> Floats:
    """Return gains `[E, L, cap]`, 0 beyond the caps, with a little on top that falls with a component's position."""
    mean = gains.mean(axis=(1, 2), keepdims=True)
    return np.asarray(gains + np.where(mean > 0, mean, 1.0) * prior(caps))


def prior(caps: Ranks) -> Floats:
    """Return what is added to each component where the mean is one, `[L, cap]`."""
    levels = np.arange(1, int(caps.max()) + 1)
    return np.where(levels <= caps[:, None], _PRIOR / levels, 0.0)
