"""Randomness for many environments at once: numbers that are a function of each environment's seed and of where it stands.

A vector environment whose members have seeds of their own would need a generator each, and a loop over them. Here the numbers
come from a hash of (seed, stream, episode, step, index), for all members in one array operation: member i of a vector gets what
a single environment with its seed gets, and what one policy does never shifts what another one sees.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Floats = NDArray[np.float64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def keys(seeds: NDArray[np.uint64], name: str, episode: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return what all numbers of a stream and an episode have in common, `[E]`: worth keeping where there are many steps.

    Args:
        seeds: Seed of each environment, `[E]`.
        name: Stream ("channel", "data", ...).
        episode: Episodes that each environment has begun, `[E]`.
    """
    return _next(_mix(seeds ^ np.uint64(zlib.crc32(name.encode()))), episode)


def uniforms_at(keys: NDArray[np.uint64], step: NDArray[np.int64], count: int) -> Floats:
    """Return numbers in (0, 1), `[E, count]`, at the steps `[E]` of what `keys` stands for."""
    bits = _mix(_next(keys, step)[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))
    bits >>= np.uint64(11)
    numbers = bits.astype(np.float64)
    numbers += 0.5
    numbers *= 2.0**-53
    return numbers


def uniforms(seeds: NDArray[np.uint64], name: str, episode: NDArray[np.int64], step: NDArray[np.int64], count: int) -> Floats:
    """Return numbers in (0, 1), `[E, count]`.

    Args:
        seeds: Seed of each environment, `[E]`.
        name: Stream ("channel", "data", ...).
        episode: Episodes that each environment has begun, `[E]`.
        step: Where in the episode each stands, `[E]`.
        count: Numbers wanted of each.
    """
    return uniforms_at(keys(seeds, name, episode), step, count)


def normals_at(keys: NDArray[np.uint64], step: NDArray[np.int64], count: int) -> Floats:
    """Return standard normals, `[E, count]`; arguments as in `uniforms_at`."""
    return np.asarray(ndtri(uniforms_at(keys, step, count)))


def normals(seeds: NDArray[np.uint64], name: str, episode: NDArray[np.int64], step: NDArray[np.int64], count: int) -> Floats:
    """Return standard normals, `[E, count]`; arguments as in `uniforms`."""
    return np.asarray(ndtri(uniforms(seeds, name, episode, step, count)))


def _next(key: NDArray[np.uint64], number: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the keys one level further down, at a number that may be negative."""
    return _mix(key + _GOLDEN * (number.astype(np.uint64) + np.uint64(1)))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the finaliser of SplitMix64, in the memory of `x`: every input bit moves every output bit."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
