"""Training clients together gives each what it would have got alone: the core promise of the client axis."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from benches import DEVICES, Bench, Maker, difference, identical, make_bench, tensors_of
from cases import CASES, Case, legal_ranks
from fedlora.config import AdapterConfig, TrainingConfig
from fedlora.training.chunks import train_in_chunks
from fedlora.training.layers import SharedInputError
from fedlora.training.local import Job, Outcome, train_clients
from tiny import TEXT

TOLERANCE = 1e-5
STEPS = TrainingConfig(steps=4, batch_size=4, lr=5e-3, weight_decay=0.01)
EPOCHS = TrainingConfig(epochs=1.5, batch_size=4, lr=5e-3, head_lr=1e-3)


def one_by_one(bench: Bench, jobs: list[Job], config: TrainingConfig) -> list[Outcome]:
    return [train_clients(bench.backbone, bench.prepared, [job], config)[0] for job in jobs]


def mixed_jobs(bench: Bench) -> list[Job]:
    """Four clients of one broadcast: different ranks at every site (0 and the cap among them) and different data sizes."""
    start = bench.start()
    jobs = []
    for client, rows in enumerate((10, 3, 14, 7)):
        ranks = [
            list(legal_ranks(adapter))[(client + index) * (len(legal_ranks(adapter)) - 1) // 3 % len(legal_ranks(adapter))]
            for index, adapter in enumerate(bench.backbone.adapters)
        ]
        jobs.append(bench.job(client, start, ranks, rows))
    return jobs


def section(case: Case) -> dict[str, object]:
    return {"method": case.method, "init": case.init, **dict(case.options)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", [STEPS, EPOCHS], ids=["steps", "epochs"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_together_as_alone_for_every_adapter(case: Case, config: TrainingConfig, device: str, bench: Maker) -> None:
    made = bench("bert", device, **section(case))
    jobs = mixed_jobs(made)
    together = train_clients(made.backbone, made.prepared, jobs, config)
    alone = one_by_one(made, jobs, config)
    for job, left, right in zip(jobs, together, alone, strict=True):
        assert left.client == right.client == job.client and left.failure == right.failure == ""
        assert (left.steps, left.examples, left.tokens) == (right.steps, right.examples, right.tokens)
        assert left.loss == pytest.approx(right.loss, abs=1e-5)
        assert difference(left, right) < TOLERANCE
        for ours, theirs in zip(left.selections, right.selections, strict=True):
            assert ours.rho == theirs.rho and torch.equal(ours.heads, theirs.heads)
    assert len({outcome.steps for outcome in together}) == (1 if config is STEPS else 4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ["gpt2-lm", "vit", "llama"])
@pytest.mark.parametrize("score", ["random", "weight", "gradient"])
def test_together_as_alone_with_partial_heads(score: str, architecture: str, device: str, bench: Maker) -> None:
    made = bench(architecture, device, score=score)
    jobs = mixed_jobs(made)
    together = train_clients(made.backbone, made.prepared, jobs, EPOCHS)
    for left, right in zip(together, one_by_one(made, jobs, EPOCHS), strict=True):
        assert difference(left, right) < TOLERANCE
        assert [chosen.heads.tolist() for chosen in left.selections] == [chosen.heads.tolist() for chosen in right.selections]


@pytest.mark.parametrize("architecture", sorted({*TEXT, "dinov2", "llama-lm"}))
def test_together_as_alone_in_every_architecture(architecture: str, bench: Maker) -> None:
    made = bench(architecture)
    jobs = mixed_jobs(made)[:2]
    together = train_clients(made.backbone, made.prepared, jobs, STEPS)
    for left, right in zip(together, one_by_one(made, jobs, STEPS), strict=True):
        assert difference(left, right) < TOLERANCE


def test_the_comparison_would_notice_another_clients_data(bench: Maker) -> None:
    made = bench("bert")
    jobs = mixed_jobs(made)
    swapped = [dataclasses.replace(jobs[0], indices=jobs[2].indices), *jobs[1:]]
    before = train_clients(made.backbone, made.prepared, jobs, STEPS)
    after = train_clients(made.backbone, made.prepared, swapped, STEPS)
    assert difference(before[0], after[0]) > 100 * TOLERANCE
    assert max(difference(left, right) for left, right in zip(before[1:], after[1:], strict=True)) < TOLERANCE


def test_every_client_may_start_elsewhere(bench: Maker) -> None:
    """With a sliced downlink every client has a start of its own."""
    made = bench("bert", method="lora")
    jobs = [made.job(client, made.start(seed=client)) for client in range(3)]
    together = train_clients(made.backbone, made.prepared, jobs, STEPS)
    for left, right in zip(together, one_by_one(made, jobs, STEPS), strict=True):
        assert difference(left, right) < TOLERANCE


def test_the_same_call_gives_the_same_bits(bench: Maker) -> None:
    made = bench("bert")
    jobs = mixed_jobs(made)
    first, second = (train_clients(made.backbone, made.prepared, jobs, STEPS) for _ in range(2))
    assert all(identical(left, right) for left, right in zip(first, second, strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_chunks_change_nothing_but_the_time(size: int, bench: Maker) -> None:
    made = bench("bert")
    jobs = mixed_jobs(made)
    whole = train_clients(made.backbone, made.prepared, jobs, STEPS)
    chunked = train_in_chunks(made.backbone, made.prepared, jobs, STEPS, size)
    assert [outcome.client for outcome in chunked] == [job.client for job in jobs]
    assert max(difference(left, right) for left, right in zip(whole, chunked, strict=True)) < TOLERANCE


@pytest.mark.parametrize("case", [case for case in CASES if case.lossless], ids=str)
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_what_a_rank_leaves_out_does_not_move_by_a_bit(case: Case, optimizer: str, bench: Maker) -> None:
    made = bench("bert", **section(case))
    jobs = [dataclasses.replace(job, round=case.round) for job in mixed_jobs(made)]
    config = TrainingConfig(steps=3, batch_size=4, lr=1e-2, optimizer=optimizer, weight_decay=0.1)
    moved = 0
    for job, outcome in zip(jobs, train_clients(made.backbone, made.prepared, jobs, config), strict=True):
        for index, adapter in enumerate(made.backbone.adapters):
            covered = adapter.at(job.round).state_masks(outcome.selections[index])
            for name, before in job.start.sites[index].items():
                after = outcome.sites[index][name]
                assert torch.equal(after[~covered[name]], before[~covered[name]])
                moved += int((after[covered[name]] != before[covered[name]]).sum())
        assert all(not torch.equal(outcome.head[name], job.start.head[name]) for name in outcome.head)
    assert moved > 0


@pytest.mark.parametrize("method", ["lora", "triplet"])
def test_only_what_trains_counts_towards_the_gradients_norm(method: str, bench: Maker) -> None:
    """Under a tight limit one plain step is exactly the limit long, whatever the rank leaves out."""
    made = bench("bert", method=method)
    config = TrainingConfig(steps=1, batch_size=8, lr=1.0, optimizer="sgd", momentum=0.0, clip=1e-3)
    jobs = mixed_jobs(made)
    for job, outcome in zip(jobs, train_clients(made.backbone, made.prepared, jobs, config), strict=True):
        before = made.backbone.layout.row(job.start.sites, job.start.head).double()
        after = made.backbone.layout.row(outcome.sites, outcome.head).double()
        assert float((after - before).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_every_trained_number_learns(bench: Maker) -> None:
    """At the cap nothing stands still, and the loss falls."""
    for method in ("ravan", "lora", "triplet"):
        made = bench("bert", method=method)
        job = made.job(0, made.start(), rows=12)
        config = TrainingConfig(steps=40, batch_size=12, lr=2e-2)
        outcome = train_clients(made.backbone, made.prepared, [job], config)[0]
        first = train_clients(made.backbone, made.prepared, [job], TrainingConfig(steps=1, batch_size=12, lr=1e-9))[0]
        moved = tensors_of(outcome)
        start = tensors_of(dataclasses.replace(outcome, sites=job.start.sites, head=job.start.head))
        assert all(bool((moved[name] != start[name]).float().mean() > 0.99) for name in moved), method
        assert outcome.loss < 0.8 * first.loss, method


def test_a_client_that_has_finished_costs_nothing_and_stands_still(bench: Maker) -> None:
    """Later steps of other clients do not touch it: momentum and weight decay included."""
    made = bench("bert", method="lora")
    start = made.start()
    jobs = [made.job(0, start, rows=4), made.job(1, start, rows=40)]
    config = TrainingConfig(epochs=1.0, batch_size=4, lr=1e-2, optimizer="sgd", weight_decay=0.1)
    together = train_clients(made.backbone, made.prepared, jobs, config)
    assert [outcome.steps for outcome in together] == [1, 10]
    assert difference(together[0], one_by_one(made, jobs[:1], config)[0]) < TOLERANCE


def test_clients_cannot_be_stacked_where_a_projection_has_one_input_for_all(tmp_path: Path) -> None:
    """DeBERTa projects its relative positions, which have no batch, with the adapted query: clients would share them."""
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "max_relative_positions": 16}
    made = make_bench(tmp_path / "deberta", "deberta", AdapterConfig(rank=4, heads=4), position_buckets=-1, **relative)
    jobs = mixed_jobs(made)
    with pytest.raises(SharedInputError, match=r"query_proj' gets one input of shape \[1, 32, 32\] for 4 clients"):
        train_clients(made.backbone, made.prepared, jobs, STEPS)
    chunked = train_in_chunks(made.backbone, made.prepared, jobs, STEPS, 4)
    assert all(identical(left, right) for left, right in zip(chunked, one_by_one(made, jobs, STEPS), strict=True))


def test_padding_rows_teach_nothing(bench: Maker) -> None:
    """A client with fewer examples than a batch holds is padded with rows whose loss does not count."""
    made = bench("bert")
    start = made.start()
    small, large = made.job(1, start, rows=2), made.job(2, start, rows=20)
    together = train_clients(made.backbone, made.prepared, [small, large], TrainingConfig(steps=3, batch_size=8))
    alone = train_clients(made.backbone, made.prepared, [small], TrainingConfig(steps=3, batch_size=2))
    assert difference(together[0], alone[0]) < TOLERANCE
    assert together[0].tokens == int(3 * made.prepared.lengths[np.asarray(small.indices)].sum())
