"""Every registered adapter in every variant, on projections of every shape: what conformance tests run over.

A newly registered adapter is picked up by itself, with all its initialisations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedlora.adapters import ADAPTERS, Adapter, Selection, Tensors
from fedlora.config import AdapterConfig
from fedlora.sites import Site

SITES = {
    "square": Site("block.query", 12, 12),
    "tall": Site("block.up", 12, 20),
    "wide": Site("block.down", 20, 12),
    "conv1d": Site("block.c_attn", 12, 24, transposed=True),
}
# What other settings of an adapter's section change how it behaves; methods not named here have none. Bases beyond the first two
# differ in nothing but numbers, so that one variant of each will do.
_VARIANTS: dict[str, list[dict[str, Any]]] = {
    "ravan": [{"unit": unit} for unit in ("heads", "block", "svd")] + [{"unit": "block", "scales": "fixed"}]
}
RANK, HEADS = 3, 4


@dataclass(frozen=True)
class Case:
    """One variant of one adapter method."""

    method: str
    init: str
    options: tuple[tuple[str, Any], ...] = ()
    round: int = 1

    def __str__(self) -> str:
        turn = [f"round{self.round}"] if ADAPTERS.get(self.method).period > 1 else []
        return "-".join([self.method, self.init, *(str(value) for _, value in self.options), *turn])

    @property
    def lossless(self) -> bool:
        """Whether what is sent is cut out of the state, rather than an approximation of it."""
        return ("unit", "svd") not in self.options

    def make(self, shape: str = "tall", seed: int = 0, index: int = 0, **changes: Any) -> Adapter:
        """Return the adapter on the site called `shape`; `changes` override its section."""
        section = {"method": self.method, "init": self.init, "rank": RANK, "heads": HEADS, "alpha": 5.0, **dict(self.options)}
        if self.method == "full":  # has no scale
            section["alpha"] = None
        config = AdapterConfig(**{**section, **changes})
        return ADAPTERS.get(self.method)(SITES[shape], config, seed, index).at(self.round)


def all_cases() -> Iterator[Case]:
    """Yield every registered method x initialisation x variant x round after which what trains repeats itself."""
    for method in ADAPTERS.names():
        for init in ADAPTERS.get(method).inits:
            variants = _VARIANTS.get(method, [{}])
            for options in variants if init in ADAPTERS.get(method).inits[:2] else variants[:1]:
                for round_number in range(1, ADAPTERS.get(method).period + 1):
                    yield Case(method, init, tuple(options.items()), round_number)


CASES = list(all_cases())
LOSSLESS = [case for case in CASES if case.lossless]


def draw(shapes: dict[str, tuple[int, ...]], seed: int, *lead: int, dtype: torch.dtype = torch.float64) -> Tensors:
    """Return normal tensors of these shapes, with leading axes `lead`."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*lead, *shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def draw_state(adapter: Adapter, seed: int, dtype: torch.dtype = torch.float64) -> Tensors:
    """Return a random state of a client, as training could have left it, what it keeps for itself included."""
    own = {name: adapter.param_shapes[name] for name in adapter.personal}
    return draw({**adapter.state_shapes, **own}, seed, dtype=dtype)


def legal_ranks(adapter: Adapter) -> range:
    """Return every rank that means something at this site, 0 included."""
    return range(0, adapter.cap + 1, adapter.unit)


def scores(adapter: Adapter, seed: int) -> Tensor:
    """Return a score per head that puts the heads into a random order (adapters without heads ignore it)."""
    return torch.rand(adapter.config.heads, generator=torch.Generator().manual_seed(seed))


def select(adapter: Adapter, rho: int, seed: int = 0) -> Selection:
    """Return a selection of rank `rho` whose heads, if any, are in random order."""
    return adapter.select(rho, scores(adapter, seed))


def base_layer(site: Site, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a random frozen projection of the site's shape, nn.Linear or transformers' Conv1D."""
    layer = Conv1D(site.out_features, site.in_features) if site.transposed else nn.Linear(site.in_features, site.out_features)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.to(dtype).requires_grad_(False)


def cast(tensors: Tensors, dtype: torch.dtype = torch.float64) -> Tensors:
    """Return the tensors in another precision."""
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}
