"""Requests: real-valued wishes that become ranks inside the budget, exactly, and the wishes behind given ranks.

A request is a share per site and one number for the bytes of all: `[n, L + 1]` in -1..1, the last entry being the bytes. Shares
say in which proportion sites are to grow; how far is said in bytes of what fits before the deadline by the estimate, so that a
request never asks for more than fits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlora.ranks import Costs, Floats, Ranks, greedy_ranks

_LEAST = 1e-6  # of a share: a site that nobody wants comes last, but can still be filled


def ranks_of(requests: NDArray[np.floating], costs: Costs, budget: Floats) -> Ranks:
    """Return the legal ranks that requests ask for, `[n, sites]`; never more bytes than the budget.

    Sites grow in proportion to their shares until the bytes are used up: level j of a site with share s comes when all shares
    have been scaled to (j - 1/2) / s levels. What is left over by the last level that does not fit goes to the next ones that do.

    Args:
        requests: `[n, sites + 1]`, in -1..1.
        costs: Bytes.
        budget: Bytes that fit, `[n]`; inf: no limit.
    """
    wanted = np.clip((np.asarray(requests, np.float64) + 1.0) / 2.0, 0.0, 1.0)
    levels = costs.levels
    share = np.maximum(wanted[:, :-1], _LEAST) * np.maximum(levels, 1)
    steps = np.diff(costs.table, axis=1)
    order = share[:, :, None] / (np.arange(1, steps.shape[1] + 1) - 0.5)
    # Greedy goes by worth per byte: a worth of order times bytes makes it go by the order alone.
    worth = order * np.maximum(steps, 1)
    fits = np.minimum(np.asarray(budget, np.float64), costs.full)
    spare = np.maximum(fits - costs.base, 0.0)
    # Half the smallest step: what was encoded comes back as it was, whatever the rounding of the share.
    slack = 0.5 * steps[steps > 0].min(initial=np.iinfo(np.int64).max)
    spend = np.where(fits >= costs.base, np.minimum(costs.base + wanted[:, -1] * spare + slack, fits), 0.0)
    return greedy_ranks(worth, costs, spend)


def requests_for(ranks: Ranks, costs: Costs, budget: Floats) -> NDArray[np.float64]:
    """Return requests that `ranks_of` turns into these ranks `[n, sites]` where they fit, `[n, sites + 1]`."""
    levels, most = ranks // costs.units, np.maximum(costs.levels, 1)
    share = levels / most
    top = share.max(axis=1, keepdims=True)
    share = np.where(top > 0, share / np.where(top > 0, top, 1.0), 1.0)
    spare = np.maximum(np.minimum(np.asarray(budget, np.float64), costs.full) - costs.base, 0.0)
    spent = costs.bytes(ranks) - costs.base
    part = np.divide(spent, spare, out=np.zeros(len(ranks)), where=spare > 0)
    return np.column_stack([share, np.minimum(part, 1.0)]) * 2.0 - 1.0
