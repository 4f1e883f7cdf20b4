"""What tests of learners share: a problem to learn, checkpoints in memory, and a training that says nothing."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedlora.federation.policy import Observation, Policy
from fedlora.federation.workbench import build
from fedlora_envs.rank_env import Flags, Ranks, Step
from fedlora_policies.rollout import Stage, play_with
from rank_problem import RankProblem
from tiny_run import Ground

SEEDS = np.arange(10_000, 10_016, dtype=np.uint64)
MakeLearner = Callable[..., Any]


class Clean(RankProblem):
    """Whoever begins has sent nothing: an episode is a function of its seed and the actions."""

    def reset(self, which: Flags, seeds: NDArray[np.uint64] | None = None) -> Observation:
        """Begin episodes."""
        self._previous = np.where(np.repeat(which, self.rows)[:, None], 0, self._previous)
        return super().reset(which, seeds)


class Target(Clean):
    """Pays for being near a given rank at every site, whatever the channel: 0 at best."""

    goal = np.array([3, 0, 2])

    def step(self, ranks: Ranks) -> Step:
        """Send."""
        step = super().step(ranks)
        missed = np.abs(np.maximum(ranks, self.floor) - self.goal).sum(axis=1)
        step.reward[:] = -missed.reshape(self.episodes, -1).mean(axis=1)
        step.info["feasible"] = np.ones(self.episodes, bool)
        return step


class Broken(Clean):
    """Loses its reward in the third step of the last episode."""

    def step(self, ranks: Ranks) -> Step:
        """Send."""
        step = super().step(ranks)
        if self._step[-1] == 3:
            step.reward[-1] = np.nan
        return step


def problem(episodes: int) -> RankProblem:
    """Return three sites of rank up to 4, two clients an episode."""
    return Clean(episodes, rows=2, sites=3, horizon=5)


def saved(state: dict[str, Any]) -> Any:
    """Return a state as a checkpoint gives it back."""
    data = io.BytesIO()
    torch.save(state, data)
    return torch.load(io.BytesIO(data.getvalue()), weights_only=True)


def same(one: Any, other: Any) -> bool:
    """Whether two states agree to the last bit; environments, whose bytes tell who shares what, are compared by what they do."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(key == "core" or same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def draw() -> list[float]:
    """Draw from all global generators."""
    return [float(torch.rand(1)), float(np.random.rand()), random.random()]


def seed_all(seed: int) -> None:
    """Seed all global generators."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def resumed(make: MakeLearner, first: int, more: int) -> tuple[Any, Any]:
    """Return a learner that went through, and one that goes on from its checkpoint; both must say the same from there on."""
    whole = make()
    for _ in range(first):
        whole.iterate()
    state = saved(whole.state())
    expected = [whole.iterate() for _ in range(more)]
    draw()
    again = make()
    again.restore(state)
    assert [again.iterate() for _ in range(more)] == expected
    return whole, again


def ranks_in(policy: Policy, stage: Stage) -> NDArray[np.int64]:
    """Return the ranks that a policy chooses over an episode of each seed, `[steps, rows, sites]`."""
    found: list[Ranks] = []
    play_with(stage, policy, "it", SEEDS[: stage.core.episodes], lambda seen, ranks, step, alive: found.append(ranks))
    return np.stack(found)


def file_for_a_run(ground: Ground, path: Path, learner: MakeLearner, options: dict[str, Any]) -> Path:
    """Write the policy of an untrained learner for the sites of a tiny run."""
    adapters = build(ground.config()).adapters
    caps = {adapter.cap for adapter in adapters}
    assert len(caps) == 1
    made = learner(lambda episodes: RankProblem(episodes, sites=len(adapters), cap=caps.copy().pop(), horizon=3), 0, **options)
    made.file({}).save(path)
    return path


class Quiet:
    """Says nothing; interrupts after an iteration."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop

    def say(self, text: str) -> None:
        """Say nothing."""

    def start(self, config: object, done: int) -> None:
        """Show nothing."""

    def iteration(self, row: dict[str, Any]) -> None:
        """Interrupt, if it is time."""
        if row["iteration"] == self.stop:
            raise KeyboardInterrupt
