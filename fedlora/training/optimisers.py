"""Optimisers over stacked clients: one matrix of parameters `[K, P]`, one row per client.

torch's own optimisers act elementwise too, but know neither a learning rate per row nor rows and entries that stand still.
They are the reference: tests hold each rule here to torch's result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fedlora.config import TrainingConfig


class Optimiser(ABC):
    """State for K clients, fresh at the start of local training.

    Args:
        rows: Parameters `[K, P]`, updated in place.
        mask: Entries that train, bool `[K, P]`; None means all. Others do not move by a bit, whatever the state holds.
        config: The `training` section of the run file.
    """

    def __init__(self, rows: Tensor, mask: Tensor | None, config: TrainingConfig) -> None:
        self.rows, self.mask, self.config = rows, mask, config
        self.count = 0

    def step(self, grads: Tensor, lr: Tensor, clients: int) -> None:
        """Update the first `clients` rows.

        Args:
            grads: `[clients, P]`, zero where masked.
            lr: Learning rate per entry, `[clients, P]` or broadcastable to it.
            clients: Rows that still train; later rows have finished.
        """
        self.count += 1
        rows = self.rows[:clients]
        change = self.change(grads, rows, clients)
        change.mul_(lr)
        if self.mask is not None:
            change.masked_fill_(~self.mask[:clients], 0.0)
        rows.sub_(change)

    @abstractmethod
    def change(self, grads: Tensor, rows: Tensor, clients: int) -> Tensor:
        """Return the step to subtract, before the learning rate; may reuse no argument's memory."""


class Adam(Optimiser):
    """Adam with bias correction; weight decay is decoupled (AdamW) or added to the gradient (Adam)."""

    beta1, beta2, epsilon = 0.9, 0.999, 1e-8

    def __init__(self, rows: Tensor, mask: Tensor | None, config: TrainingConfig, decoupled: bool) -> None:
        super().__init__(rows, mask, config)
        self.decoupled = decoupled
        self.first = torch.zeros_like(rows)
        self.second = torch.zeros_like(rows)

    def change(self, grads: Tensor, rows: Tensor, clients: int) -> Tensor:
        decay = self.config.weight_decay
        if decay and not self.decoupled:
            grads = grads.add(rows, alpha=decay)
        first = self.first[:clients].lerp_(grads, 1 - self.beta1)
        second = self.second[:clients].mul_(self.beta2).addcmul_(grads, grads, value=1 - self.beta2)
        scale = (second / (1 - self.beta2**self.count)).sqrt_().add_(self.epsilon)
        change = torch.div(first, scale, out=scale).div_(1 - self.beta1**self.count)
        return change.add_(rows, alpha=decay) if decay and self.decoupled else change


class SGD(Optimiser):
    """Stochastic gradient descent with momentum; weight decay is added to the gradient."""

    def __init__(self, rows: Tensor, mask: Tensor | None, config: TrainingConfig) -> None:
        super().__init__(rows, mask, config)
        self.velocity = torch.zeros_like(rows) if config.momentum else None

    def change(self, grads: Tensor, rows: Tensor, clients: int) -> Tensor:
        if self.config.weight_decay:
            grads = grads.add(rows, alpha=self.config.weight_decay)
        if self.velocity is None:
            return grads.clone()
        return self.velocity[:clients].mul_(self.config.momentum).add_(grads).clone()


def make_optimiser(rows: Tensor, mask: Tensor | None, config: TrainingConfig) -> Optimiser:
    """Return the optimiser that `training.optimizer` names."""
    if config.optimizer == "sgd":
        return SGD(rows, mask, config)
    return Adam(rows, mask, config, decoupled=config.optimizer == "adamw")


def clip_rows(grads: Tensor, limit: float) -> None:
    """Scale each client's gradient, in place, so that its norm is at most `limit` (0: no limit)."""
    if limit:
        norms = grads.norm(dim=1, keepdim=True)
        grads.mul_((limit / (norms + 1e-6)).clamp_(max=1.0))
