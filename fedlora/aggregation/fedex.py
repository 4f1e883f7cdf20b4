"""FedEx-LoRA: factors are averaged, and what their product then misses is added to the frozen weight (arXiv 2410.09432).

The residual sum_c p_c B_c A_c - mean(B) mean(A) is carried as factors, never as a dense matrix: the clients' stacked factors and
the negated mean, brought down to their numerical rank (at most (K - 1) r after a round of K clients). As with `stack`, the
message down carries the sum of all residuals so far, since a client that sat out some rounds needs what it missed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlora.adapters import Adapter, Tensors
from fedlora.aggregation.base import (
    AGGREGATORS,
    Aggregator,
    CoverageMean,
    GlobalState,
    Merge,
    Update,
    in_order,
    mean_head,
    two_factors,
)
from fedlora.aggregation.stack import recompress

_LEFT, _RIGHT = "residual.B", "residual.A"


class FedEx(Aggregator):
    """The state per site is the adapter's own and the residual, "residual.B" `[out, R]` and "residual.A" `[R, in]`.

    Mixed ranks are ours: a client's model has the broadcast components that it did not train, and the mean of the models is met
    exactly.
    """

    name = "fedex"
    summary = "FedEx-LoRA: factors averaged, the missing rest merged into the weight in factored form"
    source = "arXiv 2410.09432"
    exact = "yes, for mixed ranks too"
    mixed_ranks = True
    default_weighting = "uniform"
    sliced_downlink = False
    steady = False

    def objection(self) -> str:
        return two_factors(self.adapters)

    def initial(self, head: Tensors) -> GlobalState:
        state = super().initial(head)
        for adapter, site in zip(self.adapters, state.sites, strict=True):
            site[_LEFT] = torch.zeros(adapter.site.out_features, 0)
            site[_RIGHT] = torch.zeros(0, adapter.site.in_features)
        return state

    def start(self, index: int, site: Tensors, round_number: int) -> tuple[Tensors, Merge | None]:
        return self._own(index, site), (site[_LEFT], site[_RIGHT])

    def aggregate(self, updates: Sequence[Update], state: GlobalState, round_number: int) -> tuple[GlobalState, list[float]]:
        updates = in_order(updates)
        weights = self.weights(updates)
        sites, coverage = [], []
        for index, adapter in enumerate(self.at(round_number)):
            old = state.sites[index]
            mean, placed = CoverageMean(self._own(index, old)), []
            for update, weight in zip(updates, weights, strict=True):
                values, masks = adapter.place(update.sites[index], update.ranks[index], old)
                mean.add(values, masks, weight)
                placed.append(values)
            merged, covered = mean.result()
            if covered:
                left, right = _rest(adapter, placed, weights, merged)
                residual = recompress(torch.cat([old[_LEFT], left], dim=1), torch.cat([old[_RIGHT], right], dim=0), trim=True)
            else:
                residual = old[_LEFT], old[_RIGHT]
            sites.append({**merged, _LEFT: residual[0], _RIGHT: residual[1]})
            coverage.append(covered)
        return state.followed_by(sites, mean_head(updates, weights, state.head)), coverage

    def export_factors(self, index: int, site: Tensors) -> Merge:
        b, a = self.adapters[index].factors(self._own(index, site))
        return torch.cat([site[_LEFT], b], dim=1), torch.cat([site[_RIGHT], a], dim=0)

    def _own(self, index: int, site: Tensors) -> Tensors:
        return {name: site[name] for name in self.adapters[index].state_shapes}


def _rest(adapter: Adapter, placed: list[Tensors], weights: Sequence[float], merged: Tensors) -> tuple[Tensor, Tensor]:
    """Return factors of the clients' mean update minus the update of the averaged factors."""
    total = sum(weights)
    mean_b, mean_a = adapter.factors(merged)
    left, right = [-mean_b], [mean_a]
    for values, weight in zip(placed, weights, strict=True):
        b, a = adapter.factors(values)
        left.append(b * (weight / total))
        right.append(a)
    return torch.cat(left, dim=1), torch.cat(right, dim=0)


AGGREGATORS.add(FedEx.name, FedEx, FedEx.summary)
