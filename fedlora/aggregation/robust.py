"""Rules that withstand some clients which send anything: coordinate median, trimmed mean, Multi-Krum, and a norm bound.

Median and trimmed mean (Yin et al. 2018, arXiv 1803.01498) work number by number, Multi-Krum (Blanchard et al. 2017, arXiv
1703.02757) on whole updates; they compare clients, which takes payloads of equal shape: all clients of a round send the same
entries. The norm bound (Sun et al. 2019, arXiv 1911.07963) cuts each client's change down to a length and averages; it takes any
mix of ranks. What is combined is the adapter's state: for lora the factors one by one, as `fedavg-factors` does; for ravan s H.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora.adapters import Adapter, Tensors
from fedlora.aggregation.base import AGGREGATORS, Aggregator, CoverageMean, GlobalState, Update, in_order, part_of
from fedlora.errors import AggregationError, ConfigError


class _Robust(Aggregator):
    """What the rules share: every client's values as one flat dictionary, beside what it sent."""

    exact = "no: robust"

    def placed(self, updates: Sequence[Update], state: GlobalState, round_number: int) -> Iterator[tuple[Tensors, Tensors]]:
        """Yield (values, masks of what was sent) of each client, keyed as the flat state; names and shapes are compared."""
        old, adapters = state.flat(), self.at(round_number)
        for update in updates:
            values: Tensors = {f"head/{name}": tensor for name, tensor in update.head.items()}
            masks = {name: torch.ones(tensor.shape, dtype=torch.bool) for name, tensor in values.items()}
            for index, adapter in enumerate(adapters):
                own, sent = adapter.place(update.sites[index], update.ranks[index], state.sites[index])
                values |= {f"{index}/{name}": tensor for name, tensor in own.items()}
                masks |= {f"{index}/{name}": mask for name, mask in sent.items()}
            if values.keys() != old.keys():
                raise ValueError(f"there are tensors {sorted(values)}, expected {sorted(old)}")
            for key, tensor in values.items():
                if tensor.shape != old[key].shape:
                    name = key.partition("/")[2]
                    raise ValueError(f"tensor '{name}' has shape {tuple(tensor.shape)}, expected {tuple(old[key].shape)}")
            yield values, masks

    def coverage(self, masks: Tensors) -> list[float]:
        """Return the share of entries per site that these masks cover."""
        shares = []
        for index in range(len(self.adapters)):
            own = [mask for key, mask in masks.items() if key.startswith(f"{index}/")]
            shares.append(sum(int(mask.sum()) for mask in own) / sum(mask.numel() for mask in own))
        return shares


class _EqualShapes(_Robust):
    """A rule that compares clients, and so refuses updates that cover different entries."""

    mixed_ranks = False
    default_weighting = "uniform"
    weightings = ("uniform",)

    def objection_to(self, ranks: NDArray[np.int64]) -> str:
        if reason := super().objection_to(ranks):
            return reason
        caps = np.array([adapter.cap for adapter in self.adapters])
        if any("H" in adapter.state_shapes for adapter in self.adapters) and (ranks != caps).any():
            return "clients below the cap choose heads of their own, so that their updates cover different entries"
        return ""

    def aggregate(self, updates: Sequence[Update], state: GlobalState, round_number: int) -> tuple[GlobalState, list[float]]:
        updates = in_order(updates)
        if reason := self.objection_to_count(len(updates)):
            raise AggregationError(f"aggregator.method = '{self.name}' can make nothing of this round: {reason}")
        pairs = list(self.placed(updates, state, round_number))
        masks = pairs[0][1]
        if any(not torch.equal(mask, other[key]) for _, other in pairs[1:] for key, mask in masks.items()):
            raise AggregationError(
                f"aggregator.method = '{self.name}' compares clients entry by entry, and their updates cover different entries: "
                "give all clients of a round the same ranks"
            )
        merged: Tensors = {}
        old = state.flat()
        stacked = {key: torch.stack([values[key] for values, _ in pairs]) for key in masks}
        for key, value in self.combine(stacked, old).items():
            merged[key] = torch.where(masks[key], value, old[key])
        after = GlobalState.from_flat(merged, len(state.sites))
        head = {name: after.head[name] for name in state.head}
        sites = [{name: site[name] for name in was} for site, was in zip(after.sites, state.sites, strict=True)]
        return state.followed_by(sites, head), self.coverage(masks)

    @abstractmethod
    def combine(self, stacked: Tensors, old: Tensors) -> Tensors:
        """Return one tensor for each stack of the clients' values `[clients, ...]`; `old` is the state they started from."""


class Median(_EqualShapes):
    """Every number becomes the clients' median, the mean of the two in the middle where their count is even."""

    name = "median"
    summary = "coordinate-wise median (clients of equal ranks)"
    source = "arXiv 1803.01498"

    def combine(self, stacked: Tensors, old: Tensors) -> Tensors:
        return {key: _middle(values, (len(values) - 1) // 2) for key, values in stacked.items()}


class TrimmedMean(_EqualShapes):
    """Every number becomes the mean of the clients' without the largest and smallest.

    Cut off are floor(share n) at each end, as scipy and Flower do it, but one at least: cutting nobody off would be the mean.

    Args:
        adapters: One per site, in canonical order.
        weighting: "uniform" or "auto".
        share: Share of clients cut off at each end, in [0, 0.5); 0 is the mean.
    """

    name = "trimmed-mean"
    summary = "coordinate-wise mean without the extremes (options: share; clients of equal ranks)"
    source = "arXiv 1803.01498"

    def __init__(self, adapters: Sequence[Adapter], weighting: str = "auto", *, share: float = 0.2) -> None:
        super().__init__(adapters, weighting)
        self.share_cut = _share("share", share)

    def objection_to_count(self, clients: int) -> str:
        if not self.share_cut or clients >= 3:
            return ""
        return f"it cuts at least one client off at each end, which takes 3 clients to leave one, and there {_are(clients)}"

    def combine(self, stacked: Tensors, old: Tensors) -> Tensors:
        clients = len(next(iter(stacked.values())))
        cut = max(1, math.floor(part_of(self.share_cut, clients))) if self.share_cut else 0
        return {key: _middle(values, cut) for key, values in stacked.items()}


class MultiKrum(_EqualShapes):
    """The mean of the updates that lie closest to their neighbours.

    A client's score is the sum of squared distances to its n - f - 2 nearest others; the `select` clients with the smallest
    scores are averaged. Distances are over all sites and the head, on what was changed. The paper's guarantee needs
    n >= 2 f + 3; with fewer, attackers who send the same are each other's nearest and win, so that such rounds are refused.

    Args:
        adapters: One per site, in canonical order.
        weighting: "uniform" or "auto".
        malicious: Share of clients that may be malicious, in [0, 0.5); f = ceil(malicious n).
        select: Clients to average, 1 to n - f; default n - f. 1 is Krum.
    """

    name = "multi-krum"
    summary = "mean of the updates closest to their neighbours (options: malicious, select; clients of equal ranks)"
    source = "arXiv 1703.02757"

    def __init__(
        self, adapters: Sequence[Adapter], weighting: str = "auto", *, malicious: float = 0.2, select: int | None = None
    ) -> None:
        super().__init__(adapters, weighting)
        self.malicious = _share("malicious", malicious)
        if select is not None and (isinstance(select, bool) or not isinstance(select, int) or select < 1):
            raise ConfigError(f"aggregator.options.select must be a whole number of at least 1, got {select!r}")
        self.select = select

    def objection_to_count(self, clients: int) -> str:
        bad = self._bad(clients)
        if clients < 2 * bad + 3:
            return (
                f"with aggregator.options.malicious = {self.malicious:g}, f = {bad} of {clients} clients may be malicious, and "
                f"it takes at least 2 f + 3 = {2 * bad + 3} clients to tell them from the others"
            )
        if self.select is not None and self.select > clients - bad:
            return (
                f"aggregator.options.select = {self.select} is more than n - f = {clients - bad}, the clients that are left "
                f"where f = {bad} of {clients} may be malicious"
            )
        return ""

    def _bad(self, clients: int) -> int:
        """Return f, the clients that may be malicious."""
        return math.ceil(part_of(self.malicious, clients))

    def combine(self, stacked: Tensors, old: Tensors) -> Tensors:
        clients = len(next(iter(stacked.values())))
        changes = torch.cat([(values.double() - old[key].double()).flatten(1) for key, values in stacked.items()], dim=1)
        bad = self._bad(clients)
        distances = torch.cdist(changes, changes).square()
        distances.fill_diagonal_(math.inf)
        scores = distances.sort(dim=1).values[:, : clients - bad - 2].sum(dim=1)
        best = scores.argsort(stable=True)[: self.select or clients - bad].sort().values
        return {key: values[best].mean(dim=0) for key, values in stacked.items()}


class NormBound(_Robust):
    """The weighted mean, after every client's change was cut down to a common length over all sites and the head.

    Args:
        adapters: One per site, in canonical order.
        weighting: "uniform", "examples", or "auto" (uniform).
        bound: The length, > 0; default: the median of the round's lengths, the lower one of two in the middle: their mean
            would let half of the clients lift it as they like.
    """

    name = "norm-bound"
    summary = "mean of changes cut down to a length (options: bound, default the round's median)"
    source = "arXiv 1911.07963"
    mixed_ranks = True
    default_weighting = "uniform"

    def __init__(self, adapters: Sequence[Adapter], weighting: str = "auto", *, bound: float | None = None) -> None:
        super().__init__(adapters, weighting)
        numeric = isinstance(bound, int | float) and not isinstance(bound, bool)
        if bound is not None and not (numeric and 0 < bound < math.inf):
            raise ConfigError(f"aggregator.options.bound must be a number above 0, got {bound!r}")
        self.bound = bound

    def aggregate(self, updates: Sequence[Update], state: GlobalState, round_number: int) -> tuple[GlobalState, list[float]]:
        updates, old = in_order(updates), state.flat()
        pairs = list(self.placed(updates, state, round_number))
        norms = [
            math.sqrt(sum(float((values[key].double() - old[key].double()).square().sum()) for key in values))
            for values, _ in pairs
        ]
        bound = sorted(norms)[(len(norms) - 1) // 2] if self.bound is None else self.bound
        mean = CoverageMean(old)
        for (values, masks), weight, norm in zip(pairs, self.weights(updates), norms, strict=True):
            factor, cut = min(1.0, bound / norm) if norm else 1.0, values
            if factor < 1:  # in float64, where the difference of two float32 does not overflow
                cut = {key: old[key].double() + (value.double() - old[key]) * factor for key, value in values.items()}
            mean.add(cut, masks, weight)
        merged = GlobalState.from_flat(mean.result()[0], len(state.sites))
        union: Tensors = {}
        for _, masks in pairs:
            union = {key: mask | union[key] if key in union else mask for key, mask in masks.items()}
        return state.followed_by(merged.sites, merged.head), self.coverage(union)


def _middle(values: Tensor, cut: int) -> Tensor:
    """Return the mean over clients of each number without the `cut` smallest and largest, `values` being `[clients, ...]`."""
    return values.sort(dim=0).values[cut : len(values) - cut].mean(dim=0)


def _are(clients: int) -> str:
    return "is 1" if clients == 1 else f"are {clients}"


def _share(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 0.5:
        raise ConfigError(f"aggregator.options.{name} must be at least 0 and below 0.5, got {value!r}")
    return float(value)


for _rule in (Median, TrimmedMean, MultiKrum, NormBound):
    AGGREGATORS.add(_rule.name, _rule, _rule.summary)
