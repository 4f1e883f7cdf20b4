"""AirLLM's training loop: an episode, PPO's updates, the refiner's updates, and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from fedlora_policies.airllm.coarse import PpoConfig, RefinedVecEnv, make_ppo
from fedlora_policies.airllm.diffusion import Codec, DiffusionConfig, Refiner
from fedlora_policies.sb3_env import CoreVecEnv

Ranks = NDArray[np.int64]


@dataclass
class History:
    """What training went through, a number per episode of all environments together.

    Attributes:
        reward: Mean reward of a step.
        mean_rank: Mean of all ranks.
        feasible: Share of steps that fitted the link.
        refiner_loss: Loss of the refiner's updates; NaN before there is enough to learn from.
    """

    reward: list[float] = field(default_factory=list)
    mean_rank: list[float] = field(default_factory=list)
    feasible: list[float] = field(default_factory=list)
    refiner_loss: list[float] = field(default_factory=list)


class AirLLM:
    """The published method over a rank environment.

    Args:
        env: Environments, each member with one rank vector per step.
        ppo: PPO's constants.
        diffusion: The refiner's constants.
        seed: Of weights, actions and noise.
    """

    def __init__(
        self,
        env: CoreVecEnv,
        ppo: PpoConfig | None = None,
        diffusion: DiffusionConfig | None = None,
        seed: int = 0,
    ) -> None:
        diffusion = diffusion or DiffusionConfig()
        counts = np.asarray(env.action_space.nvec, np.int64)  # type: ignore[attr-defined]
        high = env.core.costs.levels
        low = int((high - counts + 1).min())
        self.refiner = Refiner(len(counts), Codec(low, high, diffusion.decode), diffusion, seed)
        self.env = RefinedVecEnv(env, self.refiner)
        self.ppo: PPO = make_ppo(self.env, ppo or PpoConfig(), env.core.horizon, seed)
        self.history = History()

    def train(self, episodes: int, watch: Callable[[History], None] | None = None) -> History:
        """Train for so many episodes of every environment; return what it went through.

        Args:
            episodes: Episodes of each environment.
            watch: Called after every episode.
        """
        steps = episodes * self.env.num_envs * self.ppo.n_steps
        self.ppo.learn(steps, callback=_Alternate(self, watch), reset_num_timesteps=False)
        return self.history

    def choose(self, features: NDArray[np.float32], deterministic: bool = False) -> Ranks:
        """Return rank vectors `[n, sites]` for observations `[n, D]`.

        Args:
            features: As the environment gives them.
            deterministic: Take the mean of the coarse action; the refiner's starting noise stays random, as published.
        """
        coarse, _ = self.ppo.predict(features, deterministic=deterministic)
        return self.refiner.refine(np.tanh(np.asarray(coarse, np.float32)))


class _Alternate(BaseCallback):
    """Lets the refiner learn after each of PPO's updates, and takes notes."""

    def __init__(self, method: AirLLM, watch: Callable[[History], None] | None) -> None:
        super().__init__()
        self._method, self._watch, self._begun = method, watch, False
        self._rewards: list[float] = []
        self._ranks: list[float] = []
        self._feasible: list[float] = []

    def _on_rollout_start(self) -> None:
        # PPO has learned from the rollout before this one.
        if self._begun:
            self._note()
        self._begun = True

    def _on_training_end(self) -> None:
        self._note()

    def _on_step(self) -> bool:
        env = self._method.env
        self._rewards.append(float(np.mean(self.locals["rewards"])))
        self._ranks.append(float(env.ranks.mean()))
        inner: CoreVecEnv = env.venv  # type: ignore[assignment]
        self._feasible.append(float(np.mean(inner.last["feasible"].astype(float))))
        return True

    def _note(self) -> None:
        history, loss = self._method.history, self._method.refiner.learn()
        history.refiner_loss.append(float("nan") if loss is None else loss)
        for values, kept in (
            (self._rewards, history.reward),
            (self._ranks, history.mean_rank),
            (self._feasible, history.feasible),
        ):
            kept.append(float(np.mean(values)))
            values.clear()
        if self._watch:
            self._watch(history)
