"""The knapsack behind rank allocation: its exact solution, and a bound that no choice of ranks can pass.

One level per site, gains and bytes that add up over sites, one budget per row: the multiple-choice knapsack problem (Kellerer,
Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11). Dynamic programming runs over the undominated pairs of bytes and
value instead of over a grid of bytes, so that nothing is rounded; pairs that the Lagrangian bound rules out are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora.ranks import Costs, greedy_ranks, worth_per_byte

Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]
_NEVER = np.iinfo(np.int64).max // 4
_ROWS = 64  # solved side by side
_NARROW = 100


@dataclass(frozen=True)
class Knapsack:
    """The problem as tables; level 0 first.

    Attributes:
        value: Gain less the price of the bytes, `[rows, sites, levels + 1]`; -inf beyond the cap.
        size: Bytes, `[sites, levels + 1]`.
        left: Bytes that may be spent beyond the base, `[rows]`; negative where the base does not fit.
        dual: Lagrange multiplier of the budget, value per byte, `[rows]`.
    """

    value: Floats
    size: NDArray[np.int64]
    left: NDArray[np.int64]
    dual: Floats

    @property
    def relaxed(self) -> Floats:
        """Return the best value of each site at the multiplier, `[rows, sites]`."""
        return np.asarray((self.value - self.dual[:, None, None] * self.size).max(axis=2))

    @property
    def bound(self) -> Floats:
        """Return the Lagrangian bound, `[rows]`: by weak duality no feasible choice is worth more."""
        return np.where(self.left < 0, 0.0, self.dual * np.maximum(self.left, 0) + self.relaxed.sum(axis=1))

    def worth(self, levels: NDArray[np.int64]) -> Floats:
        """Return the value of a choice of levels, `[rows, sites]` -> `[rows]`."""
        return np.asarray(np.take_along_axis(self.value, levels[:, :, None], axis=2)[:, :, 0].sum(axis=1))


def knapsack(gains: Floats, costs: Costs, budget: Floats, price: float = 0.0) -> Knapsack:
    """Return the problem with the multiplier at which its linear relaxation is tight.

    Args:
        gains: Worth of each level on top of the one before, `[rows, sites, levels]`, >= 0.
        costs: Bytes.
        budget: Bytes that each row may send, `[rows]`.
        price: What a byte costs in units of gain, whether the budget binds or not.
    """
    rows, sites, levels = gains.shape
    value = np.zeros((rows, sites, levels + 1))
    np.cumsum(gains, axis=2, out=value[:, :, 1:])
    value -= price * costs.table
    value[:, np.arange(levels + 1) > costs.levels[:, None]] = -np.inf
    left = np.maximum(np.floor(np.minimum(budget, costs.full)) - costs.base, -1).astype(np.int64)
    # No sum of steps falls between multiples of their common divisor.
    step = max(int(np.gcd.reduce(costs.table, axis=None)), 1)
    left = np.where(left > 0, left // step * step, left)
    worth = worth_per_byte(gains, costs).reshape(rows, -1)
    order = np.argsort(-worth, axis=1)
    spent = np.cumsum(np.diff(costs.table, axis=1).reshape(-1)[order], axis=1)
    first = np.minimum((spent <= left[:, None]).sum(axis=1), order.shape[1] - 1)
    critical = np.take_along_axis(worth, np.take_along_axis(order, first[:, None], axis=1), axis=1)[:, 0]
    dual = np.where(spent[:, -1] <= left, 0.0, np.maximum(critical - price, 0.0))
    return Knapsack(value, costs.table, left, dual)


def best_ranks(
    gains: Floats, costs: Costs, budget: Floats, price: float = 0.0, width: int = 2_000
) -> tuple[Ranks, Floats, Floats]:
    """Return (ranks `[rows, sites]`, their value `[rows]`, an upper bound on any choice's value `[rows]`).

    The ranks are optimal and the bound equals their value, unless more than `width` undominated choices had to be kept side by
    side; then the ranks are at least as good as greedy's, and the bound is the Lagrangian one.

    Args:
        gains: Worth of each level on top of the one before, `[rows, sites, levels]`, >= 0.
        costs: Bytes.
        budget: Bytes that each row may send, `[rows]`; where not even the base fits, all ranks are 0.
        price: What a byte costs in units of gain.
        width: Undominated choices kept side by side.
    """
    problem = knapsack(gains, costs, budget, price)
    levels = greedy_ranks(gains, costs, budget, price) // costs.units
    found, bound = problem.worth(levels), problem.bound
    open_rows = np.nonzero(found < bound - 1e-12 * np.abs(bound))[0]
    for at in np.split(open_rows, range(_ROWS, len(open_rows), _ROWS)):
        if len(at):
            part = Knapsack(problem.value[at], problem.size, problem.left[at], problem.dual[at])
            # A narrow search first: the better the choice that is known, the more the second one can drop.
            for breadth in (_NARROW, width):
                better, exact = _solve(part, found[at], breadth)
                value = part.worth(better)
                rises = value > found[at]
                levels[at[rises]] = better[rises]
                found[at] = np.maximum(found[at], value)
                if exact.all():
                    break
            bound[at] = np.where(exact, found[at], bound[at])
    return levels * costs.units, found, np.maximum(bound, found)


def _solve(problem: Knapsack, known: Floats, width: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the best levels `[rows, sites]`, and whether they are optimal, given choices worth `known` `[rows]`."""
    rows, sites, _ = problem.value.shape
    relaxed = problem.relaxed
    rest = np.zeros((rows, sites + 1))
    rest[:, :-1] = np.cumsum(relaxed[:, ::-1], axis=1)[:, ::-1]
    floor = known - 1e-9 * np.abs(known)
    gap = (problem.bound - floor)[:, None]
    size, value = np.zeros((rows, 1), np.int64), np.zeros((rows, 1))
    exact = np.ones(rows, np.bool_)
    parents, chosen = [], []
    for site in range(sites):
        own = problem.value[:, site]
        loss = relaxed[:, site, None] - (own - problem.dual[:, None] * problem.size[site])
        near = np.nonzero((loss <= gap).any(axis=0))[0]  # all other levels cost more than the gap leaves
        grown = (size[:, :, None] + problem.size[site, near]).reshape(rows, -1)
        worth = (value[:, :, None] + own[:, None, near]).reshape(rows, -1)
        reach = worth + problem.dual[:, None] * (problem.left[:, None] - grown) + rest[:, site + 1, None]
        grown = np.where((grown <= problem.left[:, None]) & (reach >= floor[:, None]), grown, _NEVER)
        kept = _undominated(grown, worth)
        if (crowded := (kept >= 0).sum(axis=1) > width).any():
            exact &= ~crowded
            kept = _most_promising(kept, reach, width)
        at = np.maximum(kept, 0)
        size = np.where(kept >= 0, np.take_along_axis(grown, at, axis=1), _NEVER)
        value = np.where(kept >= 0, np.take_along_axis(worth, at, axis=1), -np.inf)
        parents.append((at // len(near)).astype(np.int32))
        chosen.append(near[at % len(near)].astype(np.int16))
    levels = np.zeros((rows, sites), np.int64)
    at, here = value.argmax(axis=1), np.arange(rows)
    for site in reversed(range(sites)):
        levels[:, site] = chosen[site][here, at]
        at = parents[site][here, at]
    # Rounding may have emptied a row's list; what was known is then the answer.
    levels[~np.isfinite(value.max(axis=1))] = 0
    return levels, exact


def _undominated(size: NDArray[np.int64], value: Floats) -> NDArray[np.int64]:
    """Return where the pairs are that no smaller one matches in value, `[rows, most]`, by size; -1 fills rows with fewer."""
    rows = len(size)
    order = np.argsort(size, axis=1, kind="stable")
    there = np.take_along_axis(size, order, axis=1) < _NEVER
    ranked = np.where(there, np.take_along_axis(value, order, axis=1), -np.inf)
    before = np.concatenate([np.full((rows, 1), -np.inf), np.maximum.accumulate(ranked, axis=1)[:, :-1]], axis=1)
    keep = ranked > before
    row, at = np.nonzero(keep)
    kept = np.full((rows, max(int(keep.sum(axis=1).max()), 1)), -1, np.int64)
    kept[row, (np.cumsum(keep, axis=1) - 1)[row, at]] = order[row, at]
    return kept


def _most_promising(kept: NDArray[np.int64], reach: Floats, width: int) -> NDArray[np.int64]:
    """Return the `width` pairs of each row that may still come furthest."""
    hope = np.where(kept >= 0, np.take_along_axis(reach, np.maximum(kept, 0), axis=1), -np.inf)
    return np.take_along_axis(kept, np.argsort(-hope, axis=1)[:, :width], axis=1)
