"""LoRA-FAIR: factors are averaged, then the server corrects B so that the product points where the mean update does.

Bian et al. 2024 (arXiv 2411.14961): delta B = argmin 1 - cos(W, (mean(B) + delta B) mean(A)) + lambda |delta B|^2 with W the mean
of the clients' updates, by gradient descent. Clients go on from mean(A) and mean(B) + delta B; the message is FedIT's. Loss and
gradient need products of r x r and out x r only: W is never formed. Mixed ranks, per component over their clients, are ours.
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
    Update,
    in_order,
    mean_head,
    plain_lora,
)
from fedlora.errors import ConfigError


class LoRAFair(Aggregator):
    """FedIT's mean and a correction of B.

    Args:
        adapters: One per site, in canonical order.
        weighting: "uniform", "examples", or "auto" (examples).
        regulariser: lambda, >= 0.
        lr: Step size of the descent, > 0.
        steps: Its steps, >= 0; with 0 the rule is FedIT.
    """

    name = "lora-fair"
    summary = "LoRA-FAIR: factors averaged, then B corrected on the server towards the mean update"
    source = "arXiv 2411.14961"
    exact = "no, but closer than FedIT's"
    mixed_ranks = True
    default_weighting = "examples"
    sliced_downlink = False

    def __init__(
        self,
        adapters: Sequence[Adapter],
        weighting: str = "auto",
        *,
        regulariser: float = 0.01,
        lr: float = 0.01,
        steps: int = 1000,
    ) -> None:
        super().__init__(adapters, weighting)
        for name, value, low in (("regulariser", regulariser, 0.0), ("lr", lr, 0.0), ("steps", steps, 0)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < float("inf"):
                raise ConfigError(f"aggregator.options.{name} must be a number >= 0, got {value!r}")
        if not isinstance(steps, int):
            raise ConfigError(f"aggregator.options.steps must be a whole number, got {steps!r}")
        self.regulariser, self.lr, self.steps = float(regulariser), float(lr), steps

    def objection(self) -> str:
        return plain_lora(self.adapters)

    def aggregate(self, updates: Sequence[Update], state: GlobalState, round_number: int) -> tuple[GlobalState, list[float]]:
        updates = in_order(updates)
        weights = self.weights(updates)
        sites, coverage = [], []
        for index, (adapter, old) in enumerate(zip(self.adapters, state.sites, strict=True)):
            mean, placed, sent = CoverageMean(old), [], torch.zeros(adapter.cap, dtype=torch.bool)
            for update, weight in zip(updates, weights, strict=True):
                values, masks = adapter.place(update.sites[index], update.ranks[index], old)
                mean.add(values, masks, weight)
                placed.append(values)
                sent |= masks["B"].any(dim=0)
            merged, covered = mean.result()
            sites.append({**merged, "B": self._corrected(merged, placed, weights, sent)} if covered else merged)
            coverage.append(covered)
        return state.followed_by(sites, mean_head(updates, weights, state.head)), coverage

    def _corrected(self, merged: Tensors, placed: list[Tensors], weights: Sequence[float], sent: Tensor) -> Tensor:
        """Return mean(B) + delta B; components that nobody sent are left as they are."""
        b, a = merged["B"].double(), merged["A"].double()
        gram, total = a @ a.T, sum(weights)
        stacked_b = torch.cat(
            [values["B"].double() * (weight / total) for values, weight in zip(placed, weights, strict=True)], 1
        )
        stacked_a = torch.cat([values["A"].double() for values in placed])
        goal = stacked_b @ (stacked_a @ a.T)  # W mean(A)', so that <W, B A> = <goal, B>
        size = ((stacked_b.T @ stacked_b) * (stacked_a @ stacked_a.T)).sum().clamp_min(0.0).sqrt()
        delta = torch.zeros_like(b)
        for _ in range(self.steps):
            now = b + delta
            pulled = now @ gram
            square = (now * pulled).sum()
            scale = size * square.clamp_min(0.0).sqrt()
            if not float(scale) > 0:  # nothing to point anywhere
                break
            gradient = 2 * self.regulariser * delta - (goal - (goal * now).sum() / square * pulled) / scale
            delta = delta - self.lr * torch.where(sent, gradient, 0.0)
        return torch.where(sent, b + delta, b).to(merged["B"].dtype)


AGGREGATORS.add(LoRAFair.name, LoRAFair, LoRAFair.summary)
