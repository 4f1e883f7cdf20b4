"""What learners on Stable-Baselines3 share: randomness of their own, and a state from which a training goes on bit for bit."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from torch import Tensor

from fedlora.errors import ConfigError
from fedlora.streams import stream
from fedlora_envs.rank_env import RankEnv
from fedlora_policies.learners import TRAIN_SEEDS, Say
from fedlora_policies.sb3_env import RowsVecEnv

# What a pickled core may be made of besides classes of fedlora's and of the environment's own packages.
_NUMPY = {"ndarray", "dtype", "_frombuffer", "_reconstruct", "scalar"}
_LOSSES = {"policy_loss": "policy_gradient_loss", "value_loss": "value_loss", "entropy_loss": "entropy_loss", "kl": "approx_kl"}


class Sb3Learner:
    """A learner around SB3's PPO over rows.

    Everything random in an iteration is keyed by the seed and the iteration: SB3 draws from the global generators of Python,
    numpy and torch, which are set for it and put back afterwards.

    Args:
        seed: Of weights, channels and exploration.
        env: Its environment, untouched so far.
        restart: Whether each iteration begins on new channels; else episodes go on, and a checkpoint holds the environment.

    Attributes:
        env: The same.
        ppo: SB3's; the subclass makes it, inside `own_randomness`.
        iteration: Iterations done.
        numbers: Nothing more to tell.

    Raises:
        ConfigError: Episodes are to go on, in an environment that no checkpoint can hold.
    """

    ppo: PPO

    def __init__(self, seed: int, env: RowsVecEnv, restart: bool) -> None:
        self.seed, self.env, self.restart = seed, env, restart
        self.iteration, self.numbers = 0, cast("dict[str, Any]", {})
        if env.num_envs * env.core.horizon < 2:
            raise ConfigError("one step of one episode is too little to learn from: raise learner.episodes or the horizon")
        if not restart:
            try:
                thawed(frozen(env.core), env.core)
            except (pickle.PickleError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"this environment cannot go on from a checkpoint ({error}): set learner.restart = true, so that each "
                    "iteration begins anew"
                ) from None

    def prepare(self, say: Say) -> None:
        """Nothing comes before the first iteration."""

    def iterate(self) -> dict[str, float]:
        """Play one episode's steps everywhere, learn from them, and return numbers about it.

        Raises:
            TrainingError: A reward is not a finite number.
        """
        env, ppo = self.env, self.ppo
        env.iteration, env.rng = self.iteration, stream(self.seed, "shuffled rewards", self.iteration)
        env.take_notes()
        if self.restart:
            ppo._last_obs = None  # SB3 resets the environment then
        with own_randomness(self.seed, 1, self.iteration):
            more = self._learn()
        self.iteration += 1
        logged = ppo.logger.name_to_value
        losses = {key: float(logged[f"train/{name}"]) for key, name in _LOSSES.items()}
        return {**env.noted(), **{key: value for key, value in (losses | more).items() if np.isfinite(value)}}

    def _learn(self) -> dict[str, float]:
        """Take one rollout and update; return losses beyond PPO's."""
        self.ppo.learn(self.env.num_envs * self.ppo.n_steps, reset_num_timesteps=False)
        return {}

    def state(self) -> dict[str, Any]:
        """Return PPO's weights and optimiser, where episodes stand, and the core where they go on."""
        ppo = self.ppo
        held: dict[str, Any] = {
            "policy": ppo.policy.state_dict(), "optimiser": ppo.policy.optimizer.state_dict(), "env": self.env.state(),
            "steps": ppo.num_timesteps, "iteration": self.iteration, "numbers": self.numbers,
        }  # fmt: skip
        if not self.restart:
            held["core"] = torch.frombuffer(bytearray(frozen(self.env.core)), dtype=torch.uint8)
            if ppo._last_obs is not None:
                held["seen"] = torch.from_numpy(np.array(ppo._last_obs))
                held["starts"] = torch.from_numpy(np.array(ppo._last_episode_starts))
        return held

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        ppo = self.ppo
        ppo.policy.load_state_dict(state["policy"])
        ppo.policy.optimizer.load_state_dict(state["optimiser"])
        ppo.num_timesteps, self.iteration, self.numbers = state["steps"], state["iteration"], state["numbers"]
        core = None if self.restart else thawed(state["core"].numpy().tobytes(), self.env.core)
        self.env.restore(state["env"], core)
        if not self.restart and "seen" in state:
            ppo._last_obs, ppo._last_episode_starts = state["seen"].numpy(), state["starts"].numpy()


@contextlib.contextmanager
def own_randomness(seed: int, *keys: int) -> Iterator[None]:
    """Set the global generators of Python, numpy and torch by a seed and keys; put them back afterwards."""
    python, array = random.getstate(), np.random.get_state()
    word = int(stream(seed, "learner", *keys).integers(2**32))
    with torch.random.fork_rng(devices=[]):
        random.seed(word)
        np.random.seed(word)
        torch.manual_seed(word)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


def training_channels(seed: int, iteration: int, episodes: int) -> NDArray[np.uint64]:
    """Return the seeds of an iteration's episodes, `[episodes]`: different ones as long as there are enough."""
    rng = stream(seed, "training channels", iteration)
    return rng.choice(len(TRAIN_SEEDS), episodes, replace=episodes > len(TRAIN_SEEDS)).astype(np.uint64)


def frozen(core: RankEnv) -> bytes:
    """Return a core as bytes."""
    return pickle.dumps(core, protocol=5)


def thawed(data: bytes, like: RankEnv) -> RankEnv:
    """Return the core in these bytes; a checkpoint can bring nothing into being but an environment of the kind of `like`.

    Raises:
        pickle.UnpicklingError: The bytes ask for something else, or are damaged.
    """
    # Its parts may be of a package of their own: a task, say.
    own = {type(part).__module__.partition(".")[0] for part in (like, *vars(like).values())}
    return cast(RankEnv, _Thawing(data, own - {"builtins", "numpy", "torch"}).load())


class _Thawing(pickle.Unpickler):
    """Unpickles instances of the project's classes, of some other packages', and numpy's arrays; calls nothing else."""

    def __init__(self, data: bytes, packages: set[str]) -> None:
        super().__init__(io.BytesIO(data))
        self._packages = {"fedlora", "fedlora_envs"} | packages

    def find_class(self, module: str, name: str) -> Any:
        top = module.partition(".")[0]
        if top == "numpy" and name in _NUMPY:
            return super().find_class(module, name)
        if top in self._packages and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type):
                return found
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no part of an environment")


def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors, so that what is kept does not change as training goes on."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
