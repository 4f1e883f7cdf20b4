"""Named streams of randomness.

Each use of randomness (client sampling, data order, head initialisation, ...) has a stream of its own, keyed by the run's
seed, the stream's name and whatever identifies the draw (round, client). No stream has a state that must survive a kill, and
what one component draws never shifts what another one sees.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def stream(seed: int, name: str, *keys: int) -> np.random.Generator:
    """Return the generator of stream `name` at `keys`, the same on every machine and in every process."""
    return np.random.default_rng(_sequence(seed, name, keys))


def fast_stream(seed: int, name: str, *keys: int) -> np.random.Generator:
    """Return the stream on SFC64, which draws large arrays of normals and exponentials 15 to 25 % faster than numpy's default."""
    return np.random.Generator(np.random.SFC64(_sequence(seed, name, keys)))


def torch_stream(seed: int, name: str, *keys: int) -> torch.Generator:
    """Return the stream as a CPU torch generator; tensors drawn on the CPU are equal whatever the run's device."""
    state = _sequence(seed, name, keys).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def _sequence(seed: int, name: str, keys: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(name.encode()), *keys))
