"""FedSA-LoRA: both factors train, A is shared, every client keeps a B of its own (Guo et al. 2024, arXiv 2410.01463).

There is no global update: with B at home the server holds A alone, and what counts is how each client's own model does on its
own held-out part. A client that takes part for the first time starts from B = 0.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedlora.adapters.base import ADAPTERS, Selection, Tensors
from fedlora.adapters.lora import LoRA


class FedSALoRA(LoRA):
    """The server's state is A; a client's state is A and its own B, which lies in Flower's Context.state."""

    summary = "LoRA that shares A; every client keeps its own B"
    trained = "A, own B"
    source = "arXiv 2410.01463"
    default_aggregator = "fedavg-factors"
    personal = ("B",)
    component_axis: ClassVar[dict[str, int]] = {"A": 0, "B": 1}

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"A": (self.rank, self.site.in_features)}

    @property
    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return {**self.state_shapes, "B": (self.site.out_features, self.rank)}

    def init_state(self, generation: int = 0) -> Tensors:
        return {"A": self.first_a(generation)}

    def params(self, state: Tensors) -> Tensors:
        return {"A": state["A"], "B": self._own(state)}

    def recall(self, received: Tensors, kept: Tensors) -> Tensors:
        return {**received, **{name: tensor.to(received["A"]) for name, tensor in kept.items()}}

    def upload(self, state: Tensors, received: Tensors, kept: Tensors, selection: Selection) -> tuple[Tensors, Tensors]:
        return self.slice(state, selection), {"B": state["B"]} if selection.rho else kept

    def factors(self, state: Tensors) -> tuple[Tensor, Tensor]:
        return self.scale * self._own(state), state["A"]

    def _own(self, state: Tensors) -> Tensor:
        return state["B"] if "B" in state else torch.zeros(self.param_shapes["B"], dtype=state["A"].dtype)


ADAPTERS.add("fedsa-lora", FedSALoRA, FedSALoRA.summary)
