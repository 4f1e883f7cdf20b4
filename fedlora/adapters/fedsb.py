"""Fed-SB: the update is scale * B R A with B and A frozen and r x r numbers trained (Singhal et al. 2025, arXiv 2502.15436).

B and A are the leading singular vectors of what a first gradient step of full fine-tuning would do, -eta sign(G), and R starts
as its singular values (`init = "gradient-svd"`). They follow from data, so they cross the air: once per client, and are
counted. Only R travels after that. With `init = "random"` B and A are orthonormal and come from the seed, R starts at zero.

The original knows one rank for all; here a smaller rank is the leading square of R, since singular vectors come in order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedlora.adapters.base import ADAPTERS, Adapter, Selection, Tensors
from fedlora.errors import PayloadError
from fedlora.wire import TensorSpec


class FedSB(Adapter):
    """B `[out, r]` and A `[r, in]` have orthonormal columns and rows; until they are installed they are random ones."""

    summary = "B R A with frozen singular vectors of the first gradient step; averages exactly"
    trained = "R"
    source = "arXiv 2502.15436"
    averages_exactly = True
    default_aggregator = "mean"
    inits = ("gradient-svd", "random")

    @property
    def starts_from_gradients(self) -> bool:
        return self.init == "gradient-svd"

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"R": (self.rank, self.rank)}

    def buffers(self) -> Tensors:
        if self._buffers is None:
            b = torch.randn(self.site.out_features, self.rank, generator=self.generator("B"), dtype=torch.float64)
            a = torch.randn(self.site.in_features, self.rank, generator=self.generator("A"), dtype=torch.float64)
            self._buffers = {"B": torch.linalg.qr(b).Q.float(), "A": torch.linalg.qr(a).Q.T.float().contiguous()}
        return self._buffers

    def init_state(self, generation: int = 0) -> Tensors:
        return {"R": torch.zeros(self.state_shapes["R"])}

    def from_gradient(self, gradient: Tensor, step: float) -> tuple[Tensors, Tensors]:
        u, s, v = torch.linalg.svd(-step * gradient.double().sign(), full_matrices=False)
        r = self.rank
        buffers = {"B": u[:, :r].float().contiguous(), "A": v[:r].float().contiguous()}
        return {"R": torch.diag(s[:r] / self.scale).float()}, buffers

    def add_to(self, y: Tensor, x: Tensor, params: Tensors, buffers: Tensors) -> Tensor:
        z = torch.bmm(torch.nn.functional.linear(x, buffers["A"]), params["R"].transpose(1, 2))
        return y + self.scale * torch.nn.functional.linear(z, buffers["B"])

    def factors(self, state: Tensors) -> tuple[Tensor, Tensor]:
        core, buffers = state["R"], self.buffers()
        return self.scale * buffers["B"].to(core) @ core, buffers["A"].to(core)

    def state_masks(self, selection: Selection) -> Tensors:
        mask = torch.zeros(self.state_shapes["R"], dtype=torch.bool)
        mask[: selection.rho, : selection.rho] = True
        return {"R": mask}

    def spec(self, rho: int) -> dict[str, TensorSpec]:
        rho = self.snap(rho)
        return {"R": TensorSpec((rho, rho))} if rho else {}

    def slice(self, state: Tensors, selection: Selection) -> Tensors:
        return {"R": state["R"][: selection.rho, : selection.rho]} if selection.rho else {}

    def place(self, tensors: Tensors, rho: int, received: Tensors) -> tuple[Tensors, Tensors]:
        self.check_payload(tensors, rho)
        selection, value = self.select(rho), received["R"].clone()
        if tensors:
            value[: selection.rho, : selection.rho] = tensors["R"].to(value)
        return {"R": value}, self.state_masks(selection)

    def install(self, buffers: Tensors) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in self.buffers().items()}
        if {name: tuple(tensor.shape) for name, tensor in buffers.items()} != shapes:
            raise PayloadError("shape", f"the bases of site '{self.site.name}' are not {shapes}")
        self._buffers = dict(buffers)


ADAPTERS.add("fed-sb", FedSB, FedSB.summary)
