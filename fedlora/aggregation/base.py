"""The contract of an aggregator: how the updates of a round become the next global state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedlora.adapters import Adapter, Tensors
from fedlora.errors import ConfigError
from fedlora.registry import Registry
from fedlora.wire import TensorSpec

Merge = tuple[Tensor, Tensor]
"""(B, A), `[out, R]` and `[R, in]`: an update that is added to the frozen weight itself."""


@dataclass
class GlobalState:
    """What the server holds between rounds: tensors per site in canonical order, and the task head by parameter name."""

    sites: list[Tensors]
    head: Tensors = field(default_factory=dict)

    def flat(self) -> Tensors:
        """Return all tensors under keys such as "3/H" and "head/classifier.weight"."""
        tensors = {f"{index}/{name}": tensor for index, site in enumerate(self.sites) for name, tensor in site.items()}
        return tensors | {f"head/{name}": tensor for name, tensor in self.head.items()}

    @staticmethod
    def from_flat(tensors: Tensors, sites: int) -> GlobalState:
        """Undo `flat`; `sites` is the number of sites."""
        state = GlobalState([{} for _ in range(sites)])
        for key, tensor in tensors.items():
            where, _, name = key.partition("/")
            (state.head if where == "head" else state.sites[int(where)])[name] = tensor
        return state

    def spec(self) -> dict[str, TensorSpec]:
        """Return the schema of the whole state as one message."""
        return {key: TensorSpec(tuple(tensor.shape)) for key, tensor in self.flat().items()}


@dataclass(frozen=True)
class Update:
    """One client's validated reply.

    Attributes:
        client: Its number; updates are combined in this order whatever order they came in.
        examples: Training examples it holds.
        ranks: Its rank vector, one per site.
        sites: Decoded payload tensors per site.
        head: Decoded task head.
    """

    client: int
    examples: int
    ranks: Sequence[int]
    sites: list[Tensors]
    head: Tensors


class Aggregator(ABC):
    """One aggregation rule.

    Args:
        adapters: One per site, in canonical order.
        weighting: "uniform", "examples", or "auto" for the rule's own default.

    Raises:
        ConfigError: The rule makes no sense for these adapters.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    exact: ClassVar[str]
    mixed_ranks: ClassVar[bool]
    default_weighting: ClassVar[str]
    sliced_downlink: ClassVar[bool] = True

    def __init__(self, adapters: Sequence[Adapter], weighting: str = "auto") -> None:
        self.adapters = list(adapters)
        self.weighting = self.default_weighting if weighting == "auto" else weighting
        reason = self.objection()
        if reason:
            method = self.adapters[0].config.method
            raise ConfigError(f"aggregator.method = '{self.name}' does not fit adapter.method = '{method}': {reason}")

    def objection(self) -> str:
        """Return why the rule makes no sense for these adapters, or nothing."""
        return ""

    def initial(self, head: Tensors) -> GlobalState:
        """Return the state before the first round."""
        return GlobalState([adapter.init_state() for adapter in self.adapters], head)

    def start(self, index: int, site: Tensors, round_number: int) -> tuple[Tensors, Merge | None]:
        """Return what a client starts from at site `index`: (adapter state, update to merge into the frozen weight).

        Args:
            index: Position of the site.
            site: The site's part of the global state, as received.
            round_number: The round about to be trained; rules that restart the adapter draw from it.
        """
        return site, None

    def weights(self, updates: Sequence[Update]) -> list[float]:
        """Return one positive weight per update, not yet normalised."""
        return [float(update.examples) if self.weighting == "examples" else 1.0 for update in updates]

    @abstractmethod
    def aggregate(self, updates: Sequence[Update], state: GlobalState, round_number: int) -> tuple[GlobalState, list[float]]:
        """Return (next state, coverage per site: share of entries that at least one client sent).

        `state` is not changed; what no client sent keeps its values bit by bit.
        """

    def export_factors(self, index: int, site: Tensors) -> Merge:
        """Return (B, A) of the global update at a site, scale included, as it stands after aggregation."""
        return self.adapters[index].factors(site)


class CoverageMean:
    """Weighted mean of tensors of which each client may have sent only a part.

    Every entry is averaged over the clients that sent it, with weights renormalised per entry; entries that nobody sent keep
    their old value. Shapes are compared, never broadcast.
    """

    def __init__(self, old: Tensors) -> None:
        self.old = old
        self.total = {name: torch.zeros_like(tensor) for name, tensor in old.items()}
        # Weight of the clients that sent a whole tensor, and per entry of those that left some out: most runs have none.
        self.whole = dict.fromkeys(old, 0.0)
        self.partial: Tensors = {}

    def add(self, values: Tensors, masks: Tensors | None, weight: float) -> None:
        """Take one client's values; `masks` (bool) says which entries it sent, None means all."""
        for name, value in values.items():
            if value.shape != self.old[name].shape:
                raise ValueError(f"tensor '{name}' has shape {tuple(value.shape)}, expected {tuple(self.old[name].shape)}")
            if masks is not None and masks[name].shape != value.shape:
                raise ValueError(f"the mask of '{name}' has shape {tuple(masks[name].shape)}, expected {tuple(value.shape)}")
            total = self.total[name]
            if masks is None or bool(masks[name].all()):
                total.add_(value.to(total), alpha=weight)
                self.whole[name] += weight
            else:
                share = masks[name].to(total) * weight
                total.addcmul_(value.to(total), share)
                self.partial.setdefault(name, torch.zeros_like(total)).add_(share)

    def result(self) -> tuple[Tensors, float]:
        """Return (means, covered share of all entries)."""
        merged: Tensors = {}
        covered = entries = 0
        for name, old in self.old.items():
            entries += old.numel()
            if name in self.partial:
                weight = self.partial[name] + self.whole[name]
                sent = weight > 0
                merged[name] = torch.where(sent, self.total[name] / weight.clamp_min(torch.finfo(old.dtype).tiny), old)
                covered += int(sent.sum())
            else:
                merged[name] = self.total[name] / self.whole[name] if self.whole[name] else old
                covered += old.numel() if self.whole[name] else 0
        return merged, covered / entries if entries else 0.0


def mean_head(updates: Sequence[Update], weights: Sequence[float], old: Tensors) -> Tensors:
    """Return the weighted mean of the task heads (FedAvg); every update carries the whole head."""
    mean = CoverageMean(old)
    for update, weight in zip(updates, weights, strict=True):
        mean.add(update.head, None, weight)
    return mean.result()[0]


AGGREGATORS: Registry[type[Aggregator]] = Registry("aggregator method", "fedlora.aggregators")
