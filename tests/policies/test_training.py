"""Trainings on disk: what they leave, going on after a kill to the last bit, and what stops them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from children import fedlora_command
from fedlora.errors import ConfigError, FedLoRAError, RunFolderError, TrainingError
from fedlora.federation.policy import Observation, PolicySetup, make_policy
from fedlora.registry import Entry
from fedlora.runs.holding import hold
from fedlora_envs.rank_env import Flags, Ranks, Step
from fedlora_policies import training as module
from fedlora_policies.learners import LEARNERS, VALIDATION_SEEDS, refuse_bad_reward
from fedlora_policies.plus.learner import PlusConfig
from fedlora_policies.policy_file import PolicyFile, load_policy
from fedlora_policies.rollout import Stage, play
from fedlora_policies.training import Training, open_training, parse_train, read_train
from rank_problem import RankProblem

TREE: dict[str, Any] = {
    "env": "rank_problem:problem",
    "options": {"sites": 3, "cap": 2, "horizon": 3, "price": 1.0, "delay": 1},
    "learner": {"lessons": 4, "imitations": 3, "batch": 8, "channels": 4, "copies": 2, "width": 8, "blocks": 1, "lr": 0.01},
    "iterations": 5,
    "validate_every": 2,
    "validation_episodes": 6,
}


class Quiet:
    """Says nothing; interrupts after an iteration."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.told = stop, []  # type: ignore[var-annotated]

    def say(self, text: str) -> None:
        self.told.append(text)

    def start(self, config: object, done: int) -> None:
        self.told.append(f"{done} done")

    def iteration(self, row: dict[str, Any]) -> None:
        if row["iteration"] == self.stop:
            raise KeyboardInterrupt


def run(path: Path, progress: Quiet | None = None, **changes: Any) -> list[dict[str, Any]]:
    return Training(path, parse_train(TREE | changes)).run(progress or Quiet())


def resume(path: Path) -> list[dict[str, Any]]:
    return open_training(path).run(Quiet(), resume=True)


def same(one: Any, other: Any) -> bool:
    """Return whether two states agree to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_alike(path: Path, whole: Path) -> None:
    """Two folders hold the same training."""
    rows, other = Training(path, parse_train(TREE)).rows(), Training(whole, parse_train(TREE)).rows()
    assert timeless(rows) == timeless(other)
    assert (path / "policy.safetensors").read_bytes() == (whole / "policy.safetensors").read_bytes()
    states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (path, whole)]
    assert same(*({name: state[name] for name in ("learner", "best", "iteration")} for state in states))
    steps = [[event.step for event in events(folder).Scalars("iteration/return")] for folder in (path, whole)]
    assert steps[0] == steps[1] == [1, 2, 3, 4, 5]
    assert sorted(file.name for file in path.iterdir()) == sorted(file.name for file in whole.iterdir())


def events(folder: Path) -> Any:
    return EventAccumulator(str(folder / "tensorboard")).Reload()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing disturbed."""
    path = tmp_path_factory.mktemp("trainings") / "whole"
    run(path)
    return path


# -- what a training leaves ------------------------------------------------------------------------------------------------


def test_what_is_in_the_folder(whole: Path) -> None:
    names = ["checkpoint.pt", "config.toml", "metrics.jsonl", "policy.safetensors", "tensorboard"]
    assert sorted(path.name for path in whole.iterdir()) == names
    assert open_training(whole).config == parse_train(TREE)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4, 5]
    # Validated before the first, every second, and the last one.
    assert [row["iteration"] for row in rows if "validation_return" in row] == [0, 2, 4, 5]
    assert {"return", "infeasible", "price", "seconds"} <= rows[3].keys()


def test_the_policy_file_is_the_best_and_says_where_it_is_from(whole: Path) -> None:
    found = load_policy(whole / "policy.safetensors", "airllm-plus")
    rows = [row for row in timeless(open_training(whole).rows()) if "validation_return" in row]
    best = max(rows, key=lambda row: (row["validation_feasible"] >= 0.99, row["validation_return"]))
    assert found.about["validation"] == best and found.about["training"]["options"] == TREE["options"]
    assert found.about["trained"]["lessons"] > 0
    seeds = np.array(VALIDATION_SEEDS[:6], np.uint64)
    again = play(RankProblem(6, **TREE["options"]), "airllm-plus", {"file": str(whole / "policy.safetensors")}, seeds)
    assert (
        float(again.returns.mean()) == best["validation_return"] and float(again.feasible.mean()) == best["validation_feasible"]
    )
    assert float(again.sums["bytes"].mean()) == best["validation_bytes"]


def test_tensorboard_reads_the_same_numbers(whole: Path) -> None:
    read, rows = events(whole), open_training(whole).rows()
    for name in ("return", "price", "validation_return", "value_loss"):
        wanted, found = {row["iteration"]: row[name] for row in rows if name in row}, read.Scalars(f"iteration/{name}")
        assert {event.step: event.value for event in found} == pytest.approx(wanted) and len(found) == len(wanted) > 0


# -- going on --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_resumed_training_is_the_same_to_the_last_bit(tmp_path: Path, whole: Path, stop: int) -> None:
    path = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        run(path, Quiet(stop))
    assert len(Training(path, parse_train(TREE)).rows()) == stop + 1
    (path / ".unfinished-checkpoint.pt.x").write_bytes(b"half")
    torch.rand(3)
    progress = Quiet()
    open_training(path).run(progress, resume=True)
    assert progress.told == [f"{stop // 2 * 2} done"]
    assert_alike(path, whole)


def test_a_kill_between_the_policy_and_the_checkpoint(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, written = tmp_path / "cut", module.write_atomic

    def dies(file: Path, data: bytes) -> None:
        if file.name == "checkpoint.pt" and len((path / "metrics.jsonl").read_text().splitlines()) == 5:
            raise KeyboardInterrupt
        written(file, data)

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_atomic", dies)
        with pytest.raises(KeyboardInterrupt):
            run(path)
    resume(path)
    assert_alike(path, whole)


def test_a_process_that_is_killed(tmp_path: Path, whole: Path) -> None:
    """By SIGKILL, as it is about to touch the disk somewhere between two checkpoints."""
    (tmp_path / "train.toml").write_text((whole / "config.toml").read_text())
    dead, path = fedlora_command(["train-policy", "train.toml", "--out", "cut"], tmp_path, kill_at=22), tmp_path / "cut"
    assert dead.code == -9, dead.err
    assert 1 < len((path / "metrics.jsonl").read_text().splitlines()) < 6
    resume(path)
    assert_alike(path, whole)


def test_a_kill_before_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Training, "_keep", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut")
    with pytest.raises(RunFolderError, match="has no checkpoint: it was stopped before the first"):
        resume(tmp_path / "cut")


def test_resuming_what_is_done_changes_nothing(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "again"
    run(path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    rows = resume(path)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert timeless(rows) == timeless(open_training(whole).rows())
    assert_alike(path, whole)


def test_other_seeds_are_other_trainings(tmp_path: Path, whole: Path) -> None:
    assert timeless(run(tmp_path / "other", seed=1)) != timeless(open_training(whole).rows())


def test_validation_takes_the_first_variant(tmp_path: Path) -> None:
    variants = [{"price": 0.0}, {"sites": 5}]
    rows = run(tmp_path / "both", variants=variants, iterations=2)
    options = TREE["options"] | {"price": 0.0}
    found = play(
        RankProblem(6, **options), "airllm-plus", {"file": str(tmp_path / "both" / "policy.safetensors")},
        np.array(VALIDATION_SEEDS[:6], np.uint64),
    )  # fmt: skip
    assert float(found.returns.mean()) in [row.get("validation_return") for row in rows]
    assert resume(tmp_path / "both") == rows


# -- rewards that are no numbers -------------------------------------------------------------------------------------------


def breaking(episodes_of: int, reset: int) -> type[RankProblem]:
    """Return an environment that loses a reward after some reset of the core with so many episodes."""

    class Broken(RankProblem):
        begun = 0

        def reset(self, which: Flags, seeds: Any = None) -> Observation:
            self.begun += 1
            return super().reset(which, seeds)

        def step(self, ranks: Ranks) -> Step:
            step = super().step(ranks)
            if (self.episodes, self.begun, int(self._step[1])) == (episodes_of, reset, 2):
                step.reward[1] = np.nan
            return step

    return Broken


@pytest.mark.parametrize(
    ("episodes", "reset", "says"),
    [
        (8, 4, r"the reward of the episode with seed \d+ is nan in step 2 of iteration 4: nothing can be learnt from it\. "),
        (
            6,
            3,
            r"the return of the episode with seed 10001 is nan in validation after iteration 4: nothing can be learnt from it\. ",
        ),
    ],
    ids=["training", "validation"],
)
def test_a_reward_that_is_no_number_keeps_what_was_good(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, episodes: int, reset: int, says: str
) -> None:
    path = tmp_path / "broken"
    with monkeypatch.context() as patched:
        patched.setattr("rank_problem.problem", breaking(episodes, reset))
        with pytest.raises(TrainingError, match=says + f"The checkpoint after iteration 2 and the policy kept are in {path}$"):
            run(path)
    assert torch.load(path / "checkpoint.pt", weights_only=True)["iteration"] == 2
    rows = [row for row in open_training(path).rows() if "validation_return" in row]
    best = load_policy(path / "policy.safetensors", "airllm-plus").about["validation"]
    assert [row["iteration"] for row in rows] == [0, 2] and best in timeless(rows)
    resume(path)
    assert_alike(path, whole)


def test_a_reward_that_is_no_number_before_there_is_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rank_problem.problem", breaking(6, 1))
    with pytest.raises(TrainingError, match="seed 10001 is nan in validation after iteration 0"):
        run(tmp_path / "broken")
    assert not (tmp_path / "broken" / "policy.safetensors").exists()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_who_is_named(wrong: float) -> None:
    refuse_bad_reward(np.array([1.0, -1e30]), 0, 0)
    with pytest.raises(TrainingError, match=f"the reward of episode 1 is {wrong} in step 1 of iteration 3"):
        refuse_bad_reward(np.array([1.0, wrong, wrong]), 2, 0)
    with pytest.raises(TrainingError, match="the episode with seed 8 is"):
        refuse_bad_reward(np.array([1.0, wrong]), 2, 0, np.array([7, 8]))


# -- which policy is kept --------------------------------------------------------------------------------------------------


class Scripted:
    """Learns nothing; its file says after which iteration it was written."""

    def __init__(self, make: object, seed: int) -> None:
        self.iteration, self.numbers = 0, {}  # type: ignore[var-annotated]

    def prepare(self, say: object) -> None:
        pass

    def iterate(self) -> dict[str, float]:
        self.iteration += 1
        return {"return": 0.0}

    def state(self) -> dict[str, Any]:
        return {"iteration": self.iteration}

    def restore(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]

    def policy(self, setup: PolicySetup) -> Any:
        return make_policy("fixed", {"rank": 1}, setup)

    def file(self, about: dict[str, Any]) -> PolicyFile:
        return PolicyFile("scripted", about, {"iteration": torch.tensor([self.iteration])})


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([(0.5, 9.0), (0.99, 1.0), (1.0, 3.0), (0.989, 99.0), (1.0, 2.0), (0.0, 0.0)], 2),
        ([(0.5, 1.0), (0.4, 2.0), (0.9, 1.5), (0.1, 0.0), (0.0, 1.9), (0.98, 1.99)], 1),
        ([(1.0, 5.0), (1.0, 5.0), (0.995, 5.0), (1.0, 4.0), (1.0, 5.0), (1.0, -1.0)], 0),
        ([(1.0, -3.0), (1.0, -2.0), (1.0, -1.5), (1.0, -1.2), (0.2, 7.0), (1.0, -1.1)], 5),
    ],
)
def test_what_is_kept_is_feasible_first_and_then_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[tuple[float, float]], kept: int
) -> None:
    """Also where it was interrupted on the way: what is best so far goes on from the checkpoint."""

    def measure(training: Training, learner: Any, validation: object) -> dict[str, float]:
        return dict(zip(("validation_feasible", "validation_return"), scores[learner.iteration], strict=True))

    monkeypatch.setitem(LEARNERS._entries, "scripted", Entry("scripted", Scripted, "", "tests"))
    monkeypatch.setattr(Training, "_measure", measure)
    for path, stop in ((tmp_path / "once", None), (tmp_path / "twice", 3)):
        training = Training(path, parse_train(TREE | {"policy": "scripted", "learner": {}, "validate_every": 1}))
        if stop:
            with pytest.raises(KeyboardInterrupt):
                training.run(Quiet(stop))
            training = open_training(path)
        training.run(Quiet(), resume=bool(stop))
        found = load_policy(path / "policy.safetensors", "scripted")
        assert int(found.tensors["iteration"]) == kept and found.about["validation"]["iteration"] == kept
        assert training.best == (scores[kept][0] >= 0.99, scores[kept][1])


def test_a_control_keeps_its_last_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However good an earlier one was: choosing among them looks at rewards."""
    monkeypatch.setitem(LEARNERS._entries, "scripted", Entry("scripted", Scripted, "", "tests"))
    monkeypatch.setattr(
        Training, "_measure",
        lambda self, learner, stage: {"validation_feasible": 1.0, "validation_return": -float(learner.iteration)},
    )  # fmt: skip
    for keep, kept in (("best", 0), ("last", 5)):
        training = Training(tmp_path / keep, parse_train(TREE | {"policy": "scripted", "learner": {}, "keep": keep}))
        training.run(Quiet())
        assert int(load_policy(training.policy_file, "scripted").tensors["iteration"]) == kept
        assert training.best == (True, -kept)


def test_validation_plays_validation_channels(whole: Path) -> None:
    """Their numbers by hand, for a policy that never changes."""
    config = parse_train(TREE)
    found = Training(whole, config)._measure(Scripted(None, 0), Stage(RankProblem(6, **TREE["options"])))
    wanted = play(RankProblem(6, **TREE["options"]), "fixed", {"rank": 1}, np.arange(10_000, 10_006, dtype=np.uint64))
    assert found == {
        "validation_return": wanted.returns.mean(), "validation_feasible": wanted.feasible.mean(),
        "validation_bytes": wanted.sums["bytes"].mean(), "validation_rank": 1.0,
    }  # fmt: skip


# -- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"policy": "airlm-plus"}, "unknown learner 'airlm-plus'. Did you mean 'airllm-plus'?"),
        ({"iteration": 3}, "unknown key 'iteration'. Did you mean 'iterations'?"),
        ({"iterations": 0}, "iterations = 0"),
        ({"validation_episodes": 101}, "validation_episodes = 101"),
        ({"seed": -1}, "seed = -1"),
        ({"env": "nosuch:thing"}, "env = 'nosuch:thing' cannot be made"),
        ({"env": "fedlora/RemoteFineTunig-v0"}, "is no vector environment that Gymnasium knows"),
        ({"options": {"delays": 1}}, "env = 'rank_problem:problem' cannot be made with the options {'delays': 1}"),
        ({"variants": [{}, {"delays": 1}]}, "'delays': 1}"),
        ({"learner": {"widht": 8}}, "unknown key 'learner.widht'. Did you mean 'learner.width'?"),
        ({"learner": {"tuned": 9}}, "learner.tuned = 9 is more than the chain's learner.steps"),
    ],
)
def test_bad_input_is_one_error_and_nothing_is_written(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "run", **changes)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_taken(tmp_path: Path, whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match=f"{whole} already holds a run. Go on with it by --resume"):
        run(whole)
    assert (whole / "metrics.jsonl").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="already holds other files"):
        run(tmp_path)
    with pytest.raises(RunFolderError, match="is a file, not a folder"):
        run(tmp_path / "notes.txt" / "run")


def test_a_folder_that_another_process_holds(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(path, Quiet(1))
    before = (path / "metrics.jsonl").read_bytes()
    with hold(path), pytest.raises(RunFolderError, match=f"another process works on {path}"):
        resume(path)
    assert (path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_a_training(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match="holds no training"):
        open_training(tmp_path / name)


def test_a_config_that_is_none(tmp_path: Path) -> None:
    for text, says in (("policy = ", "is not valid TOML"), ("rounds = 3\n", "unknown key 'rounds'")):
        (tmp_path / "config.toml").write_text(text)
        with pytest.raises(RunFolderError, match="is not what a training wrote: ") as caught:
            open_training(tmp_path)
        assert says in str(caught.value) and "\n" not in str(caught.value)


class Evil:
    """What a checkpoint must never be able to do."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, ("evil",)


def truncated(path: Path, held: dict[str, Any]) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def emptied(path: Path, held: dict[str, Any]) -> None:
    path.write_bytes(b"")


def scribbled(path: Path, held: dict[str, Any]) -> None:
    path.write_bytes(b"checkpoint\n" * 50)


def evil(path: Path, held: dict[str, Any]) -> None:
    path.write_bytes(pickle.dumps({"learner": Evil()}))


def evil_zip(path: Path, held: dict[str, Any]) -> None:
    torch.save({"learner": Evil()}, path)


def a_list(path: Path, held: dict[str, Any]) -> None:
    torch.save([1, 2], path)


def no_learner(path: Path, held: dict[str, Any]) -> None:
    held.pop("learner")
    torch.save(held, path)


def no_logs(path: Path, held: dict[str, Any]) -> None:
    held.pop("logs")
    torch.save(held, path)


def no_best(path: Path, held: dict[str, Any]) -> None:
    held["best"] = []
    torch.save(held, path)


def other_shapes(path: Path, held: dict[str, Any]) -> None:
    held["learner"]["denoiser"]["site.bias"] = torch.zeros(3)
    torch.save(held, path)


def missing_weights(path: Path, held: dict[str, Any]) -> None:
    held["learner"]["denoiser"].pop("site.bias")
    torch.save(held, path)


DAMAGE = (truncated, emptied, scribbled, evil, evil_zip, a_list, no_learner, no_logs, no_best, other_shapes, missing_weights)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was cut off after its first validation."""
    path = tmp_path_factory.mktemp("trainings") / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(path, Quiet(3))
    return path


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_one_error(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path, dict[str, Any]], None]
) -> None:
    checkpoint, log = stopped / "checkpoint.pt", (stopped / "metrics.jsonl").read_bytes()
    good = checkpoint.read_bytes()
    monkeypatch.chdir(tmp_path)
    try:
        damage(checkpoint, torch.load(checkpoint, weights_only=True))
        with pytest.raises(RunFolderError) as caught:
            resume(stopped)
    finally:
        checkpoint.write_bytes(good)
    assert f"the checkpoint {checkpoint} cannot be read: " in str(caught.value) and "\n" not in str(caught.value)
    assert "Train anew" in str(caught.value) and len(str(caught.value)) < 600
    assert not (tmp_path / "evil").exists() and (stopped / "metrics.jsonl").read_bytes() == log


def test_a_log_that_lost_rows_is_one_error(stopped: Path) -> None:
    path = stopped / "metrics.jsonl"
    good = path.read_bytes()
    try:
        path.write_bytes(good[:20])
        with pytest.raises(RunFolderError, match=r"has 20 bytes, the checkpoint counts \d+: restore the file to resume"):
            resume(stopped)
    finally:
        path.write_bytes(good)


def test_events_may_be_thrown_away(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "tensorboard")
    rows = resume(tmp_path / "copy")
    assert rows[-1]["iteration"] == 5 and (tmp_path / "copy" / "tensorboard").is_dir()


# -- the shipped training --------------------------------------------------------------------------------------------------


def test_the_shipped_file_is_sound(tmp_path: Path) -> None:
    config = read_train(None, ["iterations=2", "learner.channels=4", "options.budget_s=3.0"])
    assert (config.iterations, config.learner["channels"], config.options["budget_s"]) == (2, 4, 3.0)
    shipped = read_train(None, [])
    PlusConfig(**shipped.learner)
    for variant in range((made := module.Grounds(shipped.env, shipped.options, shipped.variants)).variants):
        assert made(2, variant).episodes == 2
    with pytest.raises(FedLoRAError, match="there is no training file"):
        read_train(tmp_path / "none.toml", [])
    with pytest.raises(ConfigError, match="unknown key 'learners'"):
        read_train(None, ["learners.channels=4"])
