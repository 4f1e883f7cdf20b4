"""Numbers by hash: they look random in every direction, and belong to the member and not to the vector."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from fedlora_envs.noise import keys, normals, normals_at, uniforms, uniforms_at
from zscores import LIMIT, z_mean, z_share

N = 1_000_000


def _grid(direction: str) -> np.ndarray:
    """Return a million numbers that differ in one argument alone."""
    zeros, rising = np.zeros(N, np.int64), np.arange(N)
    if direction == "seed":
        return uniforms(rising.astype(np.uint64), "channel", zeros, zeros, 1)[:, 0]
    seeds = np.full(N, 7, np.uint64)
    if direction == "episode":
        return uniforms(seeds, "channel", rising, zeros, 1)[:, 0]
    if direction == "step":
        return uniforms(seeds, "channel", zeros, rising, 1)[:, 0]
    return uniforms(seeds[:1], "channel", zeros[:1], zeros[:1], N)[0]


@pytest.mark.parametrize("direction", ["seed", "episode", "step", "index"])
def test_numbers_are_uniform_and_neighbours_are_independent(direction: str) -> None:
    numbers = _grid(direction)
    assert numbers.min() > 0 and numbers.max() < 1
    assert abs(z_mean(numbers, 0.5)) <= LIMIT
    assert abs(z_mean(numbers**2, 1 / 3)) <= LIMIT
    centred = numbers - 0.5
    for lag in (1, 2, 64):
        assert abs(z_mean(centred[:-lag] * centred[lag:], 0.0)) <= LIMIT
    # Chi-square over 1,000 cells, as a z-score.
    counts = np.bincount((numbers * 1000).astype(int), minlength=1000)
    chi = ((counts - N / 1000) ** 2 / (N / 1000)).sum()
    assert abs(chi - 999) / np.sqrt(2 * 999) <= LIMIT


def test_normals_have_the_moments_and_tails_of_normals() -> None:
    numbers = normals(np.arange(1000, dtype=np.uint64), "csi", np.zeros(1000, np.int64), np.zeros(1000, np.int64), 1000)
    assert abs(z_mean(numbers, 0.0)) <= LIMIT
    assert abs(z_mean(numbers**2, 1.0)) <= LIMIT
    assert abs(z_mean(numbers**4, 3.0)) <= LIMIT
    assert abs(z_share(float((numbers > 1.959963985).sum()), N, 0.025)) <= LIMIT


@pytest.mark.parametrize("other", ["stream", "episode", "step", "seed"])
def test_streams_are_independent_of_each_other(other: str) -> None:
    seeds, zeros = np.arange(N // 10, dtype=np.uint64), np.zeros(N // 10, np.int64)
    first = uniforms(seeds, "channel", zeros, zeros, 10)
    second = {
        "stream": lambda: uniforms(seeds, "csi", zeros, zeros, 10),
        "episode": lambda: uniforms(seeds, "channel", zeros + 1, zeros, 10),
        "step": lambda: uniforms(seeds, "channel", zeros, zeros + 1, 10),
        "seed": lambda: uniforms(seeds + np.uint64(N), "channel", zeros, zeros, 10),
    }[other]()
    assert abs(z_mean((first - 0.5) * (second - 0.5), 0.0)) <= LIMIT
    assert not (first == second).any()


def test_episode_and_step_do_not_stand_for_each_other() -> None:
    seed, numbers = np.full(64, 3, np.uint64), np.arange(64)
    swapped = uniforms(seed, "channel", numbers, np.zeros(64, np.int64), 1), uniforms(seed, "channel", 0 * numbers, numbers, 1)
    assert not (swapped[0][1:] == swapped[1][1:]).any()


def test_a_member_of_a_vector_gets_what_it_gets_alone() -> None:
    rng = np.random.default_rng(0)
    seeds = rng.integers(2**63, size=50).astype(np.uint64)
    episode, step = rng.integers(9, size=50), rng.integers(-3, 20, size=50)
    together = uniforms(seeds, "channel", episode, step, 4)
    for i in range(50):
        alone = uniforms(seeds[i : i + 1], "channel", episode[i : i + 1], step[i : i + 1], 4)
        np.testing.assert_array_equal(together[i], alone[0])
    # More numbers are more of the same, in the same order.
    np.testing.assert_array_equal(uniforms(seeds, "channel", episode, step, 9)[:, :4], together)


def test_kept_keys_give_the_same_numbers_and_arguments_stay_as_they_were() -> None:
    seeds, episode, step = np.arange(5, dtype=np.uint64), np.arange(5), np.arange(5) * 3
    kept = keys(seeds, "csi", episode)
    before = kept.copy()
    np.testing.assert_array_equal(uniforms_at(kept, step, 3), uniforms(seeds, "csi", episode, step, 3))
    np.testing.assert_array_equal(normals_at(kept, step, 3), normals(seeds, "csi", episode, step, 3))
    np.testing.assert_array_equal(kept, before)
    np.testing.assert_array_equal(seeds, np.arange(5))


def test_numbers_are_splitmix64_of_the_arguments_in_turn() -> None:
    """Recorded results and shipped policies rest on these draws: the same formula, in whole numbers."""
    seeds, episode, step = np.array([0, 2**63 + 5], np.uint64), np.array([0, 2]), np.array([0, -14])
    got = uniforms(seeds, "channel", episode, step, 2)
    for row in range(2):
        key = _mix(int(seeds[row]) ^ zlib.crc32(b"channel"))
        for number in (int(episode[row]), int(step[row])):
            key = _mix((key + GOLDEN * (number + 1)) % 2**64)
        expected = [((_mix((key + GOLDEN * index) % 2**64) >> 11) + 0.5) * 2.0**-53 for index in (1, 2)]
        assert got[row].tolist() == expected
    assert got[0].tolist() == [0.31451752451415865, 0.4409986404643635]


GOLDEN = 0x9E3779B97F4A7C15


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)
