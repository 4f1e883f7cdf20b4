"""Radio worlds for tests, and rounds played in them without any grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.federation.world import WorldSetup
from fedlora_envs.outcome import Outcome
from fedlora_envs.presets import Preset
from fedlora_envs.world import RadioWorld

PRESETS = ("ideal", "airllm", "airllm-markov", "umi-indoor", "uma-macro", "inh-office", "yang2021", "trace")
GPU_FLOPS = 67e12 * 0.25
GPU_W = 700.0
STILL = {"mix": {"server_gpu": 1.0}, "jitter": 0.0}
"""Options of `devices`: everybody computes alike."""


def make(
    preset: str = "umi-indoor", clients: int = 12, seed: int = 0, setup: dict[str, Any] | None = None, **options: Any
) -> RadioWorld:
    """Return a world; `setup` changes what it is told of the run."""
    told = {"seed": seed, "clients": clients, "per_round": clients, **(setup or {})}
    return Preset(preset)(WorldSetup(**told), **options)


def round_of(
    world: RadioWorld,
    clients: NDArray[np.int64] | None = None,
    down: int = 20_000,
    up: int | NDArray[np.int64] = 20_000,
    work: float | NDArray[np.float64] | None = None,
    silent: tuple[int, ...] = (),
) -> Outcome:
    """Play one exchange: all that are reached answer, but for those in `silent`; `up` and `work` by place."""
    asked = np.arange(world.clients) if clients is None else clients
    if work is None:
        work = 1e10 if world.config.devices.cycles_per_example is None else 500.0
    reached = world.begin(asked, np.full(len(asked), down, np.int64)) & ~np.isin(asked, silent)
    sizes, works = (np.broadcast_to(np.asarray(value), asked.shape)[reached] for value in (up, work))
    return world.play(asked[reached], works.astype(np.float64), sizes.astype(np.int64))


def same(left: Outcome, right: Outcome) -> bool:
    """Return whether two exchanges went alike, bit by bit."""
    pairs = [(getattr(left, name), getattr(right, name)) for name in vars(left)]
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") if isinstance(a, np.ndarray) else a == b for a, b in pairs)
