"""Correlated shadowing: between clients, along a walk, and as the field behind the LOS state.

All fields are standard normal with correlation exp(-distance / decorrelation) (Gudmundson 1991; TR 38.901 7.4.4); callers
multiply by `shadowing_sigma_db`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import ndtr

from fedlora.errors import ConfigError

Floats = NDArray[np.float64]

EXACT_CLIENTS = 1500
"""Up to here `correlated_normals` factors the exact covariance (n^3 / 3 operations); above it reads a filtered grid."""

# With these the measured correlation is within 0.015 of the exponential, and 0.97 for clients at one place. A pitch of a quarter
# of the decorrelation distance, with the variance corrected, would be off by 0.09 at a tenth of it.
_CELLS_PER_DECORRELATION = 12
_WHITE_SHARE = 0.03
_MARGIN = 6.0
_MOST_CELLS = 2048


def correlated_normals(xy: Floats, decorrelation_m: float, rng: np.random.Generator) -> Floats:
    """Return standard normals [n], correlated exp(-|xi - xj| / decorrelation) between clients i and j.

    Exact up to 1,500 clients. Above, linear in n: white noise on a fine periodic grid is given the covariance by FFT and
    interpolated, with the variance corrected; correlations are then within 0.015, and 0.97 for clients at one place. A field
    wider than 170 decorrelation distances repeats itself.

    Args:
        xy: Positions [n, 2] in metres.
        decorrelation_m: Distance at which the correlation is 1/e.
        rng: The number of variates drawn depends on n alone.

    Raises:
        ConfigError: The decorrelation distance is not positive.
    """
    if not decorrelation_m > 0:
        raise ConfigError(f"a decorrelation distance of {decorrelation_m} m: it must be positive")
    n = len(xy)
    if n > EXACT_CLIENTS:
        return _from_grid(xy / decorrelation_m, rng)
    covariance = np.exp(-cdist(xy, xy) / decorrelation_m)
    covariance.flat[:: n + 1] += 1e-9  # clients at the same place
    return np.asarray(np.linalg.cholesky(covariance) @ rng.standard_normal(n))


def gudmundson(old: Floats, moved_m: Floats | float, decorrelation_m: float, innovation: Floats) -> Floats:
    """Return the field [n] after each client moved `moved_m`: S' = rho S + sqrt(1 - rho^2) w, rho = exp(-moved / decorrelation).

    Args:
        old: Standard normals [n].
        moved_m: Distance moved, one or [n].
        decorrelation_m: Distance at which the correlation is 1/e.
        innovation: Standard normals [n], independent of `old`. Independent between clients, the correlation between clients
            fades as they move; drawn by `correlated_normals` at the new positions, it lasts.
    """
    steps = np.asarray(moved_m, dtype=np.float64) / decorrelation_m
    return np.asarray(np.exp(-steps) * old + np.sqrt(-np.expm1(-2 * steps)) * innovation)


def los_state(field: Floats, probability: Floats) -> NDArray[np.bool_]:
    """Return which links [n] have line of sight: the field, made uniform by the normal CDF, lies below the probability.

    Args:
        field: Standard normals [n], correlated over the distance `decorrelation_m(scenario).los_state`.
        probability: [n].
    """
    return np.asarray(ndtr(field) < probability)


def _from_grid(position: Floats, rng: np.random.Generator) -> Floats:
    """Return normals at `position` [n, 2], in decorrelation distances, from a periodic grid."""
    n = len(position)
    # The grid's size depends on the positions, so its noise has a generator of its own: `rng` moves on by the same in any case.
    noise = np.random.Generator(np.random.SFC64(rng.integers(2**63, size=4).tolist()))
    shift = rng.random(2)
    white = rng.standard_normal(n)
    low = position.min(axis=0)
    pitch = 1.0 / _CELLS_PER_DECORRELATION
    extent = float((position.max(axis=0) - low).max())
    cells = min(_even_size(int(np.ceil((extent + _MARGIN) / pitch)) + 2), _MOST_CELLS)
    grid = _grid(cells, pitch, noise)

    place = (position - low) / pitch + shift
    corner = np.floor(place).astype(np.int64)
    (fx, fy), (ix, iy) = (place - corner).T, (corner % cells).T
    jx, jy = (ix + 1) % cells, (iy + 1) % cells
    w00, w01, w10, w11 = (1 - fx) * (1 - fy), (1 - fx) * fy, fx * (1 - fy), fx * fy
    value = w00 * grid[ix, iy] + w01 * grid[ix, jy] + w10 * grid[jx, iy] + w11 * grid[jx, jy]
    side, diagonal = np.exp(-pitch), np.exp(-pitch * np.sqrt(2))
    variance = w00**2 + w01**2 + w10**2 + w11**2
    variance += 2 * side * (w00 + w11) * (w01 + w10) + 2 * diagonal * (w00 * w11 + w01 * w10)
    # Interpolation smooths, which reads as too much correlation nearby; a little white noise halves that error.
    return np.asarray(np.sqrt((1 - _WHITE_SHARE) / variance) * value + np.sqrt(_WHITE_SHARE) * white)


def _grid(cells: int, pitch: float, noise: np.random.Generator) -> Floats:
    """Return a periodic field [cells, cells] whose covariance is exp(-d), d the shortest way round the torus."""
    step = np.minimum(np.arange(cells), cells - np.arange(cells)) * pitch
    spectrum = np.fft.rfft2(np.exp(-np.hypot(step[:, None], step[None, :]))).real
    gain = np.sqrt(np.maximum(spectrum, 0.0))
    return np.fft.irfft2(gain * np.fft.rfft2(noise.standard_normal((cells, cells))), s=(cells, cells))


def _even_size(cells: int) -> int:
    """Return a size of at least `cells` that the FFT is fast at: 2, 3 or 5 times a power of two."""
    power = 1 << max(cells - 1, 1).bit_length()
    return min(size for size in (power, power * 3 // 4, power * 5 // 8) if size >= cells)
