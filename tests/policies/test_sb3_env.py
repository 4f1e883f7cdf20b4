"""Stable-Baselines3 over the native vector environment: its own rules, and a policy that it trains."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from analytic import AnalyticTask, small_sites
from fedlora_envs.gym_envs import RemoteFineTuningEnv, RemoteFineTuningVectorEnv
from fedlora_policies.sb3_env import RankVecEnv


def task(episodes: int) -> AnalyticTask:
    """Return the analytic task at four sites."""
    return AnalyticTask(small_sites(4), episodes)


def make(count: int, **options: Any) -> RankVecEnv:
    """Return an environment whose budget matters."""
    return RankVecEnv(RemoteFineTuningVectorEnv(count, task, bandwidths_hz=[4e5], **options))


def test_episodes_start_again_in_the_same_step() -> None:
    env = make(3, horizon=4)
    single = RemoteFineTuningEnv(task, bandwidths_hz=[4e5], horizon=4)
    env.seed(10)
    seen = env.reset()
    np.testing.assert_array_equal(seen[2], single.reset(seed=12)[0])
    rng, total = np.random.default_rng(0), 0.0
    for step in range(1, 9):
        actions = rng.integers(0, 3, (3, 4))
        seen, rewards, dones, infos = env.step(actions)
        observation, reward, _, truncated, _ = single.step(actions[2])
        total += reward
        assert rewards[2] == np.float32(reward) and dones[2] == truncated == (step % 4 == 0)
        if truncated:
            np.testing.assert_array_equal(infos[2]["terminal_observation"], observation)
            assert infos[2]["TimeLimit.truncated"] and infos[2]["episode"]["l"] == 4
            assert infos[2]["episode"]["r"] == pytest.approx(total)
            observation, total = single.reset()[0], 0.0
        np.testing.assert_array_equal(seen[2], observation)


def test_an_exhausted_budget_is_no_time_limit() -> None:
    env = make(8, budget_s=0.5, levels_db=[0.0])
    env.reset()
    ends = []
    for _ in range(14):
        _, _, dones, infos = env.step(np.full((8, 4), 7))
        ends += [infos[i]["TimeLimit.truncated"] for i in np.flatnonzero(dones)]
    assert ends and not any(ends)


def test_masks_and_attributes_by_member() -> None:
    env = make(5)
    env.reset()
    masks = env.env_method("action_masks", indices=[1, 3])
    np.testing.assert_array_equal(masks, env.action_masks()[[1, 3]])
    assert env.has_attr("action_masks") and not env.has_attr("nothing")
    assert env.get_attr("num_envs", indices=0) == [5] and env.env_is_wrapped(gymnasium.Wrapper) == [False] * 5
    with pytest.raises(AttributeError):
        env.env_method("render")
    with pytest.raises(AttributeError):
        env.set_attr("core", None)


def test_ppo_learns_to_stay_inside_the_slot() -> None:
    env = VecNormalize(VecMonitor(make(32, levels_db=[-5.0])), norm_obs=False)
    model = PPO("MlpPolicy", env, n_steps=30, batch_size=240, n_epochs=10, learning_rate=3e-3, seed=0, device="cpu")
    before = _mean_return(model)
    model.learn(15_000)
    # Messages are three times too long to begin with; a mean over 960 choices is steady to a few per cent.
    assert _mean_return(model) > 0.75 * before


def _mean_return(model: PPO) -> float:
    env, total = make(16, levels_db=[-5.0]), 0.0
    env.seed(1000)
    seen = env.reset()
    for _ in range(15):
        seen, rewards, _, _ = env.step(model.predict(seen, deterministic=False)[0])
        total += float(rewards.mean())
    return total
