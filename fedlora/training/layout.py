"""Where each trained number of a client lives: one flat row per client, `[K, P]`.

All trained tensors of one client are slices of its row, so that the optimiser, gradient clipping, masks and checkpoints are
a few operations on one matrix instead of loops over tensors and clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedlora.adapters import Adapter, Tensors


@dataclass(frozen=True)
class Slot:
    """One trained tensor: `group` is the site's index, or -1 for the task head."""

    group: int
    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        """End of the slice, exclusive."""
        return self.start + int(np.prod(self.shape))

    def of(self, rows: Tensor) -> Tensor:
        """Return this tensor's view `[K, *shape]` of rows `[K, P]`."""
        return rows[:, self.start : self.stop].view(rows.shape[0], *self.shape)


class Layout:
    """The order of all trained tensors: sites in canonical order, then the task head.

    Args:
        adapters: One per site.
        head: Shapes of the head's parameters by name.
    """

    def __init__(self, adapters: Sequence[Adapter], head: Mapping[str, tuple[int, ...]]) -> None:
        groups = [(index, adapter.param_shapes) for index, adapter in enumerate(adapters)] + [(-1, dict(head))]
        self.slots: list[Slot] = []
        for group, shapes in groups:
            for name, shape in shapes.items():
                self.slots.append(Slot(group, name, shape, self.slots[-1].stop if self.slots else 0))
        self.sites = len(adapters)
        self.size = self.slots[-1].stop if self.slots else 0
        self.head_start = next((slot.start for slot in self.slots if slot.group < 0), self.size)

    def views(self, rows: Tensor) -> tuple[list[Tensors], Tensors]:
        """Return (tensors per site, head tensors), views of `rows` with leading client axis."""
        sites: list[Tensors] = [{} for _ in range(self.sites)]
        head: Tensors = {}
        for slot in self.slots:
            (head if slot.group < 0 else sites[slot.group])[slot.name] = slot.of(rows)
        return sites, head

    def row(self, sites: Sequence[Tensors], head: Tensors) -> Tensor:
        """Return one client's row `[P]` filled from tensors without client axis."""
        tensors = [(head if slot.group < 0 else sites[slot.group])[slot.name] for slot in self.slots]
        return torch.cat([tensor.reshape(-1) for tensor in tensors]) if tensors else torch.zeros(0)
