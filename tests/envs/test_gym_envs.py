"""Gymnasium's view: its own checker, its registry, its vector rules, its masks."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from analytic import AnalyticTask, small_sites
from fedlora.errors import ConfigError
from fedlora.ranks import Costs
from fedlora_envs.gym_covers import Actions, RankAllocationEnv, RankAllocationVectorEnv
from fedlora_envs.gym_envs import RemoteFineTuningEnv, make_task, register
from fedlora_envs.remote import RemoteConfig, RemoteFineTuning

NAME = "fedlora/RemoteFineTuning-v0"
EVERYTHING: dict[str, Any] = {
    "channel": "markov", "csi_delay": 2, "csi_error_db": 1.0, "evaluate": "sent", "loss": "heldout", "fresh": True,
    "language": "coming", "budget_s": 5.0, "measure": "every",
}  # fmt: skip


def task(episodes: int) -> AnalyticTask:
    """Return the analytic task at twelve sites."""
    return AnalyticTask(small_sites(), episodes)


def one(**options: Any) -> gymnasium.Env[Any, Any]:
    """Return a single environment as users make it."""
    return gymnasium.make(NAME, task=task, **{"bandwidths_hz": [1e6], **options})


def many(count: int, **options: Any) -> Any:
    """Return a vector environment as users make it."""
    return gymnasium.make_vec(NAME, num_envs=count, task=task, **{"bandwidths_hz": [1e6], **options})


@pytest.mark.parametrize("options", [{}, EVERYTHING, {"min_rank": 0}], ids=["published", "everything", "from zero"])
def test_gymnasiums_checker_has_nothing_to_say(options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(one(**options).unwrapped)


def test_registered_once_with_both_entry_points_and_no_second_limit() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Gymnasium warns when a name is registered over
        register()
    spec = gymnasium.spec(NAME)
    assert spec.entry_point and spec.vector_entry_point and spec.max_episode_steps is None
    env = one(horizon=7)
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(7)]
    assert ends == [(False, False)] * 6 + [(False, True)]
    assert isinstance(env.unwrapped, RemoteFineTuningEnv)
    assert isinstance(env.unwrapped.core, RemoteFineTuning)


def test_found_by_module_name_in_a_fresh_process() -> None:
    code = (
        "import gymnasium, sys; from analytic import *; task = lambda n: AnalyticTask(small_sites(), n); "
        "env = gymnasium.make('fedlora_envs.gym_envs:fedlora/RemoteFineTuning-v0', task=task); "
        "print(env.reset(seed=1)[0].shape, 'stable_baselines3' in sys.modules)"
    )
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=here)
    assert found.stdout.strip() == "(16,) False"


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["published", "everything"])
def test_member_i_is_the_single_environment_with_the_seed_s_plus_i(options: dict[str, Any]) -> None:
    vector, alone = many(6, **options), [one(**options) for _ in range(6)]
    assert type(vector).__name__ == "RemoteFineTuningVectorEnv"
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    seen, _ = vector.reset(seed=100)
    for i, env in enumerate(alone):
        np.testing.assert_array_equal(env.reset(seed=100 + i)[0], seen[i])
    rng, ended, resets = np.random.default_rng(0), np.zeros(6, np.bool_), 0
    for _ in range(50):
        actions = rng.integers(0, 4, (6, 12))
        seen, reward, terminated, truncated, info = vector.step(actions)
        assert seen in vector.observation_space
        for i, env in enumerate(alone):
            if ended[i]:  # the action is not taken
                observation, said = env.reset()
                expected: tuple[Any, ...] = (0.0, False, False)
                resets += 1
            else:
                observation, *rest, said = env.step(actions[i])
                expected = tuple(rest)
            np.testing.assert_array_equal(observation, seen[i])
            assert (reward[i], terminated[i], truncated[i]) == expected
            assert {key for key in info if not key.startswith("_") and info[f"_{key}"][i]} == set(said)
            assert all(info[key][i] == value for key, value in said.items())
        ended = terminated | truncated
    assert resets >= 12


def test_the_vector_equals_gymnasiums_own_loop_over_environments() -> None:
    native = many(4, **EVERYTHING)
    loop = gymnasium.make_vec(NAME, 4, vectorization_mode="sync", task=task, bandwidths_hz=[1e6], **EVERYTHING)
    np.testing.assert_array_equal(native.reset(seed=3)[0], loop.reset(seed=3)[0])
    native.action_space.seed(0)
    for _ in range(40):
        actions = native.action_space.sample() % 4
        for mine, theirs in zip(native.step(actions)[:4], loop.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_seeds_as_lists_masks_and_none() -> None:
    vector = many(3)
    by_list, _ = vector.reset(seed=[5, 9, 7])
    np.testing.assert_array_equal(by_list[1], many(1).reset(seed=9)[0][0])
    part, _ = vector.reset(seed=[1, None, 7], options={"reset_mask": np.array([False, True, True])})
    np.testing.assert_array_equal(part[0], by_list[0])
    np.testing.assert_array_equal(part[2], by_list[2])  # seeded anew: the same first episode
    assert (part[1] != by_list[1]).any()  # its next episode
    with pytest.raises(ConfigError, match="2 seeds for 3 environments"):
        vector.reset(seed=[1, 2])
    free, again = many(64), many(64)
    assert (free.reset()[0] != again.reset()[0]).any()


def test_episodes_after_a_reset_without_seed_differ_and_repeat() -> None:
    env = one()
    first = [env.reset(seed=3)[0], env.reset()[0], env.reset()[0]]
    again = [env.reset(seed=3)[0], env.reset()[0], env.reset()[0]]
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any() and (first[1] != first[2]).any()


def test_gymnasiums_vector_wrappers_understand_the_infos() -> None:
    env = RecordEpisodeStatistics(many(4, horizon=5))
    env.reset(seed=0)
    for _ in range(5):
        *_, info = env.step(np.zeros((4, 12), np.int64))
    np.testing.assert_array_equal(info["episode"]["l"], 5)
    listed = DictInfoToList(many(4))
    listed.reset(seed=0)
    infos = listed.step(np.zeros((4, 12), np.int64))[-1]
    keys = {"bits", "latency_s", "energy_j", "cost", "load", "utility", "feasible", "loss", "snr_db"}
    assert [set(info) for info in infos] == [keys] * 4


def test_masks_say_what_fits_while_the_others_are_at_their_least() -> None:
    vector = many(40, min_rank=2, budget_s=3.0)
    vector.reset(seed=0)
    core = vector.unwrapped.core
    masks = vector.unwrapped.action_masks()
    assert masks.shape == (40, 12 * 7)
    budget = core.truth().budget_bytes
    assert not masks.all() and masks.any(axis=0).all()
    for member in range(40):
        for site in range(12):
            ranks = np.full((7, 12), 2)
            ranks[:, site] = np.arange(2, 9)
            fits = core.costs.bytes(ranks) <= budget[member]
            fits[0] = True
            np.testing.assert_array_equal(masks[member].reshape(12, 7)[site], fits)
    single = one(min_rank=2, budget_s=3.0)
    single.reset(seed=4)
    np.testing.assert_array_equal(single.unwrapped.action_masks(), masks[4])  # type: ignore[attr-defined]


class UnevenCore:
    """Costs of two sites with units and levels of their own, two rows."""

    rows, episodes, horizon = 2, 1, 1
    costs = Costs(10, np.array([[0, 5, 9, 12], [0, 7, 7, 7]]), np.array([2, 3]), np.array([6, 3]))


def test_actions_of_sites_with_units_and_rows() -> None:
    actions = Actions(UnevenCore())  # type: ignore[arg-type]
    assert actions.space.nvec.tolist() == [4, 2, 4, 2]
    assert actions.ranks(np.array([[3, 1, 0, 0]])).tolist() == [[6, 3], [0, 0]]
    seen = RemoteFineTuning(task(1)).reset(np.ones(1, np.bool_))
    object.__setattr__(seen, "budget_bytes", np.array([19.0, 3.0]))
    assert actions.masks(seen).tolist() == [[True, True, True, False, True, True, True, False, False, False, True, False]]


def test_bad_input_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'csi_delay'"):
        one(csi_dely=1)
    with pytest.raises(ConfigError, match="3 episodes and the environment 2"):
        make_task(task(3), 2)
    with pytest.raises(ConfigError, match="one episode, not 2"):
        RankAllocationEnv(RemoteFineTuning(task(2)))
    with pytest.raises(gymnasium.error.ResetNeeded):
        RankAllocationVectorEnv(RemoteFineTuning(task(2), RemoteConfig())).action_masks()


def test_the_docstring_has_gymnasiums_headings() -> None:
    headings = [line.strip() for line in (RemoteFineTuningEnv.__doc__ or "").splitlines() if line.strip().startswith("## ")]
    assert headings == [
        "## Description", "## Action Space", "## Observation Space", "## Rewards", "## Starting State", "## Episode End",
        "## Arguments", "## Version History",
    ]  # fmt: skip
