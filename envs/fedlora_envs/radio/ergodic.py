"""Expected rates over the fading law: what a transfer of many coherence times gets.

Everything lives on one grid of dB: a link's SNR in dB is its mean plus its gain in dB, so an expectation over gains is a
correlation along the grid, done once per rate model and read by interpolation.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ive

from fedlora_envs.radio.rates import RateModel

Floats = NDArray[np.floating[Any]]
Table = NDArray[np.float64]

STEP_DB = 1 / 16
MEAN_DB = (-80.0, 80.0)  # means below carry nothing, means above count as the upper end
_GAIN_DB = (-80.0, 16.0)  # P(gain below) = 1e-8; P(gain above) = 5e-18 for Rayleigh
# Rician K of the table's rows, interpolated along 1 / (1 + K); the last row does not fade at all.
K_GRID = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 25.0, 50.0, 100.0, 300.0, np.inf)


def ergodic(rate: RateModel, mean_snr: Floats, k_factor: Floats | float = 0.0) -> tuple[Table, Table]:
    """Return (expected bit/s/Hz, expected retransmission share) over the fading law, float64 [N] each.

    Args:
        rate: Rate model.
        mean_snr: Mean SNR, linear, [N].
        k_factor: Rician K, linear, scalar or [N]; 0 is Rayleigh, inf no fading.
    """
    mean = np.asarray(mean_snr, dtype=np.float64)
    with np.errstate(divide="ignore"):
        mean_db = 10 * np.log10(mean)
    table = _table(rate)
    column = np.clip((mean_db - MEAN_DB[0]) / STEP_DB, 0, table.shape[2] - 1.001)
    left = column.astype(np.intp)
    right_share = column - left
    row, upper_share = _rows(np.broadcast_to(np.asarray(k_factor, dtype=np.float64), mean.shape))
    near, far = table[:, row, left], table[:, row, left + 1]
    lower = near + right_share * (far - near)
    near, far = table[:, row + 1, left], table[:, row + 1, left + 1]
    found = lower + upper_share * (near + right_share * (far - near) - lower)
    found = np.where(mean_db < MEAN_DB[0], 0.0, found)
    return found[0], found[1]


def ergodic_worst(rate: RateModel, mean_snr: Floats, k_factor: Floats | float = 0.0) -> tuple[float, float]:
    """Return `ergodic` of the weakest of independent links in every block: the rate of a broadcast to all of them.

    Means are rounded to 1/16 dB; the cost hardly depends on the number of links.
    """
    mean = np.asarray(mean_snr, dtype=np.float64).ravel()
    if np.any(mean <= 0):
        return 0.0, 0.0
    mean_db = np.clip(10 * np.log10(mean), *MEAN_DB)
    row, upper_share = _rows(np.broadcast_to(np.asarray(k_factor, dtype=np.float64), mean.shape))
    means = round((MEAN_DB[1] - MEAN_DB[0]) / STEP_DB) + 1
    column = np.rint((mean_db - MEAN_DB[0]) / STEP_DB).astype(np.intp)
    size = len(K_GRID) * means
    links = np.bincount(row * means + column, 1 - upper_share, size) + np.bincount((row + 1) * means + column, upper_share, size)
    # ln P(every link is above x) is a sum over links of each law's ln P(gain > x - mean), hence a convolution; below the gain
    # grid the logarithm is 0, above it stays at its floor.
    log_above = _log_survival()
    total = np.zeros(means + log_above.shape[1] - 1)
    for counts, law in zip(links.reshape(len(K_GRID), means), log_above, strict=True):
        if counts.any():
            total += np.convolve(counts, np.pad(law, (0, means - 1), mode="edge"))[: total.size]
    above = np.concatenate([[1.0], np.exp(total)])
    weights = above[:-1] - above[1:]
    efficiency, share = _cell_means(rate, total.size)
    return float(weights @ efficiency), float(weights @ share)


@cache
def _table(rate: RateModel) -> Table:
    """Return float64 [2, K, means]: expected efficiency and retransmission share."""
    gains = _gain_weights()
    means = round((MEAN_DB[1] - MEAN_DB[0]) / STEP_DB) + 1
    columns = _cell_means(rate, means + gains.shape[1] - 1)
    table = np.array([[np.correlate(column, law, "valid") for law in gains] for column in columns], dtype=np.float64)
    still_db = MEAN_DB[0] + np.arange(means) * STEP_DB
    table[:, -1] = rate.both(10 ** (still_db / 10))
    return table


def _cell_means(rate: RateModel, cells: int, points: int = 8) -> tuple[Table, Table]:
    """Return efficiency and retransmission share [cells] of SNRs from the lowest mean and gain up, as means over a grid cell."""
    sum_db = MEAN_DB[0] + _GAIN_DB[0] + (np.arange(cells * points) + 0.5) * (STEP_DB / points)
    # A cell's mean, because a CQI's share of retransmissions jumps within less than a cell.
    efficiency, share = (column.reshape(cells, points).mean(axis=1) for column in rate.both(10 ** (sum_db / 10)))
    return efficiency, share


@cache
def _gain_weights() -> Table:
    """Return float64 [K, gains]: the probability of each cell of the gain grid; rows sum to 1."""
    edges_db = np.arange(_GAIN_DB[0], _GAIN_DB[1] + STEP_DB / 2, STEP_DB)
    centre = 10 ** ((edges_db[:-1] + STEP_DB / 2) / 10)
    width = 10 ** (edges_db[1:] / 10) - 10 ** (edges_db[:-1] / 10)
    rows = []
    for k in K_GRID:
        if k == 0:
            weights = -np.diff(np.exp(-(10 ** (edges_db / 10))))
        elif np.isinf(k):
            weights = np.zeros(centre.size)
            weights[round(-_GAIN_DB[0] / STEP_DB)] = 1.0
        else:
            # (1 + K) exp(-K - (1 + K) g) I0(2 sqrt(K (1 + K) g)), with I0 scaled so that nothing overflows.
            root = 2 * np.sqrt(k * (1 + k) * centre)
            weights = (1 + k) * np.exp(root - k - (1 + k) * centre) * ive(0, root) * width
        rows.append(weights / weights.sum())
    return np.array(rows)


@cache
def _log_survival() -> Table:
    """Return float64 [K, gains]: ln P(gain beyond each cell's upper end), floored where the probability underflows."""
    beyond = 1 - np.cumsum(_gain_weights(), axis=1)
    result: Table = np.log(np.maximum(beyond, 1e-15))
    # Rayleigh is exact; its sums over many links must be.
    edges_db = np.arange(_GAIN_DB[0] + STEP_DB, _GAIN_DB[1] + STEP_DB / 2, STEP_DB)
    result[0] = -(10 ** (edges_db / 10))
    return result


def _rows(k_factor: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return (row of `K_GRID` at or below each K, share of the next row)."""
    nodes = 1 / (1 + np.array(K_GRID))[::-1]  # rising
    position = np.interp(1 / (1 + k_factor), nodes, np.arange(len(K_GRID))[::-1].astype(np.float64))
    row = np.minimum(position.astype(np.intp), len(K_GRID) - 2)
    return row, position - row
