"""Other ways to say a rank vector: shares projected to the budget, one rank for all sites, or a step up or down.

Each comes for one environment and for a vector of them, and works on every environment of `fedlora_envs.gym_envs`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorActionWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora.federation.policy import Observation
from fedlora.ranks import Costs, Floats, Ranks, greedy_ranks
from fedlora_envs.gym_covers import Actions, RankAllocationEnv, RankAllocationVectorEnv

Levels = NDArray[np.int64]


def project(wanted: Floats, costs: Costs, budget: Floats, floor: Ranks | None = None) -> Ranks:
    """Return the legal ranks nearest to what is wanted inside each row's budget, `[rows, sites]`.

    Without a limit that is rounding. With one, levels are taken by the squared distance that they save per byte, the floor before
    all others; where not even the floor fits, the floor is returned.

    Args:
        wanted: Levels, not necessarily whole, `[rows, sites]`.
        costs: Bytes.
        budget: Bytes that each row may send, `[rows]`.
        floor: Smallest legal ranks, `[sites]`; default: 0.
    """
    least = np.zeros_like(costs.caps) if floor is None else floor // costs.units
    # What lies above the floor is a problem of its own, with the floor's bytes as its base.
    sites, most = np.arange(len(least)), int((costs.levels - least).max(initial=0))
    above = np.minimum(least[:, None] + np.arange(most + 1), costs.levels[:, None])
    table = costs.table[sites[:, None], above]
    base = costs.base + int(table[:, 0].sum())
    rest = Costs(base, table - table[:, :1], np.ones_like(least), costs.levels - least)
    gains = np.maximum((wanted - least)[:, :, None] - np.arange(1, most + 1) + 0.5, 0.0)
    taken = greedy_ranks(gains, rest, np.asarray(budget, np.float64)) if most else np.zeros(wanted.shape, np.int64)
    return np.asarray((taken + least) * costs.units)


class BudgetShares:
    """`Box(0, 1)`, one share of the cap per site, brought inside the estimated budget by `project`."""

    def __init__(self, actions: Actions) -> None:
        core = actions.core
        self.actions, self.rows, self.floor = actions, core.rows, actions.lowest * core.costs.units
        self.space: spaces.Space[Any] = spaces.Box(0.0, 1.0, (core.rows * len(actions.counts),), np.float32)

    def levels(self, action: NDArray[Any], seen: Observation) -> Levels:
        """Return the environment's own actions, `[E, rows * sites]`."""
        costs, count = self.actions.core.costs, len(action)
        wanted: Floats = np.asarray(action, np.float64).reshape(count * self.rows, -1).clip(0.0, 1.0)
        wanted = wanted * costs.levels.astype(np.float64)
        budget = np.full(len(wanted), np.inf) if seen.budget_bytes is None else seen.budget_bytes
        ranks = project(wanted, costs, budget, self.floor)
        return np.asarray(ranks // costs.units - self.actions.lowest).reshape(count, -1)


class Uniform:
    """`Discrete`, the same level at all sites (as far as their caps go); with several rows one level each."""

    def __init__(self, actions: Actions) -> None:
        self.actions, self.rows = actions, actions.core.rows
        choices = int(actions.counts.max())
        self.space: spaces.Space[Any] = (
            spaces.Discrete(choices) if self.rows == 1 else spaces.MultiDiscrete(np.full(self.rows, choices))
        )

    def levels(self, action: NDArray[Any], seen: Observation) -> Levels:
        """Return the environment's own actions, `[E, rows * sites]`."""
        # The choices count from the lowest floor, and each site takes the nearest level that it has.
        lowest = self.actions.lowest
        level = np.asarray(action, np.int64).reshape(-1, self.rows, 1) + lowest.min()
        return np.asarray(np.clip(level - lowest, 0, self.actions.counts - 1)).reshape(len(level), -1)


class Moves:
    """`MultiDiscrete([3])` per site: one level less than the step before, the same, or one more."""

    def __init__(self, actions: Actions) -> None:
        core = actions.core
        self.actions, self.space = actions, spaces.MultiDiscrete(np.full(core.rows * len(actions.counts), 3))

    def levels(self, action: NDArray[Any], seen: Observation) -> Levels:
        """Return the environment's own actions, `[E, rows * sites]`."""
        before = seen.previous // self.actions.core.costs.units - self.actions.lowest
        moved = before + np.asarray(action, np.int64).reshape(before.shape) - 1
        return np.asarray(np.clip(moved, 0, self.actions.counts - 1)).reshape(len(action), -1)


Kind = type[BudgetShares] | type[Uniform] | type[Moves]


class _One(gymnasium.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    kind: ClassVar[Kind]

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        if not isinstance(env.unwrapped, RankAllocationEnv):
            raise ConfigError(f"{type(self).__name__} needs an environment of rank allocation, not {env.unwrapped}")
        self._base = env.unwrapped
        self._words = self.kind(self._base.player.actions)
        self.action_space = self._words.space

    def action(self, action: Any) -> Levels:
        """Return the environment's own action."""
        return np.asarray(self._words.levels(np.asarray(action)[None], self._base.seen)[0])


class _Many(VectorActionWrapper):
    kind: ClassVar[Kind]

    def __init__(self, env: gymnasium.vector.VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, RankAllocationVectorEnv):
            raise ConfigError(f"{type(self).__name__} needs a vector environment of rank allocation, not {env.unwrapped}")
        self._base = env.unwrapped
        self._words = self.kind(self._base.player.actions)
        self.single_action_space = self._words.space
        self.action_space = batch_space(self._words.space, env.num_envs)

    def actions(self, actions: Any) -> Levels:
        """Return the environments' own actions."""
        return self._words.levels(np.asarray(actions), self._base.seen)


class BudgetBox(_One):
    """Shares of the caps in `Box(0, 1)`, brought inside the estimated budget: no action misses a deadline that is known."""

    kind = BudgetShares


class UniformRank(_One):
    """One rank for all sites, as `Discrete`."""

    kind = Uniform


class RankMoves(_One):
    """One level up or down per site, or stay."""

    kind = Moves


class VectorBudgetBox(_Many):
    """`BudgetBox` for vector environments."""

    kind = BudgetShares


class VectorUniformRank(_Many):
    """`UniformRank` for vector environments."""

    kind = Uniform


class VectorRankMoves(_Many):
    """`RankMoves` for vector environments."""

    kind = Moves
