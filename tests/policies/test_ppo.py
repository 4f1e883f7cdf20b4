"""PPO by name: it learns, it repeats itself, a training goes on bit for bit, and it plays wherever its sites are."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedlora.cli import app
from fedlora.errors import ConfigError, TrainingError
from fedlora.federation.policy import make_policy
from fedlora_policies.features import CLIENT_FEATURES, Reader
from fedlora_policies.learners import LEARNERS, MakeCore
from fedlora_policies.ppo import PpoLearner, PpoPolicy
from fedlora_policies.rollout import Stage, play
from fedlora_policies.sb3_env import RowsVecEnv
from fedlora_policies.training import Training, parse_train
from learning import SEEDS, Broken, Quiet, Target, draw, file_for_a_run, problem, ranks_in, resumed, same, saved, seed_all
from rank_problem import RankProblem
from tiny_run import Ground

SMALL: dict[str, Any] = {"episodes": 8, "minibatch": 32, "width": 16, "epochs": 2}
EAGER: dict[str, Any] = {"episodes": 32, "minibatch": 96, "width": 16, "epochs": 6, "lr": 5e-3, "gamma": 0.0}


def target(episodes: int) -> Target:
    return Target(episodes, sites=3, cap=4, horizon=6)


def trained(make: MakeCore, iterations: int, seed: int = 0, **options: Any) -> tuple[PpoLearner, list[dict[str, float]]]:
    learner = PpoLearner(make, seed, **{**SMALL, **options})
    return learner, [learner.iterate() for _ in range(iterations)]


def test_learns_the_ranks_that_are_paid_for() -> None:
    learner, rows = trained(target, 16, **EAGER)
    assert rows[0]["return"] < -15 and rows[-1]["return"] > 0.4 * rows[0]["return"]
    stage = Stage(target(16))
    assert (ranks_in(learner.policy(stage.setup(0)), stage) == Target.goal).mean() > 0.95


def test_the_control_learns_nothing() -> None:
    # 32 episodes of about -25 +- 4 in an iteration: a mean is good to +- 1.
    rows = trained(target, 16, **EAGER, shuffle=True)[1]
    assert abs(rows[-1]["return"] - rows[0]["return"]) < 0.2 * abs(rows[0]["return"])


def test_the_same_seed_repeats_itself_and_nothing_leaks() -> None:
    seed_all(7)
    expected = draw()
    seed_all(7)
    first = trained(problem, 2)[1]
    assert draw() == expected
    assert first == trained(problem, 2)[1] != trained(problem, 2, seed=1)[1]
    assert all(np.isfinite(list(row.values())).all() for row in first)
    assert {"return", "infeasible", "mean_rank", "policy_loss", "value_loss"} <= first[0].keys()


def test_a_resumed_training_is_the_same_to_the_bit() -> None:
    whole, again = resumed(partial(PpoLearner, problem, 5, **SMALL), 2, 2)
    assert same(saved(whole.state()), saved(again.state()))
    stage = Stage(problem(4))
    np.testing.assert_array_equal(*(ranks_in(item.policy(stage.setup(0)), stage) for item in (whole, again)))


def test_train_policy_goes_on_where_it_was(tmp_path: Path) -> None:
    tree = {
        "policy": "ppo", "options": {"horizon": 4, "fresh": True}, "learner": SMALL, "iterations": 3, "validate_every": 1,
        "validation_episodes": 4,
    }  # fmt: skip
    Training(tmp_path / "whole", parse_train(tree)).run(Quiet())
    with pytest.raises(KeyboardInterrupt):
        Training(tmp_path / "cut", parse_train(tree)).run(Quiet(stop=2))
    Training(tmp_path / "cut", parse_train(tree)).run(Quiet(), resume=True)
    one, other = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["learner"] for name in ("whole", "cut"))
    assert same(one, other)


def test_its_file_plays_as_it_does(tmp_path: Path) -> None:
    learner, _ = trained(problem, 1)
    file = tmp_path / "ppo.safetensors"
    learner.file({"note": "x"}).save(file)
    own = ranks_in(learner.policy(Stage(problem(4)).setup(0)), Stage(problem(4)))
    filed = ranks_in(make_policy("ppo", {"file": str(file)}, Stage(problem(4)).setup(0)), Stage(problem(4)))
    np.testing.assert_array_equal(own, filed)
    assert len(np.unique(own.reshape(-1, 3), axis=0)) > 1
    found = play(problem(4), "ppo", {"file": str(file)}, SEEDS[:4])
    np.testing.assert_array_equal(found.mean_ranks, own.reshape(-1, 3).mean(axis=1))
    assert load_file(file).keys() == learner.ppo.policy.state_dict().keys()


def test_it_plays_in_a_run(ground: Ground, tmp_path: Path) -> None:
    file = file_for_a_run(ground, tmp_path / "ppo.safetensors", PpoLearner, SMALL)
    changes = ["world.name=umi-indoor", "policy.name=ppo", f"policy.options.file={file}"]
    found = CliRunner().invoke(app, ["simulate", *ground.overrides(*changes), "--out", str(tmp_path / "run"), "--format", "json"])
    assert found.exit_code == 0, found.output
    summary = json.loads(found.stdout)["summary"]
    assert (summary["replies"], summary["replies_failed"]) == (8, 0) and summary["uplink_bytes"] > 0


def test_actions_begin_at_the_floor() -> None:
    stage = Stage(RankProblem(2, rows=2, sites=3, floor=1))
    env = RowsVecEnv(stage, lambda seen: np.zeros((4, 1), np.float32), lambda _: SEEDS[:2])
    assert env.num_envs == 4 and env.action_space.nvec.tolist() == [4, 4, 4]  # type: ignore[attr-defined]
    env.reset()
    env.take_notes()
    env.step(np.zeros((4, 3), np.int64))
    assert env.noted()["mean_rank"] == 1.0


def test_members_are_rows_and_see_what_a_policy_sees() -> None:
    stage, other = Stage(problem(3)), Stage(problem(3))
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
    assert observed[0, CLIENT_FEATURES.index("round")] == np.float32(1 / 5)  # the next episode's first


def test_whoever_began_later_sees_its_own_round() -> None:
    class Uneven(RankProblem):
        def step(self, ranks: Any) -> Any:
            step = super().step(ranks)
            step.terminated[0] = self._step[0] == 2
            return step

    stage = Stage(Uneven(2, sites=3, horizon=5))
    reader = Reader(stage.setup(0), "ppo")
    env = RowsVecEnv(stage, lambda seen: reader(seen).flat(), lambda at: SEEDS[:2])
    env.reset()
    rounds = [env.step(np.zeros((2, 3), np.int64))[0][:, CLIENT_FEATURES.index("round")] for _ in range(4)]
    np.testing.assert_allclose(np.array(rounds) * 5, [[2, 2], [1, 3], [2, 4], [1, 5]], rtol=1e-6)


def test_a_reward_that_is_no_number_stops_before_anything_learns() -> None:
    learner = PpoLearner(lambda episodes: Broken(episodes, sites=3, horizon=5), 0, **SMALL)
    before = saved(learner.state())
    with pytest.raises(TrainingError, match=r"the episode with seed \d+ is nan in step 3 of iteration 1: nothing can be learnt"):
        learner.iterate()
    after = learner.state()
    assert same(before["policy"], after["policy"]) and same(before["optimiser"], after["optimiser"])


def test_other_sites_and_caps_are_refused_naming_both() -> None:
    file = trained(problem, 0)[0].file({})
    other = Stage(RankProblem(1, sites=5, cap=2)).setup(0)
    with pytest.raises(ConfigError, match="trained for 3 sites of rank up to 4, and here are 5 sites of rank up to 2"):
        PpoPolicy(other, file)
    file.about["features"] = {"client": ["snr"], "sites": []}
    with pytest.raises(ConfigError, match="trained on other features"):
        PpoPolicy(Stage(problem(1)).setup(0), file)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"learning_rate": 1}, r"learner\.learning_rate"), ({"epoch": 3}, r"learner\.epoch.*epochs"), ({"lr": 0}, r"learner\.lr")],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LEARNERS.get("ppo")(problem, 0, **options)


def test_it_needs_a_file() -> None:
    with pytest.raises(ConfigError, match="'ppo': missing a required argument: 'file'"):
        make_policy("ppo", {}, Stage(problem(1)).setup(0))
