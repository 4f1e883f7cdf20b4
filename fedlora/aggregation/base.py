"""The contract of an aggregator: how the updates of a round become the next global state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora.adapters import Adapter, Tensors
from fedlora.config import AggregatorConfig
from fedlora.errors import AggregationError, ConfigError
from fedlora.registry import Registry
from fedlora.wire import TensorSpec

Merge = tuple[Tensor, Tensor]
"""(B, A), `[out, R]` and `[R, in]`: an update that is added to the frozen weight itself."""


@dataclass
class GlobalState:
    """What the server holds between rounds.

    Attributes:
        sites: Tensors per site in canonical order; every broadcast carries them.
        head: The task head by parameter name; every broadcast carries it.
        bases: Frozen tensors per site that each client is sent once and keeps (Fed-SB), or nothing.
        memory: What the server alone remembers (moments of its optimiser); never sent.
    """

    sites: list[Tensors]
    head: Tensors = field(default_factory=dict)
    bases: list[Tensors] = field(default_factory=list)
    memory: Tensors = field(default_factory=dict)

    def flat(self) -> Tensors:
        """Return what a broadcast carries, under keys such as "3/H" and "head/classifier.weight"."""
        tensors = {f"{index}/{name}": tensor for index, site in enumerate(self.sites) for name, tensor in site.items()}
        return tensors | {f"head/{name}": tensor for name, tensor in self.head.items()}

    def flat_bases(self) -> Tensors:
        """Return the bases under keys such as "bases/3/B"."""
        return {f"bases/{index}/{name}": tensor for index, site in enumerate(self.bases) for name, tensor in site.items()}

    @staticmethod
    def from_flat(tensors: Tensors, sites: int) -> GlobalState:
        """Undo `flat` and `flat_bases`; `sites` is the number of sites."""
        state = GlobalState([{} for _ in range(sites)])
        for key, tensor in tensors.items():
            where, _, name = key.partition("/")
            if where == "bases":
                state.bases = state.bases or [{} for _ in range(sites)]
                index, _, name = name.partition("/")
                state.bases[int(index)][name] = tensor
            else:
                (state.head if where == "head" else state.sites[int(where)])[name] = tensor
        return state

    def followed_by(self, sites: list[Tensors], head: Tensors) -> GlobalState:
        """Return the next state: new sites and head, bases and memory as they are."""
        return GlobalState(sites, head, self.bases, self.memory)

    def spec(self, bases: bool = False) -> dict[str, TensorSpec]:
        """Return the schema of the whole state as one message, with the bases or without."""
        tensors = self.flat() | (self.flat_bases() if bases else {})
        return {key: TensorSpec(tuple(tensor.shape)) for key, tensor in tensors.items()}


@dataclass(frozen=True)
class Update:
    """One client's validated reply.

    Attributes:
        client: Its number; updates are combined in this order whatever order they came in.
        examples: Training examples it holds.
        ranks: Its rank vector, one per site, as it was sent.
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
    """Whether clients of a round may have different ranks at a site; where not, policies that mix them are refused."""
    default_weighting: ClassVar[str]
    weightings: ClassVar[tuple[str, ...]] = ("uniform", "examples")
    sliced_downlink: ClassVar[bool] = True
    own_prefix: ClassVar[bool] = False
    """Whether a client works with the part of the state that its ranks cover and takes the rest for zero, whatever was sent."""
    steady: ClassVar[bool] = True
    """Whether the difference of two states is a step, which a server optimiser can take at another size."""
    prunes: ClassVar[bool] = False
    """Whether clients may lower their ranks for good (`settle`)."""

    def __init__(self, adapters: Sequence[Adapter], weighting: str = "auto") -> None:
        self.adapters = list(adapters)
        self.weighting = self.default_weighting if weighting == "auto" else weighting
        if self.weighting not in self.weightings:
            given = get_args(AggregatorConfig.model_fields["weighting"].annotation)  # a rule's own way has no value in a run file
            fits = [f"'{value}'" for value in given if value == "auto" or value in self.weightings]
            raise ConfigError(
                f"aggregator.weighting = '{weighting}' does not fit aggregator.method = '{self.name}', which weights clients in "
                f"its own way: use {' or '.join(fits)}"
            )
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

    def objection_to(self, ranks: NDArray[np.int64]) -> str:
        """Return why these rank vectors of a round's clients, `[clients, sites]`, cannot be aggregated together, or nothing."""
        if self.mixed_ranks or len(ranks) < 2 or bool((ranks == ranks[0]).all()):
            return ""
        return "it compares clients entry by entry and cannot mix ranks"

    def objection_to_count(self, clients: int) -> str:
        """Return why the replies of so many clients cannot be aggregated together, or nothing."""
        return ""

    def check_count(self, clients_per_round: int) -> None:
        """Refuse a run whose rounds have too few clients for the rule even if all of them reply (ConfigError)."""
        if reason := self.objection_to_count(clients_per_round):
            raise ConfigError(
                f"clients_per_round = {clients_per_round} does not fit aggregator.method = '{self.name}': {reason}. "
                "Raise clients_per_round or change aggregator.options"
            )

    def penalty(self, sites: Sequence[Tensors], ranks: Tensor) -> Tensor | None:
        """Return what clients add to their mean losses, `[K]`, or None.

        Args:
            sites: Parameters per site with client axis, `[K, ...]`.
            ranks: Rank vectors, `[K, sites]`.
        """
        return None

    def settle(self, index: int, rho: int, start: Tensors, trained: Tensors) -> int:
        """Return the rank, at most `rho`, that a client keeps at site `index` after training and sends (`prunes` alone)."""
        return rho

    def at(self, round_number: int) -> list[Adapter]:
        """Return the adapters as they train in a round."""
        return [adapter.at(round_number) for adapter in self.adapters]

    def weights(self, updates: Sequence[Update]) -> list[float]:
        """Return one weight per update, not yet normalised.

        Raises:
            AggregationError: They add up to nothing.
        """
        weights = [float(update.examples) if self.weighting == "examples" else 1.0 for update in updates]
        if updates and not sum(weights) > 0:
            raise AggregationError("there is nothing to aggregate: the clients of the round have no examples to be weighted by")
        return weights

    @abstractmethod
    def aggregate(self, updates: Sequence[Update], state: GlobalState, round_number: int) -> tuple[GlobalState, list[float]]:
        """Return (next state, coverage per site: share of entries that at least one client sent).

        `state` is not changed; what no client sent keeps its values bit by bit.

        Raises:
            AggregationError: There is no update, or the rule can make nothing of those that there are.
        """

    def export_factors(self, index: int, site: Tensors) -> Merge:
        """Return (B, A) of the global update at a site, scale included, as it stands after aggregation."""
        return self.adapters[index].factors(site)


def in_order(updates: Sequence[Update]) -> list[Update]:
    """Return the updates by client, so that the order of arrival does not matter (AggregationError where there are none)."""
    if not updates:
        raise AggregationError("there is nothing to aggregate: no update has come")
    return sorted(updates, key=lambda update: update.client)


def two_factors(adapters: Sequence[Adapter]) -> str:
    """Return why these adapters are not pairs of factors that train and travel together, or nothing."""
    if any(adapter.personal for adapter in adapters):
        return "its clients keep a factor for themselves, so that the server has no product to work with. Use 'fedavg-factors'"
    if any(adapter.averages_exactly for adapter in adapters):
        return f"its mean is exact already. Use '{adapters[0].default_aggregator}'"
    return ""


def plain_lora(adapters: Sequence[Adapter]) -> str:
    """Return why these adapters are not plain LoRA, whose state is A and B, or nothing."""
    odd = any(adapter.state_shapes.keys() != {"A", "B"} for adapter in adapters)
    return two_factors(adapters) or ("it works on the factors A and B of a LoRA. Use adapter.method = 'lora'" if odd else "")


class CoverageMean:
    """Weighted mean of tensors of which each client may have sent only a part.

    Every entry is averaged over the clients that sent it, with weights renormalised per entry; entries that nobody sent keep
    their old value. Names and shapes are compared, never broadcast. Sums are kept in float64: no float32 that a client can send
    makes them overflow, whatever its weight, and the mean of float32 numbers is one itself.

    Args:
        old: What entries keep that nobody sends.
        over: Divide what somebody sent by this weight instead of its senders' (zero-padding: all clients').
    """

    def __init__(self, old: Tensors, over: float | None = None) -> None:
        self.old, self.over = old, over
        self.total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in old.items()}
        # Weight of the clients that sent a whole tensor, and per entry of those that left some out: most runs have none.
        self.whole = dict.fromkeys(old, 0.0)
        self.partial: Tensors = {}

    def add(self, values: Tensors, masks: Tensors | None, weight: float) -> None:
        """Take one client's values; `masks` (bool) says which entries it sent, None means all."""
        if values.keys() != self.old.keys():
            raise ValueError(f"there are tensors {sorted(values)}, expected {sorted(self.old)}")
        for name, value in values.items():
            if value.shape != self.old[name].shape:
                raise ValueError(f"tensor '{name}' has shape {tuple(value.shape)}, expected {tuple(self.old[name].shape)}")
            if masks is not None and masks[name].shape != value.shape:
                raise ValueError(f"the mask of '{name}' has shape {tuple(masks[name].shape)}, expected {tuple(value.shape)}")
            total = self.total[name]
            if masks is None or bool(masks[name].all()):
                total.add_(value, alpha=weight)
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
                weight = torch.where(sent, weight, 1.0) if self.over is None else torch.full_like(weight, self.over)
                merged[name] = torch.where(sent, (self.total[name] / weight).to(old.dtype), old)
                covered += int(sent.sum())
            else:
                merged[name] = (self.total[name] / (self.over or self.whole[name])).to(old.dtype) if self.whole[name] else old
                covered += old.numel() if self.whole[name] else 0
        return merged, covered / entries if entries else 0.0


def mean_head(updates: Sequence[Update], weights: Sequence[float], old: Tensors) -> Tensors:
    """Return the weighted mean of the task heads (FedAvg); every update carries the whole head."""
    mean = CoverageMean(old)
    for update, weight in zip(updates, weights, strict=True):
        mean.add(update.head, None, weight)
    return mean.result()[0]


def part_of(share: float, count: int) -> Fraction:
    """Return share x count with the share taken for the decimal that was written: 0.28 of 25 is 7, not a hair more."""
    return Fraction(repr(share)) * count


AGGREGATORS: Registry[type[Aggregator]] = Registry("aggregator method", "fedlora.aggregators")
