"""What the LoRA family shares: components in an order of their own, of which a client trains and sends the leading rho."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedlora.adapters.base import Adapter, Selection, Tensors
from fedlora.wire import TensorSpec


class PrefixAdapter(Adapter):
    """An adapter whose trained tensors each have one axis that counts components.

    Subclasses name that axis per tensor in `component_axis`; slicing, masks and schema follow from it.
    """

    component_axis: ClassVar[dict[str, int]]

    @property
    def sent(self) -> tuple[str, ...]:
        """Names of the tensors of the state that clients train and send this round; the others stand still."""
        return tuple(self.state_shapes)

    def state_masks(self, selection: Selection) -> Tensors:
        return {name: self._mask(name, shape, selection.rho) for name, shape in self.state_shapes.items()}

    def param_masks(self, selection: Selection) -> Tensors:
        return {name: self._mask(name, shape, selection.rho) for name, shape in self.param_shapes.items()}

    def _mask(self, name: str, shape: tuple[int, ...], rho: int) -> Tensor:
        trains = name in self.sent or name in self.personal
        return _leading(shape, self.component_axis[name], rho if trains else 0).expand(shape)

    def spec(self, rho: int) -> dict[str, TensorSpec]:
        rho = self.snap(rho)
        if rho == 0:
            return {}
        cut = {}
        for name in self.sent:
            axis, shape = self.component_axis[name], self.state_shapes[name]
            cut[name] = TensorSpec((*shape[:axis], rho, *shape[axis + 1 :]))
        return cut

    def slice(self, state: Tensors, selection: Selection) -> Tensors:
        if selection.rho == 0:
            return {}
        return {name: state[name].narrow(self.component_axis[name], 0, selection.rho) for name in self.sent}

    def place(self, tensors: Tensors, rho: int, received: Tensors) -> tuple[Tensors, Tensors]:
        self.check_payload(tensors, rho)
        values = {name: received[name].clone() for name in self.state_shapes}
        for name, tensor in tensors.items():
            values[name].narrow(self.component_axis[name], 0, self.snap(rho)).copy_(tensor)
        return values, self.state_masks(self.select(rho))


def _leading(shape: tuple[int, ...], axis: int, count: int) -> Tensor:
    """Return a mask that broadcasts to `shape` and covers the first `count` entries along `axis`."""
    view = [1] * len(shape)
    view[axis] = shape[axis]
    return (torch.arange(shape[axis]) < count).view(view)
