"""Policies without a model: a fixed rank, tiers of clients, and random ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError, suggest
from fedlora.federation.policy import Observation, PolicySetup, Ranks
from fedlora.streams import stream


class FixedPolicy:
    """The same rank, or the same rank vector, for every client and round.

    Args:
        setup: What is known for the whole run.
        rank: One rank for all sites, or one per site.
    """

    summary = "one rank, or one rank vector, for everybody (options: rank)"
    blind = True

    def __init__(self, setup: PolicySetup, rank: int | Sequence[int]) -> None:
        ranks = numbers("rank", rank, whole=True)
        if ranks.shape not in ((), setup.caps.shape):
            raise ConfigError(f"policy.options.rank = {rank}: give one rank, or one for each of the {len(setup.caps)} sites")
        self.ranks = np.broadcast_to(ranks, setup.caps.shape)
        if (self.ranks < 0).any() or (self.ranks > setup.caps).any():
            raise ConfigError(f"policy.options.rank = {rank} is outside 0 to {int(setup.caps.max())}, the cap of the adapter")
        nothing = (self.ranks > 0) & (self.ranks < setup.units)
        if nothing.any():
            site = int(nothing.argmax())
            raise ConfigError(
                f"policy.options.rank: {self.ranks[site]} is less than {setup.units[site]}, the smallest step of a rank there "
                "(for ravan one head), and would train nothing: raise it, or give 0 where nothing is to be trained"
            )
        self.steady_ranks = np.broadcast_to(self.ranks, (setup.clients, len(setup.caps)))

    def choose(self, observation: Observation) -> Ranks:
        """Return the fixed ranks for everybody."""
        return np.tile(self.ranks, (len(observation.clients), 1))


MIXES = {"uniform": (0.25, 0.25, 0.25, 0.25), "bell": (0.1, 0.4, 0.4, 0.1), "skewed": (0.5, 0.25, 0.15, 0.1)}
"""Shares of clients in four tiers, from the smallest budget to the largest. The paper gives its own only as a picture."""


class TieredPolicy:
    """Every client belongs to a tier for the whole run and gets that tier's share of the cap (arXiv 2506.05568, section 4.2).

    For ravan a share of the cap is a number of heads, for the methods of components it is a rank.

    Args:
        setup: What is known for the whole run.
        fractions: Share of the cap per tier, each in (0, 1].
        weights: Share of clients per tier; default: equal shares.
        mix: A name of `MIXES` instead of weights, for four tiers.
    """

    summary = "tiers of clients with a fixed share of the cap each (options: fractions, weights, mix)"
    blind = True

    def __init__(
        self,
        setup: PolicySetup,
        fractions: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
        weights: Sequence[float] | None = None,
        mix: str | None = None,
    ) -> None:
        tiers_of = numbers("fractions", fractions)
        if tiers_of.ndim != 1 or not tiers_of.size or tiers_of.min() <= 0 or tiers_of.max() > 1:
            raise ConfigError(f"policy.options.fractions = {fractions}: give a list of numbers above 0 and at most 1")
        if mix is not None:
            weights = _mix(mix, weights, len(tiers_of))
        shares = np.ones(len(tiers_of)) if weights is None else numbers("weights", weights)
        if shares.shape != tiers_of.shape or (shares < 0).any() or shares.sum() <= 0:
            raise ConfigError(f"policy.options.weights = {weights}: give one share per fraction, none negative, not all zero")
        # Exact shares in a shuffled order, instead of drawing each client's tier: small federations then have every tier.
        edges = np.round(np.cumsum(shares / shares.sum()) * setup.clients).astype(int)
        tiers = np.searchsorted(edges, np.arange(setup.clients), side="right")
        tiers = stream(setup.seed, "tiers").permutation(tiers)
        fraction = tiers_of[tiers]
        self.steady_ranks: Ranks = np.floor(fraction[:, None] * setup.caps + 1e-9).astype(np.int64)
        least = self.steady_ranks.min(axis=0)
        if (least < setup.units).any():
            site = int(np.argmax(least < setup.units))
            raise ConfigError(
                f"policy.options.fractions: {fraction.min():g} of the cap {setup.caps[site]} is less than "
                f"{setup.units[site]}, the smallest step of a rank there (for ravan one head): raise the fraction, or take "
                "more heads or a higher rank"
            )

    def choose(self, observation: Observation) -> Ranks:
        """Return each client's share of the caps."""
        return self.steady_ranks[observation.clients]


def _mix(mix: str, weights: Sequence[float] | None, tiers: int) -> Sequence[float]:
    if weights is not None:
        raise ConfigError("policy.options: give either weights or mix, not both")
    if mix not in MIXES:
        raise ConfigError(f"policy.options.mix = '{mix}' is unknown. {suggest(str(mix), MIXES)}")
    if tiers != len(MIXES[mix]):
        raise ConfigError(f"policy.options.mix is for {len(MIXES[mix])} tiers, fractions has {tiers}: give weights instead")
    return MIXES[mix]


class RandomPolicy:
    """Every client, site and round draws its rank uniformly from the legal ones.

    Args:
        setup: What is known for the whole run.
        low: Smallest rank drawn, as a share of the cap.
    """

    summary = "uniformly random legal ranks per client, site and round (options: low)"
    blind = True

    def __init__(self, setup: PolicySetup, low: float = 0.0) -> None:
        share = numbers("low", low)
        if share.ndim or not 0 <= share <= 1:
            raise ConfigError(f"policy.options.low = {low}: give a number from 0 to 1")
        self.setup, self.low = setup, low

    def choose(self, observation: Observation) -> Ranks:
        """Return random ranks, independent of what was drawn for other clients."""
        steps = self.setup.caps // self.setup.units
        first = np.ceil(self.low * steps).astype(np.int64)
        rows = [
            stream(self.setup.seed, "random ranks", observation.round, int(client)).integers(first, steps + 1) * self.setup.units
            for client in observation.clients
        ]
        return np.stack(rows)


def numbers(option: str, value: object, whole: bool = False) -> NDArray[Any]:
    """Return an option as an array of finite numbers; ConfigError where it is anything else, truth values included."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.asarray("")
    if array.size and (array.dtype.kind not in ("iu" if whole else "iuf") or not np.isfinite(array).all()):
        raise ConfigError(f"policy.options.{option} = {value!r}: give {'whole numbers' if whole else 'numbers'}")
    return array.astype(np.int64 if whole else float)
