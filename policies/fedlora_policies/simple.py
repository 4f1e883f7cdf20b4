"""Policies without a model: a fixed rank, tiers of clients, and random ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedlora.errors import ConfigError
from fedlora.federation.policy import Observation, PolicySetup, Ranks
from fedlora.streams import stream


class FixedPolicy:
    """The same rank, or the same rank vector, for every client and round.

    Args:
        setup: What is known for the whole run.
        rank: One rank for all sites, or one per site.
    """

    summary = "one rank, or one rank vector, for everybody (options: rank)"

    def __init__(self, setup: PolicySetup, rank: int | Sequence[int]) -> None:
        self.ranks = (
            np.broadcast_to(np.asarray(rank, np.int64), setup.caps.shape) if np.ndim(rank) == 0 else np.asarray(rank, np.int64)
        )
        if self.ranks.shape != setup.caps.shape:
            raise ConfigError(f"policy.options.rank names {len(self.ranks)} sites, the model has {len(setup.caps)}")
        if (self.ranks < 0).any() or (self.ranks > setup.caps).any():
            raise ConfigError(f"policy.options.rank = {rank} is outside 0 to {int(setup.caps.max())}, the cap of the adapter")

    def choose(self, observation: Observation) -> Ranks:
        """Return the fixed ranks for everybody."""
        return np.tile(self.ranks, (len(observation.clients), 1))


class TieredPolicy:
    """Every client belongs to a tier for the whole run and gets that tier's share of the cap (arXiv 2506.05568, section 4.2).

    Args:
        setup: What is known for the whole run.
        fractions: Share of the cap per tier, each in (0, 1].
        weights: Share of clients per tier; default: equal shares.
    """

    summary = "tiers of clients with a fixed share of the cap each (options: fractions, weights)"

    def __init__(
        self, setup: PolicySetup, fractions: Sequence[float] = (0.25, 0.5, 0.75, 1.0), weights: Sequence[float] | None = None
    ) -> None:
        shares = np.ones(len(fractions)) if weights is None else np.asarray(weights, float)
        if not len(fractions) or min(fractions) <= 0 or max(fractions) > 1:
            raise ConfigError(f"policy.options.fractions = {list(fractions)}: each must be above 0 and at most 1")
        if shares.shape != (len(fractions),) or (shares < 0).any() or shares.sum() <= 0:
            raise ConfigError("policy.options.weights needs one share per fraction, none negative, not all zero")
        # Exact shares in a shuffled order, instead of drawing each client's tier: small federations then have every tier.
        edges = np.round(np.cumsum(shares / shares.sum()) * setup.clients).astype(int)
        tiers = np.searchsorted(edges, np.arange(setup.clients), side="right")
        tiers = stream(setup.seed, "tiers").permutation(tiers)
        self.fractions = np.asarray(fractions, float)[tiers]
        self.caps = setup.caps

    def choose(self, observation: Observation) -> Ranks:
        """Return each client's share of the caps."""
        ranks: Ranks = np.floor(self.fractions[observation.clients][:, None] * self.caps + 1e-9).astype(np.int64)
        return ranks


class RandomPolicy:
    """Every client, site and round draws its rank uniformly from the legal ones.

    Args:
        setup: What is known for the whole run.
        low: Smallest rank drawn, as a share of the cap.
    """

    summary = "uniformly random legal ranks per client, site and round (options: low)"

    def __init__(self, setup: PolicySetup, low: float = 0.0) -> None:
        if not 0 <= low <= 1:
            raise ConfigError(f"policy.options.low = {low} is outside 0 to 1")
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
