"""Triplet: the update is scale * P diag(E) Q with a prefix mask on E.

This is the form that AdaLoRA (Zhang et al. 2023, arXiv 2303.10512, eq. 3) prunes by singular value and AirLLM (arXiv 2507.11515)
cuts by rank: dropping a component touches one number of E, and what is kept does not change.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedlora.adapters.base import ADAPTERS, Tensors
from fedlora.adapters.prefix import PrefixAdapter


class Triplet(PrefixAdapter):
    """E starts at zero, P and Q normal with variance 1/out and 1/in, so that all three keep the update's scale in E."""

    summary = "P diag(E) Q as in AdaLoRA and AirLLM; a rank is a prefix of E"
    trained = "P, E, Q"
    source = "arXiv 2303.10512, 2507.11515"
    averages_exactly = False
    default_aggregator = "fedavg-factors"
    inits = ("gaussian",)
    component_axis: ClassVar[dict[str, int]] = {"P": 1, "E": 0, "Q": 0}

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"P": (self.site.out_features, self.rank), "E": (self.rank,), "Q": (self.rank, self.site.in_features)}

    def init_state(self, generation: int = 0) -> Tensors:
        p, q = self.state_shapes["P"], self.state_shapes["Q"]
        return {
            "P": torch.randn(p, generator=self.generator("P", generation)) / p[0] ** 0.5,
            "E": torch.zeros(self.rank),
            "Q": torch.randn(q, generator=self.generator("Q", generation)) / q[1] ** 0.5,
        }

    def add_to(self, y: Tensor, x: Tensor, params: Tensors, buffers: Tensors) -> Tensor:
        z = torch.bmm(x, params["Q"].transpose(1, 2)) * params["E"].unsqueeze(1)
        return torch.baddbmm(y, z, params["P"].transpose(1, 2), alpha=self.scale)

    def factors(self, state: Tensors) -> tuple[Tensor, Tensor]:
        return self.scale * state["P"] * state["E"], state["Q"]


ADAPTERS.add("triplet", Triplet, Triplet.summary)
