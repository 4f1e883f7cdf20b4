"""Stable-Baselines3's own kind of vector environment, over rank environments: arrays inside, lists of dictionaries outside."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices

from fedlora.federation.policy import Observation
from fedlora_envs.gym_covers import Actions, Outcome, RankAllocationVectorEnv
from fedlora_envs.rank_env import RankEnv
from fedlora_policies.learners import refuse_bad_reward
from fedlora_policies.rollout import Stage

Floats = NDArray[np.float64]
Observed = NDArray[np.float32]
SbStep = tuple[Observed, Observed, NDArray[np.bool_], list[dict[str, Any]]]

Read = Callable[[Observation], Observed]
"""Returns what a learner sees of an observation, `[E * rows, D]`."""


class CoreVecEnv(VecEnv):
    """Members of a core as Stable-Baselines3 wants them: an episode that ends starts again in the same step.

    Its last observation is in `infos[i]["terminal_observation"]`, its return and length in `infos[i]["episode"]` (what SB3's
    Monitor reports). `last` holds the raw terms of all members in arrays, which is much cheaper than a dictionary each.

    Args:
        members: How many.
        observation_space: Of one.
        action_space: Of one.
        shuffle: Control: rewards are drawn from all true ones seen so far, so that they say nothing of the actions.

    Attributes:
        last: `info` of the last step, arrays over all members.
        rng: Of the shuffling.
        dealt: True rewards to shuffle from, the newest last.
    """

    render_mode = None
    _POOL = 10_000

    def __init__(
        self, members: int, observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any], shuffle: bool = False
    ) -> None:
        self.last: dict[str, NDArray[np.generic]] = {}
        self.rng, self.dealt, self._shuffle = np.random.default_rng(0), np.zeros(0, np.float32), shuffle
        self._returns, self._lengths = np.zeros(members), np.zeros(members, np.int64)
        self._actions: NDArray[Any] = np.zeros(0)
        super().__init__(members, observation_space, action_space)

    @property
    @abstractmethod
    def core(self) -> RankEnv:
        """The core."""

    @abstractmethod
    def _begin(self) -> None:
        """Begin episodes everywhere."""

    @abstractmethod
    def _play(self, actions: NDArray[Any]) -> Outcome:
        """Take a step; everything it returns is over members."""

    @abstractmethod
    def _again(self, done: NDArray[np.bool_]) -> None:
        """Begin the next episodes of the members that are done."""

    @abstractmethod
    def _look(self) -> Observed:
        """Return what members see, `[members, D]`."""

    def reset(self) -> Observed:
        """Begin episodes everywhere."""
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64)
        self._begin()
        self._reset_seeds()
        self._reset_options()
        return self._look()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> SbStep:
        """Take the step."""
        reward, terminated, truncated, self.last = self._play(self._actions)
        self._returns, self._lengths = self._returns + reward, self._lengths + 1
        done, observation = terminated | truncated, self._look()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            cut = truncated & ~terminated
            for member in np.flatnonzero(done):
                episode = {"r": float(self._returns[member]), "l": int(self._lengths[member]), "t": 0.0}
                infos[member] = {
                    "terminal_observation": observation[member], "TimeLimit.truncated": bool(cut[member]), "episode": episode,
                }  # fmt: skip
            self._returns, self._lengths = np.where(done, 0.0, self._returns), np.where(done, 0, self._lengths)
            self._again(done)
            observation = self._look()
        return observation, self._handed_out(reward.astype(np.float32)), done, infos

    def _handed_out(self, reward: Observed) -> Observed:
        """Return the rewards that the learner hears of."""
        if not self._shuffle:
            return reward
        # From the true ones: drawing from what was handed out before would let the first few come back again and again.
        self.dealt = np.concatenate([self.dealt, reward])[-self._POOL :]
        return self.rng.choice(self.dealt, len(reward))

    def close(self) -> None:
        """Nothing to close."""

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        """Refused: members have no methods of their own."""
        raise AttributeError(f"members of a rank environment have no method '{method_name}'")

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the whole, once for each member asked for."""
        value = getattr(self, attr_name)
        return [value for _ in self._members(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refused: members have no attributes of their own."""
        raise AttributeError(f"'{attr_name}' cannot be set: members of a rank environment have no attributes of their own")

    def env_is_wrapped(self, wrapper_class: Any, indices: VecEnvIndices = None) -> list[bool]:
        """Return False for each of the members asked for: no member is wrapped."""
        return [False for _ in self._members(indices)]

    def _members(self, indices: VecEnvIndices) -> Iterable[int]:
        chosen: Sequence[int] | Iterable[int] = self._get_indices(indices)
        return chosen


class RankVecEnv(CoreVecEnv):
    """A native vector environment: a member is an episode, and sees the core's own features.

    Args:
        env: The native vector environment.
        shuffle: Control, as for `CoreVecEnv`.

    Attributes:
        env: The same; `env.core` is the core.
    """

    def __init__(self, env: RankAllocationVectorEnv, shuffle: bool = False) -> None:
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space, shuffle)

    @property
    def core(self) -> RankEnv:
        """The core."""
        return self.env.core

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions fit the estimated budget, `[num_envs, sum of levels]`."""
        return self.env.action_masks()

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        """Return what a method gives for each of the members asked for; members have `action_masks` alone."""
        if method_name != "action_masks":
            raise AttributeError(f"members of a rank environment have no method '{method_name}'")
        masks = self.action_masks()
        return [masks[member] for member in self._members(indices)]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the native vector environment, once for each member asked for."""
        value = getattr(self.env, attr_name)
        return [value for _ in self._members(indices)]

    def _begin(self) -> None:
        # With the seeds given to `seed` before, if any.
        self.env.reset(seed=self._seeds if any(seed is not None for seed in self._seeds) else None)

    def _play(self, actions: NDArray[Any]) -> Outcome:
        player = self.env.player
        return player.step(player.actions.ranks(actions))

    def _again(self, done: NDArray[np.bool_]) -> None:
        self.env.player.reset(done, None)

    def _look(self) -> Observed:
        return self.env.player.features()


class RowsVecEnv(CoreVecEnv):
    """A stage whose members are the rows (clients) of all episodes; an episode's reward goes to each of its rows.

    Action n at a site is its n-th legal rank from the core's floor on. A reward that is not a finite number stops the training
    before anybody has heard of it.

    Args:
        stage: The environment as policies are shown it.
        read: What a member sees.
        channels: Returns the seeds of the episodes `[E]` that `reset` begins, by iteration.
        shuffle: Control, as for `CoreVecEnv`; the learner sets `rng`.

    Attributes:
        stage: The same.
        actions: From actions to ranks.
        iteration: Iteration of the training; set by the learner before `reset`.
        notes: What happened since `take_notes`.
    """

    def __init__(self, stage: Stage, read: Read, channels: Callable[[int], NDArray[np.uint64]], shuffle: bool = False) -> None:
        self.stage, self.actions, self.iteration = stage, Actions(stage.core), 0
        self.notes: dict[str, list[float]] = {}
        self._read, self._channels = read, channels
        self._seeds_drawn = channels(0)
        self._step = 0
        self._seen = stage.reset(self._seeds_drawn)
        width = read(self._seen).shape[1]
        box = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)
        space = gymnasium.spaces.MultiDiscrete(self.actions.counts)
        super().__init__(stage.core.episodes * stage.core.rows, box, space, shuffle)

    @property
    def core(self) -> RankEnv:
        """The core."""
        return self.stage.core

    def take_notes(self) -> None:
        """Forget what happened so far; steps are counted from here."""
        self._step, self.notes = 0, {"return": [], "infeasible": [], "mean_rank": []}

    def noted(self) -> dict[str, float]:
        """Return the mean return of the episodes that ended, the share of infeasible steps and the mean rank."""
        return {key: float(np.mean(values)) for key, values in self.notes.items() if values}

    def state(self) -> dict[str, Any]:
        """Return where its episodes stand but for the core: what was added up, and the true rewards to shuffle from."""
        return {"returns": self._returns.tolist(), "lengths": self._lengths.tolist(), "dealt": self.dealt.tolist()}

    def restore(self, state: dict[str, Any], core: RankEnv | None) -> None:
        """Go on from what `state` returned, with the core as it was then (None: `reset` comes next)."""
        self._returns, self._lengths = np.array(state["returns"]), np.array(state["lengths"], np.int64)
        self.dealt = np.array(state["dealt"], np.float32)
        if core is not None:
            self.stage, self.actions = Stage(core), Actions(core)

    def _begin(self) -> None:
        self._seeds_drawn = self._channels(self.iteration)
        self._seen = self.stage.reset(self._seeds_drawn)

    def _play(self, actions: NDArray[Any]) -> Outcome:
        rows, ranks = self.core.rows, self.actions.ranks(actions)
        step = self.stage.step(ranks)
        refuse_bad_reward(step.reward, self.iteration, self._step, self._seeds_drawn)
        self._step, self._seen = self._step + 1, step.observation
        self._note("infeasible", 1.0 - step.info["feasible"].astype(np.float64))
        self._note("mean_rank", ranks.mean(axis=1))
        done = step.terminated | step.truncated
        self._note("return", (self._returns[::rows] + step.reward)[done])
        spread = {key: np.repeat(value, rows) for key, value in step.info.items()}
        return np.repeat(step.reward, rows), np.repeat(step.terminated, rows), np.repeat(step.truncated, rows), spread

    def _again(self, done: NDArray[np.bool_]) -> None:
        seen = self.core.reset(done[:: self.core.rows], None)
        self._seen = replace(seen, clients=self._seen.clients, costs=self.stage.costs)

    def _look(self) -> Observed:
        # Observations have one round for all; episodes that began later are in an earlier one.
        found: Observed | None = None
        for age in np.unique(self._lengths):
            now = self._read(replace(self._seen, round=int(min(age + 1, self._seen.rounds))))
            found = now if found is None else np.where((self._lengths == age)[:, None], now, found)
        assert found is not None
        return found

    def _note(self, key: str, values: NDArray[Any]) -> None:
        if key in self.notes:
            self.notes[key].extend(values.tolist())
