"""The coarse policy of AirLLM: SB3's PPO, unmodified, over environments whose actions the refiner turns into ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import Tensor, nn

from fedlora_policies.airllm.diffusion import Refiner

_BOUND = 20.0  # of actions before tanh; far outside what a Gaussian policy asks for


@dataclass(frozen=True)
class PpoConfig:
    """PPO's constants, those of AirLLM's reference code (its rank 8, 10 dB run) by default.

    Attributes:
        lr: Adam's.
        gamma: Discount.
        gae: Lambda of the advantage estimate.
        epochs: Passes over a rollout.
        clip: Of the ratio.
        value: Weight of the value loss.
        entropy: Weight of the entropy.
        grad: Gradient norm limit.
        log_std: Start of the log standard deviation.
        width: Of the two hidden layers.
    """

    lr: float = 1e-4
    gamma: float = 0.95
    gae: float = 0.95
    epochs: int = 4
    clip: float = 0.2
    value: float = 0.5
    entropy: float = 0.01
    grad: float = 1.0
    log_std: float = -0.5
    width: int = 256


class Encoder(BaseFeaturesExtractor):
    """Two layers shared by policy and value: Linear, LayerNorm, Mish, Linear, Mish.

    Args:
        observation_space: Flat box.
        width: Of both layers.
    """

    def __init__(self, observation_space: gymnasium.spaces.Box, width: int = 256) -> None:
        super().__init__(observation_space, width)
        self.layers = nn.Sequential(
            nn.Linear(int(np.prod(observation_space.shape)), width),
            nn.LayerNorm(width),
            nn.Mish(),
            nn.Linear(width, width),
            nn.Mish(),
        )

    def forward(self, observations: Tensor) -> Tensor:
        """Return hidden features `[n, width]`."""
        hidden: Tensor = self.layers(observations.flatten(1))
        return hidden


class RefinedVecEnv(VecEnvWrapper):
    """Environments that take coarse actions: tanh, then the refiner, then the ranks go to the wrapped environments.

    What was done and what it gave is kept for the refiner to learn from. All environments' decisions are sampled in one batch.

    Args:
        venv: Environments whose actions are rank vectors (MultiDiscrete).
        refiner: The diffusion model.
    """

    def __init__(self, venv: VecEnv, refiner: Refiner) -> None:
        space = gymnasium.spaces.Box(-_BOUND, _BOUND, (refiner.config.condition,), np.float32)
        super().__init__(venv, action_space=space)
        self.refiner = refiner
        self._coarse: NDArray[np.float32] = np.zeros((venv.num_envs, refiner.config.condition), np.float32)
        self.ranks: NDArray[np.int64] = np.zeros((venv.num_envs, refiner.sites), np.int64)

    def reset(self) -> VecEnvObs:
        """Reset the wrapped environments."""
        return self.venv.reset()

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Refine coarse actions and send the ranks on."""
        self._coarse = np.tanh(np.asarray(actions, np.float32))
        self.ranks = self.refiner.refine(self._coarse)
        self.venv.step_async(self.ranks - self.refiner.codec.low)  # action n is the n-th rank from the smallest on

    def step_wait(self) -> VecEnvStepReturn:
        """Return what the ranks gave, and keep it for the refiner."""
        observation, reward, done, infos = self.venv.step_wait()
        self.refiner.remember(self._coarse, self.ranks, np.asarray(reward, np.float64))
        return observation, reward, done, infos


def make_ppo(env: VecEnv, config: PpoConfig, steps: int, seed: int, tensorboard: str | None = None) -> PPO:
    """Return SB3's PPO for coarse actions.

    Args:
        env: Environments with a flat box of coarse actions.
        config: Constants.
        steps: Steps of a rollout in each environment: one episode.
        seed: Of weights and actions.
        tensorboard: Folder of events.
    """
    keywords: dict[str, Any] = {
        "features_extractor_class": Encoder,
        "features_extractor_kwargs": {"width": config.width},
        "net_arch": [],
        "log_std_init": config.log_std,
        "optimizer_kwargs": {"eps": 1e-8},
    }
    torch.manual_seed(seed)
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=config.lr,
        n_steps=steps,
        batch_size=steps * env.num_envs,
        n_epochs=config.epochs,
        gamma=config.gamma,
        gae_lambda=config.gae,
        clip_range=config.clip,
        ent_coef=config.entropy,
        vf_coef=config.value,
        max_grad_norm=config.grad,
        policy_kwargs=keywords,
        seed=seed,
        device="cpu",
        tensorboard_log=tensorboard,
    )
