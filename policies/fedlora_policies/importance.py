"""Policies that go by what components are worth: by importance, as AdaLoRA does, and by worth per byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora.federation.policy import Observation, PolicySetup, Ranks
from fedlora.ranks import greedy_ranks
from fedlora_policies.known import Floats, budget_of, costs_of, gains_of, number, relative


class GreedyPolicy:
    """What gains most per byte, inside the bytes that fit before the deadline.

    Args:
        setup: What is known for the whole run.
        price: Worth of a byte below which it is not sent, in units of the mean worth of a byte of the full adapter: 0 fills the
            budget, 1 sends what is better than average.
        backoff: Share of the bytes that fit by the estimate to use at most, in (0, 1]: a margin for old or wrong estimates.
    """

    summary = "largest gain per byte inside the budget (options: price, backoff)"

    def __init__(self, setup: PolicySetup, price: float = 0.0, backoff: float = 1.0) -> None:
        self.price = number("price", price, 0.0)
        self.backoff = number("backoff", backoff, 0.0, 1.0, above=True)

    def choose(self, observation: Observation) -> Ranks:
        """Return each client's ranks."""
        costs = costs_of(observation, "greedy")
        gains = relative(gains_of(observation, "greedy"), costs)
        return greedy_ranks(gains, costs, budget_of(observation, self.backoff), self.price)


class ImportancePolicy:
    """A share of the full adapter's bytes, spent on the components of the highest importance (as AdaLoRA, arXiv 2303.10512).

    Importance is smoothed over rounds; unlike worth per byte it does not ask what a component costs.

    Args:
        setup: What is known for the whole run.
        share: Share of the full adapter's bytes that a client may send, in (0, 1]; never more than fits before the deadline.
        memory: Weight of the past in the smoothed importance, in [0, 1); AdaLoRA's beta.
    """

    summary = "the most important components, smoothed over rounds, in a share of the bytes (options: share, memory)"

    def __init__(self, setup: PolicySetup, share: float = 0.5, memory: float = 0.85) -> None:
        self.share = number("share", share, 0.0, 1.0, above=True)
        self.memory = number("memory", memory, 0.0)
        if self.memory >= 1:
            raise ConfigError(f"policy.options.memory = {memory}: give a number of at least 0 and below 1")
        self.clients = setup.clients
        self._smooth: NDArray[np.float32] | None = None

    def choose(self, observation: Observation) -> Ranks:
        """Return each client's ranks."""
        costs = costs_of(observation, "importance")
        seen = self._smoothed(observation, gains_of(observation, "importance"))
        budget = np.minimum(budget_of(observation), self.share * costs.full)
        # What greedy divides by is multiplied in: components are then ranked by worth alone.
        return greedy_ranks(seen * np.maximum(np.diff(costs.table, axis=1), 1), costs, budget)

    def _smoothed(self, observation: Observation, gains: Floats) -> Floats:
        """Return the smoothed gains of those drawn, and keep them; the first round of a run or episode starts anew."""
        if self._smooth is None or observation.round == 1:
            self._smooth = np.full((self.clients, *gains.shape[1:]), np.nan, np.float32)
        before = self._smooth[observation.clients]
        after = np.where(np.isnan(before), gains, self.memory * before + (1 - self.memory) * gains)
        self._smooth[observation.clients] = after
        return self._smooth[observation.clients].astype(np.float64)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return the smoothed gains, `[clients, sites, levels]`, NaN where a client was never drawn."""
        return {} if self._smooth is None else {"smooth": self._smooth}

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Go on from what `state` returned."""
        self._smooth = np.array(state["smooth"], np.float32) if "smooth" in state else None
