"""Devices: what tier each client is of, how long it computes, and what fits into its memory.

Tiers are in `data/devices.yaml`. A tier's speed is its FP32 peak times the share of it that training reaches (mfu).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from fedlora.errors import ConfigError, UnknownNameError
from fedlora_envs.constants import constants

Floats = NDArray[np.float64]
JitterKind = Literal["none", "lognormal", "exponential"]


@dataclass(frozen=True)
class Tier:
    """One kind of device; the units are those of `data/devices.yaml`."""

    name: str
    kind: str
    fp32_flops: float
    mfu: float
    memory_bytes: float
    bandwidth_bytes_per_s: float
    idle_w: float
    busy_w: float

    @property
    def flops(self) -> float:
        """FLOP/s that training reaches."""
        return self.fp32_flops * self.mfu


def tier(name: str) -> Tier:
    """Return the tier `name` of `data/devices.yaml`.

    Raises:
        UnknownNameError: No such tier; the message names the nearest one.
    """
    known = constants("devices")
    if name not in known:
        raise UnknownNameError("device tier", name, known)
    return Tier(name, **{key: value for key, value in known[name].items() if key not in ("source", "evidence")})


def tier_counts(clients: int, mix: Mapping[str, float]) -> list[int]:
    """Return how many of `clients` each tier of `mix` gets: largest remainders, so that the counts add up exactly.

    Args:
        clients: Number of clients N.
        mix: Tier to share; shares are relative (they need not add up to 1).

    Raises:
        ConfigError: A share that is negative or not finite, or shares that add up to 0.
    """
    shares = np.array(list(mix.values()), dtype=np.float64)
    for name, share in zip(mix, shares, strict=True):
        if not (np.isfinite(share) and share >= 0):
            raise ConfigError(f"device tier '{name}' has a share of {share:g}; shares must be finite numbers >= 0")
    if not shares.sum() > 0:
        raise ConfigError("the shares of the device tiers add up to 0; give at least one tier a share above 0")
    exact = clients * shares / shares.sum()
    counts = np.floor(exact).astype(np.int64)
    # Rounded, so that 1/3 + 1/3 + 1/3 ties whatever the last bits are; a stable sort then favours the first named.
    order = np.argsort(-np.round(exact - counts, 9), kind="stable")
    counts[order[: clients - int(counts.sum())]] += 1
    return [int(count) for count in counts]


@dataclass(frozen=True)
class Fleet:
    """The devices of N clients.

    Attributes:
        tiers: The tiers of the mix.
        tier: Index into `tiers`, [N].
        flops: FLOP/s that training reaches, [N].
        memory_bytes: Memory, [N].
        power_w: Power of the board while it computes, [N].
        idle_w: Power of the board while it waits, [N].
    """

    tiers: tuple[Tier, ...]
    tier: NDArray[np.int64]
    flops: Floats
    memory_bytes: Floats
    power_w: Floats
    idle_w: Floats

    @classmethod
    def mixed(cls, clients: int, mix: Mapping[str, float], rng: np.random.Generator) -> Fleet:
        """Return a fleet whose tiers come in exactly the shares of `mix`, in an order drawn from `rng`.

        Args:
            clients: Number of clients N, >= 1.
            mix: Tier to share, for example {"raspberry_pi_4": 0.7, "jetson_nano": 0.3}.
            rng: Draws one permutation of N.

        Raises:
            UnknownNameError: A tier that the data file does not have.
            ConfigError: No client, or bad shares (see `tier_counts`).
        """
        if clients < 1:
            raise ConfigError(f"a fleet needs at least 1 client, got {clients}")
        tiers = tuple(tier(name) for name in mix)
        index = np.repeat(np.arange(len(tiers), dtype=np.int64), tier_counts(clients, mix))
        index = index[rng.permutation(clients)]

        def per_client(values: list[float]) -> Floats:
            return np.array(values, dtype=np.float64)[index]

        return cls(
            tiers,
            index,
            per_client([one.flops for one in tiers]),
            per_client([one.memory_bytes for one in tiers]),
            per_client([one.busy_w for one in tiers]),
            per_client([one.idle_w for one in tiers]),
        )

    def compute_s(self, flops: ArrayLike, clients: NDArray[np.integer], jitter: ArrayLike = 1.0) -> Floats:
        """Return how long each of `clients` computes, in s, [K].

        Args:
            flops: Floating-point operations to do, [K] or one number for all.
            clients: Which clients, [K].
            jitter: Factors on the time, [K] (see `jitter_factors`).
        """
        seconds: Floats = np.asarray(flops, dtype=np.float64) / self.flops[clients] * np.asarray(jitter, dtype=np.float64)
        return seconds

    def fits(self, bytes_needed: ArrayLike) -> NDArray[np.bool_]:
        """Return which clients have memory for `bytes_needed` ([N], or one number for all), [N]."""
        fitting: NDArray[np.bool_] = np.asarray(bytes_needed, dtype=np.float64) <= self.memory_bytes
        return fitting


def jitter_factors(kind: JitterKind, scale: float, uniforms: Floats) -> Floats:
    """Return factors >= 0 on compute times, one per uniform number.

    Every kind is an increasing function of the same uniform numbers, so that two worlds that differ only in the kind or the
    scale slow the same clients down.

    Args:
        kind: "none": 1; "lognormal": exp(scale z), median 1; "exponential": 1 + scale Exp(1), the shifted exponential.
        scale: Standard deviation of the logarithm (usual: 0.1 to 0.3), or the mean of what is added (usual: 0.5).
        uniforms: Numbers in [0, 1), drawn whatever the kind is.

    Raises:
        ConfigError: Unknown kind, or a scale that is negative or not finite.
    """
    if not (np.isfinite(scale) and scale >= 0):
        raise ConfigError(f"jitter needs a finite scale >= 0, got {scale:g}")
    if kind == "none":
        return np.ones_like(uniforms)
    if kind == "lognormal":
        # 0 is drawn now and then and would give a factor of 0.
        return np.asarray(np.exp(scale * ndtri(np.maximum(uniforms, 2.0**-54))), dtype=np.float64)
    if kind == "exponential":
        return np.asarray(1.0 - scale * np.log1p(-uniforms), dtype=np.float64)
    raise UnknownNameError("jitter", kind, ["none", "lognormal", "exponential"])


def cycles_compute_s(cycles_per_sample: ArrayLike, samples: ArrayLike, frequency_hz: ArrayLike, epochs: ArrayLike = 1) -> Floats:
    """Return the compute time E C D / f in s of the CPU model of Yang et al. (IEEE TWC 2021); the arguments broadcast.

    Args:
        cycles_per_sample: CPU cycles C that one sample takes.
        samples: Samples D of the client.
        frequency_hz: Clock f, above 0.
        epochs: Local passes E over the samples.

    Raises:
        ConfigError: A clock that is not above 0.
    """
    frequency = np.asarray(frequency_hz, dtype=np.float64)
    if not (frequency > 0).all():
        raise ConfigError(f"frequency_hz must be above 0, got {frequency.min():g}")
    cycles = np.asarray(cycles_per_sample, dtype=np.float64) * np.asarray(samples, dtype=np.float64)
    seconds: Floats = np.asarray(epochs, dtype=np.float64) * cycles / frequency
    return seconds
