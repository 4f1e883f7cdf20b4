"""The denoising chain: its steps by hand, the likelihood of what it did, guidance, and a quiet mode without chance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fedlora_policies.features import CLIENT_FEATURES, SITE_FEATURES
from fedlora_policies.plus.chain import Chain, ChainConfig
from fedlora_policies.plus.network import Denoiser, NetworkConfig

ROWS, SITES = 6, 4
CLIENT, SITE = torch.zeros(ROWS, len(CLIENT_FEATURES)), torch.zeros(ROWS, SITES, len(SITE_FEATURES))
CLEAN = torch.linspace(-0.9, 0.9, ROWS * (SITES + 1)).reshape(ROWS, SITES + 1)


class Known(torch.nn.Module):
    """Predicts what it was told, and remembers when it was asked."""

    def __init__(self, clean: Tensor, free: Tensor | None = None) -> None:
        super().__init__()
        self.clean, self.free, self.asked = clean, free, []  # type: ignore[var-annotated]

    def forward(self, noisy: Tensor, steps: Tensor, client: Tensor, sites: Tensor, hidden: Tensor | None = None) -> Tensor:
        self.asked.append(int(steps[0]))
        return self.clean if hidden is None or self.free is None else torch.where(hidden[:, None], self.free, self.clean)


def trained(**config: Any) -> Chain:
    """Return a chain on a network of random weights."""
    torch.manual_seed(3)
    net = Denoiser(NetworkConfig(width=16, blocks=1, time_width=8))
    torch.nn.init.normal_(net.nothing)
    return Chain(net, ChainConfig(**config))


def seen() -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    return torch.randn_like(CLIENT), torch.randn_like(SITE)


def alphas(steps: int = 100) -> list[float]:
    """The squared-cosine schedule of Nichol and Dhariwal (2021), their betas cut at 0.999; entry t + 1 is step t."""

    def level(at: float) -> float:
        return math.cos((at + 0.008) / 1.008 * math.pi / 2) ** 2

    left = [1.0]
    for step in range(steps):
        left.append(left[-1] * (1 - min(1 - level((step + 1) / steps) / level(step / steps), 0.999)))
    return left


def by_hand(x: Tensor, clean: Tensor, step: int, before: int, eta: float) -> tuple[Tensor, float]:
    """DDIM's equation 12 (Song et al., arXiv 2010.02502): the mean of the next state, and its standard deviation."""
    now, then = alphas()[step + 1], alphas()[before + 1]
    std = eta * math.sqrt((1 - then) / (1 - now) * (1 - now / then))
    noise = (x - math.sqrt(now) * clean) / math.sqrt(1 - now)
    return math.sqrt(then) * clean + math.sqrt(1 - then - std**2) * noise, std


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_every_step_by_hand(eta: float) -> None:
    """Steps that do not explore have no noise whatever eta is, and the last one ends at the clean request."""
    chain = Chain(Known(CLEAN), ChainConfig(tuned=3, eta=eta, share_std=1e-6, total_std=1e-6))  # type: ignore[arg-type]
    assert chain.steps == [99, 79, 59, 39, 19] and chain.first == 2
    x = torch.randn(ROWS, SITES + 1)
    for index, step in enumerate(chain.steps):
        before = [*chain.steps[1:], -1][index]
        mean, std = by_hand(x, CLEAN, step, before, eta if index >= 2 else 0.0)
        torch.testing.assert_close(chain.mean(index, x, CLIENT, SITE), mean, rtol=1e-4, atol=1e-5)
        if 2 <= index < 4:
            assert chain.std(index, SITES + 1).tolist() == pytest.approx([max(std, 1e-6)] * (SITES + 1), rel=1e-3)
        x = mean
    torch.testing.assert_close(x, CLEAN, rtol=1e-4, atol=1e-5)
    assert chain.denoiser.asked == chain.steps


def test_noise_of_the_last_step_and_at_least() -> None:
    chain = trained(tuned=3, share_std=0.2, total_std=0.7, eta=1.0)
    assert chain.std(4, 3).tolist() == pytest.approx([0.2, 0.2, 0.7])
    small = by_hand(CLEAN, CLEAN, 39, 19, 1.0)[1]
    assert 0.2 < small < 0.7
    assert chain.std(3, 3).tolist() == pytest.approx([small, small, 0.7], rel=1e-3)


@pytest.mark.parametrize("index", range(5))
def test_who_knows_the_clean_request_finds_it_from_any_noise(index: int) -> None:
    chain = Chain(Known(CLEAN), ChainConfig(eta=0.0))  # type: ignore[arg-type]
    step, noise = chain.steps[index], torch.randn(ROWS, SITES + 1)
    x = chain.scheduler.add_noise(CLEAN, noise, torch.full((ROWS,), step))
    left = alphas()[step + 1]
    torch.testing.assert_close(x, math.sqrt(left) * CLEAN + math.sqrt(1 - left) * noise, rtol=1e-4, atol=1e-5)
    for later in range(index, 5):
        x = chain.mean(later, x, CLIENT, SITE)
    torch.testing.assert_close(x, CLEAN, rtol=1e-4, atol=1e-5)


def test_requests_stay_in_bounds() -> None:
    chain = Chain(Known(5.0 * CLEAN), ChainConfig())  # type: ignore[arg-type]
    torch.testing.assert_close(chain.quiet(CLIENT, SITE), (5.0 * CLEAN).clamp(-1, 1))


@pytest.mark.parametrize(("steps", "tuned"), [(5, 1), (5, 3), (5, 5), (1, 1)])
def test_likelihood_is_that_of_what_was_explored(steps: int, tuned: int) -> None:
    chain, (client, sites) = trained(sample_steps=steps, tuned=tuned), seen()
    went = chain.explore(client, sites, torch.Generator().manual_seed(0))
    assert len(went.states) == tuned + 1 and len(went.likelihood) == tuned
    for place in range(tuned):
        index, before, after = chain.first + place, went.states[place], went.states[place + 1]
        with torch.no_grad():
            found = chain.log_prob(index, before, after, client, sites)
            mean = chain.mean(index, before, client, sites)
        torch.testing.assert_close(found, went.likelihood[place], rtol=1e-3, atol=1e-3)
        normal = torch.distributions.Normal(mean, chain.std(index, SITES + 1)).log_prob(after).sum(dim=1)
        torch.testing.assert_close(found, normal, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(chain.log_prob(index, before, after + 0.1, client, sites), found, atol=1e-2)
    found = chain.log_prob(chain.first, *went.states[:2], client, sites).sum()
    assert torch.autograd.grad(found, chain.denoiser.site.weight)[0].abs().sum() > 0


def test_exploration_has_the_spread_it_says() -> None:
    chain, rows = trained(share_std=0.1, total_std=0.3), 4000
    client, sites = (item[:1].repeat(rows, *[1] * (item.dim() - 1)) for item in seen())
    last = chain.explore(client, sites, torch.Generator().manual_seed(0)).states[-1]
    quiet = chain.quiet(client[:1], sites[:1])[0]
    assert (last.mean(dim=0) - quiet).abs().max() < 0.02
    assert last.std(dim=0).tolist() == pytest.approx([0.1] * SITES + [0.3], rel=0.06)


def test_steps_before_the_exploring_ones_play_without_dice() -> None:
    client, sites = seen()

    def begins(chain: Chain) -> list[Tensor]:
        return [chain.explore(client, sites, torch.Generator().manual_seed(seed)).states[0] for seed in (0, 1)]

    chain = trained(tuned=2)
    one, other = begins(chain)
    by_mean = torch.zeros(ROWS, SITES + 1)
    with torch.no_grad():
        for index in range(3):
            by_mean = chain.mean(index, by_mean, client, sites)
    assert torch.equal(one, other) and torch.equal(one, by_mean)
    one, other = begins(trained(tuned=5))
    assert not torch.equal(one, other) and 0.5 < float(one.std()) < 1.5


def test_guidance_one_is_conditional_and_zero_unconditional() -> None:
    client, sites = seen()
    found = {scale: trained(guidance=scale).quiet(client, sites) for scale in (0.0, 0.5, 1.0, 3.0)}
    other = {scale: trained(guidance=scale).quiet(client + 2.0, sites) for scale in (0.0, 1.0)}
    assert torch.equal(found[0.0], other[0.0]) and not torch.allclose(found[1.0], other[1.0], atol=1e-3)
    assert not torch.allclose(found[3.0], found[1.0], atol=1e-3) and not torch.allclose(found[0.0], found[1.0], atol=1e-3)
    free, clean = torch.full_like(CLEAN, -0.2), torch.full_like(CLEAN, 0.1)
    for scale, wanted in ((0.0, -0.2), (0.5, -0.05), (1.0, 0.1), (3.0, 0.7)):
        quiet = Chain(Known(clean, free), ChainConfig(guidance=scale)).quiet(CLIENT, SITE)  # type: ignore[arg-type]
        torch.testing.assert_close(quiet, torch.full_like(CLEAN, wanted), rtol=1e-4, atol=1e-5)


def test_the_quiet_chain_has_no_chance_in_it() -> None:
    chain, (client, sites) = trained(tuned=5, eta=1.0), seen()
    before = torch.random.get_rng_state()
    found = chain.quiet(client, sites)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(chain.quiet(client, sites), found) and not found.requires_grad
    torch.testing.assert_close(chain.quiet(client[2:3], sites[2:3]), found[2:3], rtol=1e-4, atol=1e-5)
