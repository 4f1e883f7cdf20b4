"""Paired comparison of policies: the same test episodes for all, options tuned on validation episodes only.

Seeds are split: 0 to 9,999 train, 10,000 to 10,099 validate, 20,000 to 20,049 test. A policy never changes what channel comes
next, so that all policies meet the same channels (checked, not trusted), and differences are taken episode by episode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedlora.config import ConfigSection, parse_section, read_overrides, read_toml
from fedlora.errors import ConfigError, FedLoRAError, suggest
from fedlora.federation.policy import POLICIES
from fedlora_policies.learners import TEST_SEEDS, VALIDATION_SEEDS
from fedlora_policies.reach import Reach, reaches
from fedlora_policies.rollout import Episodes, make_core, play
from fedlora_policies.statistics import Interval, bootstrap, difference, interquartile_mean, mean, normalised, rank_correlation

Floats = NDArray[np.float64]
Say = Callable[[str], None]


class PolicyEntry(ConfigSection):
    """One policy of a comparison."""

    name: str | None = Field(None, description="registered policy: see `fedlora methods`; unset: what the entry is called")
    options: dict[str, Any] = Field({}, description="arguments of the policy")
    grid: dict[str, list[Any]] = Field({}, description="options to tune, each with the values to try; all combinations are tried")
    choose: Literal["validation", "hindsight"] = Field(
        "validation",
        description="how one of the grid is chosen: best on validation, or in hindsight in each test episode (oracle)",
    )
    runs: list[dict[str, Any]] = Field([], description="options of each training run of a learned policy (its file); [] for one")


class CompareConfig(ConfigSection):
    """What `fedlora compare` reads."""

    env: str = Field("fedlora/RemoteFineTuning-v0", description="Gymnasium's id of a rank environment, or module:function")
    options: dict[str, Any] = Field({}, description="options of the environment in all worlds")
    worlds: dict[str, dict[str, Any]] = Field({"default": {}}, min_length=1, description="names, each with options of its own")
    policies: dict[str, PolicyEntry] = Field(description="what to compare; the keys are the labels")
    reference: str = Field("greedy", description="label of the policy that differences are taken to")
    low: str = Field("random-feasible", description="label of the policy whose normalised score is 0")
    high: str = Field("oracle", description="label of the policy whose normalised score is 1")
    metric: Literal["return", "accuracy", "loss"] = Field("return", description="what policies are compared by (loss: negated)")
    episodes: int = Field(50, ge=2, le=len(TEST_SEEDS), description="test episodes, one per test seed")
    validation_episodes: int = Field(50, ge=1, le=len(VALIDATION_SEEDS), description="validation episodes per tried option")
    seed: int = Field(0, ge=0, description="root of the policies' own randomness, and of the bootstrap")
    draws: int = Field(5000, ge=100, description="bootstrap resamples")


@dataclass(frozen=True)
class Row:
    """One policy in one world.

    Attributes:
        label: The policy's label.
        options: The options that were chosen (hindsight: those of the whole grid).
        scores: `[runs, episodes]`.
        score: Mean, and its interval.
        iqm: Interquartile mean, and its interval.
        difference: Mean paired difference to the reference.
        normalised: Between `low` and `high`; None where these do not differ.
        terms: Means over episodes: latency_s, energy_j, steps, cost, violations, feasible, loss, accuracy, mean_rank; those
            that nobody measured are None.
        bytes: Mean bytes per episode, with its interval.
        differences: Mean paired differences to the reference in bytes and latency_s per episode, and in the loss and accuracy
            at its end where all were measured.
        reach: What it takes to get to the loss, or accuracy, that the reference ends with, where every step was measured.
        snr_correlation: Spearman's correlation of mean rank and SNR over all decisions; None where one does not vary.
    """

    label: str
    options: dict[str, Any]
    scores: Floats
    score: Interval
    iqm: Interval
    difference: Interval
    normalised: Interval | None
    terms: dict[str, float | None]
    bytes: Interval
    differences: dict[str, Interval]
    reach: dict[str, Reach]
    snr_correlation: float | None

    def plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        differences = {key: item.plain() for key, item in self.differences.items()}
        reach = {key: item.plain() for key, item in self.reach.items()}
        return {
            "policy": self.label, "options": self.options, "score": self.score.plain(), "iqm": self.iqm.plain(),
            "difference": self.difference.plain(), "normalised": self.normalised.plain() if self.normalised else None,
            "bytes": self.bytes.plain(), "differences": differences, "reach": reach, **self.terms,
            "snr_correlation": self.snr_correlation, "scores": self.scores.tolist(),
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """All policies in all worlds."""

    config: CompareConfig
    worlds: dict[str, list[Row]]

    def plain(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        head = self.config.model_dump(mode="json")
        return {"config": head, "worlds": {name: [row.plain() for row in rows] for name, rows in self.worlds.items()}}


def read_compare(path: Path | None, overrides: list[str]) -> CompareConfig:
    """Return the comparison of a TOML file (default: the shipped one) with `key=value` overrides.

    Raises:
        ConfigError: Unreadable file, unknown key or bad value; names the nearest valid one.
    """
    tree = read_toml(path or Path(__file__).with_name("compare.toml"), "compare file", "the shipped one")
    return parse_compare(read_overrides(overrides, tree, "episodes=20"))


def parse_compare(tree: Mapping[str, Any]) -> CompareConfig:
    """Check a plain tree and return it typed (errors as in `read_compare`)."""
    entries = tree.get("policies")
    if not isinstance(entries, Mapping) or not entries:
        raise ConfigError("policies: name at least one, for example a section [policies.greedy]")
    parsed = {}
    for label, entry in entries.items():
        if not isinstance(entry, Mapping):
            raise ConfigError(f"policies.{label} = {entry!r}: give a section with name, options and grid; it may be empty")
        parsed[label] = parse_section(PolicyEntry, entry, f"policies.{label}.")
    config = parse_section(CompareConfig, {**tree, "policies": parsed})
    for key in ("reference", "low", "high"):
        if (label := getattr(config, key)) not in config.policies:
            raise ConfigError(f"{key} = '{label}' is none of the policies. {suggest(label, config.policies)}")
    for label, item in config.policies.items():
        if any(not values for values in item.grid.values()):
            raise ConfigError(f"policies.{label}.grid: every option needs at least one value")
        if item.choose == "hindsight" and item.runs:
            raise ConfigError(f"policies.{label}: hindsight and runs do not go together")
        if (name := item.name or label) not in POLICIES.names():
            POLICIES.entry(name)
    return config


def compare(config: CompareConfig, say: Say = lambda text: None) -> Comparison:
    """Run a comparison; `say` is told where it is.

    Raises:
        ConfigError: An environment or a policy that cannot be made, or that does not fit the other.
        FedLoRAError: Policies met different channels: the environment lets actions change its randomness.
    """
    return Comparison(config, {world: _world(config, world, say) for world in config.worlds})


def _world(config: CompareConfig, world: str, say: Say) -> list[Row]:
    options = {**config.options, **config.worlds[world]}
    validation = _Ground(config, options, VALIDATION_SEEDS[: config.validation_episodes])
    test = _Ground(config, options, TEST_SEEDS[: config.episodes])
    played: dict[str, tuple[dict[str, Any], list[Episodes]]] = {}
    for number, (label, entry) in enumerate(config.policies.items(), 1):
        say(f"{world}: {label} ({number} of {len(config.policies)})")
        try:
            played[label] = _policy(entry, entry.name or label, validation, test)
        except ConfigError as error:
            raise ConfigError(f"world '{world}', policy '{label}': {error}") from None
    scores = {label: np.stack([run.score(config.metric) for run in runs]) for label, (_, runs) in played.items()}
    reach = reaches({label: runs for label, (_, runs) in played.items()}, config.reference, config.draws, config.seed)
    base = played[config.reference][1]
    return [_row(config, label, chosen, runs, scores, base, reach[label]) for label, (chosen, runs) in played.items()]


class _Ground:
    """One world with a fixed list of seeds."""

    def __init__(self, config: CompareConfig, options: dict[str, Any], seeds: range) -> None:
        self.config, self.seeds = config, np.array(seeds, np.uint64)
        self.core = make_core(config.env, len(seeds), options)
        self.channel: Floats | None = None

    def play(self, name: str, options: Mapping[str, Any], run: int = 0) -> Episodes:
        """Play all seeds, and check that the channels are those that every policy before met."""
        found = play(self.core, name, options, self.seeds, self.config.seed + run)
        if self.channel is None:
            self.channel = found.channel
        steps = min(len(self.channel), len(found.channel))
        mine, theirs = found.channel[:steps], self.channel[:steps]
        if not ((mine == theirs) | np.isnan(mine) | np.isnan(theirs)).all():
            raise FedLoRAError(f"policy '{name}' met other channels than those before it: the environment mixes up its streams")
        return found


def _policy(entry: PolicyEntry, name: str, validation: _Ground, test: _Ground) -> tuple[dict[str, Any], list[Episodes]]:
    """Return the options chosen and the test episodes of each run."""
    choices = [{**entry.options, **dict(zip(entry.grid, values, strict=True))} for values in product(*entry.grid.values())]
    if entry.choose == "hindsight":
        return {**entry.options, **entry.grid}, [_best_of([test.play(name, options) for options in choices], test)]
    runs = entry.runs or [{}]
    if len(choices) > 1:
        metric = validation.config.metric
        means = [
            np.mean([validation.play(name, options | own, run).score(metric).mean() for run, own in enumerate(runs)])
            for options in choices
        ]
        choices = [choices[int(np.argmax(means))]]
    return choices[0], [test.play(name, choices[0] | own, run) for run, own in enumerate(runs)]


def _best_of(tried: list[Episodes], test: _Ground) -> Episodes:
    """Return each episode as the best of those tried left it."""
    scores = np.stack([item.score(test.config.metric) for item in tried])
    best, at = scores.argmax(axis=0), np.arange(scores.shape[1])

    def pick(arrays: list[Floats]) -> Floats:
        return np.asarray(np.stack(arrays)[best, at])

    overall = tried[int(np.bincount(best, minlength=len(tried)).argmax())]
    return Episodes(
        pick([item.returns for item in tried]),
        {key: pick([item.sums[key] for item in tried]) for key in overall.sums},
        {key: pick([item.final[key] for item in tried]) for key in overall.final},
        pick([item.violations for item in tried]),
        pick([item.cost for item in tried]),
        pick([item.feasible for item in tried]),
        overall.mean_ranks,
        overall.snr_db,
        overall.channel,
        {key: _picked([item.course[key] for item in tried], best) for key in overall.course},
    )


def _picked(arrays: list[Floats], best: NDArray[np.int64]) -> Floats:
    """Return each episode's column from the array of its best; arrays of plays that ended early are shorter."""
    steps = max(len(array) for array in arrays)
    stacked = np.stack([np.pad(array, ((0, steps - len(array)), (0, 0)), constant_values=np.nan) for array in arrays])
    return np.asarray(stacked[best, :, np.arange(len(best))].T)


def _row(
    config: CompareConfig,
    label: str,
    options: dict[str, Any],
    runs: list[Episodes],
    scores: dict[str, Floats],
    base: list[Episodes],
    reach: dict[str, Reach],
) -> Row:
    own = scores[label]

    def interval(values: Floats, statistic: Callable[[Floats], Floats] = mean) -> Interval:
        return bootstrap(values, statistic, draws=config.draws, seed=config.seed)

    ranks, snr_db = np.concatenate([run.mean_ranks for run in runs]), np.concatenate([run.snr_db for run in runs])
    per_step = {"cost": [run.cost for run in runs], "violations": [run.violations for run in runs]}
    per_step["feasible"] = [run.feasible for run in runs]
    terms = {key: _average([run.sums[key] for run in runs]) for key in ("latency_s", "energy_j", "steps")}
    terms |= {key: _average(values) for key, values in per_step.items()}
    terms |= {key: _average([run.final[key] for run in runs]) for key in ("loss", "accuracy")}
    return Row(
        label,
        options,
        own,
        interval(own),
        interval(own, interquartile_mean),
        difference(own, scores[config.reference], draws=config.draws, seed=config.seed),
        normalised(own, scores[config.low], scores[config.high], draws=config.draws, seed=config.seed),
        terms | {"mean_rank": float(ranks.mean())},
        interval(np.stack([run.sums["bytes"] for run in runs])),
        _differences(config, runs, base),
        reach,
        rank_correlation(ranks, snr_db) if len(snr_db) == len(ranks) else None,
    )


def _differences(config: CompareConfig, runs: list[Episodes], base: list[Episodes]) -> dict[str, Interval]:
    found = {}
    for key in ("bytes", "latency_s", "loss", "accuracy"):
        own, theirs = (np.stack([(run.final if key in run.final else run.sums)[key] for run in part]) for part in (runs, base))
        if not np.isnan(own).any() and not np.isnan(theirs).any():
            found[key] = difference(own, theirs, draws=config.draws, seed=config.seed)
    return found


def _average(values: list[Floats]) -> float | None:
    found = np.concatenate(values)
    found = found[~np.isnan(found)]
    return float(found.mean()) if len(found) else None
