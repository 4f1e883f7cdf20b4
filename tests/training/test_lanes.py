"""Clients on several cores side by side: the same results as on one, on the same frozen weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benches import Bench, Maker, identical
from fedlora.config import TrainingConfig
from fedlora.errors import TrainingError
from fedlora.training.backbone import Merge
from fedlora.training.chunks import train_in_chunks
from fedlora.training.evaluation import evaluate
from fedlora.training.lanes import lanes_of, side_by_side

CONFIG = TrainingConfig(epochs=1.5, batch_size=4, lr=5e-3)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def merges(made: Bench) -> list[Merge | None]:
    return [(torch.randn(a.site.out_features, 2), torch.randn(2, a.site.in_features)) for a in made.backbone.adapters]


@pytest.mark.parametrize("merged", [False, True])
def test_any_number_of_lanes_gives_the_same_bits(merged: bool, bench: Maker, threads: None) -> None:
    made = bench("bert", method="lora", rank=4)
    start = made.start(merges=merges(made) if merged else None)
    jobs = [made.job(client, start, rows=6 + 3 * client) for client in range(5)]
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert lanes_of(made.backbone) == count
        outcomes = train_in_chunks(made.backbone, made.prepared, jobs, CONFIG, 2)
        scores = evaluate(made.backbone, made.prepared, np.arange(40), start, 7)
        assert torch.get_num_threads() == count
        found.append((outcomes, scores))
    for outcomes, scores in found[1:]:
        assert [outcome.client for outcome in outcomes] == [job.client for job in jobs]
        assert all(identical(left, right) for left, right in zip(outcomes, found[0][0], strict=True))
        assert np.array_equal(scores.loss, found[0][1].loss)


def test_lanes_share_the_frozen_weights_and_nothing_that_is_bound(bench: Maker) -> None:
    made = bench("bert", method="ravan", rank=4, heads=2)
    main, twin = made.backbone.twins(2)
    for ours, theirs in zip(main.model.parameters(), twin.model.parameters(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr()
    for ours, theirs in zip(main.layers, twin.layers, strict=True):
        assert ours is not theirs and ours.buffers_ is theirs.buffers_ and ours.base.weight is theirs.base.weight
    assert made.backbone.twins(2)[1] is twin


def test_an_error_in_a_lane_comes_out(bench: Maker, threads: None) -> None:
    made = bench("bert", method="lora", rank=4)
    torch.set_num_threads(2)

    def work(_: object, task: int) -> int:
        if task == 1:
            raise TrainingError("lane two")
        return task

    with pytest.raises(TrainingError, match="lane two"):
        side_by_side(made.backbone, [0, 1, 2], work)
    assert torch.get_num_threads() == 2
