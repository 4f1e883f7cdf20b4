"""Rules that average the clients' products and hand out the best approximation of each rank: FlexLoRA, and rank partitions.

The mean is held as stacked factors; its singular values come from a QR of both stacks and the SVD of the small core, so that the
full matrix is never formed. Components are sorted by singular value, and every client works with the leading ones that its rank
covers (the best approximation of that rank, Eckart-Young), the rest being zero for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlora.adapters import Adapter, Tensors
from fedlora.aggregation.base import AGGREGATORS, Aggregator, GlobalState, Update, in_order, mean_head, plain_lora
from fedlora.aggregation.stack import factored_svd


class FlexLoRA(Aggregator):
    """B A becomes the best rank-r approximation of sum_c p_c B_c A_c: B = U S / scale, A = V' (arXiv 2402.11505, section 3).

    A client that sat a site out contributes a zero update there, since zero is what it works with.
    """

    name = "flexlora"
    summary = "FlexLoRA: products averaged, redistributed by SVD (QR of the factors), each client its own leading components"
    source = "arXiv 2402.11505"
    exact = "up to truncation at the cap, the best of that rank"
    mixed_ranks = True
    default_weighting = "examples"
    own_prefix = True
    steady = False

    def objection(self) -> str:
        return plain_lora(self.adapters)

    def aggregate(self, updates: Sequence[Update], state: GlobalState, round_number: int) -> tuple[GlobalState, list[float]]:
        updates = in_order(updates)
        weights = torch.tensor(self.weights(updates), dtype=torch.float64)
        sites, coverage = [], []
        for index, (adapter, old) in enumerate(zip(self.adapters, state.sites, strict=True)):
            zeros = {name: torch.zeros_like(tensor) for name, tensor in old.items()}
            ranks = torch.tensor([adapter.snap(update.ranks[index]) for update in updates])
            shares = self.shares(weights, ranks, adapter.cap)
            bs, as_ = [], []
            for update, share, rho in zip(updates, shares, ranks.tolist(), strict=True):
                b, a = adapter.factors(adapter.place(update.sites[index], rho, zeros)[0])
                bs.append(b[:, :rho] * share[:rho].to(b))
                as_.append(a[:rho])
            sent = int(ranks.max())
            sites.append(_redistributed(adapter, torch.cat(bs, dim=1), torch.cat(as_), round_number) if sent else old)
            coverage.append(sent / adapter.cap)
        return state.followed_by(sites, mean_head(updates, weights.tolist(), state.head)), coverage

    def shares(self, weights: Tensor, ranks: Tensor, cap: int) -> Tensor:
        """Return each client's share of the mean per component, `[clients, cap]`."""
        return (weights / weights.sum())[:, None].expand(-1, cap)


class RankPartition(FlexLoRA):
    """Every rank slice is averaged over the clients that trained it, then redistributed by SVD.

    Under FlexLoRA a component that a tenth of the clients train counts a tenth, round after round, and the update ends up with
    the rank of the smallest clients. Here weights are renormalised per slice.
    """

    name = "rank-partition"
    summary = "products averaged slice by slice over the clients that trained it, redistributed by SVD"
    source = "FlexLoRA (arXiv 2402.11505) with weights per rank slice"
    exact = "per slice over its clients, up to truncation at the cap"

    def shares(self, weights: Tensor, ranks: Tensor, cap: int) -> Tensor:
        trained = torch.where(torch.arange(cap) < ranks[:, None], weights[:, None], 0.0)
        return trained / trained.sum(dim=0).clamp_min(torch.finfo(torch.float64).tiny)


def _redistributed(adapter: Adapter, b: Tensor, a: Tensor, round_number: int) -> Tensors:
    """Return the adapter's state whose product is the best approximation of B A at the cap.

    Components beyond the rank of the mean start afresh, B at zero and A as drawn for this round: with both at zero they
    would never train again.
    """
    u, s, v = factored_svd(b, a)
    fresh = adapter.init_state(round_number)
    left, right = fresh["B"].to(b.dtype).clone(), fresh["A"].to(a.dtype).clone()
    floor = torch.finfo(torch.float64).eps * max(b.shape[0], a.shape[1])
    rank = min(adapter.cap, int((s > floor * s[0]).sum()))
    left[:, :rank] = (u[:, :rank] * s[:rank] / adapter.scale).to(b.dtype)
    right[:rank] = v[:rank].to(a.dtype)
    return {"A": right, "B": left}


for _rule in (FlexLoRA, RankPartition):
    AGGREGATORS.add(_rule.name, _rule, _rule.summary)
