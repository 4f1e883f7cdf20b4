"""The refiner: ranks and numbers, the sampler against hand-written steps, guidance, and what it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedlora_policies.airllm.diffusion import Codec, DiffusionConfig, Refiner, Replay, make_scheduler, sinusoids

SMALL = DiffusionConfig(width=32, sample_steps=10, warm=16)


def refiner(config: DiffusionConfig = SMALL, sites: int = 4, seed: int = 0) -> Refiner:
    return Refiner(sites, Codec(1, np.full(sites, 8), config.decode), config, seed)


# -- ranks and numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["floor", "round"])
@pytest.mark.parametrize("high", [2, 8, 64, 768])
@pytest.mark.parametrize("low", [0, 1])
def test_every_rank_comes_back(rule: str, high: int, low: int) -> None:
    codec = Codec(low, np.full(3, high), rule)
    ranks = np.tile(np.arange(low, high + 1)[:, None], (1, 3))
    values = codec.encode(ranks)
    assert values.dtype == np.float32 and values.min() == -1 and values.max() == 1
    np.testing.assert_array_equal(codec.decode(values), ranks)


def test_floor_loses_half_a_rank_and_round_none() -> None:
    """What the published decoding does to values between ranks: the bias that looks like learning."""
    values = np.random.default_rng(0).uniform(-1, 1, (100_000, 1)).astype(np.float32)
    wanted = (values.astype(np.float64) + 1) / 2 * 7 + 1
    lost = {rule: float((wanted - Codec(1, np.full(1, 8), rule).decode(values)).mean()) for rule in ("floor", "round")}
    assert lost["floor"] == pytest.approx(0.5, abs=0.01) and abs(lost["round"]) < 0.01


def test_sites_may_have_caps_of_their_own() -> None:
    codec = Codec(0, np.array([2, 4]))
    np.testing.assert_allclose(codec.encode(np.array([[1, 1]])), [[0.0, -0.5]])
    np.testing.assert_array_equal(codec.decode(np.array([[9.0, -9.0]])), [[2, 0]])


# -- the schedule and the sampler --------------------------------------------------------------------------------------


def test_the_schedule_is_the_references() -> None:
    betas = np.linspace(1e-2, np.sqrt(2e-2), 1000) ** 2
    kept = np.cumprod(1 - betas)
    np.testing.assert_allclose(make_scheduler(DiffusionConfig()).alphas_cumprod.numpy(), kept, rtol=1e-3)
    assert kept[-1] == pytest.approx(7e-4, rel=0.05)


def test_a_step_of_the_sampler_by_hand() -> None:
    scheduler = make_scheduler(SMALL)
    scheduler.set_timesteps(10)
    step, following = (int(number) for number in scheduler.timesteps[3:5])
    x, noise = torch.randn(5, 4), torch.randn(5, 4)
    now = scheduler.alphas_cumprod[step]
    after = scheduler.alphas_cumprod[step - 1000 // 10]
    clean = ((x - (1 - now).sqrt() * noise) / now.sqrt()).clamp(-1, 1)
    wanted = after.sqrt() * clean + (1 - after).sqrt() * noise
    found = scheduler.step(noise, step, x, eta=0.0).prev_sample
    torch.testing.assert_close(found, wanted)
    assert following < step


def test_with_the_true_noise_the_sampler_returns_the_clean_vector() -> None:
    scheduler = make_scheduler(SMALL)
    scheduler.set_timesteps(50)
    clean = torch.tensor([[-1.0, -0.25, 0.5, 1.0]])
    x = scheduler.add_noise(clean, torch.randn(1, 4), scheduler.timesteps[:1])
    for step in scheduler.timesteps:
        kept = scheduler.alphas_cumprod[step]
        x = scheduler.step((x - kept.sqrt() * clean) / (1 - kept).sqrt(), int(step), x, eta=0.0).prev_sample
    torch.testing.assert_close(x, clean, atol=1e-4, rtol=0)


def test_embedding_tells_steps_apart() -> None:
    found = sinusoids(torch.arange(1000), 64)
    assert found.shape == (1000, 64) and len(torch.unique(found, dim=0)) == 1000


# -- guidance ----------------------------------------------------------------------------------------------------------


def guided(scale: float) -> tuple[Tensor, Tensor, Tensor]:
    model = refiner(DiffusionConfig(width=32, guidance=scale))
    x, steps, condition = torch.randn(3, 4), torch.tensor([1, 500, 999]), torch.randn(3, 16)
    nothing = torch.zeros_like(condition)
    with torch.no_grad():
        plain = (model.denoiser(x, steps, condition), model.denoiser(x, steps, nothing))
        return model.guided(x, steps, condition, nothing), *plain


def test_guidance_goes_from_unconditional_to_conditional_and_beyond() -> None:
    for scale in (0.0, 1.0, 1.5):
        found, held, free = guided(scale)
        torch.testing.assert_close(found, free + scale * (held - free), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(held, free)


# -- sampling and learning ---------------------------------------------------------------------------------------------


def test_samples_are_in_range_and_repeat_with_the_seed() -> None:
    condition = np.random.default_rng(0).standard_normal((6, 16)).astype(np.float32)
    first, again, other = (refiner(seed=seed).sample(condition) for seed in (0, 0, 1))
    assert first.shape == (6, 4) and np.abs(first).max() <= 1
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_batch_of_decisions_has_the_quality_of_one() -> None:
    """Rows do not see each other: the noise a row starts from decides alone."""
    model = refiner()
    x, steps, condition = torch.randn(5, 4), torch.full((5,), 300), torch.randn(5, 16)
    with torch.no_grad():
        whole = model.guided(x, steps, condition, torch.zeros_like(condition))
        alone = model.guided(x[2:3], steps[2:3], condition[2:3], torch.zeros(1, 16))
    torch.testing.assert_close(whole[2:3], alone)


def test_it_learns_what_it_is_shown() -> None:
    config = DiffusionConfig(width=64, sample_steps=20, lr=2e-3, batch=64, updates=400, warm=64, decode="round")
    model = refiner(config)
    rng = np.random.default_rng(0)
    condition = np.sign(rng.uniform(-1, 1, (512, 16))).astype(np.float32)
    ranks = np.where(condition[:, :1] > 0, [[7, 7, 2, 2]], [[2, 2, 7, 7]])
    assert model.learn() is None
    model.remember(condition, ranks, rng.standard_normal(512))
    assert model.learn() is not None
    found = model.refine(condition[:64])
    assert (np.abs(found - ranks[:64]) <= 1).mean() > 0.9


def test_better_examples_weigh_more_but_little() -> None:
    """Weights are 1 + 0.1 z, so two standard deviations of reward move an example by a fifth."""
    model = refiner(DiffusionConfig(width=32, batch=64, warm=8, updates=1))
    model.remember(np.zeros((64, 16), np.float32), np.full((64, 4), 3), np.zeros(64))
    assert np.isfinite(model.learn() or np.nan)  # equal rewards have no spread to divide by


def test_replay_keeps_the_newest() -> None:
    replay = Replay(5)
    for number in range(4):
        replay.add(np.full((2, 1), number, np.float32), np.zeros((2, 3), np.float32), np.full(2, float(number)))
    assert len(replay) == 5
    assert sorted(replay.arrays()[2].tolist()) == [1.0, 2.0, 2.0, 3.0, 3.0]
