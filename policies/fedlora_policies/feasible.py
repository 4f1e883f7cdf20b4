"""Policies that go by the link alone: random ranks inside the budget, the largest rank that fits, a table of SNR thresholds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedlora.errors import ConfigError
from fedlora.federation.policy import Observation, PolicySetup, Ranks
from fedlora.streams import stream
from fedlora_policies.known import budget_of, costs_of, links_of, number
from fedlora_policies.simple import numbers


class RandomFeasiblePolicy:
    """Random ranks, cut back to what fits: sites in a random order keep what the ones before them leave room for.

    Args:
        setup: What is known for the whole run.
    """

    summary = "random ranks, cut back to the bytes that fit before the deadline"

    def __init__(self, setup: PolicySetup) -> None:
        self.setup = setup

    def choose(self, observation: Observation) -> Ranks:
        """Return random ranks, independent of what was drawn for other clients."""
        costs, budget = costs_of(observation, "random-feasible"), budget_of(observation)
        sites = len(costs.caps)
        seed, number = self.setup.seed, observation.round
        streams = (stream(seed, "random feasible", number, client) for client in observation.clients.tolist())
        draws = np.stack([rng.random((2, sites)) for rng in streams])
        wanted = (draws[:, 0] * (costs.levels + 1)).astype(np.int64)
        order, row = draws[:, 1].argsort(axis=1), np.arange(len(draws))
        levels, left = np.zeros_like(wanted), budget - costs.base
        for site in order.T:  # the n-th site of every client's order at once
            fits = (costs.table[site] <= left[:, None]).sum(axis=1) - 1
            levels[row, site] = np.clip(wanted[row, site], 0, np.maximum(fits, 0))
            left = left - costs.table[site, levels[row, site]]
        return levels * costs.units


class LargestFeasiblePolicy:
    """The largest uniform rank whose message fits before the deadline, exact to the byte.

    Args:
        setup: What is known for the whole run.
        backoff: Share of the bytes that fit by the estimate to use at most, in (0, 1]: a margin for old or wrong estimates.
    """

    summary = "the largest uniform rank that fits before the deadline at the estimated rate (options: backoff)"

    def __init__(self, setup: PolicySetup, backoff: float = 1.0) -> None:
        self.backoff = number("backoff", backoff, 0.0, 1.0, above=True)

    def choose(self, observation: Observation) -> Ranks:
        """Return each client's largest uniform rank, cut at the caps."""
        costs, budget = costs_of(observation, "largest-feasible"), budget_of(observation, self.backoff)
        uniform = np.minimum(np.arange(int(costs.caps.max()) + 1)[:, None], costs.caps) // costs.units * costs.units
        # Bytes never fall with the rank, so the last one that fits is found by bisection.
        last = np.searchsorted(costs.bytes(uniform), budget, side="right") - 1
        ranks: Ranks = uniform[np.maximum(last, 0)]
        return ranks


class SnrThresholdPolicy:
    """A rank by the SNR, as an adaptive modulation table gives a rate.

    Args:
        setup: What is known for the whole run.
        thresholds_db: SNRs, rising.
        ranks: Rank from each threshold on, one for all sites; below the first threshold nothing is sent.
    """

    summary = "a uniform rank from a table of SNR thresholds (options: thresholds_db, ranks)"

    def __init__(self, setup: PolicySetup, thresholds_db: Sequence[float], ranks: Sequence[int]) -> None:
        levels, steps = numbers("thresholds_db", thresholds_db), numbers("ranks", ranks, whole=True)
        if levels.ndim != 1 or not levels.size or (np.diff(levels) <= 0).any():
            raise ConfigError(f"policy.options.thresholds_db = {thresholds_db}: give a list of rising numbers")
        if steps.shape != levels.shape:
            raise ConfigError(
                f"policy.options.ranks = {ranks} has not one rank for each of the {len(levels)} thresholds_db = {thresholds_db}"
            )
        if steps.min() < 0 or steps.max() > setup.caps.max():
            raise ConfigError(f"policy.options.ranks = {ranks} is outside 0 to {int(setup.caps.max())}, the cap of the adapter")
        self.caps, self.units, self.thresholds_db = setup.caps, setup.units, levels
        self.ranks = np.concatenate([[0], steps])

    def choose(self, observation: Observation) -> Ranks:
        """Return the rank of each client's SNR, cut at the caps."""
        links = links_of(observation, "snr-threshold", "the SNR")
        uniform = self.ranks[np.searchsorted(self.thresholds_db, links.uplink_snr_db, side="right")]
        ranks: Ranks = np.minimum(uniform[:, None], self.caps) // self.units * self.units
        return ranks
