"""Training of rank policies: iterations, validation on channels of their own, checkpoints that resume bit for bit."""

from __future__ import annotations

import io
import json
import pickle
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import tomli_w
import torch
from pydantic import Field

from fedlora.config import ConfigSection, parse_section, read_overrides, read_toml
from fedlora.errors import ConfigError, RunFolderError, TrainingError
from fedlora.files import disk_errors, sweep, write_atomic
from fedlora.registry import construct
from fedlora.runs.folder import append_rows, cut, refuse_taken
from fedlora.runs.holding import hold
from fedlora.runs.tensorboard import Events
from fedlora_envs.config import merge
from fedlora_envs.rank_env import RankEnv
from fedlora_policies.learners import LEARNERS, VALIDATION_SEEDS, Learner, refuse_bad_return
from fedlora_policies.rollout import Stage, make_core, play_with

# Less than this share of feasible steps on validation channels makes a policy worse than any that has it.
FEASIBLE = 0.99

_CHECKPOINT = "checkpoint.pt"
_LOGS = ("metrics.jsonl", "tensorboard/events.out.tfevents.0.fedlora")


class TrainConfig(ConfigSection):
    """What `fedlora train-policy` reads."""

    policy: str = Field("airllm-plus", description="what to train: airllm-plus, airllm or ppo")
    env: str = Field("fedlora/RemoteFineTuning-v0", description="Gymnasium's id of a rank environment, or module:function")
    options: dict[str, Any] = Field({}, description="options of the environment")
    variants: list[dict[str, Any]] = Field(
        [], description="options that change from iteration to iteration, laid over the others; validation takes the first"
    )
    learner: dict[str, Any] = Field({}, description="options of the learner: docs/policy-options.md lists them")
    iterations: int = Field(60, ge=1, description="iterations of playing and learning")
    validate_every: int = Field(5, ge=1, description="iterations between validations; each writes a checkpoint")
    validation_episodes: int = Field(50, ge=1, le=len(VALIDATION_SEEDS), description="validation episodes, one per seed")
    keep: Literal["best", "last"] = Field(
        "best", description="which policy ends in the file: that of the best validation, or the last; controls need the last"
    )
    seed: int = Field(0, ge=0, description="root of first weights, channels and exploration")


class Progress(Protocol):
    """Who is told how far a training is."""

    def say(self, text: str) -> None:
        """Tell what happens now."""

    def start(self, config: TrainConfig, done: int) -> None:
        """The iterations begin; so many are done already."""

    def iteration(self, row: dict[str, Any]) -> None:
        """An iteration is done: its row of metrics.jsonl."""


class Quiet:
    """Tells nobody how far a training is."""

    def say(self, text: str) -> None:
        """Tell nobody."""

    def start(self, config: TrainConfig, done: int) -> None:
        """Tell nobody."""

    def iteration(self, row: dict[str, Any]) -> None:
        """Tell nobody."""


def read_train(path: Path | None, overrides: list[str]) -> TrainConfig:
    """Return the training of a TOML file (default: the shipped one) with `key=value` overrides.

    Raises:
        ConfigError: Unreadable file, unknown key or bad value; names the nearest valid one.
    """
    tree = read_toml(path or Path(__file__).with_name("train.toml"), "training file", "the shipped one")
    return parse_train(read_overrides(overrides, tree, "iterations=20"))


def parse_train(tree: Mapping[str, Any]) -> TrainConfig:
    """Check a plain tree and return it typed (errors as in `read_train`)."""
    config = parse_section(TrainConfig, tree)
    if config.policy not in LEARNERS.names():
        LEARNERS.entry(config.policy)
    return config


class Grounds:
    """Makes the kinds of an environment that a policy is trained in (`fedlora_policies.learners.MakeCore`).

    Args:
        env: The environment.
        options: Options of all kinds.
        variants: What each kind changes in them; none: there is one kind.
    """

    def __init__(self, env: str, options: Mapping[str, Any], variants: Sequence[Mapping[str, Any]] = ()) -> None:
        self.env, self._kinds = env, [merge(dict(options), dict(variant)) for variant in variants or [{}]]
        self.variants = len(self._kinds)

    def __call__(self, episodes: int, variant: int = 0) -> RankEnv:
        """Return a kind of it."""
        return make_core(self.env, episodes, self._kinds[variant])


class Training:
    """A training on disk.

        config.toml             what is trained, and how
        metrics.jsonl           one row per iteration
        tensorboard/            the same numbers as events
        checkpoint.pt           where it stands; replaced at every validation
        policy.safetensors      the policy that did best on the validation channels so far, or the last

    Args:
        path: The folder.
        config: What is trained.
    """

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path, self.config = path, config
        self.best: tuple[bool, float] = (False, -np.inf)
        self.saved = 0

    @property
    def resumable(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return (self.path / _CHECKPOINT).is_file()

    @property
    def policy_file(self) -> Path:
        """The policy that is kept."""
        return self.path / "policy.safetensors"

    def run(self, progress: Progress, resume: bool = False) -> list[dict[str, Any]]:
        """Train to the end; return the rows of metrics.jsonl.

        Raises:
            ConfigError: What is asked for cannot work.
            TrainingError: A reward is not a finite number; the last good checkpoint and policy are kept.
            RunFolderError: The folder is taken, or the disk refuses.
        """
        learner, validation = self._made()
        if resume:
            with hold(self.path):
                self._restore(learner)
                self._loop(learner, validation, progress)
        else:
            refuse_taken(self.path)
            with disk_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            tree = self.config.model_dump(mode="json", exclude_none=True)
            write_atomic(self.path / "config.toml", tomli_w.dumps(tree))
            with hold(self.path):
                learner.prepare(progress.say)
                self._keep(learner, self._note({"iteration": 0} | self._measure(learner, validation)))
                self._loop(learner, validation, progress)
        return self.rows()

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl."""
        path = self.path / _LOGS[0]
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    # -- pieces ------------------------------------------------------------------------------------------------------

    def _made(self) -> tuple[Learner, Stage]:
        config = self.config
        make = Grounds(config.env, config.options, config.variants)
        validation = Stage(make(config.validation_episodes))
        return construct(
            "policy", config.policy, LEARNERS.get(config.policy), make, config.seed, options=config.learner
        ), validation

    def _loop(self, learner: Learner, validation: Stage, progress: Progress) -> None:
        config = self.config
        progress.start(config, learner.iteration)
        while learner.iteration < config.iterations:
            began = time.monotonic()
            try:
                row: dict[str, Any] = {"iteration": learner.iteration + 1, **learner.iterate()}
                due = learner.iteration % config.validate_every == 0 or learner.iteration == config.iterations
                if due:
                    row |= self._measure(learner, validation)
            except TrainingError as error:
                raise TrainingError(
                    f"{error}. The checkpoint after iteration {self.saved} and the policy kept are in {self.path}"
                ) from None
            row["seconds"] = round(time.monotonic() - began, 3)
            self._note(row)
            if due:
                self._keep(learner, row)
            progress.iteration(row)

    def _measure(self, learner: Learner, validation: Stage) -> dict[str, float]:
        """Play the policy as it stands on the validation channels."""
        seeds = np.array(VALIDATION_SEEDS[: self.config.validation_episodes], np.uint64)
        found = play_with(validation, learner.policy(validation.setup(self.config.seed)), self.config.policy, seeds)
        refuse_bad_return(found.returns, f"validation after iteration {learner.iteration}", seeds)
        return {
            "validation_return": float(found.returns.mean()),
            "validation_feasible": float(found.feasible.mean()),
            "validation_bytes": float(found.sums["bytes"].mean()),
            "validation_rank": float(found.mean_ranks.mean()),
        }

    def _note(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write a row to both logs; return it."""
        append_rows(self.path / _LOGS[0], [row])
        Events(self.path / _LOGS[1], True, "iteration").round(row, [])
        return row

    def _keep(self, learner: Learner, row: dict[str, Any]) -> None:
        """Write the policy if it is the best so far or the last is kept, then the checkpoint."""
        scored = (bool(row["validation_feasible"] >= FEASIBLE), float(row["validation_return"]))
        # Choosing the best of several looks at rewards, which a control with shuffled ones must not.
        if self.config.keep == "last" or scored > self.best or not self.policy_file.exists():
            self.best = scored
            # Seconds are nobody's doing: without them, equal trainings write equal files.
            scores = {name: value for name, value in row.items() if name != "seconds"}
            about = {"training": self.config.model_dump(mode="json"), "trained": learner.numbers, "validation": scores}
            learner.file(about).save(self.policy_file)
        held = {"learner": learner.state(), "best": list(self.best), "logs": self._lengths(), "iteration": learner.iteration}
        data = io.BytesIO()
        torch.save(held, data)
        write_atomic(self.path / _CHECKPOINT, data.getvalue())
        self.saved = learner.iteration

    def _lengths(self) -> list[int]:
        return [path.stat().st_size if (path := self.path / log).exists() else 0 for log in _LOGS]

    def _restore(self, learner: Learner) -> None:
        """Go on from the checkpoint: the learner, and the logs as long as they were then."""
        path = self.path / _CHECKPOINT
        try:
            held = torch.load(path, weights_only=True)
            learner.restore(held["learner"])
            self.best, self.saved = (bool(held["best"][0]), float(held["best"][1])), learner.iteration
            lengths = [int(length) for length in held["logs"]]
        except FileNotFoundError:
            raise RunFolderError(
                f"{self.path} has no checkpoint: it was stopped before the first. Train anew, with another --out"
            ) from None
        except (OSError, RuntimeError, LookupError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            raise RunFolderError(f"the checkpoint {path} cannot be read: {why}. Train anew, with another --out") from None
        for log, have, length in zip(_LOGS, self._lengths(), lengths, strict=True):
            # Events may have been thrown away; the log that numbers are read from may not.
            if log == _LOGS[0] and have < length:
                raise RunFolderError(
                    f"{self.path / log} has {have} bytes, the checkpoint counts {length}: restore the file to resume"
                )
            if have > length:
                cut(self.path / log, length)
        sweep(self.path)


def open_training(path: Path) -> Training:
    """Return the training in a folder (RunFolderError where there is none)."""
    file = path / "config.toml"
    if not file.is_file():
        raise RunFolderError(
            f"{path} holds no training (no config.toml in it). Give the folder that `fedlora train-policy` printed"
        )
    try:
        return Training(path, parse_train(read_toml(file, "training file", "the shipped one")))
    except ConfigError as error:
        raise RunFolderError(f"{file} is not what a training wrote: {error}") from None
