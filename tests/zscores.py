"""z-scores for tests of random quantities: a seed is fixed, so |z| <= 4.5 fails on a real change and on nothing else."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIMIT = 4.5


def z_mean(samples: NDArray[Any], expected: float) -> float:
    """Return how many standard errors the mean of independent `samples` lies above `expected`.

    Raises:
        ValueError: Fewer than two samples, or samples without any spread: their mean has no standard error.
    """
    values = np.asarray(samples, dtype=np.float64).ravel()
    if values.size < 2:
        raise ValueError(f"{values.size} samples have no standard error")
    error = values.std(ddof=1) / sqrt(values.size)
    if not error > 0:
        raise ValueError("samples without spread (or not finite) have no standard error: compare them directly")
    return float((values.mean() - expected) / error)


def z_share(hits: float, n: int, p: float) -> float:
    """Return how many standard errors `hits` of `n` independent trials lie above the expected share `p`.

    Raises:
        ValueError: `n` is not positive, or `p` is not strictly between 0 and 1.
    """
    if n < 1 or not 0 < p < 1:
        raise ValueError(f"a share needs n >= 1 and 0 < p < 1, not n = {n}, p = {p}")
    return float((hits / n - p) / sqrt(p * (1 - p) / n))
