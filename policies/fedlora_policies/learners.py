"""The contract of what learns: a policy that gets better iteration by iteration in a rank environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import TrainingError
from fedlora.federation.policy import Policy, PolicySetup
from fedlora.registry import Registry
from fedlora_envs.rank_env import RankEnv
from fedlora_policies.policy_file import PolicyFile


class MakeCore(Protocol):
    """Makes the training environment.

    Attributes:
        variants: How many kinds of it there are; learners that can, go through them from iteration to iteration.
    """

    variants: int

    def __call__(self, episodes: int, variant: int = 0) -> RankEnv:
        """Return a kind of it, with so many episodes side by side."""
        ...


Say = Callable[[str], None]

TRAIN_SEEDS = range(0, 10_000)
VALIDATION_SEEDS = range(10_000, 10_100)
TEST_SEEDS = range(20_000, 20_050)


class Learner(Protocol):
    """What `fedlora train-policy` trains. Everything random in it is a function of its seed and the iteration.

    Attributes:
        iteration: Iterations done.
        numbers: What training needed and gave so far, for the policy's file.
    """

    iteration: int
    numbers: dict[str, Any]

    def prepare(self, say: Say) -> None:
        """Do what comes before the first iteration; not called when a training is resumed."""
        ...

    def iterate(self) -> dict[str, float]:
        """Play and learn once; return numbers about it (TrainingError where a reward is not a finite number)."""
        ...

    def state(self) -> dict[str, Any]:
        """Return all that crosses an iteration: tensors, numbers, texts, and lists and dictionaries of them."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        ...

    def policy(self, setup: PolicySetup) -> Policy:
        """Return the policy as it stands, for validation: it plays as its file will."""
        ...

    def file(self, about: dict[str, Any]) -> PolicyFile:
        """Return the policy as a file, with what there is to say about it."""
        ...


LEARNERS: Registry[Callable[..., Learner]] = Registry("learner", "fedlora.learners")
"""By name of the policy: called as (make_core, seed, **options)."""


def refuse_bad_reward(reward: NDArray[np.floating], iteration: int, step: int, seeds: NDArray[Any] | None = None) -> None:
    """Raise TrainingError where a reward is not a finite number, `[E]`, naming the iteration, the step and the episode."""
    if np.isfinite(reward).all():
        return
    episode = int(np.flatnonzero(~np.isfinite(reward))[0])
    which = f"episode {episode}" if seeds is None else f"the episode with seed {seeds[episode]}"
    raise TrainingError(
        f"the reward of {which} is {float(reward[episode])} in step {step + 1} of iteration {iteration + 1}: "
        "nothing can be learnt from it"
    )


def refuse_bad_return(returns: NDArray[np.floating], where: str, seeds: NDArray[Any]) -> None:
    """Raise TrainingError where the return of an episode is not a finite number, `[E]`, naming the place and its seed, `[E]`."""
    if not np.isfinite(returns).all():
        episode = int(np.flatnonzero(~np.isfinite(returns))[0])
        raise TrainingError(
            f"the return of the episode with seed {seeds[episode]} is {float(returns[episode])} in {where}: "
            "nothing can be learnt from it"
        )
