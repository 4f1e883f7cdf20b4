"""Gymnasium's classes over any core: one environment, and a native vector of them, in arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora.federation.policy import Observation
from fedlora_envs.rank_env import Flags, Floats, RankEnv, Ranks

Observed = NDArray[np.float32]
Levels = NDArray[np.int64]
# Reward, terminated, truncated and info of a step, as in `fedlora_envs.rank_env.Step`.
Outcome = tuple[Floats, Flags, Flags, dict[str, NDArray[np.generic]]]


class Actions:
    """The levels that an agent chooses from: action n at a site is its n-th legal rank from the core's `floor` on.

    Args:
        core: The environment.
    """

    def __init__(self, core: RankEnv) -> None:
        self.core = core
        # A core without a floor allows rank 0 everywhere.
        lowest = getattr(core, "floor", np.zeros_like(core.costs.caps))
        self.lowest: Levels = np.asarray(lowest) // core.costs.units
        self.counts: Levels = core.costs.levels - self.lowest + 1
        self.space = spaces.MultiDiscrete(np.tile(self.counts, core.rows))

    def ranks(self, actions: NDArray[Any]) -> Ranks:
        """Return ranks `[E * rows, sites]` for actions `[E, rows * sites]`."""
        ranks = np.asarray(actions, np.int64).reshape(-1, len(self.counts)) + self.lowest
        ranks *= self.core.costs.units
        return ranks

    def masks(self, seen: Observation) -> Flags:
        """Return which actions fit into the estimated budget while all other sites stay at their least, `[E, sum of levels]`.

        The least level of a site is always allowed, so that there is something to choose.
        """
        costs, rows = self.core.costs, np.arange(len(self.counts))
        budget = np.full(self.core.episodes * self.core.rows, np.inf) if seen.budget_bytes is None else seen.budget_bytes
        extra = costs.table - costs.table[rows, self.lowest][:, None]
        smallest = costs.base + costs.table[rows, self.lowest].sum()
        fits = extra[None] <= (budget - smallest)[:, None, None]
        levels = np.arange(costs.table.shape[1])
        fits = fits | (levels == self.lowest[:, None])
        real = (levels >= self.lowest[:, None]) & (levels <= costs.levels[:, None])
        allowed: Flags = fits[:, real].reshape(self.core.episodes, -1)
        return allowed


class LeanCore(RankEnv, Protocol):
    """A core whose observation is gathered only where somebody asks for it, which matters where steps are cheap."""

    def restart(self, which: Flags, seeds: NDArray[np.uint64] | None = None) -> None:
        """Do what `reset` does."""
        ...

    def advance(self, ranks: Ranks) -> Outcome:
        """Do what `step` does."""
        ...

    def observe(self) -> Observation:
        """Return what a policy sees now."""
        ...


class Player:
    """A core as both covers drive it.

    Args:
        core: The environment.

    Attributes:
        core: The same.
        actions: From actions to ranks.
        started: Whether there was a first reset.
    """

    def __init__(self, core: RankEnv) -> None:
        self.core, self.actions, self.started = core, Actions(core), False
        self._lean = cast(LeanCore, core) if hasattr(core, "advance") else None
        self._seen: Observation | None = None
        # Before a first reset a core may have no features; it knows how many there will be.
        names = getattr(core, "feature_names", None)
        count = len(names) if names is not None else core.features().shape[1]
        self.space = cast("spaces.Space[Observed]", spaces.Box(-1.0, 1.0, (count,), np.float32))

    def reset(self, which: Flags, seeds: NDArray[np.uint64] | None) -> None:
        """Begin episodes."""
        self.started = True
        if self._lean is not None:
            self._lean.restart(which, seeds)
        else:
            self._seen = self.core.reset(which, seeds)

    def step(self, ranks: Ranks) -> Outcome:
        """Take a step."""
        if self._lean is not None:
            return self._lean.advance(ranks)
        step = self.core.step(ranks)
        self._seen = step.observation
        return step.reward, step.terminated, step.truncated, step.info

    def seen(self) -> Observation:
        """Return what a policy sees now."""
        if not self.started:
            raise gymnasium.error.ResetNeeded("there is no observation yet: call reset() first")
        return self._lean.observe() if self._lean is not None else cast(Observation, self._seen)

    def features(self) -> Observed:
        """Return the observation as numbers, `[E, D]`."""
        return self.core.features().astype(np.float32)

    def masks(self) -> Flags:
        """Return which actions fit now (see `Actions.masks`)."""
        return self.actions.masks(self.seen())


class RankAllocationEnv(gymnasium.Env[Observed, Levels]):
    """One episode at a time of any core (`fedlora_envs.rank_env.RankEnv` with one episode).

    Args:
        core: The environment.

    Attributes:
        core: The same, for policies that read observations in the project's own form, and for the oracle.
        player: The core as the covers drive it.

    Raises:
        ConfigError: A core of several episodes.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(self, core: RankEnv) -> None:
        if core.episodes != 1:
            raise ConfigError(f"a single environment has one episode, not {core.episodes}: use the vector environment")
        self.core, self.player = core, Player(core)
        self.observation_space, self.action_space = self.player.space, self.player.actions.space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observed, dict[str, Any]]:
        """Begin an episode: a new run's first one with a seed, else the next one of the same run."""
        super().reset(seed=seed)
        seeds = None
        if seed is not None:
            seeds = np.array([seed], np.uint64)
        elif not self.player.started:
            seeds = self.np_random.integers(2**63, size=1).astype(np.uint64)
        self.player.reset(np.ones(1, np.bool_), seeds)
        return self.player.features()[0], {}

    def step(self, action: Levels) -> tuple[Observed, float, bool, bool, dict[str, Any]]:
        """Choose the levels `[rows * sites]`; `info` lacks what was not measured in this step (loss, accuracy)."""
        reward, terminated, truncated, terms = self.player.step(self.player.actions.ranks(np.asarray(action)[None]))
        info = {key: value[0].item() for key, value in terms.items()}
        info = {key: value for key, value in info.items() if value == value}
        return self.player.features()[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def action_masks(self) -> Flags:
        """Return which actions fit the estimated budget while the others stay at their least, as sb3-contrib wants it."""
        allowed: Flags = self.player.masks()[0]
        return allowed

    @property
    def seen(self) -> Observation:
        """What a policy sees now."""
        return self.player.seen()


class RankAllocationVectorEnv(VectorEnv[Observed, Levels, NDArray[Any]]):
    """Many episodes of any core at once, in arrays; a member that ended starts again at the next step, whatever its action.

    Args:
        core: The environment; `core.episodes` is the number of members.

    Attributes:
        core: The same.
        player: The core as the covers drive it.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, core: RankEnv) -> None:
        self.core, self.player, self.num_envs = core, Player(core), core.episodes
        self.single_observation_space, self.single_action_space = self.player.space, self.player.actions.space
        self.observation_space = batch_space(self.single_observation_space, core.episodes)
        self.action_space = batch_space(self.single_action_space, core.episodes)
        self._ended = np.zeros(core.episodes, np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observed, dict[str, Any]]:
        """Begin episodes everywhere; member i of `seed = s` is what a single environment with the seed s + i is.

        `options = {"reset_mask": [num_envs]}` begins only the chosen ones.
        """
        super().reset(seed=int(seed) if isinstance(seed, int | np.integer) else None)
        mask = (options or {}).get("reset_mask")
        which = np.ones(self.num_envs, np.bool_) if mask is None else np.asarray(mask, np.bool_)
        seeds, given = self._seeds(seed)
        given = given & which
        if not self.player.started:
            drawn = self.np_random.integers(2**63, size=self.num_envs).astype(np.uint64)
            seeds, given = np.where(given, seeds, drawn), which
        if given.any():
            self.player.reset(given, seeds)
        if (which & ~given).any():
            self.player.reset(which & ~given, None)
        self._ended = self._ended & ~which
        return self.player.features(), {}

    def step(self, actions: Levels) -> tuple[Observed, Floats, Flags, Flags, dict[str, Any]]:
        """Choose the levels of all members, `[num_envs, rows * sites]`; `info["_key"]` says whom `info["key"]` speaks of."""
        began = self._ended
        reward, terminated, truncated, terms = self.player.step(self.player.actions.ranks(actions))
        if began.any():
            # The core let the ended ones stand still in this step, so that they lose nothing by starting only now.
            self.player.reset(began, None)
        self._ended = terminated | truncated
        info: dict[str, Any] = dict(terms)
        for key, value in terms.items():
            known = ~began
            info[f"_{key}"] = known & (value == value) if key in ("loss", "accuracy") else known
        return self.player.features(), reward, terminated, truncated, info

    def action_masks(self) -> Flags:
        """Return which actions fit the estimated budgets while the others stay at their least, `[num_envs, sum of levels]`."""
        return self.player.masks()

    @property
    def seen(self) -> Observation:
        """What a policy sees now."""
        return self.player.seen()

    def _seeds(self, seed: int | Sequence[int | None] | None) -> tuple[NDArray[np.uint64], Flags]:
        """Return the seeds given, and to whom."""
        if isinstance(seed, int | np.integer):
            return np.uint64(seed) + np.arange(self.num_envs, dtype=np.uint64), np.ones(self.num_envs, np.bool_)
        each = [None] * self.num_envs if seed is None else seed
        if len(each) != self.num_envs:
            raise ConfigError(f"{len(each)} seeds for {self.num_envs} environments: give one each")
        return np.array([item or 0 for item in each], np.uint64), np.array([item is not None for item in each])
