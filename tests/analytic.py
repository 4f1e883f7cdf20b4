"""A task of a few formulas, for tests of environments: deterministic, cheap, and with all that a real one has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlora_envs.noise import uniforms
from fedlora_envs.tasks.base import Floats, Ranks, Sites


class AnalyticTask:
    """Every step at rank r fills part of the gap below it; the loss is what is missing of a concave worth of the components.

    Args:
        sites: Where ranks are chosen.
        episodes: E.
    """

    def __init__(self, sites: Sites, episodes: int) -> None:
        self.sites, self.episodes = sites, episodes
        levels = np.arange(1, int(sites.caps.max()) + 1)
        site = np.arange(1, len(sites) + 1)[:, None]
        worth = np.where(levels <= sites.caps[:, None], 1.0 / (site * levels**1.5), 0.0)
        self.weights = worth / worth.sum()
        self._gains = np.broadcast_to(self.weights, (episodes, *worth.shape))
        self._kept = np.concatenate([np.zeros((len(sites), 1)), np.cumsum(self.weights, axis=1)], axis=1).ravel()
        self._offset = np.arange(len(sites)) * (worth.shape[1] + 1)
        self.trained = np.zeros(episodes)
        self.batch = np.zeros(episodes, np.int64)
        self._seeds, self._numbers = np.zeros(episodes, np.uint64), np.zeros(episodes, np.int64)

    def begin(self, which: NDArray[np.bool_], seeds: NDArray[np.uint64], numbers: NDArray[np.int64], fresh: bool) -> None:
        """Start episodes."""
        self._seeds, self._numbers = np.where(which, seeds, self._seeds), np.where(which, numbers, self._numbers)
        self.batch = np.where(which, 0, self.batch)
        if fresh:
            self.trained = np.where(which, 0.0, self.trained)

    def text(self) -> Floats:
        """Return three numbers of the coming batch."""
        return uniforms(self._seeds, "text", self._numbers, self.batch, 3)

    def train(self, ranks: Ranks, which: NDArray[np.bool_]) -> Floats:
        """Take one step."""
        kept = self._worth_of(ranks)
        loss = np.where(which, 1.0 - kept * self.trained, np.nan)
        self.trained = self.trained + np.where(which, 0.2 * kept * (1.0 - self.trained), 0.0)
        self.batch = self.batch + which
        return loss

    def measure(self, ranks: Ranks) -> tuple[Floats, Floats]:
        """Return loss and accuracy."""
        done = self._worth_of(ranks) * self.trained
        return 1.0 - done, 0.5 + 0.5 * done

    def gains(self) -> Floats:
        """Return what components add."""
        return self._gains

    def _worth_of(self, ranks: Ranks) -> Floats:
        return np.asarray(self._kept[self._offset + ranks].sum(axis=1))


def small_sites(sites: int = 12, cap: int = 8) -> Sites:
    """Return sites of three sizes."""
    numbers = np.array([769, 1537, 385])[np.arange(sites) % 3]
    return Sites(tuple(f"site{n}" for n in range(sites)), np.full(sites, cap, np.int64), numbers.astype(np.int64))
