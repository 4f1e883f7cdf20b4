"""LoRA: the update of a projection is scale * B A (Hu et al. 2021, arXiv 2106.09685, eq. 3)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedlora.adapters.base import ADAPTERS, Tensors
from fedlora.adapters.prefix import PrefixAdapter


class LoRA(PrefixAdapter):
    """B starts at zero; A starts normal with variance 1/in (`gaussian`) or as peft does it, uniform (`kaiming`)."""

    summary = "low-rank update B A; a rank cuts the leading components"
    trained = "A, B"
    source = "arXiv 2106.09685"
    averages_exactly = False
    default_aggregator = "fedavg-factors"
    inits = ("kaiming", "gaussian")
    component_axis: ClassVar[dict[str, int]] = {"A": 0, "B": 1}

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"A": (self.rank, self.site.in_features), "B": (self.site.out_features, self.rank)}

    def init_state(self, generation: int = 0) -> Tensors:
        return {"A": self.first_a(generation), "B": torch.zeros(self.state_shapes["B"])}

    def first_a(self, generation: int = 0) -> Tensor:
        """Return A as it is drawn, `[rank, in]`."""
        shape = (self.rank, self.site.in_features)
        generator = self.generator("A", generation)
        uniform = self.init == "kaiming"
        # Uniform within 1/sqrt(in): Kaiming's bound at a = sqrt(5), the default of peft and of torch's own Linear.
        a = 2 * torch.rand(shape, generator=generator) - 1 if uniform else torch.randn(shape, generator=generator)
        first: Tensor = a / shape[1] ** 0.5
        return first

    def add_to(self, y: Tensor, x: Tensor, params: Tensors, buffers: Tensors) -> Tensor:
        z = torch.bmm(x, params["A"].transpose(1, 2))
        return torch.baddbmm(y, z, params["B"].transpose(1, 2), alpha=self.scale)

    def factors(self, state: Tensors) -> tuple[Tensor, Tensor]:
        return self.scale * state["B"], state["A"]


ADAPTERS.add("lora", LoRA, LoRA.summary)
