"""What may be added to local training: FedProx's pull to what was received, and a rule's own penalty."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benches import Bench, Maker, difference, identical
from fedlora.adapters import Tensors
from fedlora.config import TrainingConfig
from fedlora.training.layout import Layout
from fedlora.training.local import Outcome, train_clients

PLAIN = TrainingConfig(steps=3, batch_size=4, lr=0.05, optimizer="sgd", momentum=0.0, clip=0.0)


def row_of(made: Bench, outcome: Outcome) -> Tensor:
    layout: Layout = made.backbone.layout
    return layout.row(outcome.sites, outcome.head)


def test_fedprox_adds_the_gradient_of_its_penalty(bench: Maker) -> None:
    """Two steps by hand: the first is plain SGD's, the second also pulls back by lr mu (w - w0)."""
    made = bench("bert", method="lora", rank=3)
    job = made.job(0, made.start())
    start = made.backbone.layout.row(job.start.sites, job.start.head)
    mu, one, two = 5.0, PLAIN.model_copy(update={"steps": 1}), PLAIN.model_copy(update={"steps": 2})
    prox = {"proximal": mu}
    first = train_clients(made.backbone, made.prepared, [job], one)[0]
    same = train_clients(made.backbone, made.prepared, [job], one.model_copy(update=prox))[0]
    assert identical(first, same)  # nothing has moved yet
    plain = train_clients(made.backbone, made.prepared, [job], two)[0]
    pulled = train_clients(made.backbone, made.prepared, [job], two.model_copy(update=prox))[0]
    # Batches of a two-step round are drawn as such: the first step is found by stopping after it.
    gap = row_of(made, plain) - row_of(made, pulled)
    moved = row_of(made, pulled) - start
    # plain = w1 - lr g(w1); pulled = w1 - lr g(w1) - lr mu (w1 - w0), so gap = lr mu (w1 - w0) and w1 - w0 = gap / (lr mu).
    step = gap / (PLAIN.lr * mu)
    again = moved - (1 - PLAIN.lr * mu) * step  # what the second gradient alone did
    assert float(gap.norm()) > 1e-4 and float((row_of(made, plain) - start - step - again).abs().max()) < 1e-5


def test_a_strong_pull_holds_clients_near_what_they_received(bench: Maker) -> None:
    made = bench("bert", method="ffa-lora", rank=3)
    jobs = [made.job(client, made.start(), [2, 3, 0, 1]) for client in range(2)]
    start = made.backbone.layout.row(jobs[0].start.sites, jobs[0].start.head)
    far = [float((row_of(made, o) - start).norm()) for o in train_clients(made.backbone, made.prepared, jobs, PLAIN)]
    config = PLAIN.model_copy(update={"proximal": 15.0})
    near = [float((row_of(made, o) - start).norm()) for o in train_clients(made.backbone, made.prepared, jobs, config)]
    assert all(held < free for held, free in zip(near, far, strict=True))


def test_a_penalty_acts_on_each_client_by_its_own_ranks(bench: Maker) -> None:
    made = bench("bert", method="lora", rank=3)
    start = made.start()
    jobs = [made.job(0, start, [3] * 4), made.job(1, start, [1] * 4)]

    def on_large_ranks(sites: Sequence[Tensors], ranks: Tensor) -> Tensor:
        norms = torch.stack([site["B"].flatten(1).square().sum(dim=1) for site in sites]).sum(dim=0)
        return 3.0 * norms * (ranks[:, 0] > 2)

    plain = train_clients(made.backbone, made.prepared, jobs, PLAIN)
    with_it = train_clients(made.backbone, made.prepared, jobs, PLAIN, on_large_ranks)
    assert difference(plain[0], with_it[0]) > 1e-3 and identical(plain[1], with_it[1])
    assert with_it[0].loss < 10  # what is reported is the loss without it
    assert all(after["B"].norm() < before["B"].norm() for after, before in zip(with_it[0].sites, plain[0].sites, strict=True))
    assert identical(plain[0], train_clients(made.backbone, made.prepared, jobs, PLAIN, lambda sites, ranks: None)[0])


def test_rolora_trains_one_factor_of_a_round(bench: Maker) -> None:
    made = bench("bert", method="rolora", rank=3)
    for number, still, moves in ((1, "A", "B"), (2, "B", "A")):
        job = made.job(0, made.start())
        job = type(job)(job.client, number, 5, job.ranks, job.indices, job.start)
        found = train_clients(made.backbone, made.prepared, [job], PLAIN)[0]
        for before, after in zip(job.start.sites, found.sites, strict=True):
            assert torch.equal(before[still], after[still]) and not torch.equal(before[moves], after[moves])
