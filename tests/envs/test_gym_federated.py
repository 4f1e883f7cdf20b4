"""The federated environment by its name: Gymnasium's own checks, vector members and single ones, and refusals."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import fedlora_envs.gym_envs
from fedlora.errors import ConfigError

NAME = "fedlora/FederatedRankAllocation-v0"


@pytest.mark.parametrize(
    "options", [{}, {"world": "airllm-markov", "clients": 2, "csi_delay": 2}, {"energy_budget_j": None, "clients": 1}]
)
def test_gymnasium_has_nothing_to_say_against_it(options: dict[str, object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(NAME, **options).unwrapped, skip_render_check=True)


def test_a_member_of_a_vector_is_the_single_environment_with_its_seed() -> None:
    vector = gymnasium.make_vec(NAME, num_envs=3, vectorization_mode="vector_entry_point", horizon=4)
    single = gymnasium.make(NAME, horizon=4)
    many, _ = vector.reset(seed=5)
    one, _ = single.reset(seed=6)
    np.testing.assert_allclose(many[1], one)
    over, episodes = False, 0
    for _ in range(14):
        actions = vector.action_space.sample()
        many, rewards, ended, cut, info = vector.step(actions)
        if over:
            one, _ = single.reset()
            reward, terminated, truncated, episodes = 0.0, False, False, episodes + 1
        else:
            one, reward, terminated, truncated, told = single.step(actions[1])
            assert told["bits"] == info["bits"][1] and told["delivered"] == info["delivered"][1]
        np.testing.assert_allclose(many[1], one)
        assert (rewards[1], ended[1], cut[1]) == (pytest.approx(reward), terminated, truncated)
        over = terminated or truncated
    assert episodes >= 2


def test_its_observation_is_named_and_in_range() -> None:
    env = gymnasium.make(NAME, clients=3)
    core = env.unwrapped.core  # type: ignore[attr-defined]
    assert env.observation_space.shape == (len(core.feature_names),) == (3 + 8 * 3 + 12,)
    assert env.action_space.shape == (3 * 12,)
    env.reset(seed=0)
    for _ in range(6):
        seen = env.step(env.action_space.sample())[0]
        assert env.observation_space.contains(seen)


def test_masks_hold_what_fits_and_options_are_checked() -> None:
    env = fedlora_envs.gym_envs.gymnasium.make(NAME, deadline_s=0.3)
    env.reset(seed=1)
    masks = env.unwrapped.action_masks()  # type: ignore[attr-defined]
    assert masks.shape == (int(env.action_space.nvec.sum()),) and not masks.all()  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="unknown world 'umi-indor'"):
        gymnasium.make(NAME, world="umi-indor")
    with pytest.raises(ConfigError, match="unknown key 'client'"):
        gymnasium.make(NAME, client=3)
