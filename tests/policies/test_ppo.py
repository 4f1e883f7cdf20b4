"""PPO by name: it learns, it repeats itself, a training goes on bit for bit, and it plays wherever its sites are."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from fedlora.errors import ConfigError, TrainingError
from fedlora.federation.policy import Observation, Policy, make_policy
from fedlora_envs.rank_env import Flags, Ranks, Step
from fedlora_policies.features import Reader
from fedlora_policies.learners import LEARNERS, Learner, MakeCore
from fedlora_policies.ppo import PpoLearner, PpoPolicy
from fedlora_policies.rollout import Stage, play, play_with
from fedlora_policies.sb3_env import RowsVecEnv
from fedlora_policies.training import Training, parse_train
from rank_problem import RankProblem
from tiny_run import Ground

SEEDS = np.arange(10_000, 10_016, dtype=np.uint64)
SMALL = {"episodes": 8, "minibatch": 32, "width": 16, "epochs": 2}


class Target(RankProblem):
    """Pays for being near a given rank at every site, whatever the channel: 0 at best."""

    goal = np.array([3, 0, 2])

    def step(self, ranks: Ranks) -> Step:
        step = super().step(ranks)
        missed = np.abs(np.maximum(ranks, self.floor) - self.goal).sum(axis=1)
        object.__setattr__(step, "reward", -missed.reshape(self.episodes, -1).mean(axis=1).astype(float))
        step.info["feasible"] = np.ones(self.episodes, bool)
        return step


class Broken(RankProblem):
    """Loses its reward in the third step of the second episode."""

    def step(self, ranks: Ranks) -> Step:
        step = super().step(ranks)
        if self._step[1] == 3:
            step.reward[1] = np.nan
        return step


class Clean(RankProblem):
    """Whoever begins has sent nothing: an episode is a function of its seed and the actions."""

    def reset(self, which: Flags, seeds: NDArray[np.uint64] | None = None) -> Observation:
        self._previous = np.where(np.repeat(which, self.rows)[:, None], 0, self._previous)
        return super().reset(which, seeds)


def target(episodes: int) -> Target:
    return Target(episodes, sites=3, cap=4, horizon=6)


def problem(episodes: int) -> RankProblem:
    return Clean(episodes, rows=2, sites=3, horizon=5)


def trained(make: MakeCore, iterations: int, seed: int = 0, **options: Any) -> tuple[PpoLearner, list[dict[str, float]]]:
    learner = PpoLearner(make, seed, **{**SMALL, **options})
    return learner, [learner.iterate() for _ in range(iterations)]


def saved(state: dict[str, Any]) -> Any:
    """Return a state as a checkpoint gives it back."""
    data = io.BytesIO()
    torch.save(state, data)
    return torch.load(io.BytesIO(data.getvalue()), weights_only=True)


def ranks_in(policy: Policy, stage: Stage) -> list[Ranks]:
    """Return the ranks that a policy chooses over an episode of each seed."""
    found: list[Ranks] = []
    play_with(stage, policy, "it", SEEDS[: stage.core.episodes], lambda seen, ranks, step, alive: found.append(ranks))
    return found


def resumed(make: MakeCore, learner: type[Learner], options: dict[str, Any], first: int, more: int) -> tuple[Learner, Learner]:
    """Return a learner that went through, and one that was stopped after `first` iterations; assert that they say the same."""
    whole: Any = learner(make, 5, **options)  # type: ignore[call-arg]
    for _ in range(first):
        whole.iterate()
    state = saved(whole.state())
    expected = [whole.iterate() for _ in range(more)]
    again: Any = learner(make, 5, **options)  # type: ignore[call-arg]
    again.restore(state)
    torch.rand(3), np.random.rand(3), random.random()
    assert [again.iterate() for _ in range(more)] == expected
    return whole, again


def same_tensors(one: Any, other: Any) -> bool:
    """Whether two states agree to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_tensors(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_tensors, one, other))
    return bool(one == other)


def test_learns_the_ranks_that_are_paid_for() -> None:
    learner, rows = trained(target, 25, episodes=32, minibatch=96, lr=5e-3, epochs=6, gamma=0.0)
    assert rows[0]["return"] < -15 and rows[-1]["return"] > 0.5 * rows[0]["return"]
    stage = Stage(target(16))
    chosen = np.concatenate(ranks_in(learner.policy(stage.setup(0)), stage))
    assert (chosen == Target.goal).mean() > 0.95


def test_the_control_learns_nothing() -> None:
    honest = trained(target, 20, episodes=32, minibatch=96, lr=5e-3, gamma=0.0)[1]
    shuffled = trained(target, 20, episodes=32, minibatch=96, lr=5e-3, gamma=0.0, shuffle=True)[1]
    gained = [rows[-1]["return"] - rows[0]["return"] for rows in (honest, shuffled)]
    assert gained[0] > 5 and abs(gained[1]) < 0.4 * gained[0]  # 32 episodes of about -25 +- 4: their mean is good to +- 1


def test_the_same_seed_repeats_itself_and_nothing_leaks() -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    before = (torch.rand(1), np.random.rand(), random.random())
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    first = trained(problem, 2)[1]
    assert before == (torch.rand(1), np.random.rand(), random.random())
    assert first == trained(problem, 2)[1] != trained(problem, 2, seed=1)[1]
    assert all(np.isfinite(list(row.values())).all() for row in first)


def test_a_resumed_training_is_the_same_to_the_bit() -> None:
    whole, again = resumed(problem, PpoLearner, SMALL, 2, 2)
    assert same_tensors(saved(whole.state()), saved(again.state()))
    stage = Stage(problem(4))
    for ours, theirs in zip(ranks_in(whole.policy(stage.setup(0)), stage), ranks_in(again.policy(stage.setup(0)), stage), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_its_file_plays_as_it_does(tmp_path: Path) -> None:
    learner, _ = trained(problem, 1)
    learner.file({"note": "x"}).save(tmp_path / "ppo.safetensors")
    stage = Stage(problem(4))
    own = ranks_in(learner.policy(stage.setup(0)), stage)
    filed = ranks_in(make_policy("ppo", {"file": str(tmp_path / "ppo.safetensors")}, stage.setup(0)), stage)
    np.testing.assert_array_equal(own, filed)
    assert len({tuple(row) for ranks in own for row in ranks}) > 1
    found = play(problem(4), "ppo", {"file": str(tmp_path / "ppo.safetensors")}, SEEDS[:4])
    np.testing.assert_array_equal(found.mean_ranks, np.concatenate(own).mean(axis=1))
    assert load_file(tmp_path / "ppo.safetensors").keys() == learner.ppo.policy.state_dict().keys()


def test_actions_begin_at_the_floor() -> None:
    env = RowsVecEnv(Stage(RankProblem(2, rows=2, sites=3, floor=1)), lambda seen: np.zeros((4, 1), np.float32), lambda _: SEEDS[:2])
    assert env.num_envs == 4 and env.action_space.nvec.tolist() == [4, 4, 4]  # type: ignore[attr-defined]
    env.reset()
    env.take_notes()
    env.step(np.zeros((4, 3), np.int64))
    assert env.noted()["mean_rank"] == 1.0


def test_members_are_rows_and_see_what_a_policy_sees() -> None:
    core, other = problem(3), Stage(problem(3))
    stage = Stage(core)
    reader = Reader(stage.setup(0), "ppo")
    env = RowsVecEnv(stage, lambda seen: reader(seen).flat(), lambda at: SEEDS[:3])
    observed, seen = env.reset(), other.reset(SEEDS[:3])
    rng, total = np.random.default_rng(0), np.zeros(3)
    for step in range(5):
        np.testing.assert_array_equal(observed, reader(seen).flat())
        actions = rng.integers(0, 5, (6, 3))
        observed, rewards, dones, infos = env.step(actions)
        taken = other.step(actions)
        seen, total = taken.observation, total + taken.reward
        np.testing.assert_array_equal(rewards, np.repeat(taken.reward, 2).astype(np.float32))
        assert dones.all() == (step == 4) == dones.any()
    np.testing.assert_array_equal(infos[3]["terminal_observation"], reader(seen).flat()[3])
    assert [info["episode"]["r"] for info in infos] == pytest.approx(np.repeat(total, 2))
    assert observed[0, 5] == np.float32(1 / 5) and infos[0]["terminal_observation"][5] == 1.0  # the round: of the next episode


def test_a_reward_that_is_no_number_stops_before_anything_learns() -> None:
    learner = PpoLearner(lambda episodes: Broken(episodes, sites=3, horizon=5), 0, **SMALL)
    before = saved(learner.state())
    with pytest.raises(TrainingError, match=r"the episode with seed \d+ is nan in step 3 of iteration 1: nothing can be learnt"):
        learner.iterate()
    assert same_tensors(before["policy"], learner.state()["policy"]) and before["spread"][2] == pytest.approx(1e-4)


def test_other_sites_and_caps_are_refused_naming_both(tmp_path: Path) -> None:
    file = trained(problem, 0)[0].file({})
    other = Stage(RankProblem(1, sites=5, cap=2)).setup(0)
    with pytest.raises(ConfigError, match="trained for 3 sites of rank up to 4, and here are 5 sites of rank up to 2"):
        PpoPolicy(other, file)
    file.about["features"] = {"client": ["snr"], "sites": []}
    with pytest.raises(ConfigError, match="trained on other features"):
        PpoPolicy(Stage(problem(1)).setup(0), file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 1}, "learner.learning_rate"),
        ({"epoch": 3}, r"learner.epoch.*epochs"),
        ({"lr": 0}, "learner.lr"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LEARNERS.get("ppo")(problem, 0, **options)


def test_it_needs_a_file() -> None:
    with pytest.raises(ConfigError, match="'ppo': missing a required argument: 'file'"):
        make_policy("ppo", {}, Stage(problem(1)).setup(0))


def test_train_policy_goes_on_where_it_was(tmp_path: Path) -> None:
    tree = {
        "policy": "ppo", "options": {"horizon": 4, "fresh": True}, "learner": SMALL, "iterations": 3, "validate_every": 1,
        "validation_episodes": 4,
    }  # fmt: skip
    Training(tmp_path / "whole", parse_train(tree)).run(Quiet())
    cut = Training(tmp_path / "cut", parse_train(tree))
    with pytest.raises(KeyboardInterrupt):
        cut.run(Quiet(stop=2))
    cut = Training(tmp_path / "cut", parse_train(tree))
    cut.run(Quiet(), resume=True)
    one, other = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["learner"] for name in ("whole", "cut"))
    assert same_tensors(one, other)


def test_it_plays_in_a_run(ground: Ground, tmp_path: Path) -> None:
    file, caps = run_file(ground, tmp_path, PpoLearner, SMALL)
    changes = ["world.name=umi-indoor", "world.options.deadline_s=60", "policy.name=ppo", f"policy.options.file={file}"]
    found = CliRunner().invoke(app, ["simulate", *ground.overrides(*changes), "--out", str(tmp_path / "run"), "--format", "json"])
    assert found.exit_code == 0, found.output
    rows = [json.loads(line) for line in (tmp_path / "run" / "clients.jsonl").read_text().splitlines()]
    assert len(rows) == 8


class Quiet:
    """Says nothing; interrupts after an iteration."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop

    def say(self, text: str) -> None: ...

    def start(self, config: object, done: int) -> None: ...

    def iteration(self, row: dict[str, Any]) -> None:
        if row["iteration"] == self.stop:
            raise KeyboardInterrupt
