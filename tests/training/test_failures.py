"""A client whose training breaks down is named, and takes nobody with it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benches import Bench, Maker, identical
from fedlora.config import TrainingConfig
from fedlora.training.local import Job, train_clients

CONFIG = TrainingConfig(steps=3, batch_size=4, lr=5e-3, weight_decay=0.01)


def poisoned(made: Bench, client: int, where: str, value: float = float("nan")) -> Job:
    """Return a job whose client starts from broken numbers, in the adapter or in the task head."""
    start = made.start()
    tensor = start.sites[0][next(iter(start.sites[0]))] if where == "adapter" else start.head["classifier.weight"]
    tensor.view(-1)[0] = value
    return made.job(client, start)


@pytest.mark.parametrize("where", ["adapter", "head"])
@pytest.mark.parametrize("method", ["ravan", "lora", "triplet"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_others_do_not_notice(method: str, where: str, value: float, bench: Maker) -> None:
    made = bench("bert", method=method)
    start = made.start()
    sound = [made.job(client, start) for client in range(3)]
    without = train_clients(made.backbone, made.prepared, sound, CONFIG)
    broken = [sound[0], poisoned(made, 1, where, value), sound[2]]
    found = train_clients(made.backbone, made.prepared, broken, CONFIG)
    assert [bool(outcome.failure) for outcome in found] == [False, True, False]
    assert identical(found[0], without[0]) and identical(found[2], without[2])


def test_the_failure_says_where(bench: Maker) -> None:
    made = bench("bert")
    outcome = train_clients(made.backbone, made.prepared, [poisoned(made, 1, "head")], CONFIG)[0]
    assert outcome.failure == "non-finite loss at local step 1"
    wild = dataclasses.replace(poisoned(made, 1, "head", 3e38), round=1)
    outcome = train_clients(made.backbone, made.prepared, [wild], TrainingConfig(steps=3, batch_size=4, lr=1e38, clip=0))[0]
    assert outcome.failure.startswith("non-finite loss at local step")


@pytest.mark.parametrize("unit", ["heads", "svd"])
def test_what_breaks_in_the_very_last_step_is_noticed_too(unit: str, bench: Maker) -> None:
    """No loss sees it any more, and an SVD of it would bring down the whole process."""
    made = bench("bert", unit=unit)
    job = made.job(0, made.start())
    config = TrainingConfig(steps=1, batch_size=4, lr=1e39, optimizer="sgd", clip=0)
    outcome = train_clients(made.backbone, made.prepared, [job], config)[0]
    assert torch.isfinite(torch.tensor(outcome.loss))
    assert outcome.failure == "non-finite parameters after local step 1"


def test_a_sound_run_has_no_failure(bench: Maker) -> None:
    made = bench("bert")
    outcomes = train_clients(made.backbone, made.prepared, [made.job(c, made.start()) for c in range(2)], CONFIG)
    assert [outcome.failure for outcome in outcomes] == ["", ""]
    assert all(outcome.seconds > 0 for outcome in outcomes)
