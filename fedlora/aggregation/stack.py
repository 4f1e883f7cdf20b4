"""FLoRA: stack the clients' factors, merge their product into the frozen weight, start every round from a fresh adapter.

The product of the stacked factors is exactly sum_k p_k B_k A_k, whatever the clients' ranks (arXiv 2409.05976, eq. 4). A client
that sat out some rounds needs what it missed, so the message down carries the accumulated update in factored form,
recompressed without loss once it has more columns than its rank can be. The fresh adapter is drawn from the seed and the
round and costs no bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlora.adapters import Tensors
from fedlora.aggregation.base import AGGREGATORS, Aggregator, GlobalState, Merge, Update, in_order, mean_head, two_factors
from fedlora.errors import AggregationError


class Stack(Aggregator):
    """The state per site is the accumulated update as factors "B" `[out, R]` and "A" `[R, in]`, R growing to min(out, in)."""

    name = "stack"
    summary = "FLoRA: factors stacked and merged into the weight, adapter restarts every round"
    source = "arXiv 2409.05976"
    exact = "yes, for mixed ranks too"
    mixed_ranks = True
    default_weighting = "examples"
    sliced_downlink = False
    steady = False

    def objection(self) -> str:
        if any(adapter.averages_exactly for adapter in self.adapters):
            use = self.adapters[0].default_aggregator
            return f"its mean is exact already and stacking would only add bytes. Use '{use}'"
        return two_factors(self.adapters)

    def initial(self, head: Tensors) -> GlobalState:
        empty = [
            {"B": torch.zeros(adapter.site.out_features, 0), "A": torch.zeros(0, adapter.site.in_features)}
            for adapter in self.adapters
        ]
        return GlobalState(empty, head)

    def start(self, index: int, site: Tensors, round_number: int) -> tuple[Tensors, Merge | None]:
        return self.adapters[index].init_state(round_number), (site["B"], site["A"])

    def aggregate(self, updates: Sequence[Update], state: GlobalState, round_number: int) -> tuple[GlobalState, list[float]]:
        updates = in_order(updates)
        weights = self.weights(updates)
        sites, coverage = [], []
        for index, (adapter, old) in enumerate(zip(self.adapters, state.sites, strict=True)):
            fresh = adapter.init_state(round_number)
            # A client that sat a site out contributes a zero update there, so every client counts in the divisor.
            shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
            bs, as_, sent = [old["B"]], [old["A"]], 0
            for update, share in zip(updates, shares, strict=True):
                rho = adapter.snap(update.ranks[index])
                if rho == 0:
                    continue
                tensors = update.sites[index]
                dtype = next(iter(tensors.values())).dtype if tensors else None  # the sum is as precise as what was sent
                value, _ = adapter.place(tensors, rho, {name: tensor.to(dtype) for name, tensor in fresh.items()})
                b, a = adapter.factors(value)
                bs.append(float(share) * b[:, :rho])
                as_.append(a[:rho])
                sent = max(sent, rho)
            b, a = recompress(torch.cat(bs, dim=1), torch.cat(as_, dim=0))
            sites.append({"B": b, "A": a})
            coverage.append(sent / adapter.cap)
        return state.followed_by(sites, mean_head(updates, weights, state.head)), coverage

    def export_factors(self, index: int, site: Tensors) -> Merge:
        return site["B"], site["A"]


def recompress(b: Tensor, a: Tensor, trim: bool = False) -> Merge:
    """Return factors of the same product with at most min(out, in) columns, by QR of both and SVD of the small core.

    Args:
        b: `[out, R]`.
        a: `[R, in]`.
        trim: Bring R down to the numerical rank of the product, whether or not it has reached the limit.
    """
    limit = min(b.shape[0], a.shape[1])
    if b.shape[1] <= limit and not trim:
        return b, a
    u, s, v = factored_svd(b, a)
    if trim:  # what is left out is below the rounding of the factors themselves
        limit = min(limit, int((s > 16 * torch.finfo(b.dtype).eps * s[:1]).sum()))
    root = s[:limit].sqrt()
    return (u[:, :limit] * root).to(b.dtype), (root[:, None] * v[:limit]).to(a.dtype)


def factored_svd(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular value decomposition (U, S, V') of B A without ever forming the product, in float64.

    Args:
        b: `[out, R]`.
        a: `[R, in]`.

    Raises:
        AggregationError: The factors, or their product, are not finite.
    """
    try:
        qb, rb = torch.linalg.qr(b.double())
        qa, ra = torch.linalg.qr(a.double().T)
        core = rb @ ra.T
        if not bool(torch.isfinite(core).all()):
            raise AggregationError("what the clients sent cannot be decomposed: their factors are too large, or hold no numbers")
        u, s, v = torch.linalg.svd(core, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch names it without exporting it
        raise AggregationError("what the clients sent cannot be decomposed: its singular values were not found") from None
    return qb @ u, s, v @ qa.T


AGGREGATORS.add(Stack.name, Stack, Stack.summary)
