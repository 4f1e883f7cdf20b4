"""Rank vectors and their bytes: what a choice costs, and the largest choice inside a budget.

A site has levels: level n stands for the rank n times the site's unit, level 0 for nothing. Bytes are exact: those of the encoded
message, which is a sum over sites.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Costs:
    """What rank vectors cost on the air.

    Attributes:
        base: Bytes of a message in which every site has rank 0 (header, task head, checksum).
        table: Bytes that each site adds at each level, `[sites, levels + 1]`, 0 at level 0, never falling (equal:
            the level is sent anyway); sites with fewer levels repeat their last entry.
        units: Step between legal ranks, `[sites]`.
        caps: Largest rank, `[sites]`.
    """

    base: int
    table: NDArray[np.int64]
    units: Ranks
    caps: Ranks

    @property
    def levels(self) -> NDArray[np.int64]:
        """Levels of each site, `[sites]`."""
        return self.caps // self.units

    @property
    def full(self) -> int:
        """Bytes of the whole adapter."""
        return int(self.base + self.table[:, -1].sum())

    def bytes(self, ranks: Ranks) -> NDArray[np.int64]:
        """Return the bytes of messages with these legal ranks; `[..., sites]` -> `[...]`."""
        level = ranks // self.units
        return np.asarray(self.base + self.table[np.arange(len(self.caps)), level].sum(axis=-1), np.int64)

    @staticmethod
    def linear(bytes_per_rank: NDArray[np.int64], caps: Ranks, base: int = 0) -> Costs:
        """Return costs that grow evenly with the rank, in steps of one."""
        steps = np.minimum(np.arange(int(caps.max()) + 1), caps[:, None])
        return Costs(base, bytes_per_rank[:, None] * steps, np.ones_like(caps), caps)


def worth_per_byte(gains: Floats, costs: Costs) -> Floats:
    """Return what a byte spent on each level is worth, `[rows, sites, levels]`, never rising along a site; 0 beyond the cap.

    Where gain per byte rises from level to level, a level is only reached through cheaper-looking ones: such stretches are
    worth their mean (the least concave majorant of gain against bytes).

    Args:
        gains: Worth of each level on top of the one before, `[rows, sites, levels]`, >= 0.
        costs: Bytes.

    Raises:
        ValueError: Gains of another shape than the costs.
    """
    steps = np.diff(costs.table, axis=1)
    if gains.shape[1:] != steps.shape:
        raise ValueError(f"gains {gains.shape} do not fit the costs: [rows, {steps.shape[0]}, {steps.shape[1]}] are wanted")
    real = np.arange(1, steps.shape[1] + 1) <= costs.levels[:, None]
    per_byte = np.where(real, 1.0 / np.maximum(steps, 1), 0.0)
    worth: Floats = gains * per_byte
    rising = worth[:, :, 1:] > worth[:, :, :-1]
    if rising.any():
        row, site = np.nonzero(rising.any(axis=2))
        # [stretches, levels, levels] of means are held at once: a bounded number of sites at a time.
        for part in np.array_split(np.arange(len(row)), 1 + len(row) * steps.shape[1] ** 2 // 4_000_000):
            at = row[part], site[part]
            worth[at] = _majorant(gains[at] * real[at[1]], steps[at[1]])
    return worth


def _majorant(gains: Floats, steps: NDArray[np.int64]) -> Floats:
    """Return the slopes of the least concave majorant of gain against bytes, `[n, levels]`."""
    n, levels = gains.shape
    gain, size = np.zeros((n, levels + 1)), np.zeros((n, levels + 1))
    np.cumsum(gains, axis=1, out=gain[:, 1:])
    np.cumsum(steps, axis=1, out=size[:, 1:])
    ends = np.arange(1, levels + 1)
    backwards = ends[None, :] <= np.arange(levels)[:, None]  # [from, to]: no stretch
    mean = (gain[:, None, 1:] - gain[:, :-1, None]) / np.maximum(size[:, None, 1:] - size[:, :-1, None], 1)
    mean[:, backwards] = -1.0
    # Isotonic regression by its min-max formula: the best mean to reach from any start at or before the level.
    best = np.maximum.accumulate(mean[:, :, ::-1], axis=2)[:, :, ::-1]
    best[:, backwards] = np.inf
    return np.asarray(np.minimum.accumulate(best.min(axis=1), axis=1))


def greedy_ranks(gains: Floats, costs: Costs, budget: Floats, price: float | Floats = 0.0) -> Ranks:
    """Return the ranks that gain most per byte inside each row's budget, `[rows, sites]`.

    Levels are taken by worth per byte (see `worth_per_byte`) until the next one does not fit, then whatever still fits. This
    is within one level (where gain per byte rises: one stretch) of the optimum of the knapsack. Equal worths go to the earlier
    site.

    Args:
        gains: Worth of each level on top of the one before, `[rows, sites, levels]`, >= 0; worthless ones are not sent.
        costs: Bytes.
        budget: Bytes that each row may send, `[rows]`; inf for no limit. Where not even the base fits, all ranks are 0.
        price: Worth per byte that a level has to exceed, one for all or `[rows]`.
    """
    rows, sites, levels = gains.shape
    steps = np.diff(costs.table, axis=1)
    least = np.broadcast_to(np.maximum(np.asarray(price, np.float64), 0.0), (rows,))
    spare = np.floor(np.minimum(budget, costs.full)) - costs.base
    left: NDArray[np.int64] = np.maximum(spare, -1).astype(np.int64)
    worth = worth_per_byte(gains, costs)
    wanted = worth > least[:, None, None]
    key = _order_keys(np.where(wanted, worth, 0.0).reshape(rows, -1))
    ordered = np.sort(key, axis=1)
    size = steps.reshape(-1)[ordered & _low_bits(sites * levels)]
    spent = np.cumsum(size, axis=1)
    wanted_count = wanted.reshape(rows, -1).sum(axis=1)
    count = np.minimum((spent <= left[:, None]).sum(axis=1), wanted_count)
    at = np.arange(rows)
    last = np.maximum(count - 1, 0)
    cut = np.where(count > 0, ordered[at, last], -1)
    taken: Ranks = (key <= cut[:, None]).reshape(rows, sites, levels).sum(axis=2)
    left -= np.where(count > 0, spent[at, last], 0)
    real = np.arange(1, levels + 1) <= costs.levels[:, None]
    open_rows = np.nonzero((count < wanted_count) & (left >= steps[real].min(initial=1)))[0]
    _fill(taken, left, open_rows, np.where(wanted, worth, 0.0), np.where(real, steps, _NEVER))
    # The budget may end on the way to a worthy level, at ones that are worth nothing by themselves.
    row, site = np.nonzero(taken)
    while len(row := row[idle := gains[row, site, taken[row, site] - 1] <= 0]):
        site = site[idle]
        taken[row, site] -= 1
        row, site = row[some := taken[row, site] > 0], site[some]
    return taken * costs.units


def _fill(taken: Ranks, left: NDArray[np.int64], rows: NDArray[np.int64], worth: Floats, steps: NDArray[np.int64]) -> None:
    """Add the worthiest next level that fits, one at a time, in the rows where one does."""
    sites, levels = steps.shape
    size = np.concatenate([steps, np.full((sites, 1), _NEVER)], axis=1)
    site = np.arange(sites)
    while len(rows):
        level = taken[rows]
        value = worth[rows[:, None], site, np.minimum(level, levels - 1)]
        value = np.where(size[site, level] <= left[rows, None], value, 0.0)
        best = value.argmax(axis=1)
        some = value[np.arange(len(rows)), best] > 0
        rows, best, level = rows[some], best[some], level[some]
        left[rows] -= size[best, level[np.arange(len(rows)), best]]
        taken[rows, best] += 1


def _low_bits(count: int) -> int:
    return (1 << max(count - 1, 1).bit_length()) - 1


def _order_keys(worth: Floats) -> NDArray[np.int64]:
    """Return whole numbers that sort by falling worth, then by index; the index is in the low bits.

    Sorting these is several times faster than a stable argsort of floats. Worths that agree to about 12 digits count as equal,
    which keeps the levels of a site in order: their worths never rise.
    """
    low = _low_bits(worth.shape[1])
    bits = np.ascontiguousarray(worth).view(np.int64)  # worths are >= 0, so their bits order as they do
    return np.asarray(((np.iinfo(np.int64).max - bits) & ~low) | np.arange(worth.shape[1]), np.int64)
