"""E fine-tunings as a fitted response model gives them: arrays only, a thousand episodes in less than a millisecond a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedlora_envs.noise import normals
from fedlora_envs.tasks.base import Chosen, Floats, Ranks
from fedlora_envs.tasks.response import Response, find
from fedlora_envs.tasks.worths import prior


class RecordedTask:
    """E fine-tunings by a response model (see `fedlora_envs.tasks.response`).

    What differs from episode to episode at equal ranks (pace, batch losses, text, how the worth of components shows in their
    norms) is drawn by the episode's seed and number.

    Args:
        response: The model.
        episodes: E.
    """

    def __init__(self, response: Response, episodes: int) -> None:
        self.response, self.sites, self.episodes = response, response.where, episodes
        count, cap = len(self.sites), int(self.sites.caps.max())
        covered = np.arange(1, cap + 1) <= np.arange(cap + 1)[:, None]
        # By rank, a row of components each: what a rank covers, and what that is worth at each site (site * (cap + 1) + rank).
        self._covered = covered.astype(np.float32)
        self._worths = (covered * response.worth[:, None, :]).reshape(-1, cap).astype(np.float32)
        self._at_site = np.arange(count) * (cap + 1)
        self._prior = prior(self.sites.caps).reshape(-1).astype(np.float32)
        # Single precision: the state is what costs time at a thousand episodes, and its rounding is far below its noise.
        # Sites and components share an axis: inner loops over a handful of components would cost more than the arithmetic.
        self._age = np.zeros((episodes, count * cap), np.float32)
        self._grown, self._total = self._age, np.zeros(episodes)  # what the ages contribute, and the worth of all of it
        self._worth = response.worth.reshape(-1).astype(np.float32)
        self._seeds, self._numbers = np.zeros(episodes, np.uint64), np.zeros(episodes, np.int64)
        self._batch, self._steps = np.zeros(episodes, np.int64), np.zeros(episodes, np.int64)
        self._scale = np.ones((episodes, count * cap), np.float32)
        self._drawn: Floats | None = None

    def begin(self, which: Chosen, seeds: NDArray[np.uint64], numbers: NDArray[np.int64], fresh: bool) -> None:
        """Let the chosen episodes begin; draws are keyed by `seeds` and `numbers`, `[E]` each."""
        self._seeds, self._numbers = np.where(which, seeds, self._seeds), np.where(which, numbers, self._numbers)
        self._batch[which], self._drawn = 0, None
        if not fresh:
            return
        self._age[which] = 0.0
        self._grow()
        self._steps[which] = 0
        rows = np.flatnonzero(which)
        drawn = normals(self._seeds[rows], "task norms", self._numbers[rows], self._batch[rows], len(self.sites))
        scale = np.asarray(self.response.energy) * np.exp(self.response.energy_std * drawn)
        self._scale[rows] = np.repeat(scale, self._covered.shape[1], axis=1)

    def text(self) -> Floats:
        """Return token entropy, unigram surprisal and share of split words of the coming batches, `[E, 3]`."""
        mean, std = np.asarray(self.response.text_mean), np.asarray(self.response.text_std)
        return np.clip(mean + std * self._draws()[:, :3], 0.0, 1.0)

    def train(self, ranks: Ranks, which: Chosen) -> Floats:
        """Take one step in the chosen episodes at `ranks` `[E, L]`; return the batch's loss before it, `[E]`, NaN elsewhere."""
        response, draws = self.response, self._draws()
        loss = self._loss(ranks) + draws[:, :3] @ np.asarray(response.text_weights) + response.batch_std * draws[:, 3]
        self._steps += which
        self._batch += which
        pace = np.exp(response.pace_std * (draws[:, 4] - response.pace_std / 2))  # of mean one
        grown = np.take(self._covered, ranks, axis=0).reshape(self._age.shape)
        grown *= np.where(which, pace, 0.0).astype(np.float32)[:, None]
        self._age += grown
        self._grow()
        self._drawn = None
        # A batch's loss has no bound below but 0.
        return np.where(which, np.maximum(loss, 0.0), np.nan)

    def measure(self, ranks: Ranks) -> tuple[Floats, Floats]:
        """Return held-out (loss, accuracy) with everything beyond `ranks` cut off, `[E]` each."""
        loss = self._loss(ranks)
        return loss, self.response.accuracy(loss)

    def gains(self) -> Floats:
        """Return an estimate of each component's squared norm, `[E, L, cap]`, as `LiveTask.gains` does.

        It is what an observer sees; `worth` is what holds.
        """
        energy = self._age * self._age
        energy *= self._age
        energy *= self._scale
        mean = np.einsum("ec->e", energy) / np.float32(energy.shape[1])
        energy += np.where(mean > 0, mean, np.float32(1))[:, None] * self._prior
        return energy.astype(np.float64).reshape(self.episodes, len(self.sites), -1)

    def worth(self) -> Floats:
        """Return what training each component in the coming step really adds to the progress, `[E, L, cap]`: for oracles."""
        added = (self.response.grown(self._age + 1) - self.response.grown(self._age)) * self._worth
        return np.asarray(added.reshape(self.episodes, len(self.sites), -1), np.float64)

    # -- pieces ------------------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        self._grown = self.response.grown(self._age)
        self._total = np.einsum("ec,c->e", self._grown, self._worth).astype(np.float64)

    def _loss(self, ranks: Ranks) -> Floats:
        worths = np.take(self._worths, ranks + self._at_site, axis=0).reshape(self._grown.shape)  # 0 beyond the ranks
        left = np.einsum("ec,ec->e", self._grown, worths).astype(np.float64)
        return self.response.loss(left, self._total, self._steps)

    def _draws(self) -> Floats:
        """Return the standard normals of the coming step, `[E, 5]`: three text features, batch loss, pace."""
        if self._drawn is None:
            self._drawn = normals(self._seeds, "task", self._numbers, self._batch, 5)
        return self._drawn


def load_recorded(name_or_path: str | Path, episodes: int) -> RecordedTask:
    """Return E fine-tunings by a shipped response model ("minilm-trec"), or by the artefact in a file.

    Raises:
        ConfigError: Neither, or a file that is no response model.
    """
    return RecordedTask(find(name_or_path), episodes)
