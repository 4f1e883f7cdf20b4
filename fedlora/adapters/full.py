"""Full fine-tuning of the adapted projections: a dense change of each weight, the ceiling that low-rank methods aim at.

What trains is the weight `[out, in]` of every site that `adapter.targets` names, and the task head; biases, embeddings and
norms stay frozen, as they do for the other methods. The state is the change, not the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedlora.adapters.base import ADAPTERS, Adapter, Selection, Tensors
from fedlora.errors import ConfigError
from fedlora.wire import TensorSpec


class Full(Adapter):
    """A rank of 1 trains and sends a site's whole weight, 0 nothing of it; `adapter.rank` and `adapter.alpha` mean nothing."""

    summary = "full fine-tuning of the adapted weights, the ceiling; averages exactly"
    trained = "W"
    source = "FedAvg, arXiv 1602.05629"
    averages_exactly = True
    default_aggregator = "mean"
    inits = ("zero",)

    def check(self) -> None:
        if self.init not in self.inits:
            raise ConfigError(f"adapter.init = '{self.init}' is not known to full; it has zero")
        if self.config.alpha is not None:
            raise ConfigError("adapter.alpha has no meaning for adapter.method = 'full', which has no scale: leave it out")
        self.rank = 1

    @property
    def cap(self) -> int:
        return 1

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"W": (self.site.out_features, self.site.in_features)}

    def init_state(self, generation: int = 0) -> Tensors:
        return {"W": torch.zeros(self.state_shapes["W"])}

    def add_to(self, y: Tensor, x: Tensor, params: Tensors, buffers: Tensors) -> Tensor:
        return torch.baddbmm(y, x, params["W"].transpose(1, 2))

    def factors(self, state: Tensors) -> tuple[Tensor, Tensor]:
        """Return (W, I) or (I, W), whichever has fewer columns."""
        out, width = state["W"].shape
        eye = torch.eye(min(out, width), dtype=state["W"].dtype)
        return (state["W"], eye) if width <= out else (eye, state["W"])

    def delta_weight(self, state: Tensors) -> Tensor:
        return state["W"]

    def state_masks(self, selection: Selection) -> Tensors:
        return {"W": torch.full(self.state_shapes["W"], selection.rho > 0)}

    def spec(self, rho: int) -> dict[str, TensorSpec]:
        return {"W": TensorSpec(self.state_shapes["W"])} if self.snap(rho) else {}

    def slice(self, state: Tensors, selection: Selection) -> Tensors:
        return {"W": state["W"]} if selection.rho else {}

    def place(self, tensors: Tensors, rho: int, received: Tensors) -> tuple[Tensors, Tensors]:
        self.check_payload(tensors, rho)
        value = tensors["W"].to(received["W"]).clone() if tensors else received["W"].clone()
        return {"W": value}, self.state_masks(self.select(rho))


ADAPTERS.add("full", Full, Full.summary)
