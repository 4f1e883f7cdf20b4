"""Stable-Baselines3's own kind of vector environment, over a rank environment: arrays inside, lists of dictionaries outside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices

from fedlora_envs.gym_covers import RankAllocationVectorEnv


class RankVecEnv(VecEnv):
    """A native vector environment as Stable-Baselines3 wants it: an episode that ends starts again in the same step.

    Its last observation is in `infos[i]["terminal_observation"]`, its return and length in `infos[i]["episode"]` (what SB3's
    Monitor reports). `last` holds the raw terms of all members in arrays, which is much cheaper than a dictionary each.

    Args:
        env: The native vector environment.

    Attributes:
        env: The same; `env.core` is the core.
        last: `info` of the last step, arrays over all members.
    """

    def __init__(self, env: RankAllocationVectorEnv) -> None:
        self.env = env
        self.last: dict[str, NDArray[np.generic]] = {}
        self._returns, self._lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, np.int64)
        self._actions: NDArray[Any] = np.zeros(0)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> NDArray[np.float32]:
        """Begin episodes everywhere, with the seeds given to `seed` before, if any."""
        seeds = self._seeds if any(seed is not None for seed in self._seeds) else None
        observation, _ = self.env.reset(seed=seeds)
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64)
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Take the step."""
        player = self.env.player
        reward, terminated, truncated, self.last = player.step(player.actions.ranks(self._actions))
        done, observation = terminated | truncated, player.features()
        self._returns, self._lengths = self._returns + reward, self._lengths + 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            cut = truncated & ~terminated
            for member in np.flatnonzero(done):
                episode = {"r": float(self._returns[member]), "l": int(self._lengths[member]), "t": 0.0}
                infos[member] = {
                    "terminal_observation": observation[member], "TimeLimit.truncated": bool(cut[member]), "episode": episode,
                }  # fmt: skip
            self._returns, self._lengths = np.where(done, 0.0, self._returns), np.where(done, 0, self._lengths)
            player.reset(done, None)
            observation = player.features()
        return observation, reward.astype(np.float32), done, infos

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions fit the estimated budget, `[num_envs, sum of levels]`."""
        return self.env.action_masks()

    def close(self) -> None:
        """Nothing to close."""

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

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refused: members have no attributes of their own."""
        raise AttributeError(f"'{attr_name}' cannot be set: members of a rank environment have no attributes of their own")

    def env_is_wrapped(self, wrapper_class: Any, indices: VecEnvIndices = None) -> list[bool]:
        """Return False for each of the members asked for: no member is wrapped."""
        return [False for _ in self._members(indices)]

    def _members(self, indices: VecEnvIndices) -> Iterable[int]:
        chosen: Sequence[int] | Iterable[int] = self._get_indices(indices)
        return chosen
