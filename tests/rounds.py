"""One round's updates made by hand: random client states, cut at each client's ranks, as the server sees them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cases import SITES, Case, draw, draw_state, select
from fedlora.adapters import Adapter, Tensors
from fedlora.aggregation import Update

HEAD = {"classifier.weight": (3, 4), "classifier.bias": (3,)}


def adapters_of(case: Case, shapes: Sequence[str] = ("tall", "conv1d")) -> list[Adapter]:
    """Return one adapter per site."""
    return [case.make(shape, index=index) for index, shape in enumerate(shapes)]


def client_states(adapters: Sequence[Adapter], client: int, dtype: torch.dtype = torch.float64) -> list[Tensors]:
    """Return what client number `client` holds after training."""
    return [draw_state(adapter, 100 * client + index, dtype) for index, adapter in enumerate(adapters)]


def make_update(
    adapters: Sequence[Adapter], client: int, ranks: Sequence[int], examples: int = 10, dtype: torch.dtype = torch.float64
) -> Update:
    """Return the update of a client that trained at these ranks and picked its heads at random."""
    sites = []
    for index, (adapter, state) in enumerate(zip(adapters, client_states(adapters, client, dtype), strict=True)):
        zero = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        sent, _ = adapter.upload(state, zero, {}, select(adapter, ranks[index], seed=7 * client + index))
        sites.append(sent)
    return Update(client, examples, list(ranks), sites, draw(HEAD, 1000 + client, dtype=dtype))


def start_state(adapters: Sequence[Adapter], dtype: torch.dtype = torch.float64) -> list[Tensors]:
    """Return a global state in the middle of a run."""
    return client_states(adapters, 50, dtype)


def relative(found: Tensor, wanted: Tensor) -> float:
    """Return the error relative to the size of what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


__all__ = ["HEAD", "SITES", "adapters_of", "client_states", "make_update", "relative", "start_state"]
