"""FFA-LoRA: A is frozen and the same for everybody, only B trains and travels (Sun et al. 2024, arXiv 2403.12313).

With a common A the mean of B A over clients is (mean of B) A, so averaging is exact where all clients have the same ranks; with
mixed ranks each component is the mean over the clients that sent it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedlora.adapters.base import ADAPTERS, Tensors
from fedlora.adapters.lora import LoRA


class FFALoRA(LoRA):
    """A comes from the run's seed and costs no bytes; B starts at zero."""

    summary = "LoRA with A frozen and shared; averages exactly"
    trained = "B"
    source = "arXiv 2403.12313"
    averages_exactly = True
    default_aggregator = "mean"
    inits = ("kaiming", "gaussian")
    component_axis: ClassVar[dict[str, int]] = {"B": 1}

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"B": (self.site.out_features, self.rank)}

    def buffers(self) -> Tensors:
        if self._buffers is None:
            self._buffers = {"A": self.first_a()}
        return self._buffers

    def init_state(self, generation: int = 0) -> Tensors:
        return {"B": torch.zeros(self.state_shapes["B"])}

    def add_to(self, y: Tensor, x: Tensor, params: Tensors, buffers: Tensors) -> Tensor:
        z = torch.nn.functional.linear(x, buffers["A"])
        return torch.baddbmm(y, z, params["B"].transpose(1, 2), alpha=self.scale)

    def factors(self, state: Tensors) -> tuple[Tensor, Tensor]:
        return self.scale * state["B"], self.buffers()["A"].to(state["B"].dtype)


ADAPTERS.add("ffa-lora", FFALoRA, FFALoRA.summary)
