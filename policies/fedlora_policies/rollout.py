"""Policies played in rank environments: one episode for each seed, all of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora.federation.policy import Observation, Policy, Ranks, make_policy
from fedlora.ranks import Costs
from fedlora_envs.rank_env import RankEnv, Step
from fedlora_policies.oracle import ClairvoyantSetup

Floats = NDArray[np.float64]
Watch = Callable[[Observation, Ranks, Step, NDArray[np.bool_]], None]

SUMMED = ("bits", "latency_s", "energy_j")
COURSE = ("bytes", "latency_s", "loss", "accuracy")


@dataclass(frozen=True)
class Episodes:
    """What a policy did in E episodes.

    Attributes:
        returns: Sum of rewards, `[E]`.
        sums: Sums over an episode of what `info` gives: bytes, latency_s, energy_j, steps, `[E]` each.
        final: The last loss and accuracy that were measured, `[E]` each; NaN where none was.
        violations: Share of steps whose cost was above 0, `[E]`.
        cost: Mean of the cost over steps, `[E]`.
        feasible: Share of rank vectors that were feasible, `[E]`.
        mean_ranks: Mean rank of every decision that was taken, `[decisions]`.
        snr_db: SNR that these went by, `[decisions]`; empty where no links are shown.
        channel: SNR shown to every row in every step, `[steps, E * rows]`; NaN once an episode is over.
        course: How episodes went, `[steps, E]` each: bytes and latency_s up to and with a step, loss and accuracy after it; NaN
            where nobody measured and once an episode is over.
    """

    returns: Floats
    sums: dict[str, Floats]
    final: dict[str, Floats]
    violations: Floats
    cost: Floats
    feasible: Floats
    mean_ranks: Floats
    snr_db: Floats
    channel: Floats
    course: dict[str, Floats]

    def score(self, metric: str) -> Floats:
        """Return what policies are compared by, larger being better: "return", "accuracy" or "loss" (negated), `[E]`."""
        if metric == "return":
            return self.returns
        found = self.final.get(metric, np.full(len(self.returns), np.nan))
        if np.isnan(found).any():
            raise ConfigError(f"metric = '{metric}': the environment does not measure it in every episode. Use metric = 'return'")
        return -found if metric == "loss" else found


def make_core(name: str, episodes: int, options: Mapping[str, Any]) -> RankEnv:
    """Return the core of a rank environment.

    Args:
        name: Gymnasium's id of a vector environment that has a `core`, or "module:function" called as (episodes, **options).
        episodes: Episodes side by side.
        options: Options of the environment.

    Raises:
        ConfigError: No such environment, one of another kind, or options that it does not take.
    """
    try:
        if ":" in name:
            module, _, function = name.partition(":")
            return cast(RankEnv, getattr(import_module(module), function)(episodes, **options))
        import gymnasium

        import_module("fedlora_envs.gym_envs")  # registers the project's own
        found = gymnasium.make_vec(name, episodes, vectorization_mode="vector_entry_point", **dict(options))
    except (TypeError, ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"env = '{name}' cannot be made with the options {dict(options)}: {error}") from None
    except Exception as error:
        if type(error).__module__.startswith("gymnasium"):
            raise ConfigError(f"env = '{name}' is no vector environment that Gymnasium knows: {error}") from None
        raise
    core = getattr(found.unwrapped, "core", None)
    if core is None:
        raise ConfigError(f"env = '{name}' is not an environment of rank vectors: it has no `core`")
    return cast(RankEnv, core)


def names_of(core: RankEnv) -> tuple[str, ...]:
    """Return the names of a core's sites; none where it has none."""
    return tuple(getattr(getattr(core, "sites", None), "names", ()))


def with_floor(costs: Costs, floor: Ranks | None) -> Costs:
    """Return costs in which levels up to a floor are free, because they are sent anyway."""
    if floor is None or not floor.any():
        return costs
    least = costs.table[np.arange(len(floor)), floor // costs.units]
    return Costs(int(costs.base + least.sum()), np.maximum(costs.table - least[:, None], 0), costs.units, costs.caps)


def play(core: RankEnv, name: str, options: Mapping[str, Any], seeds: NDArray[np.uint64], policy_seed: int = 0) -> Episodes:
    """Play one episode for each seed with the policy called `name` (ConfigError where policy and environment do not fit)."""
    stage = Stage(core)
    return play_with(stage, make_policy(name, dict(options), stage.setup(policy_seed)), name, seeds)


def play_with(stage: Stage, policy: Policy, name: str, seeds: NDArray[np.uint64], watch: Watch | None = None) -> Episodes:
    """Play one episode for each seed with a policy.

    Args:
        stage: The environment.
        policy: The policy.
        name: What it is called, for errors.
        seeds: `[E]`.
        watch: Shown every step: what was seen, the ranks chosen, what they gave, and which episodes were still going on.
    """
    core = stage.core
    seen = stage.reset(seeds)
    alive, log = np.ones(core.episodes, np.bool_), _Log(core.episodes, core.rows)
    for _ in range(core.horizon):
        ranks = _chosen(policy, name, seen, stage.costs)
        step = stage.step(ranks)
        log.add(seen, ranks, step.reward, step.info, alive)
        if watch is not None:
            watch(seen, ranks, step, alive)
        alive = alive & ~(step.terminated | step.truncated)
        if not alive.any():
            break
        seen = step.observation
    return log.episodes()


class Stage:
    """A core as policies are shown it: levels that are sent anyway are free, and all members have numbers of their own.

    Args:
        core: The environment.

    Attributes:
        core: The same.
        costs: Bytes by rank.
    """

    def __init__(self, core: RankEnv) -> None:
        self.core, self.costs = core, with_floor(core.costs, getattr(core, "floor", None))

    def setup(self, seed: int) -> ClairvoyantSetup:
        """Return what a policy with this seed is told beforehand."""
        costs, core = self.costs, self.core
        count = core.episodes * core.rows
        return ClairvoyantSetup(seed, count, costs.caps, costs.units, costs, names_of(core), core.truth)

    def reset(self, seeds: NDArray[np.uint64]) -> Observation:
        """Begin an episode for each seed `[E]`."""
        return self._shown(self.core.reset(np.ones(self.core.episodes, np.bool_), seeds))

    def step(self, ranks: Ranks) -> Step:
        """Take a step of all episodes."""
        step = self.core.step(ranks)
        return replace(step, observation=self._shown(step.observation))

    def _shown(self, seen: Observation) -> Observation:
        # What a policy remembers of clients is kept apart, episode by episode.
        return replace(seen, clients=np.arange(len(seen.clients)), costs=self.costs)


def _chosen(policy: Policy, name: str, seen: Observation, costs: Costs) -> Ranks:
    asked, shape = np.asarray(policy.choose(seen)), (len(seen.clients), len(costs.caps))
    if asked.shape != shape or asked.dtype.kind not in "iu":
        raise ConfigError(
            f"policy '{name}' chose ranks of type {asked.dtype}, shape {list(asked.shape)}; a policy returns whole numbers of "
            f"shape {list(shape)}, [clients, sites]"
        )
    ranks: Ranks = np.clip(asked, 0, costs.caps) // costs.units * costs.units
    return ranks


class _Log:
    """Adds up what the steps of all episodes gave while they lasted."""

    def __init__(self, count: int, rows: int) -> None:
        self.rows = rows
        self.returns, self.steps = np.zeros(count), np.zeros(count)
        self.sums = {key: np.zeros(count) for key in SUMMED}
        self.final = {key: np.full(count, np.nan) for key in ("loss", "accuracy")}
        self.missed, self.cost, self.feasible = np.zeros(count), np.zeros(count), np.zeros(count)
        self.mean_ranks: list[Floats] = []
        self.snr_db: list[Floats] = []
        self.channel: list[Floats] = []
        self.course: dict[str, list[Floats]] = {key: [] for key in COURSE}

    def add(
        self, seen: Observation, ranks: Ranks, reward: Floats, info: Mapping[str, NDArray[Any]], alive: NDArray[np.bool_]
    ) -> None:
        self.returns += np.where(alive, reward, 0.0)
        self.steps += alive
        for key in self.sums.keys() & info.keys():
            self.sums[key] += np.where(alive, info[key], 0.0)
        for key in self.final.keys() & info.keys():
            self.final[key] = np.where(alive & ~np.isnan(info[key]), info[key], self.final[key])
        now = {**info, "bytes": self.sums["bits"] / 8, "latency_s": self.sums["latency_s"]}
        for key, values in self.course.items():
            values.append(np.where(alive, now.get(key, np.nan), np.nan))
        cost = info.get("cost", np.zeros(len(reward)))
        self.cost += np.where(alive, cost, 0.0)
        self.missed += alive & (cost > 0)
        self.feasible += np.where(alive, info.get("feasible", cost <= 0), 0.0)
        awake = np.repeat(alive, self.rows)
        self.mean_ranks.append(ranks.mean(axis=1)[awake])
        if seen.links is not None:
            self.snr_db.append(seen.links.uplink_snr_db[awake])
            self.channel.append(np.where(awake, seen.links.uplink_snr_db, np.nan))

    def episodes(self) -> Episodes:
        steps = np.maximum(self.steps, 1)
        sums = {"bytes": self.sums["bits"] / 8, "latency_s": self.sums["latency_s"], "energy_j": self.sums["energy_j"]}
        sums["steps"] = self.steps
        course = {key: np.stack(values) for key, values in self.course.items()}
        snr_db = np.concatenate(self.snr_db) if self.snr_db else np.zeros(0)
        channel = np.stack(self.channel) if self.channel else np.zeros((0, len(steps) * self.rows))
        return Episodes(
            self.returns, sums, self.final, self.missed / steps, self.cost / steps, self.feasible / steps,
            np.concatenate(self.mean_ranks), snr_db, channel, course,
        )  # fmt: skip
