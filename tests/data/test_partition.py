"""Every way of spreading examples: complete, disjoint, seeded, as skewed as asked for, and clear where it cannot be done."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedlora.config import DataConfig
from fedlora.data import Examples
from fedlora.data.partition import partition, split_client
from fedlora.errors import ConfigError, DataError


def _examples(labels: Any, natural: Any = None) -> Examples:
    codes = np.asarray(labels, dtype=np.int64)
    return Examples([str(n) for n in range(len(codes))], None, codes, None if natural is None else np.array(natural))


def _config(kind: str, **changes: Any) -> DataConfig:
    return DataConfig(partition=kind, **changes)  # type: ignore[arg-type]


def _whole(parts: list[NDArray[np.int64]], size: int) -> bool:
    return bool(np.array_equal(np.sort(np.concatenate(parts)), np.arange(size)))


@settings(max_examples=25)
@given(
    kind=st.sampled_from(["iid", "dirichlet", "shards"]),
    clients=st.integers(1, 12),
    size=st.integers(60, 300),
    classes=st.integers(2, 7),
    shards=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_every_example_goes_to_exactly_one_client(
    kind: str, clients: int, size: int, classes: int, shards: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, classes, size)
    labels[:2] = 0, 1
    config = _config(kind, alpha=1.0, shards_per_client=shards)
    parts = partition(_examples(labels), config, clients, seed)
    assert len(parts) == clients and _whole(parts, size)
    assert all(len(part) >= 2 and part.dtype == np.int64 for part in parts)
    again = partition(_examples(labels), config, clients, seed)
    assert all(np.array_equal(one, two) for one, two in zip(parts, again, strict=True))
    if kind != "dirichlet":
        assert max(map(len, parts)) - min(map(len, parts)) <= (1 if kind == "iid" else 2 * shards)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shards"])
def test_another_seed_gives_another_partition(kind: str) -> None:
    examples = _examples(np.arange(400) % 4)
    one, other = (partition(examples, _config(kind), 5, seed) for seed in (0, 1))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def _skew(labels: NDArray[np.int64], parts: list[NDArray[np.int64]]) -> float:
    """Return the mean distance (total variation) between the clients' label shares and those of all."""
    shares = np.bincount(labels) / len(labels)
    mixes = [np.bincount(labels[part], minlength=len(shares)) / len(part) for part in parts]
    return float(np.mean([np.abs(mix - shares).sum() / 2 for mix in mixes]))


def test_alpha_orders_the_skew() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 5000)
    skews = [_skew(labels, partition(_examples(labels), _config("dirichlet", alpha=alpha), 20, 0)) for alpha in (100, 1, 0.1)]
    iid = _skew(labels, partition(_examples(labels), _config("iid"), 20, 0))
    assert iid < 0.12 and skews[0] < 0.15 < skews[1] < 0.5 < skews[2]


def test_iid_is_shuffled() -> None:
    labels = np.sort(np.random.default_rng(0).integers(0, 10, 1000))
    assert all(len(set(labels[part])) == 10 for part in partition(_examples(labels), _config("iid"), 5, 0))


def test_shards_give_each_client_few_labels() -> None:
    labels = np.random.default_rng(0).permutation(np.arange(1003) % 10)
    parts = partition(_examples(labels), _config("shards", shards_per_client=2), 20, 0)
    # Two runs of the sorted labels hold four labels at most, and nearly all hold two.
    kinds = [len(set(labels[part])) for part in parts]
    assert max(kinds) <= 4 and np.mean(kinds) < 3


def test_natural_clients_follow_their_ids() -> None:
    natural = np.array(["cy", "al", "bo"])[np.random.default_rng(0).integers(0, 3, 60)]
    parts = partition(_examples(np.zeros(60), natural), _config("natural"), 3, 0)
    assert [set(natural[part]) for part in parts] == [{"al"}, {"bo"}, {"cy"}] and _whole(parts, 60)


def test_what_natural_partitions_need() -> None:
    with pytest.raises(ConfigError, match=r'partition = "natural" needs to know .* data\.natural_column'):
        partition(_examples(np.arange(20) % 2), _config("natural"), 2, 0)
    examples = _examples(np.arange(20) % 2, ["a", "b", "c", "d"] * 5)
    with pytest.raises(ConfigError, match=r"clients = 3, but the training examples belong to 4\. Set clients = 4"):
        partition(examples, _config("natural"), 3, 0)
    with pytest.raises(DataError, match=r"client 1 \('ann'\) has 1 training example; each needs 2"):
        partition(_examples(np.arange(10) % 2, ["al"] * 4 + ["ann"] + ["zoe"] * 5), _config("natural"), 3, 0)


@pytest.mark.parametrize("kind", ["dirichlet", "shards"])
def test_language_modelling_spreads_natural_ids_as_labels(kind: str) -> None:
    natural = np.repeat(["emma", "persuasion", "other"], 100)
    examples = _examples(np.zeros(300), natural)
    parts = partition(examples, _config(kind, alpha=0.1), 6, 0)
    assert _whole(parts, 300)
    assert _skew(np.unique(natural, return_inverse=True)[1], parts) > 0.3
    with pytest.raises(ConfigError, match=r'neither labels nor client ids\. Set data\.partition = "iid"'):
        partition(_examples(np.zeros(300)), _config(kind), 6, 0)
    assert _whole(partition(_examples(np.zeros(300)), _config("iid"), 6, 0), 300)


def test_too_many_clients_or_shards() -> None:
    examples = _examples(np.arange(30) % 3)
    with pytest.raises(
        ConfigError, match=r"30 training examples are too few for clients = 16: each needs 2\. Set clients to 15 or less"
    ):
        partition(examples, _config("iid"), 16, 0)
    with pytest.raises(ConfigError, match="makes 40 shards of 30 examples"):
        partition(examples, _config("shards", shards_per_client=4), 10, 0)


def test_hopeless_skew_names_a_client_and_a_remedy() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.alpha = 0\.01 .* client \d+ got [01], and each needs 2\. Raise data\.alpha or lower clients"
    ):
        partition(_examples(np.arange(400) % 2), _config("dirichlet", alpha=0.01), 40, 0)


def test_fifty_clients_at_alpha_a_tenth() -> None:
    # As many examples and classes as the TREC questions' training part.
    labels = np.repeat(np.arange(6), [69, 922, 996, 972, 659, 687])
    for seed in range(3):
        parts = partition(_examples(labels), _config("dirichlet", alpha=0.1), 50, seed)
        assert min(map(len, parts)) >= 2 and _whole(parts, len(labels))


def test_partitioning_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    natural = np.repeat(["a", "b", "c", "d"], 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("iid", "dirichlet", "shards", "natural"):
            partition(_examples(np.arange(40) % 2, natural), _config(kind, alpha=0.2), 4, 3)
    assert capfd.readouterr() == ("", "")


@given(size=st.integers(1, 60), fraction=st.floats(0, 0.99), seed=st.integers(0, 100), client=st.integers(0, 100))
def test_a_clients_own_split(size: int, fraction: float, seed: int, client: int) -> None:
    indices = np.arange(100, 100 + size)
    train, held = split_client(indices, fraction, seed, client)
    assert np.array_equal(np.sort(np.concatenate([train, held])), indices)
    assert len(train) >= 1 and abs(len(held) - fraction * size) <= 1
    assert (len(held) > 0) == (fraction > 0 and size > 1)
    assert np.array_equal(split_client(indices, fraction, seed, client)[0], train)


def test_clients_split_independently() -> None:
    indices = np.arange(50)
    held = [tuple(split_client(indices, 0.2, 0, client)[1]) for client in range(5)]
    assert len(set(held)) == 5
    with pytest.raises(DataError, match="client 3 has no examples"):
        split_client(indices[:0], 0.2, 0, 3)
