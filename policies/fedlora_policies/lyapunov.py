"""Drift plus penalty (Neely, Stochastic Network Optimization, 2010): a budget in the long run, nothing known of the future."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora.federation.policy import Observation, PolicySetup, Ranks
from fedlora.ranks import greedy_ranks
from fedlora_policies.known import Floats, budget_of, costs_of, gains_of, links_of, number, relative


class LyapunovPolicy:
    """As greedy, but bytes have a price that rises while a client has spent more than its allowance, and falls while less.

    Each client has a virtual queue Q, in rounds of allowance: `Q <- max(Q + spent / allowance - 1, 0)`. Ranks maximise
    `V * gain - Q * spent / allowance` inside what fits before the deadline, with gains as shares of the full adapter's. The mean
    spending per round then stays within the allowance but for O(V) rounds over the whole run, and the gain is within O(1/V) of
    the best that does so where channels are drawn independently.

    Args:
        setup: What is known for the whole run.
        share: Bytes allowed per round in the long run, as a share of the full adapter's.
        airtime_s: Airtime allowed per round in the long run, instead of bytes.
        v: Weight of the gain against the queue; larger holds the budget later and gains more.
        backoff: Share of the bytes that fit by the estimate to use at most, in (0, 1]: a margin for old or wrong estimates.
    """

    summary = "drift plus penalty: a budget of bytes or airtime in the long run (options: share or airtime_s, v, backoff)"

    def __init__(
        self,
        setup: PolicySetup,
        share: float | None = None,
        airtime_s: float | None = None,
        v: float = 1.0,
        backoff: float = 1.0,
    ) -> None:
        if share is not None and airtime_s is not None:
            raise ConfigError("policy.options: give either share or airtime_s, not both")
        self.share = number("share", 0.25 if share is None else share, 0.0, 1.0, above=True)
        self.airtime_s = None if airtime_s is None else number("airtime_s", airtime_s, 0.0, above=True)
        self.backoff = number("backoff", backoff, 0.0, 1.0, above=True)
        self.v = number("v", v, 0.0, above=True)
        self.queue = np.zeros(setup.clients)

    def choose(self, observation: Observation) -> Ranks:
        """Return each client's ranks, and charge what they spend; a run or episode begins with empty queues."""
        costs = costs_of(observation, "lyapunov")
        if observation.round == 1:
            self.queue[:] = 0.0
        queue, per_byte = self.queue[observation.clients], self._per_byte(observation, costs.full)
        # In `relative` gains the full adapter is worth its bytes, so that a share of the gain is worth 1 / bytes of it.
        price = queue * per_byte * (costs.full - costs.base) / self.v
        budget = budget_of(observation, self.backoff)
        ranks = greedy_ranks(relative(gains_of(observation, "lyapunov"), costs), costs, budget, price)
        spent = np.where(budget >= costs.base, costs.bytes(ranks), 0)
        self.queue[observation.clients] = np.maximum(queue + spent * per_byte - 1.0, 0.0)
        return ranks

    def _per_byte(self, observation: Observation, full: int) -> Floats:
        """Return what share of a round's allowance a byte takes, `[clients]`."""
        if self.airtime_s is None:
            return np.full(len(observation.clients), 1.0 / (self.share * full))
        rate_bps = links_of(observation, "lyapunov", "airtime").uplink_bps
        # A link that carries nothing has no budget either; any finite number will do.
        return np.asarray(8.0 / np.maximum(rate_bps, 1.0) / self.airtime_s, np.float64)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return the queues, `[clients]`."""
        return {"queue": self.queue}

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Go on from what `state` returned."""
        self.queue = np.array(state["queue"], np.float64)
