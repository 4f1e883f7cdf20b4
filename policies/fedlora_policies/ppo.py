"""PPO by name: Stable-Baselines3's, unmodified, over rank vectors; every client of every episode is one of its environments."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

from fedlora.config import ConfigSection, parse_section
from fedlora.errors import ConfigError
from fedlora.federation.policy import Observation, Policy, PolicySetup, Ranks
from fedlora_policies.features import CLIENT_FEATURES, SITE_FEATURES, Reader
from fedlora_policies.learners import MakeCore
from fedlora_policies.policy_file import PolicyFile, load_into, load_policy
from fedlora_policies.rollout import Stage
from fedlora_policies.sb3_env import RowsVecEnv
from fedlora_policies.sb3_learner import Sb3Learner, own_randomness, plain, training_channels

NAME = "ppo"
_FEATURES = {"client": list(CLIENT_FEATURES), "sites": list(SITE_FEATURES)}


class PpoConfig(ConfigSection):
    """Options of the learner."""

    episodes: int = Field(64, ge=1, description="episodes side by side")
    lr: float = Field(3e-3, gt=0, description="Adam's step size")
    epochs: int = Field(4, ge=1, description="passes over a rollout")
    minibatch: int = Field(120, ge=2, description="decisions of an update")
    gamma: float = Field(0.8, ge=0, le=1, description="discount; 0: only the step's own reward counts")
    gae: float = Field(0.8, ge=0, le=1, description="lambda of the advantage estimate")
    clip: float = Field(0.2, gt=0, description="clip of the likelihood ratio")
    entropy: float = Field(0.0, ge=0, description="weight of the entropy")
    value: float = Field(0.5, ge=0, description="weight of the value loss")
    grad: float = Field(0.5, gt=0, description="gradient norm limit")
    width: int = Field(64, ge=1, description="numbers of each of the two hidden layers, of policy and value each")
    normalise: bool = Field(True, description="divide rewards by the running spread of returns (SB3's VecNormalize)")
    shuffle: bool = Field(False, description="control: rewards are dealt out at random")


@dataclass(frozen=True)
class Head:
    """How large a policy is, and what its actions mean.

    Attributes:
        inputs: Numbers that it sees.
        width: Of its hidden layers.
        lowest: Smallest level per site.
        counts: Levels to choose from, per site.
        units: Ranks of a level, per site.
    """

    inputs: int
    width: int
    lowest: list[int]
    counts: list[int]
    units: list[int]

    def network(self) -> ActorCriticPolicy:
        """Return SB3's own policy of this size, untrained."""
        box = gymnasium.spaces.Box(-np.inf, np.inf, (self.inputs,), np.float32)
        with own_randomness(0):
            return ActorCriticPolicy(box, gymnasium.spaces.MultiDiscrete(self.counts), lambda _: 1e-3, net_arch=[self.width] * 2)


class PpoLearner(Sb3Learner):
    """Trains a policy with PPO; every iteration plays new channels.

    Args:
        make: Returns the environment.
        seed: Of first weights, channels and exploration.
        options: Those of `PpoConfig`.
    """

    def __init__(self, make: MakeCore, seed: int, /, **options: Any) -> None:
        self.config = config = parse_section(PpoConfig, options, "learner.")
        stage = Stage(make(config.episodes))
        self.setup = stage.setup(seed)
        reader = Reader(self.setup, NAME)
        env = RowsVecEnv(
            stage, lambda seen: reader(seen).flat(), lambda at: training_channels(seed, at, config.episodes), config.shuffle
        )
        super().__init__(seed, env, restart=True)
        self.scaled = VecNormalize(env, norm_obs=False, gamma=config.gamma) if config.normalise else None
        with own_randomness(seed, 0), warnings.catch_warnings():
            # A last mini-batch that is smaller than the others does no harm.
            warnings.filterwarnings("ignore", "You have specified a mini-batch size")
            self.ppo = PPO(
                "MlpPolicy",
                self.scaled or env,
                learning_rate=config.lr,
                n_steps=env.core.horizon,
                batch_size=config.minibatch,
                n_epochs=config.epochs,
                gamma=config.gamma,
                gae_lambda=config.gae,
                clip_range=config.clip,
                ent_coef=config.entropy,
                vf_coef=config.value,
                max_grad_norm=config.grad,
                policy_kwargs={"net_arch": [config.width] * 2},
                seed=seed,
                device="cpu",
            )

    def policy(self, setup: PolicySetup) -> Policy:
        """Return the policy as it stands."""
        return PpoPolicy(setup, self.file({}))

    def file(self, about: dict[str, Any]) -> PolicyFile:
        """Return the policy as a file."""
        actions, width = self.env.actions, self.env.observation_space.shape
        assert width is not None
        units = self.env.core.costs.units
        head = Head(width[0], self.config.width, actions.lowest.tolist(), actions.counts.tolist(), units.tolist())
        own = {"head": vars(head), "features": _FEATURES, "sites": list(self.setup.sites), "caps": self.setup.caps.tolist()}
        return PolicyFile(NAME, about | own, plain(self.ppo.policy.state_dict()))

    def state(self) -> dict[str, Any]:
        """Return also the running spread that rewards are divided by."""
        if self.scaled is None:
            return super().state()
        seen = self.scaled.ret_rms
        return super().state() | {"spread": [float(seen.mean), float(seen.var), float(seen.count)]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        super().restore(state)
        if self.scaled is not None:
            seen, (mean, variance, count) = self.scaled.ret_rms, state["spread"]
            seen.mean, seen.var, seen.count = np.array(mean), np.array(variance), count


class PpoPolicy:
    """A policy trained by PPO for these sites and caps, playing its likeliest action.

    Args:
        setup: What is known for the whole run.
        file: The policy's file.
    """

    summary = "trained: Stable-Baselines3's PPO, for the sites it was trained on (options: file)"

    def __init__(self, setup: PolicySetup, file: str | PolicyFile) -> None:
        found = file if isinstance(file, PolicyFile) else load_policy(file, NAME)
        found.refuse_other_sites(setup)
        where: str | Path = "of this training" if isinstance(file, PolicyFile) else file
        if found.about.get("features") != _FEATURES:
            raise ConfigError(f"the policy file {where} was trained on other features than this version reads. Train it anew")
        try:
            self.head = Head(**found.about["head"])
            self.network = self.head.network()
        except (KeyError, TypeError, AssertionError) as error:
            raise ConfigError(f"the policy file {where} is damaged: {error}. Train it anew") from None
        load_into(self.network, found.tensors, where)
        self.reader = Reader(setup, NAME)

    def choose(self, observation: Observation) -> Ranks:
        """Return each client's ranks; equal observations get equal ranks."""
        levels: NDArray[Any] = self.network.predict(self.reader(observation).flat(), deterministic=True)[0]
        return np.asarray((levels.astype(np.int64) + self.head.lowest) * self.head.units, np.int64)
