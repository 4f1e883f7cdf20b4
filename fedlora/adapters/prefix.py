"""What lora and triplet share: components in an order of their own, of which a client trains and sends the leading rho."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedlora.adapters.base import Adapter, Selection, Tensors
from fedlora.wire import TensorSpec


class PrefixAdapter(Adapter):
    """An adapter whose state tensors each have one axis that counts components.

    Subclasses name that axis per tensor in `component_axis`; slicing, masks and schema follow from it.
    """

    component_axis: ClassVar[dict[str, int]]

    def state_masks(self, selection: Selection) -> Tensors:
        return {
            name: _leading(shape, self.component_axis[name], selection.rho).expand(shape)
            for name, shape in self.state_shapes.items()
        }

    def spec(self, rho: int) -> dict[str, TensorSpec]:
        rho = self.snap(rho)
        if rho == 0:
            return {}
        cut = {}
        for name, shape in self.state_shapes.items():
            axis = self.component_axis[name]
            cut[name] = TensorSpec((*shape[:axis], rho, *shape[axis + 1 :]))
        return cut

    def slice(self, state: Tensors, selection: Selection) -> Tensors:
        if selection.rho == 0:
            return {}
        return {name: tensor.narrow(self.component_axis[name], 0, selection.rho) for name, tensor in state.items()}

    def place(self, tensors: Tensors, rho: int, received: Tensors) -> tuple[Tensors, Tensors]:
        self.check_payload(tensors, rho)
        values = {name: tensor.clone() for name, tensor in received.items()}
        for name, tensor in tensors.items():
            values[name].narrow(self.component_axis[name], 0, self.snap(rho)).copy_(tensor)
        return values, self.state_masks(self.select(rho))


def _leading(shape: tuple[int, ...], axis: int, count: int) -> Tensor:
    """Return a mask that broadcasts to `shape` and covers the first `count` entries along `axis`."""
    view = [1] * len(shape)
    view[axis] = shape[axis]
    return (torch.arange(shape[axis]) < count).view(view)
