"""HetLoRA: clients of different ranks, padded with zeros, weighted by the size of their updates, pruning themselves.

Cho et al., EMNLP 2024 (arXiv 2401.06432). A client of rank r works with the leading r components. Its loss has a penalty on the
tail, lambda |B[:, t:]| |A[t:]| with t = floor(gamma r), at least 1; where training made that product smaller than it was in what
the client received, the tail is dropped for good: the client sends t components, and is not asked for more again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedlora.adapters import Adapter, Tensors
from fedlora.aggregation.base import (
    AGGREGATORS,
    Aggregator,
    CoverageMean,
    GlobalState,
    Update,
    in_order,
    mean_head,
    part_of,
    plain_lora,
)
from fedlora.errors import ConfigError


class HetLoRA(Aggregator):
    """A and B become sum_c p_c A_c and sum_c p_c B_c of the padded factors, p_c in proportion to |B_c A_c|_F over all sites.

    Args:
        adapters: One per site, in canonical order.
        weighting: "auto"; the rule weights clients itself.
        gamma: Share of a client's components that the penalty leaves alone, in (0, 1).
        sparsity: Weight lambda of the penalty, >= 0.
        pruning: Whether clients drop their tails.
    """

    name = "hetlora"
    summary = "HetLoRA: zero-padding, weights by the norms of updates, sparsity penalty and self-pruning"
    source = "arXiv 2401.06432"
    exact = "no: the product of means is not the mean of products"
    mixed_ranks = True
    default_weighting = "norms"
    weightings = ("norms",)
    own_prefix = True
    prunes = True

    def __init__(
        self,
        adapters: Sequence[Adapter],
        weighting: str = "auto",
        *,
        gamma: float = 0.99,
        sparsity: float = 1e-3,
        pruning: bool = True,
    ) -> None:
        super().__init__(adapters, weighting)
        if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 < gamma < 1:
            raise ConfigError(f"aggregator.options.gamma must be above 0 and below 1, got {gamma!r}")
        if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity < math.inf:
            raise ConfigError(f"aggregator.options.sparsity must be a number >= 0, got {sparsity!r}")
        if not isinstance(pruning, bool):
            raise ConfigError(f"aggregator.options.pruning must be true or false, got {pruning!r}")
        self.gamma, self.sparsity, self.pruning = float(gamma), float(sparsity), pruning
        # Where the tail of each rank begins, for penalty and pruning alike; one component always stays.
        most = max(adapter.cap for adapter in self.adapters)
        self.tails = torch.tensor([max(1, math.floor(part_of(self.gamma, rank))) for rank in range(most + 1)])

    def objection(self) -> str:
        return plain_lora(self.adapters)

    def penalty(self, sites: Sequence[Tensors], ranks: Tensor) -> Tensor | None:
        if not self.sparsity:
            return None
        total = torch.zeros(len(ranks), device=ranks.device)
        tails = self.tails.to(ranks.device)[ranks]
        for index, params in enumerate(sites):
            first, own = tails[:, index : index + 1], ranks[:, index : index + 1]
            at = torch.arange(params["A"].shape[1], device=ranks.device)
            tail = ((at >= first) & (at < own)).to(params["A"])
            total = total + _tail_norm(params["B"] * tail[:, None, :], params["A"] * tail[:, :, None])
        return self.sparsity * total

    def settle(self, index: int, rho: int, start: Tensors, trained: Tensors) -> int:
        tail = int(self.tails[rho])
        if not self.pruning or rho <= tail:
            return rho
        before, after = (_tail_norm(site["B"][None, :, tail:rho], site["A"][None, tail:rho]) for site in (start, trained))
        return tail if bool(after < before) else rho

    def weights(self, updates: Sequence[Update]) -> list[float]:
        squares = []
        for update in updates:  # in float64, whose range holds the fourth power of any float32
            own = 0.0
            for adapter, site, rank in zip(self.adapters, update.sites, update.ranks, strict=True):
                zeros = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in adapter.state_shapes.items()}
                b, a = adapter.factors(adapter.place(site, rank, zeros)[0])
                own += float(((b.T @ b) * (a @ a.T)).sum())  # |B A|_F^2, never forming out x in
            squares.append(max(own, 0.0))
        norms = [math.sqrt(square) for square in squares]
        return norms if math.isfinite(sum(norms)) and sum(norms) > 0 else [1.0] * len(norms)

    def aggregate(self, updates: Sequence[Update], state: GlobalState, round_number: int) -> tuple[GlobalState, list[float]]:
        updates = in_order(updates)
        weights = self.weights(updates)
        sites, coverage = [], []
        for index, (adapter, old) in enumerate(zip(self.adapters, state.sites, strict=True)):
            mean = CoverageMean(old, sum(weights))
            for update, weight in zip(updates, weights, strict=True):
                mean.add(*adapter.place(update.sites[index], update.ranks[index], old), weight)
            merged, covered = mean.result()
            sites.append(merged)
            coverage.append(covered)
        return state.followed_by(sites, mean_head(updates, weights, state.head)), coverage


def _tail_norm(b: Tensor, a: Tensor) -> Tensor:
    """Return |B|_F |A|_F per client, `[K]`; its gradient at zero is zero."""
    norms: Tensor = torch.linalg.vector_norm(b.flatten(1), dim=1) * torch.linalg.vector_norm(a.flatten(1), dim=1)
    return norms


AGGREGATORS.add(HetLoRA.name, HetLoRA, HetLoRA.summary)
