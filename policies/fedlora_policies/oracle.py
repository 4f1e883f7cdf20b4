"""The clairvoyant: it sees what really fits and what levels are really worth, and solves each step's knapsack exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedlora.errors import ConfigError
from fedlora.federation.policy import Observation, PolicySetup, Ranks
from fedlora_policies.knapsack import best_ranks
from fedlora_policies.known import costs_of, number, relative

if TYPE_CHECKING:
    from fedlora_envs.rank_env import Truth


@dataclass(frozen=True)
class ClairvoyantSetup(PolicySetup):
    """What a policy knows inside an environment: `truth` is for the oracle alone."""

    truth: Callable[[], Truth] | None = None


class OraclePolicy:
    """The best ranks of each step, given the channel of that step and the true worth of levels.

    Exact for one step (see `fedlora_policies.knapsack`). Over an episode with a budget of its own it saves by `price`, `share`
    and `backoff`. Tried at several, with the best kept for each episode in hindsight, it is a yardstick and no bound: what
    levels are worth need not add up to the reward, and choosing in hindsight also picks lucky noise.

    Args:
        setup: What is known for the whole run, and the truth.
        price: Worth of a byte, as for greedy.
        share: Most that is spent in one step, as a share of the full adapter's bytes.
        backoff: Share of what really fits to use at most.
        width: Undominated choices kept side by side; where more are needed, the ranks are no longer proven to be the best.
    """

    summary = "sees the coming channel and the true gains; in `fedlora compare` only (options: price, share, backoff, width)"

    def __init__(
        self, setup: PolicySetup, price: float = 0.0, share: float = 1.0, backoff: float = 1.0, width: int = 300
    ) -> None:
        truth = getattr(setup, "truth", None)
        if truth is None:
            raise ConfigError(
                "policy.name = 'oracle' sees what no policy can know beforehand: it is a yardstick for `fedlora compare`; "
                "choose another one to run, for example 'greedy'"
            )
        self.truth: Callable[[], Truth] = truth
        self.price = number("price", price, 0.0)
        self.share = number("share", share, 0.0, 1.0, above=True)
        self.backoff = number("backoff", backoff, 0.0, 1.0, above=True)
        self.width = int(number("width", width, 1.0))

    def choose(self, observation: Observation) -> Ranks:
        """Return the best ranks of the coming step."""
        costs, truth = costs_of(observation, "oracle"), self.truth()
        # The base counts as sent anyway: a share too small for it would only idle.
        budget = np.minimum(self.backoff * truth.budget_bytes, costs.base + self.share * (costs.full - costs.base))
        ranks, _, _ = best_ranks(relative(truth.gains, costs), costs, budget, self.price, self.width)
        return ranks
