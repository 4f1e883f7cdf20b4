"""Named streams: the same everywhere, independent of each other, with no state to lose."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from fedlora.streams import fast_stream, stream, torch_stream

NAMES = ["clients", "data order", "batch order", "head choice", "partition", "adapter.A", "adapter.B", "head.classifier.weight"]


def test_numbers_that_must_never_change() -> None:
    """Recorded once: another machine, version or process has to draw the same, or old runs cannot be repeated."""
    assert stream(0, "clients", 1).integers(0, 1000, 5).tolist() == [98, 385, 666, 993, 230]
    assert torch.randint(0, 1000, (5,), generator=torch_stream(0, "adapter.A", 0, 0)).tolist() == [944, 18, 884, 281, 423]


def test_another_process_draws_the_same() -> None:
    code = (
        "import torch; from fedlora.streams import stream, torch_stream;"
        "print(stream(5, 'data order', 2, 3).random(), float(torch.rand(1, generator=torch_stream(5, 'adapter.B', 4))))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(found[0]) == stream(5, "data order", 2, 3).random()
    assert float(found[1]) == float(torch.rand(1, generator=torch_stream(5, "adapter.B", 4)))


def test_every_name_seed_and_key_has_a_stream_of_its_own() -> None:
    drawn = {
        (seed, name, keys): (stream(seed, name, *keys).random(), float(torch.rand(1, generator=torch_stream(seed, name, *keys))))
        for seed, name, keys in itertools.product([0, 1, 2**40], NAMES, [(), (0,), (1,), (0, 0), (0, 1), (1, 0)])
    }
    assert len(set(drawn.values())) == len(drawn)
    assert len({pair[0] for pair in drawn.values()}) == len({pair[1] for pair in drawn.values()}) == len(drawn)


def test_a_stream_has_no_memory_and_leaves_the_global_generators_alone() -> None:
    before = (np.random.get_state()[1].tolist(), torch.get_rng_state())  # type: ignore[index, union-attr]
    first = stream(0, "clients", 1)
    first.random(100)
    torch_stream(0, "adapter.A").manual_seed(3)
    assert stream(0, "clients", 1).random() == stream(0, "clients", 1).random()
    assert np.random.get_state()[1].tolist() == before[0]  # type: ignore[index, union-attr]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_streams_of_neighbouring_keys_are_independent() -> None:
    table = np.array([stream(0, "data order", 1, client).standard_normal(2000) for client in range(20)])
    correlation = np.corrcoef(table) - np.eye(20)
    assert np.abs(correlation).max() < 0.12
    assert abs(table.mean()) < 0.02


@pytest.mark.parametrize("keys", [(-1,), (1, -2)])
def test_keys_count_from_zero(keys: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        stream(0, "clients", *keys)


# -- the fast generator -------------------------------------------------------------------------------------------------------


def test_fast_numbers_that_must_never_change() -> None:
    assert fast_stream(0, "fading up", 1).integers(0, 1000, 5).tolist() == [364, 976, 37, 568, 720]
    assert fast_stream(0, "fading up", 1).standard_normal(2, dtype=np.float32).tolist() == [
        -0.4661531448364258,
        1.7194253206253052,
    ]


def test_the_fast_stream_is_a_generator_of_its_own() -> None:
    """Another algorithm under the same name and keys, so that its numbers are others; each key has its own."""
    assert type(fast_stream(0, "fading").bit_generator) is np.random.SFC64
    drawn = [
        make(seed, name, *keys).random()
        for make, seed, name, keys in itertools.product(
            [stream, fast_stream], [0, 1, 2**40], ["fading up", "fading down"], [(), (0,), (1,), (0, 1), (1, 0)]
        )
    ]
    assert len(set(drawn)) == len(drawn)
    assert fast_stream(3, "fading", 4).random() == fast_stream(3, "fading", 4).random()


def test_fast_streams_of_neighbouring_rounds_are_independent() -> None:
    table = np.array([fast_stream(0, "fading up", number).standard_normal(2000) for number in range(20)])
    assert np.abs(np.corrcoef(table) - np.eye(20)).max() < 0.12 and abs(table.mean()) < 0.02 and abs(table.std() - 1) < 0.02
    gains = fast_stream(0, "fading up", 1).standard_exponential(100_000, dtype=np.float32)
    assert abs(gains.mean() - 1) < 4.5 / 100_000**0.5
