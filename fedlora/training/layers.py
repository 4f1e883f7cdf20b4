"""Layers with a client axis, put in place of a model's own linear layers.

The frozen base sees one batch `[K * b, ...]`, clients one after the other; the trained parts see `[K, b * tokens, in]` and use
batched matrix products. K and the parameters are set from outside before a forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedlora.adapters import Adapter, Tensors
from fedlora.errors import TrainingError


class SharedInputError(TrainingError):
    """A projection that is applied to one input for all clients (DeBERTa's relative positions): they cannot be stacked."""


class ClientLayer(nn.Module):
    """A layer that holds the parameters of K clients; `params` maps names to tensors `[K, ...]`."""

    def __init__(self) -> None:
        super().__init__()
        self.params: Tensors = {}

    @property
    def clients(self) -> int:
        """Number of clients that the current parameters belong to."""
        return next(iter(self.params.values())).shape[0]


class AdaptedLinear(ClientLayer):
    """A frozen projection plus K adapters.

    Args:
        base: The model's own nn.Linear or Conv1D.
        adapter: The adapter method at this site.
        buffers: The adapter's frozen tensors on the run's device and in its precision.
    """

    def __init__(self, base: nn.Module, adapter: Adapter, buffers: Tensors) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.buffers_ = buffers

    def forward(self, x: Tensor) -> Tensor:
        """Map `[K * b, ..., in]` to `[K * b, ..., out]`."""
        y: Tensor = self.base(x)
        clients = self.clients
        if x.shape[0] % clients:
            raise SharedInputError(
                f"'{self.adapter.site.name}' gets one input of shape {list(x.shape)} for {clients} clients: train them one by one"
            )
        flat = y.view(clients, -1, y.shape[-1])
        return self.adapter.add_to(flat, x.reshape(clients, -1, x.shape[-1]), self.params, self.buffers_).view_as(y)


class ClientLinear(ClientLayer):
    """A linear layer of the task head, a whole weight and bias per client: "weight" `[K, out, in]`, "bias" `[K, out]`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `[K * b, ..., in]` to `[K * b, ..., out]`."""
        clients = self.clients
        flat = x.reshape(clients, -1, x.shape[-1])
        weight = self.params["weight"].transpose(1, 2)
        y = torch.baddbmm(self.params["bias"].unsqueeze(1), flat, weight) if "bias" in self.params else torch.bmm(flat, weight)
        return y.view(*x.shape[:-1], y.shape[-1])
