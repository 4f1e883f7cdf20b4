"""LoRA-FAIR: factors are averaged, then the server corrects B so that the product points where the mean update does.

Bian et al. 2024 (arXiv 2411.14961): delta B = argmin 1 - cos(W, (mean(B) + delta B) mean(A)) + lambda |delta B|^2 with W the mean
of the clients' updates, by gradient descent. The cosine's curvature goes with 1 / |mean(B)|^2, so the step goes with |mean(B)|^2
below 1, and is halved where it would make the objective worse: with the paper's fixed step a B that had hardly left zero grew
thousandfold. Clients go on from mean(A) and mean(B) + delta B; the message is FedIT's. Loss and gradient need products of r x r
and out x r only: W is never formed. Mixed ranks, per component over their clients, are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        lr: Step size that the descent begins with where |mean(B)| >= 1, > 0.
        steps: Its steps, >= 0, those that were taken back included; with 0 the rule is FedIT.
    """

    name = "lora-fair"
    summary = "LoRA-FAIR: factors averaged, then B corrected on the server towards the mean update"
    source = "arXiv 2411.14961"
    exact = "no, but its direction is closer than FedIT's"
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
        step = self.lr * min(1.0, float(b.square().sum()))
        best = self._loss(torch.zeros_like(b), b, gram, goal, size)
        if best is None:  # nothing to point anywhere
            return merged["B"]
        for _ in range(self.steps):
            trial = self._loss(best.delta - step * torch.where(sent, best.gradient, 0.0), b, gram, goal, size)
            if trial is not None and trial.value <= best.value:
                best = trial
            else:
                step /= 2
        return torch.where(sent, b + best.delta, b).to(merged["B"].dtype)

    def _loss(self, delta: Tensor, b: Tensor, gram: Tensor, goal: Tensor, size: Tensor) -> _Loss | None:
        """Return the paper's objective at a delta B, None where the product vanishes and has no direction.

        Args:
            delta: `[out, r]`, as are `b`, mean(B), and `goal`, W mean(A)'.
            gram: mean(A) mean(A)', `[r, r]`.
            size: Norm of W.
        """
        now = b + delta
        pulled = now @ gram
        square = (now * pulled).sum()
        scale = size * square.clamp_min(0.0).sqrt()
        if not float(scale) > 0:
            return None
        along = (goal * now).sum()
        value = 1 - along / scale + self.regulariser * delta.square().sum()
        return _Loss(float(value), delta, 2 * self.regulariser * delta - (goal - along / square * pulled) / scale)


@dataclass(frozen=True)
class _Loss:
    """The objective at a delta B, and its gradient there."""

    value: float
    delta: Tensor
    gradient: Tensor


AGGREGATORS.add(LoRAFair.name, LoRAFair, LoRAFair.summary)
