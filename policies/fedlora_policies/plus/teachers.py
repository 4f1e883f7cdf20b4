"""What airllm-plus learns before it tries for itself: decisions of a clairvoyant and of greedy, the best per channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedlora.federation.policy import Observation, make_policy
from fedlora.streams import stream
from fedlora_envs.rank_env import Step, Truth
from fedlora_policies.features import Features, Reader
from fedlora_policies.known import budget_of
from fedlora_policies.learners import refuse_bad_return
from fedlora_policies.oracle import ClairvoyantSetup
from fedlora_policies.plus.policy import Brain
from fedlora_policies.plus.requests import requests_for
from fedlora_policies.rollout import Stage, play_with

Floats = NDArray[np.float64]

# Tried on each channel; the best of them is what is learnt. Greedy sees what the learner will see, the oracle more than that.
TEACHERS: dict[str, dict[str, list[float]]] = {
    "oracle": {"price": [0.0, 0.5, 1.0], "share": [0.2, 0.5, 1.0], "backoff": [0.45, 1.0]},
    "greedy": {"price": [0.0, 0.5], "backoff": [0.2, 0.45, 1.0]},
}


@dataclass(frozen=True)
class Lessons:
    """n decisions worth imitating.

    Attributes:
        features: What was seen.
        requests: What was asked for, `[n, L + 1]`.
        score: Mean return of the episodes they are from.
    """

    features: Features
    requests: Tensor
    score: float


def gather(
    stage: Stage,
    reader: Reader,
    seeds: NDArray[np.uint64],
    say: Callable[[str], None] = lambda text: None,
    teachers: Mapping[str, Mapping[str, list[float]]] = TEACHERS,
    shuffle: np.random.Generator | None = None,
) -> Lessons:
    """Play every teacher on the same channels and return the decisions of each channel's best episode.

    Args:
        stage: The environment, with an episode per seed.
        reader: Reads the learner's features.
        seeds: Channels.
        say: Told what happens.
        teachers: Policies, each with the options to try: all combinations are.
        shuffle: Control: the oracle is told the worth of other sites than it decides on, and episodes are drawn at random, not
            by their returns.
    """
    tries = [
        (name, dict(zip(grid, values, strict=True))) for name, grid in teachers.items() for values in product(*grid.values())
    ]
    setup = stage.setup(0) if shuffle is None else _misled(stage.setup(0), shuffle)
    books, returns = [], []
    say(f"{len(tries)} teachers play {len(seeds)} channels")
    for name, options in tries:
        quick = {"width": 50} if name == "oracle" else {}
        book = _Book(stage, reader)
        policy = make_policy(name, options | quick, setup)
        returns.append(play_with(stage, policy, name, seeds, book.watch).returns)
        refuse_bad_return(returns[-1], f"the lessons of '{name}'", seeds)
        books.append(book)
    best = np.stack(returns).argmax(axis=0) if shuffle is None else shuffle.integers(len(tries), size=len(seeds))
    parts = [book.of(np.flatnonzero(best == index)) for index, book in enumerate(books)]
    features = Features(
        np.concatenate([part[0].client for part in parts]), np.concatenate([part[0].sites for part in parts])
    )  # fmt: skip
    requests = np.concatenate([part[1] for part in parts])
    score = float(np.stack(returns)[best, np.arange(len(seeds))].mean())
    return Lessons(features, torch.from_numpy(requests.astype(np.float32)), score)


def _misled(setup: ClairvoyantSetup, rng: np.random.Generator) -> ClairvoyantSetup:
    """Return a setup whose truth about what fits is true, and about what levels are worth is dealt out anew over the sites.

    An oracle's decisions hold what rewards would say, even where nobody looks at a reward.
    """
    known = setup.truth
    assert known is not None

    def truth() -> Truth:
        found = known()
        order = rng.permuted(np.tile(np.arange(found.gains.shape[1]), (len(found.gains), 1)), axis=1)
        return replace(found, gains=np.take_along_axis(found.gains, order[:, :, None], axis=1))

    return replace(setup, truth=truth)


class _Book:
    """Writes down the feasible decisions of all episodes."""

    def __init__(self, stage: Stage, reader: Reader) -> None:
        self.stage, self.reader, self.rows = stage, reader, stage.core.rows
        self.features: list[Features] = []
        self.requests: list[Floats] = []
        self.good: list[NDArray[np.bool_]] = []

    def watch(self, seen: Observation, ranks: NDArray[np.int64], step: Step, alive: NDArray[np.bool_]) -> None:
        """Note a step."""
        self.features.append(self.reader(seen))
        self.requests.append(requests_for(ranks, self.stage.costs, budget_of(seen)))
        self.good.append(alive & (step.info["feasible"].astype(np.float64) >= 1.0))

    def of(self, episodes: NDArray[np.intp]) -> tuple[Features, Floats]:
        """Return the decisions of some episodes."""
        rows = (episodes[:, None] * self.rows + np.arange(self.rows)).ravel()
        client, sites, requests = [], [], []
        for seen, asked, good in zip(self.features, self.requests, self.good, strict=True):
            kept = rows[np.repeat(good[episodes], self.rows)]
            client.append(seen.client[kept])
            sites.append(seen.sites[kept])
            requests.append(asked[kept])
        return Features(np.concatenate(client), np.concatenate(sites)), np.concatenate(requests)


def imitate(brain: Brain, lessons: Sequence[Lessons], updates: int, batch: int, lr: float, hidden: float, seed: int) -> float:
    """Train a chain to produce the lessons' requests; return the mean loss of the last tenth of the updates.

    The usual regression of diffusion models: predict the clean request from a noisy one, at a random step of the schedule.

    Args:
        brain: What is trained.
        lessons: Decisions of each kind of environment, in turn.
        updates: Mini-batches.
        batch: Their size.
        lr: Adam's.
        hidden: Share of examples whose client features are hidden, for classifier-free guidance.
        seed: Of mini-batches and noise.
    """
    generator = torch.Generator().manual_seed(int(stream(seed, "imitation").integers(2**62)))
    optimiser = torch.optim.Adam(brain.denoiser.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=max(updates, 2))
    losses = []
    for update in range(updates):
        part = lessons[update % len(lessons)]
        rows = torch.randint(len(part.features), (batch,), generator=generator)
        loss = denoising_loss(brain, part.features.take(rows.numpy()), part.requests[rows], hidden, generator)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(brain.denoiser.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses[-max(updates // 10, 1) :]))


def denoising_loss(brain: Brain, features: Features, requests: Tensor, hidden: float, generator: torch.Generator) -> Tensor:
    """Return the squared error of the predicted clean requests at random steps, the bytes counting as much as all sites."""
    scheduler, count = brain.chain.scheduler, len(features)
    steps = torch.randint(brain.config.train_steps, (count,), generator=generator)
    noisy = scheduler.add_noise(requests, torch.randn(requests.shape, generator=generator), steps)
    mask = torch.rand(count, generator=generator) < hidden if hidden else None
    found = brain.denoiser(noisy, steps, torch.from_numpy(features.client), torch.from_numpy(features.sites), mask)
    error = (found - requests).square()
    return cast(Tensor, (error[:, :-1].mean(dim=1) + error[:, -1]).mean())
