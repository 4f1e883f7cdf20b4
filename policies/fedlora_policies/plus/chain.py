"""The denoising chain as a policy: each of its steps is a Gaussian, so that what it did has a likelihood.

The schedule and its steps are diffusers' `DDIMScheduler`. As in DPPO (Ren et al., arXiv 2409.00588), a chain of K steps is K
decisions whose last one acts, and policy gradients go through its last steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from fedlora_policies.plus.network import Denoiser


@dataclass(frozen=True)
class ChainConfig:
    """Constants of the chain.

    Attributes:
        train_steps: Steps of the noise schedule.
        sample_steps: K, steps of the chain.
        tuned: Last steps that explore and are trained by policy gradients; the ones before play without dice.
        eta: Noise of an exploring step but the last, as a share of the stochastic sampler's.
        share_std: Standard deviation with which the last step explores the shares.
        total_std: The same for the bytes of all.
        guidance: Scale of classifier-free guidance; 1: none, and half the work.
    """

    train_steps: int = 100
    sample_steps: int = 5
    tuned: int = 1
    eta: float = 1.0
    share_std: float = 0.1
    total_std: float = 0.15
    guidance: float = 1.0


@dataclass(frozen=True)
class Sampled:
    """What a chain went through in its T exploring steps.

    Attributes:
        states: T + 1 times `[n, L + 1]`, the request last.
        likelihood: Log-likelihoods of the steps, T times `[n]`.
    """

    states: list[Tensor]
    likelihood: list[Tensor]


class Chain:
    """Samples requests from a denoiser.

    Args:
        denoiser: Predicts clean requests.
        config: Constants.

    Attributes:
        first: Index of the first exploring step.
    """

    def __init__(self, denoiser: Denoiser, config: ChainConfig) -> None:
        make: Any = DDIMScheduler  # carries no types
        self.denoiser, self.config = denoiser, config
        self.scheduler = make(
            num_train_timesteps=config.train_steps, beta_schedule="squaredcos_cap_v2", prediction_type="sample",
            clip_sample=True, clip_sample_range=1.0, set_alpha_to_one=True, timestep_spacing="trailing",
        )  # fmt: skip
        self.scheduler.set_timesteps(config.sample_steps)
        self.steps = [int(step) for step in self.scheduler.timesteps]
        self.first = len(self.steps) - config.tuned

    def mean(self, index: int, x: Tensor, client: Tensor, sites: Tensor) -> Tensor:
        """Return the mean of the chain's step `index` from x `[n, L + 1]`."""
        step = self.steps[index]
        at = torch.full((len(x),), step)
        clean = self.denoiser(x, at, client, sites)
        if self.config.guidance != 1.0:
            free = self.denoiser(x, at, client, sites, torch.ones(len(x), dtype=torch.bool))
            clean = free + self.config.guidance * (clean - free)
        eta = self.config.eta if index >= self.first else 0.0
        mean: Tensor = self.scheduler.step(clean, step, x, eta=eta, variance_noise=torch.zeros_like(x)).prev_sample
        return mean

    @torch.no_grad()
    def quiet(self, client: Tensor, sites: Tensor) -> Tensor:
        """Return requests `[n, L + 1]` without chance: from the middle of the noise, by the mean of every step."""
        return self._until(len(self.steps), client, sites)

    def _until(self, index: int, client: Tensor, sites: Tensor) -> Tensor:
        x = torch.zeros(len(client), sites.shape[1] + 1)
        for earlier in range(index):
            x = self.mean(earlier, x, client, sites)
        return x

    @torch.no_grad()
    def explore(self, client: Tensor, sites: Tensor, generator: torch.Generator) -> Sampled:
        """Return what the exploring steps did, for client features `[n, C]` and site features `[n, L, F]`."""
        # A chain that explores from its first step on begins with noise, as samplers do.
        shape = (len(client), sites.shape[1] + 1)
        begin = self._until(self.first, client, sites) if self.first else torch.randn(shape, generator=generator)
        states, likelihood = [begin], []
        for index in range(self.first, len(self.steps)):
            std, noise = self.std(index, shape[1]), torch.randn(shape, generator=generator)
            states.append(self.mean(index, states[-1], client, sites) + std * noise)
            likelihood.append(_log_density(noise, std))
        return Sampled(states, likelihood)

    def std(self, index: int, size: int) -> Tensor:
        """Return the standard deviations of an exploring step, `[size]`: at least the last step's."""
        least = torch.full((size,), self.config.share_std)
        least[-1] = self.config.total_std
        if index == len(self.steps) - 1:
            return least
        one, step = torch.ones(1, 1), self.steps[index]
        noisy, still = (
            self.scheduler.step(0 * one, step, one, eta=self.config.eta, variance_noise=noise).prev_sample
            for noise in (one, 0 * one)
        )
        return torch.maximum(least, (noisy - still)[0])

    def log_prob(self, index: int, before: Tensor, after: Tensor, client: Tensor, sites: Tensor) -> Tensor:
        """Return the log-likelihood of an exploring step, `[n]`."""
        std = self.std(index, before.shape[1])
        return _log_density((after - self.mean(index, before, client, sites)) / std, std)


def _log_density(error: Tensor, std: Tensor) -> Tensor:
    """Return the log-density of independent Gaussians at `error` standard deviations `[n, d]`, `[n]`."""
    return -(0.5 * error.square() + std.log() + 0.5 * math.log(2 * math.pi)).sum(dim=1)
