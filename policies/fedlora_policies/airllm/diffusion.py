"""The refiner of AirLLM: a DDIM that turns noise into a rank vector, guided by the coarse action.

Sizes and constants are those of the authors' reference code (arXiv 2507.11515); the sampler is diffusers' `DDIMScheduler`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from torch import Tensor, nn

Ranks = NDArray[np.int64]


@dataclass(frozen=True)
class DiffusionConfig:
    """The refiner's constants, the reference code's by default.

    Attributes:
        condition: Numbers of the coarse action.
        width: Hidden width of the denoiser.
        blocks: Residual blocks.
        time_width: Numbers of the sinusoidal embedding of the time step.
        train_steps: Steps of the noise schedule.
        sample_steps: Steps of the sampler, evenly spaced.
        guidance: Scale of classifier-free guidance; 1 is conditional, 0 unconditional.
        drop_condition: Share of training examples whose condition is hidden.
        lr: Adam's.
        batch: Training batch.
        updates: Training batches per episode.
        weight: How much a standardised reward shifts an example's weight.
        buffer: Examples kept.
        warm: Examples needed before training starts.
        decode: "floor", as the reference code does, or "round".
    """

    condition: int = 16
    width: int = 512
    blocks: int = 2
    time_width: int = 64
    train_steps: int = 1000
    sample_steps: int = 50
    guidance: float = 1.5
    drop_condition: float = 0.1
    lr: float = 5e-5
    batch: int = 32
    updates: int = 4
    weight: float = 0.1
    buffer: int = 10_000
    warm: int = 128
    decode: str = "floor"


class Codec:
    """Ranks as numbers in [-1, 1] and back.

    Args:
        low: Smallest rank, the same at every site.
        high: Largest rank per site, `[sites]`.
        decode: "floor" or "round".
    """

    def __init__(self, low: int, high: Ranks, decode: str = "floor") -> None:
        self.low, self.span, self.decode_rule = low, np.maximum(high - low, 1).astype(np.float64), decode

    def encode(self, ranks: Ranks) -> NDArray[np.float32]:
        """Return `2 (r - low) / (high - low) - 1`."""
        return np.asarray(2 * (ranks - self.low) / self.span - 1, np.float32)

    def decode(self, values: NDArray[np.floating]) -> Ranks:
        """Return the ranks; a value that encodes a rank comes back as that rank, whichever way is rounded."""
        levels = (np.clip(values.astype(np.float64), -1, 1) + 1) / 2 * self.span
        # float32 encodes a rank a hair below it at times; that is no reason to lose it.
        levels = np.floor(levels + 1e-4) if self.decode_rule == "floor" else np.rint(levels)
        return np.asarray(levels, np.int64) + self.low


class Denoiser(nn.Module):
    """Predicts the noise in a noisy rank vector.

    Args:
        sites: Length of the rank vector.
        config: Sizes.
    """

    def __init__(self, sites: int, config: DiffusionConfig) -> None:
        super().__init__()
        self.time_width = config.time_width
        self.inside = nn.Linear(sites + config.condition, config.width)
        self.time = nn.Sequential(nn.Linear(config.time_width, config.width), nn.Mish())
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(config.width), nn.Mish(), nn.Linear(config.width, config.width))
            for _ in range(config.blocks)
        )
        self.out = nn.Sequential(nn.LayerNorm(config.width), nn.Mish(), nn.Linear(config.width, sites))

    def forward(self, x: Tensor, steps: Tensor, condition: Tensor) -> Tensor:
        """Return the predicted noise `[n, sites]`.

        Args:
            x: Noisy vectors, `[n, sites]`.
            steps: Their steps of the noise schedule, int64 `[n]`.
            condition: Coarse actions, `[n, condition]`; zeros where there is none.
        """
        hidden = self.inside(torch.cat([x, condition], dim=1)) + self.time(sinusoids(steps, self.time_width))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return cast(Tensor, self.out(hidden))


def sinusoids(steps: Tensor, width: int) -> Tensor:
    """Return the usual sinusoidal embedding of integers, `[n, width]`."""
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(width // 2) / (width // 2))
    angles = steps[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Refiner:
    """The diffusion model with its sampler, replay and optimiser.

    Args:
        sites: Length of the rank vector.
        codec: Ranks to numbers.
        config: Constants.
        seed: Of initial weights, sampling and training.
    """

    def __init__(self, sites: int, codec: Codec, config: DiffusionConfig, seed: int) -> None:
        self.sites, self.codec, self.config = sites, codec, config
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.denoiser = Denoiser(sites, config)
        self.optimiser = torch.optim.Adam(self.denoiser.parameters(), lr=config.lr)
        self.scheduler = make_scheduler(config)
        self.replay = Replay(config.buffer)

    @torch.no_grad()
    def sample(self, condition: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return vectors in [-1, 1], `[n, sites]`, for coarse actions `[n, condition]`."""
        given = torch.from_numpy(np.asarray(condition, np.float32))
        x = torch.randn(len(given), self.sites, generator=self.generator)
        nothing = torch.zeros_like(given)
        self.scheduler.set_timesteps(self.config.sample_steps)
        for step in self.scheduler.timesteps:
            steps = torch.full((len(given),), int(step))
            noise = self.guided(x, steps, given, nothing)
            x = self.scheduler.step(noise, int(step), x, eta=0.0).prev_sample
        return np.asarray(x.clamp(-1, 1).numpy())

    def guided(self, x: Tensor, steps: Tensor, condition: Tensor, nothing: Tensor) -> Tensor:
        """Return the noise under classifier-free guidance: unconditional plus scale times the difference."""
        scale = self.config.guidance
        if scale == 1.0:
            return cast(Tensor, self.denoiser(x, steps, condition))
        both = self.denoiser(torch.cat([x, x]), torch.cat([steps, steps]), torch.cat([nothing, condition]))
        free, held = both.chunk(2)
        return cast(Tensor, free + scale * (held - free))

    def refine(self, condition: NDArray[np.float32]) -> Ranks:
        """Return rank vectors for coarse actions."""
        return self.codec.decode(self.sample(condition))

    def remember(self, condition: NDArray[np.float32], ranks: Ranks, reward: NDArray[np.float64]) -> None:
        """Keep what was done and what it gave."""
        self.replay.add(condition, self.codec.encode(ranks), reward)

    def learn(self) -> float | None:
        """Take the updates of one episode; return the mean loss, or None while there is too little to learn from."""
        if len(self.replay) < self.config.warm:
            return None
        losses = [self._update() for _ in range(self.config.updates)]
        return float(np.mean(losses))

    def _update(self) -> float:
        config = self.config
        at = torch.randint(len(self.replay), (config.batch,), generator=self.generator).numpy()
        condition, clean, reward = (torch.from_numpy(array[at]) for array in self.replay.arrays())
        spread = reward.std(unbiased=False)
        score = (reward - reward.mean()) / spread if spread > 1e-8 else torch.zeros_like(reward)
        weight = (1 + config.weight * score).clamp(0.1, 10.0)
        hidden = torch.rand(config.batch, generator=self.generator) < config.drop_condition
        condition = torch.where(hidden[:, None], 0.0, condition)
        steps = torch.randint(config.train_steps, (config.batch,), generator=self.generator)
        noise = torch.randn(clean.shape, generator=self.generator)
        noisy = self.scheduler.add_noise(clean, noise, steps)
        error = (self.denoiser(noisy, steps, condition) - noise).square().mean(dim=1)
        loss = (weight * error).mean()
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
        self.optimiser.step()
        return float(loss.detach())


class Replay:
    """The newest examples: coarse action, encoded ranks, reward.

    Args:
        size: Examples kept.
    """

    def __init__(self, size: int) -> None:
        self.size, self._count, self._next = size, 0, 0
        self._stored: list[NDArray[np.float32]] = []

    def __len__(self) -> int:
        return self._count

    def add(self, condition: NDArray[np.float32], values: NDArray[np.float32], reward: NDArray[np.float64]) -> None:
        """Add n examples; the oldest make room."""
        columns = [np.asarray(condition, np.float32), np.asarray(values, np.float32), np.asarray(reward, np.float32)]
        if not self._stored:
            self._stored = [np.zeros((self.size, *column.shape[1:]), np.float32) for column in columns]
        at = (self._next + np.arange(len(columns[0]))) % self.size
        for stored, column in zip(self._stored, columns, strict=True):
            stored[at] = column
        self._next = int((self._next + len(at)) % self.size)
        self._count = min(self.size, self._count + len(at))

    def arrays(self) -> list[NDArray[np.float32]]:
        """Return (coarse actions, encoded ranks, rewards) of all examples."""
        return [stored[: self._count] for stored in self._stored]

    def state(self) -> dict[str, Any]:
        """Return all examples, and where the next one goes."""
        return {"stored": [torch.from_numpy(array.copy()) for array in self.arrays()], "next": self._next}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        held = [tensor.numpy() for tensor in state["stored"]]
        self._next, self._count = int(state["next"]), len(held[0]) if held else 0
        self._stored = [np.zeros((self.size, *array.shape[1:]), np.float32) for array in held]
        for stored, array in zip(self._stored, held, strict=True):
            stored[: len(array)] = array


def make_scheduler(config: DiffusionConfig) -> Any:
    """Return diffusers' sampler with the reference code's schedule (scaled linear, 1e-4 to 2e-2), samples clipped to [-1, 1]."""
    make: Any = DDIMScheduler  # carries no types
    return make(
        num_train_timesteps=config.train_steps,
        beta_start=1e-4,
        beta_end=2e-2,
        beta_schedule="scaled_linear",
        clip_sample=True,
        clip_sample_range=1.0,
        set_alpha_to_one=True,
        prediction_type="epsilon",
        timestep_spacing="linspace",
    )
