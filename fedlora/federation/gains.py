"""What the server can tell of the worth of ranks from the global adapter alone: how much of the update each level carries.

The worth of a component (lora, triplet) or head (ravan) is the squared norm of what it adds to the weight update. It says what
an update is made of, not what more of it would do for the loss; it is exact about the past and a guess about the next round.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora.adapters import Adapter, Tensors
from fedlora.adapters.ravan import Ravan

Floats = NDArray[np.float64]

PRIOR = 0.05
"""Share of the total worth that is spread evenly over all levels, whatever the adapter shows."""


def level_gains(adapters: Sequence[Adapter], sites: Sequence[Tensors]) -> Floats:
    """Return the worth of each level on top of the one before, `[sites, levels]`, >= 0, summing to 1.

    Levels of a site never rise: where components are not in order of size, each counts for no more than those before it,
    because a prefix cannot reach a component without sending the ones in front of it.
    While the whole adapter is zero nothing is known: then every level of every site is worth the same (a flat prior). Later a
    share `PRIOR` of the total stays flat: what nobody has sent yet has a norm of zero, and a policy that sends what is worth
    something would never find out. Sites with fewer levels than others end in zeros.

    Args:
        adapters: One per site.
        sites: The global state per site, or nothing where there is none yet. Rules that keep an accumulated update in its place
            ("stack") have factors "B" and "A".
    """
    levels = [adapter.cap // adapter.unit for adapter in adapters]
    gains = np.zeros((len(adapters), max(levels)))
    for index, (adapter, state) in enumerate(zip(adapters, sites, strict=bool(sites))):
        gains[index, : levels[index]] = _site_gains(adapter, state)
    flat = (np.arange(gains.shape[1]) < np.array(levels)[:, None]) / float(sum(levels))
    return (1 - PRIOR) * gains / gains.sum() + PRIOR * flat if gains.any() else flat


def _site_gains(adapter: Adapter, state: Tensors) -> Floats:
    """Return the squared norms that the levels of one site add, not rising, `[levels]`."""
    # Rules may keep more in a site's state than the adapter's own tensors, or something else altogether.
    own = all(name in state and tuple(state[name].shape) == shape for name, shape in adapter.state_shapes.items())
    if own and isinstance(adapter, Ravan):
        energy = _ravan_gains(adapter, state)
    elif own:
        b, a = (factor.detach().double() for factor in adapter.factors(state))
        energy = b.square().sum(dim=0) * a.square().sum(dim=1)
        if len(energy) != adapter.cap:  # full: one level for all
            energy = energy.sum().expand(adapter.cap) / adapter.cap
    else:
        # An accumulated update in factored form: its singular values are what fresh components would have to carry again.
        energy = _spectrum(state["B"].detach().double(), state["A"].detach().double(), adapter.cap)
    found: Floats = energy.cpu().numpy()
    if not np.isfinite(found).all():
        return np.zeros_like(found)
    return np.minimum.accumulate(found)


def _ravan_gains(adapter: Ravan, state: Tensors) -> Tensor:
    """Return what levels of Ravan's rank add.

    Which heads a client picks is its own affair (score = "random": any; "gradient": unknown here), so that each is worth the
    mean over heads; only with score = "weight" do clients take the largest first. Inside a head, blocks are taken to fill it
    evenly; with unit = "svd" a level is the next singular value of the heads.
    """
    heads, rank = adapter.heads, adapter.rank
    core = state["H"].detach().double()
    if adapter.config.unit == "svd":
        mean: Tensor = torch.linalg.svdvals(core).square().sum(dim=0) / heads
        return mean.repeat_interleave(heads) * adapter.scale**2
    b, a = adapter.factors(state)
    left = b.detach().double().view(-1, heads, rank).transpose(0, 1)
    right = a.detach().double().view(heads, rank, -1)
    # |B A|^2 = trace((B' B) (A A')), never forming out x in.
    energy = (torch.bmm(left.transpose(1, 2), left) * torch.bmm(right, right.transpose(1, 2))).sum(dim=(1, 2)).clamp_min(0.0)
    worth = energy.sort(descending=True).values if adapter.config.score == "weight" else energy.mean().expand(heads)
    return worth if adapter.unit == rank else worth.repeat_interleave(rank) / rank


def _spectrum(b: Tensor, a: Tensor, levels: int) -> Tensor:
    """Return the first squared singular values of B A, zeros where there are no more."""
    energy = torch.zeros(levels, dtype=torch.float64)
    if b.shape[1]:
        values = torch.linalg.svdvals(torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T)[:levels]
        energy[: len(values)] = values.square()
    return energy
