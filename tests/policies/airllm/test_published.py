"""The published loop: PPO and the refiner take turns over one stream of experience; the control learns from noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analytic import AnalyticTask
from fedlora_envs.gym_envs import RemoteFineTuningVectorEnv
from fedlora_envs.tasks.base import Sites
from fedlora_policies.airllm.coarse import Encoder, PpoConfig
from fedlora_policies.airllm.diffusion import DiffusionConfig
from fedlora_policies.airllm.published import AirLLM
from fedlora_policies.sb3_env import RankVecEnv

FAST = DiffusionConfig(width=32, sample_steps=5, warm=20, batch=16)
SITES = Sites(tuple("abc"), np.array([8, 8, 4]), np.array([500, 700, 900]))


def method(seed: int = 0, envs: int = 2, shuffle: bool = False, **options: object) -> AirLLM:
    env = RankVecEnv(RemoteFineTuningVectorEnv(envs, task=lambda episodes: AnalyticTask(SITES, episodes), **options), shuffle)
    env.seed(seed)
    return AirLLM(env, PpoConfig(width=32), FAST, seed)


def test_ppo_is_the_references() -> None:
    ppo = method().ppo
    assert (ppo.gamma, ppo.gae_lambda, ppo.n_epochs, ppo.n_steps, ppo.batch_size) == (0.95, 0.95, 4, 15, 30)
    assert (ppo.ent_coef, ppo.vf_coef, ppo.max_grad_norm, ppo.clip_range(1.0)) == (0.01, 0.5, 1.0, 0.2)
    assert ppo.action_space.shape == (16,)
    torch.testing.assert_close(ppo.policy.log_std.detach(), torch.full((16,), -0.5))
    extractor = ppo.policy.features_extractor
    assert isinstance(extractor, Encoder)
    assert [type(layer).__name__ for layer in extractor.layers] == ["Linear", "LayerNorm", "Mish", "Linear", "Mish"]
    assert type(ppo).__module__.startswith("stable_baselines3")


def test_ranks_that_reach_the_environment_are_the_refiners() -> None:
    found = method()
    found.env.reset()
    found.env.step(np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32))
    sent = found.env.venv.last["bits"]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(sent, 32 * (found.env.ranks @ SITES.numbers))
    assert (found.env.ranks >= 1).all() and (found.env.ranks <= SITES.caps).all()


def test_both_learn_in_turns_and_notes_are_kept() -> None:
    found = method()
    before = [parameter.clone() for parameter in found.refiner.denoiser.parameters()]
    coarse = [parameter.clone() for parameter in found.ppo.policy.parameters()]
    seen: list[int] = []
    history = found.train(3, watch=lambda history: seen.append(len(history.reward)))
    assert seen == [1, 2, 3] and len(found.refiner.replay) == 3 * 15 * 2
    assert all(1 <= rank <= 8 for rank in history.mean_rank) and all(0 <= share <= 1 for share in history.feasible)
    assert np.isfinite(history.refiner_loss).all()  # 30 examples after the first episode, 20 wanted
    assert any(not torch.equal(old, new) for old, new in zip(before, found.refiner.denoiser.parameters(), strict=True))
    assert any(not torch.equal(old, new) for old, new in zip(coarse, found.ppo.policy.parameters(), strict=True))


def test_the_same_seed_gives_the_same_training_and_another_another() -> None:
    first, again, other = (method(seed).train(2).reward for seed in (3, 3, 4))
    assert first == again and first != other


def test_shuffled_rewards_say_nothing_of_the_actions() -> None:
    found = method(shuffle=True, envs=8, cost_weight=5.0)
    found.train(12)
    ranks = found.refiner.replay.arrays()[1].mean(axis=1)
    rewards = found.refiner.replay.arrays()[2]
    honest = method(envs=8, cost_weight=5.0)
    honest.train(12)
    true = np.corrcoef(honest.refiner.replay.arrays()[1].mean(axis=1), honest.refiner.replay.arrays()[2])[0, 1]
    assert abs(np.corrcoef(ranks, rewards)[0, 1]) < 4.5 / np.sqrt(len(rewards)) < abs(true)
    assert rewards.std() > 0


@pytest.mark.parametrize("count", [1, 5])
def test_a_trained_method_chooses_legal_ranks(count: int) -> None:
    found = method()
    features = np.random.default_rng(0).uniform(0, 1, (count, *found.env.observation_space.shape)).astype(np.float32)
    ranks = found.choose(features, deterministic=True)
    assert ranks.shape == (count, 3) and (ranks >= 1).all() and (ranks <= SITES.caps).all()
