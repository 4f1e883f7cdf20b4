"""A small rank environment in formulas: concave gains, a Markov channel, optionally a budget over the episode."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.federation.policy import Links, Observation
from fedlora.ranks import Costs
from fedlora_envs.noise import uniforms
from fedlora_envs.rank_env import Flags, Floats, Ranks, Step, Truth


class RankProblem:
    """Each step's reward is the gain of what was sent, less a price of its bytes; what does not fit gains nothing and costs 1.

    Args:
        episodes: E.
        rows: Rank vectors per episode.
        sites: Sites, of three sizes in turn.
        cap: Levels of each.
        horizon: Steps.
        delay: Age of the SNR that policies see.
        budget: Share of `horizon` full adapters that an episode may send; inf: no limit.
        price: Price of a full adapter's bytes.
        floor: Rank that is sent anyway.
    """

    def __init__(
        self, episodes: int, rows: int = 1, sites: int = 6, cap: int = 4, horizon: int = 8, delay: int = 0,
        budget: float = np.inf, price: float = 0.0, floor: int = 0,
    ) -> None:  # fmt: skip
        self.episodes, self.rows, self.horizon, self.delay, self.price = episodes, rows, horizon, delay, price
        caps = np.full(sites, cap, np.int64)
        self.costs = Costs.linear(np.array([300, 500, 700])[np.arange(sites) % 3], caps, base=100)
        self.floor = np.full(sites, floor, np.int64)
        worth = 1.0 / ((1 + np.arange(sites))[:, None] * np.arange(1, cap + 1) ** 1.5)
        self.worth: Floats = worth / worth.sum()
        self.allowance = budget * horizon * self.costs.full
        self._seeds, self._step = np.zeros(episodes, np.uint64), np.zeros(episodes, np.int64)
        self._episode, self._left = np.zeros(episodes, np.int64), np.full(episodes, self.allowance)
        self._over = np.zeros(episodes, np.bool_)
        self._levels = np.zeros((horizon + 1, episodes * rows))
        self._previous = np.zeros((episodes * rows, sites), np.int64)

    def reset(self, which: Flags, seeds: NDArray[np.uint64] | None = None) -> Observation:
        """Begin episodes; the whole channel of an episode is drawn now, before anybody acts."""
        self._episode = np.where(which, self._episode + 1 if seeds is None else 0, self._episode)
        self._seeds = self._seeds if seeds is None else np.where(which, seeds, self._seeds)
        self._step, self._over = np.where(which, 0, self._step), self._over & ~which
        self._left = np.where(which, self.allowance, self._left)
        self._previous = np.where(np.repeat(which, self.rows)[:, None], 0, self._previous)
        draws = uniforms(self._seeds, "channel", self._episode, np.zeros(self.episodes, np.int64), (self.horizon + 1) * self.rows)
        draws = draws.reshape(self.episodes, self.horizon + 1, self.rows).transpose(1, 0, 2).reshape(self.horizon + 1, -1)
        levels = np.empty_like(draws)
        levels[0] = np.floor(5 * draws[0])
        for step in range(1, self.horizon + 1):
            moved = levels[step - 1] + (draws[step] < 0.25) - (draws[step] > 0.75)
            levels[step] = np.clip(moved, 0, 4)
        self._levels = np.where(np.repeat(which, self.rows), levels, self._levels)
        return self._observe()

    def step(self, ranks: Ranks) -> Step:
        """Send."""
        ranks = np.maximum(ranks, self.floor)
        size = self.costs.bytes(ranks)
        alive = ~self._over
        fits = (size <= self.truth().budget_bytes) & np.repeat(alive, self.rows)
        kept = np.concatenate([np.zeros((len(self.worth), 1)), self.worth.cumsum(axis=1)], axis=1)
        gain = kept[np.arange(ranks.shape[1]), ranks].sum(axis=1) - self.price * size / self.costs.full
        reward = np.where(fits, gain, -1.0).reshape(self.episodes, -1).sum(axis=1)
        sent = np.where(fits, size, 0).reshape(self.episodes, -1).sum(axis=1)
        self._left, self._step = self._left - sent, self._step + alive
        truncated = alive & (self._step >= self.horizon)
        self._over, self._previous = self._over | truncated, ranks
        feasible = fits.reshape(self.episodes, -1).all(axis=1)
        info: dict[str, NDArray[Any]] = {
            "bits": 8.0 * sent, "latency_s": sent / 1e3, "cost": np.where(feasible, 0.0, 1.0), "feasible": feasible,
            "utility": reward, "loss": np.where(truncated, 1.0 - reward, np.nan), "accuracy": np.where(truncated, reward, np.nan),
        }  # fmt: skip
        return Step(self._observe(), np.where(alive, reward, 0.0), np.zeros_like(truncated), truncated, info)

    def truth(self) -> Truth:
        """Return what holds in the coming step."""
        gains = np.broadcast_to(self.worth, (self.episodes * self.rows, *self.worth.shape))
        return Truth(self._fits(self._at(0)), gains)

    def features(self) -> Floats:
        """Return the level that is known."""
        return (self._at(self.delay) / 4.0).reshape(self.episodes, -1)

    def _at(self, age: int) -> Floats:
        step = np.repeat(np.minimum(np.maximum(self._step - age, 0), self.horizon), self.rows)
        return np.asarray(self._levels[step, np.arange(len(step))])

    def _fits(self, level: Floats) -> Floats:
        return np.minimum(np.floor(self.costs.full * (0.1 + 0.2 * level)), np.repeat(self._left, self.rows))

    def _observe(self) -> Observation:
        level, count = self._at(self.delay), self.episodes * self.rows
        fits = self._fits(level)
        nothing = np.full(count, np.inf)
        links = Links(
            uplink_snr_db=5.0 * level - 5.0, uplink_bps=8.0 * fits, downlink_bps=nothing, age_rounds=np.full(count, self.delay),
            outage=fits < self.costs.base, compute_bps=nothing, energy_left_j=nothing, deadline_s=1.0,
        )  # fmt: skip
        return Observation(
            round=int(min(self._step.max() + 1, self.horizon)), rounds=self.horizon,
            clients=np.tile(np.arange(self.rows), self.episodes), examples=np.ones(count, np.int64), caps=self.costs.caps,
            units=self.costs.units, previous=self._previous, links=links, costs=self.costs, budget_bytes=fits,
            gains=self.truth().gains, text=np.zeros((count, 3)),
        )  # fmt: skip


def problem(episodes: int, **options: Any) -> RankProblem:
    """Return the environment; `rank_problem:problem` names it in a compare file."""
    return RankProblem(episodes, **options)
