"""The core of a rank environment: E episodes at once, arrays only; Gymnasium's classes are thin covers over it.

A core speaks the language of policies (`fedlora.federation.policy.Observation`, rank vectors), so that whatever chooses ranks in
`fedlora simulate` can be measured in an environment, and the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedlora.federation.policy import Observation
from fedlora.ranks import Costs

Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Truth:
    """What no policy may see: for the clairvoyant oracle and for regret.

    Attributes:
        budget_bytes: Bytes that really fit in this step, `[rows]`.
        gains: What each level really adds, `[rows, sites, levels]`.
    """

    budget_bytes: Floats
    gains: Floats


@dataclass(frozen=True)
class Step:
    """What one step of all episodes gave.

    Attributes:
        observation: What the policy sees now, rows of episode 0 first.
        reward: `[E]`.
        terminated: Whether the episode ended by itself (nothing feasible left), `[E]`.
        truncated: Whether it ended by its horizon, `[E]`.
        info: Raw terms, `[E]` each: bits, latency_s, energy_j, cost (how far a constraint was missed, 0: kept), utility,
            feasible (share of rank vectors that were, or a flag), loss, accuracy.
    """

    observation: Observation
    reward: Floats
    terminated: Flags
    truncated: Flags
    info: dict[str, NDArray[np.generic]] = field(default_factory=dict)


class RankEnv(Protocol):
    """E episodes of a rank allocation problem.

    Attributes:
        episodes: E.
        rows: Rank vectors chosen per episode and step (1 for one link, K for K clients).
        horizon: Steps of an episode.
        costs: Bytes by rank.
    """

    episodes: int
    rows: int
    horizon: int
    costs: Costs

    def reset(self, which: Flags, seeds: NDArray[np.uint64] | None = None) -> Observation:
        """Begin new episodes where `which` `[E]`; with `seeds` `[E]` draws start anew, else the next episode's follow."""
        ...

    def step(self, ranks: Ranks) -> Step:
        """Take one step of all episodes at `ranks` `[E * rows, sites]` (legal ones)."""
        ...

    def truth(self) -> Truth:
        """Return what really holds in the coming step."""
        ...

    def features(self) -> Floats:
        """Return the observation as one flat vector per episode in [-1, 1], `[E, D]`."""
        ...
