"""Which examples a step uses: passes without replacement, the same for a client whoever else takes part."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benches import Maker
from fedlora.config import TrainingConfig
from fedlora.training.batches import pad_rows, plan

LENGTHS = np.random.default_rng(0).integers(3, 40, 500)


def planned(count: int, client: int = 3, number: int = 2, seed: int = 0, **options: Any) -> np.ndarray:
    indices = np.arange(count, dtype=np.int64) * 2 + 1
    return plan(indices, LENGTHS, TrainingConfig(**options), seed, number, client)


@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    bucketing=st.booleans(),
    amount=st.one_of(st.integers(1, 30).map(lambda n: {"steps": n}), st.floats(0.05, 4).map(lambda x: {"epochs": x})),
)
def test_every_example_comes_as_often_as_any_other(count: int, batch_size: int, bucketing: bool, amount: dict[str, Any]) -> None:
    batches = planned(count, batch_size=batch_size, length_bucketing=bucketing, **amount)
    rows = min(batch_size, count)
    used = batches[batches >= 0]
    times = Counter(used.tolist())
    assert set(times) <= set((np.arange(count) * 2 + 1).tolist())
    assert batches.shape[1] == rows
    if "steps" in amount:
        assert batches.shape[0] == amount["steps"] and len(used) == batches.size
    else:
        wanted = max(1, round(amount["epochs"] * count))
        assert len(used) == wanted and batches.shape[0] == -(-wanted // rows)
    # Without replacement within a pass: the counts differ by one at most.
    most, least = max(times.values()), min(times.get(2 * i + 1, 0) for i in range(count))
    assert most - least <= 1
    # -1 stands at the end of one batch only.
    short = batches[(batches < 0).any(axis=1)]
    assert len(short) <= 1
    assert all((row[: int((row >= 0).sum())] >= 0).all() and (row >= 0).any() for row in short)


@pytest.mark.parametrize("bucketing", [True, False])
def test_one_pass_uses_every_example_once(bucketing: bool) -> None:
    batches = planned(50, epochs=1.0, batch_size=8, length_bucketing=bucketing)
    assert batches.shape == (7, 8)
    assert sorted(batches[batches >= 0].tolist()) == (np.arange(50) * 2 + 1).tolist()


@pytest.mark.parametrize("count", [16, 17, 20, 40, 100])
def test_a_batch_never_holds_an_example_twice_within_whole_passes(count: int) -> None:
    """Sorting several passes together by length would fill a batch with copies of one example."""
    batches = planned(count, epochs=6.0, batch_size=16)
    assert all(len(set(batch[batch >= 0].tolist())) == int((batch >= 0).sum()) for batch in batches)


def test_what_a_client_sees_depends_on_seed_round_and_itself_alone() -> None:
    options: dict[str, Any] = {"steps": 5, "batch_size": 4}
    assert np.array_equal(planned(30, **options), planned(30, **options))
    for other in ({"client": 4}, {"number": 3}, {"seed": 1}):
        assert not np.array_equal(planned(30, **options), planned(30, **other, **options))


def test_bucketing_changes_the_order_and_not_what_is_drawn() -> None:
    plain, bucketed = (planned(40, steps=7, batch_size=4, length_bucketing=own) for own in (False, True))
    assert sorted(plain.ravel()) == sorted(bucketed.ravel())

    def spread(batches: np.ndarray) -> float:
        return float(np.mean(LENGTHS[batches].max(axis=1) - LENGTHS[batches].mean(axis=1)))

    assert spread(bucketed) < 0.25 * spread(plain)


def test_clients_hold_batches_of_the_same_length_quantile_at_the_same_step() -> None:
    """However many examples each has, and so however many passes it makes."""

    def longest(bucketing: bool) -> np.ndarray:
        plans = [
            planned(count, client=client, steps=20, batch_size=4, length_bucketing=bucketing)
            for client, count in enumerate((20, 40, 55, 80, 130))
        ]
        return np.array([LENGTHS[batches].max(axis=1) for batches in plans])

    assert np.corrcoef(longest(True)).min() > 0.9
    assert np.corrcoef(longest(False)).min() < 0.5


def test_the_order_of_lengths_differs_from_round_to_round() -> None:
    """Short before long in every round would be a curriculum that nobody asked for."""
    first, second = (LENGTHS[planned(40, number=number, epochs=1.0, batch_size=4)].max(axis=1) for number in (1, 2))
    assert not np.array_equal(np.argsort(first, kind="stable"), np.argsort(second, kind="stable"))
    assert not (np.diff(first) >= 0).all()


def test_fewer_examples_than_a_batch_make_smaller_batches() -> None:
    batches = planned(3, steps=4, batch_size=16)
    assert batches.shape == (4, 3)
    assert all(sorted(batch.tolist()) == [1, 3, 5] for batch in batches)


def test_less_than_one_example_of_an_epoch_is_one() -> None:
    assert planned(3, epochs=0.01, batch_size=16).shape == (1, 3)
    assert (planned(3, epochs=0.01, batch_size=16) >= 0).sum() == 1


def test_rows_are_padded_to_the_widest() -> None:
    stacked = pad_rows([np.array([4, 5]), np.array([7]), np.array([1, 2])], 3)
    assert stacked.tolist() == [[4, 5, -1], [7, -1, -1], [1, 2, -1]]


def test_texts_are_padded_to_the_longest_of_the_batch(bench: Maker) -> None:
    made = bench("bert")
    rows = np.array([3, 9, 1])
    batch = made.prepared.batch(rows, torch.device("cpu"))
    lengths = made.prepared.lengths[rows]
    assert batch.inputs["input_ids"].shape == (3, lengths.max())
    assert batch.inputs["attention_mask"].sum(dim=1).tolist() == lengths.tolist()
    assert batch.labels.tolist() == made.prepared.examples.labels[rows].tolist()


def test_a_language_model_predicts_every_token_but_the_padding(bench: Maker) -> None:
    made = bench("gpt2-lm")
    rows = np.array([3, 9, 1])
    batch = made.prepared.batch(rows, torch.device("cpu"))
    mask = batch.inputs["attention_mask"] == 1
    assert torch.equal(batch.labels[mask], batch.inputs["input_ids"][mask])
    assert bool((batch.labels[~mask] == -100).all()) and not mask.all()


def test_images_are_batched_as_they_are(bench: Maker) -> None:
    made = bench("vit")
    batch = made.prepared.batch(np.array([0, 5]), torch.device("cpu"))
    assert batch.inputs["pixel_values"].shape == (2, 3, 16, 16)
    assert made.prepared.lengths.tolist() == [1] * 80
