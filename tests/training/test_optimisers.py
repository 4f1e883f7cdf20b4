"""Each rule over stacked rows is torch's own over each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedlora.config import TrainingConfig
from fedlora.training.optimisers import clip_rows, make_optimiser

CLIENTS, SIZE, STEPS = 3, 40, 10
Stock = Callable[[list[torch.Tensor], float], torch.optim.Optimizer]
RULES: dict[str, tuple[dict[str, Any], Stock]] = {
    "adamw": ({"optimizer": "adamw"}, lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.0)),
    "adamw-decay": (
        {"optimizer": "adamw", "weight_decay": 0.1},
        lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.1),
    ),
    "adam": ({"optimizer": "adam"}, lambda p, lr: torch.optim.Adam(p, lr=lr)),
    "adam-decay": ({"optimizer": "adam", "weight_decay": 0.1}, lambda p, lr: torch.optim.Adam(p, lr=lr, weight_decay=0.1)),
    "sgd": ({"optimizer": "sgd", "momentum": 0.0}, lambda p, lr: torch.optim.SGD(p, lr=lr)),
    "sgd-momentum": ({"optimizer": "sgd", "momentum": 0.9}, lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)),
    "sgd-all": (
        {"optimizer": "sgd", "momentum": 0.5, "weight_decay": 0.1},
        lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.5, weight_decay=0.1),
    ),
}
every_rule = pytest.mark.parametrize(("options", "stock"), RULES.values(), ids=list(RULES))


def config(**options: Any) -> TrainingConfig:
    return TrainingConfig(steps=1, **options)


@every_rule
def test_rows_move_as_under_torch_itself(options: dict[str, Any], stock: Stock) -> None:
    """Clients differ in learning rate, and finish after 10, 7 and 3 steps."""
    rows, lengths, rates = torch.randn(CLIENTS, SIZE), [10, 7, 3], [0.1, 0.01, 0.05]
    alone = [rows[client].clone().requires_grad_() for client in range(CLIENTS)]
    steppers = [stock([alone[client]], rates[client]) for client in range(CLIENTS)]
    optimiser = make_optimiser(rows, None, config(**options))
    for step in range(STEPS):
        active = sum(length > step for length in lengths)
        grads = torch.randn(active, SIZE)
        for client in range(active):
            alone[client].grad = grads[client].clone()
            steppers[client].step()
        optimiser.step(grads.clone(), torch.tensor(rates[:active]).unsqueeze(1), active)
        for client in range(CLIENTS):
            assert (rows[client] - alone[client].detach()).abs().max() < 1e-6


@every_rule
def test_masked_entries_stand_still_and_do_not_change_the_others(options: dict[str, Any], stock: Stock) -> None:
    rows = torch.randn(CLIENTS, SIZE)
    before, free = rows.clone(), rows.clone()
    mask = torch.rand(CLIENTS, SIZE) < 0.5
    masked, unmasked = make_optimiser(rows, mask, config(**options)), make_optimiser(free, None, config(**options))
    for _ in range(STEPS):
        grads = torch.randn(CLIENTS, SIZE)
        masked.step(grads.masked_fill(~mask, 0.0), torch.full((CLIENTS, 1), 0.05), CLIENTS)
        unmasked.step(grads, torch.full((CLIENTS, 1), 0.05), CLIENTS)
    assert torch.equal(rows[~mask], before[~mask])
    assert torch.equal(rows[mask], free[mask])
    assert not torch.equal(rows[mask], before[mask])


@every_rule
def test_a_learning_rate_per_entry_is_two_parameter_groups(options: dict[str, Any], stock: Stock) -> None:
    rows = torch.randn(1, SIZE)
    body, head = rows[0, :30].clone().requires_grad_(), rows[0, 30:].clone().requires_grad_()
    steppers = [stock([body], 0.1), stock([head], 0.01)]
    optimiser = make_optimiser(rows, None, config(**options))
    lr = torch.cat([torch.full((1, 30), 0.1), torch.full((1, 10), 0.01)], dim=1)
    for _ in range(STEPS):
        grads = torch.randn(1, SIZE)
        body.grad, head.grad = grads[0, :30].clone(), grads[0, 30:].clone()
        for stepper in steppers:
            stepper.step()
        optimiser.step(grads.clone(), lr, 1)
    assert (rows[0] - torch.cat([body, head]).detach()).abs().max() < 1e-6


@every_rule
def test_a_broken_gradient_stays_in_its_row(options: dict[str, Any], stock: Stock) -> None:
    rows, sound = torch.randn(2, SIZE), torch.zeros(1, SIZE)
    sound[0] = rows[1]
    broken, alone = make_optimiser(rows, None, config(**options)), make_optimiser(sound, None, config(**options))
    for _ in range(3):
        grads = torch.randn(2, SIZE)
        grads[0, 0] = float("nan")
        clip_rows(grads, 1.0)
        own = grads[1:].clone()
        broken.step(grads, torch.full((2, 1), 0.1), 2)
        alone.step(own, torch.full((1, 1), 0.1), 1)
    assert torch.equal(rows[1], sound[0])


@pytest.mark.parametrize("limit", [0.1, 1.0, 1e6])
def test_clipping_is_torchs_per_client(limit: float) -> None:
    grads = torch.randn(CLIENTS, SIZE) * torch.tensor([[0.01], [1.0], [100.0]])
    expected = []
    for row in grads:
        parameter = torch.zeros(SIZE, requires_grad=True)
        parameter.grad = row.clone()
        torch.nn.utils.clip_grad_norm_([parameter], limit)
        expected.append(parameter.grad)
    clip_rows(grads, limit)
    assert torch.allclose(grads, torch.stack(expected), rtol=1e-6, atol=0)
    assert bool((grads.norm(dim=1) <= limit * 1.0001).all())


def test_no_limit_is_no_clipping() -> None:
    grads = 1e3 * torch.randn(CLIENTS, SIZE)
    before = grads.clone()
    clip_rows(grads, 0.0)
    assert torch.equal(grads, before)
