"""Local training against something independent: stock peft and torch.optim on the stock model, one client, the same batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import Tensor

from benches import Bench, Maker
from fedlora.config import TrainingConfig
from fedlora.data.encode import encode_texts
from fedlora.models import pixels
from fedlora.training.batches import plan
from fedlora.training.local import Job, Outcome, train_clients

RANK, ALPHA = 3, 6.0
LORA: dict[str, Any] = {"method": "lora", "rank": RANK, "alpha": ALPHA}
AUTO = {
    "bert": transformers.AutoModelForSequenceClassification,
    "gpt2-lm": transformers.AutoModelForCausalLM,
    "vit": transformers.AutoModelForImageClassification,
}
OPTIMISERS: dict[str, tuple[dict[str, Any], Callable[..., torch.optim.Optimizer]]] = {
    "adamw": (
        {"optimizer": "adamw", "lr": 5e-3, "weight_decay": 0.1},
        lambda groups: torch.optim.AdamW(groups, lr=5e-3, weight_decay=0.1),
    ),
    "adam": (
        {"optimizer": "adam", "lr": 5e-3, "weight_decay": 0.01},
        lambda groups: torch.optim.Adam(groups, lr=5e-3, weight_decay=0.01),
    ),
    "sgd": (
        {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
}


def stock(made: Bench, architecture: str, job: Job) -> peft.PeftModel:
    """Return the stock model under peft, its adapter and head as the client received them."""
    model = AUTO[architecture].from_pretrained(made.folder)
    names = [site.name for site in made.backbone.sites]
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=names,
        lora_dropout=0.0,
        modules_to_save=[*made.backbone.loaded.head] or None,
        fan_in_fan_out=made.backbone.sites[0].transposed,
    )
    wrapped = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, site in zip(names, job.start.sites, strict=True):
            layer = wrapped.base_model.model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(site["A"])
            layer.lora_B["default"].weight.copy_(site["B"])
        for name, tensor in job.start.head.items():
            head_of(wrapped, name).copy_(tensor)
    return wrapped


def head_of(wrapped: peft.PeftModel, name: str) -> Tensor:
    """Return peft's trained copy of a parameter of the task head."""
    module, _, key = name.rpartition(".")
    found: Tensor = getattr(wrapped.base_model.model.get_submodule(module).modules_to_save["default"], key)
    return found


def loss_of(wrapped: peft.PeftModel, made: Bench, rows: np.ndarray) -> Tensor:
    """Return the stock model's own loss on these examples, batched without any code of the trainer."""
    examples, loaded = made.prepared.examples, made.backbone.loaded
    if examples.images is not None:
        assert loaded.image is not None
        inputs = {"pixel_values": pixels(examples.images[rows], loaded.image), "labels": torch.from_numpy(examples.labels[rows])}
        found: Tensor = wrapped(**inputs, **loaded.forward_kwargs).loss
        return found
    assert examples.texts is not None
    encoded = encode_texts([examples.texts[row] for row in rows], loaded.tokenizer, 16)
    width = int(encoded.lengths.max())
    ids, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.int64)
    for row, tokens in enumerate(encoded.rows(range(len(rows)))):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64)), 1
    labels = ids.masked_fill(mask == 0, -100) if loaded.task == "causal-lm" else torch.from_numpy(examples.labels[rows])
    return wrapped(input_ids=ids, attention_mask=mask, labels=labels).loss


def train_stock(wrapped: peft.PeftModel, made: Bench, job: Job, config: TrainingConfig, optimiser: str) -> list[float]:
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    stepper = OPTIMISERS[optimiser][1](trained)
    losses = []
    for rows in plan(job.indices, made.prepared.lengths, config, made.backbone.seed, job.round, job.client):
        stepper.zero_grad()
        loss = loss_of(wrapped, made, rows[rows >= 0])
        loss.backward()
        if config.clip:
            torch.nn.utils.clip_grad_norm_(trained, config.clip)
        stepper.step()
        losses.append(float(loss.detach()))
    return losses


def worst(wrapped: peft.PeftModel, made: Bench, outcome: Outcome) -> float:
    """Return the largest difference between what peft and the client have after training."""
    gaps = []
    for site, own in zip(made.backbone.sites, outcome.sites, strict=True):
        layer = wrapped.base_model.model.get_submodule(site.name)
        gaps += [own["A"] - layer.lora_A["default"].weight, own["B"] - layer.lora_B["default"].weight]
    gaps += [tensor - head_of(wrapped, name) for name, tensor in outcome.head.items()]
    return max(float(gap.detach().abs().max()) for gap in gaps)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("architecture", AUTO)
def test_lora_trains_as_stock_peft_does(architecture: str, optimiser: str, bench: Maker) -> None:
    made = bench(architecture, **LORA)
    start = made.start()
    job = made.job(1, start, rows=11)
    config = TrainingConfig(epochs=2.0, batch_size=4, clip=0.5, **OPTIMISERS[optimiser][0])
    others = [made.job(0, start), made.job(2, start, rows=17)]
    outcome = train_clients(made.backbone, made.prepared, [others[0], job, others[1]], config)[1]
    wrapped = stock(made, architecture, job)
    losses = train_stock(wrapped, made, job, config, optimiser)
    assert outcome.steps == len(losses) == 6
    assert outcome.loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert worst(wrapped, made, outcome) < 1e-5


def test_the_comparison_would_notice_other_data(bench: Maker) -> None:
    made = bench("bert", **LORA)
    start = made.start()
    job, other = made.job(1, start, rows=11), made.job(2, start, rows=11)
    config = TrainingConfig(epochs=2.0, batch_size=4, **OPTIMISERS["adamw"][0])
    outcome = train_clients(made.backbone, made.prepared, [other], config)[0]
    wrapped = stock(made, "bert", job)
    train_stock(wrapped, made, job, config, "adamw")
    assert worst(wrapped, made, outcome) > 1e-3
