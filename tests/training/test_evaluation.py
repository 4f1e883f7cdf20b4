"""Evaluation gives what the stock model with merged weights gives, however it is batched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from benches import DEVICES, Bench, Maker
from fedlora.training.evaluation import PerExample, evaluate, evaluate_many
from fedlora.training.local import Start

AUTO = {
    "bert": transformers.AutoModelForSequenceClassification,
    "gpt2-lm": transformers.AutoModelForCausalLM,
    "vit": transformers.AutoModelForImageClassification,
}
# Neither sorted nor whole, and one example twice.
ROWS = np.array([40, 3, 17, 60, 2, 33, 17, 59, 8, 21, 70], dtype=np.int64)


def stock_scores(made: Bench, architecture: str, start: Start) -> PerExample:
    """Score each example by itself with transformers alone, the adapter merged into the weights and the head put in place."""
    model = AUTO[architecture].from_pretrained(made.folder).eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for adapter, site in zip(made.backbone.adapters, start.sites, strict=True):
            delta = adapter.delta_weight(site)
            parameters[f"{adapter.site.name}.weight"] += delta.T if adapter.site.transposed else delta
        for name, tensor in start.head.items():
            parameters[name].copy_(tensor)
    scores = []
    for row in ROWS:
        batch = made.prepared.batch(np.array([row]), torch.device("cpu"))
        with torch.inference_mode():
            logits = model(**batch.inputs, **made.backbone.loaded.forward_kwargs).logits[0]
        if made.backbone.loaded.task == "causal-lm":
            logits, labels = logits[:-1], batch.labels[0, 1:]
        else:
            logits, labels = logits.unsqueeze(0), batch.labels
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        scores.append((float(loss), int((logits.argmax(dim=-1) == labels).sum()), len(labels)))
    loss, correct, count = np.array(scores, dtype=np.float64).T
    return PerExample(loss, correct, count)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["ravan", "lora", "triplet"])
@pytest.mark.parametrize("architecture", AUTO)
def test_it_is_the_stock_model_with_merged_weights(architecture: str, method: str, device: str, bench: Maker) -> None:
    made = bench(architecture, device, method=method)
    start = made.start()
    wanted = stock_scores(made, architecture, start)
    found = evaluate(made.backbone, made.prepared, ROWS, start, 4)
    assert np.abs(found.loss - wanted.loss).max() < 1e-4 * max(1.0, float(wanted.loss.max()))
    assert found.correct.tolist() == wanted.correct.tolist() and found.count.tolist() == wanted.count.tolist()
    other = evaluate(made.backbone, made.prepared, ROWS, made.start(seed=1), 4)
    assert np.abs(other.loss - wanted.loss).max() > 1e-2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", AUTO)
def test_the_batch_size_does_not_matter(architecture: str, device: str, bench: Maker) -> None:
    made = bench(architecture, device)
    start = made.start()
    alone = evaluate(made.backbone, made.prepared, ROWS, start, 1)
    for size in (2, 5, 100):
        found = evaluate(made.backbone, made.prepared, ROWS, start, size)
        assert np.abs(found.loss - alone.loss).max() < 1e-5 * max(1.0, float(alone.loss.max()))
        assert found.correct.tolist() == alone.correct.tolist()
        assert found.count.tolist() == alone.count.tolist()


def test_a_merged_update_counts(bench: Maker) -> None:
    made = bench("gpt2-lm", method="lora", rank=4, alpha=4.0)
    start = made.start()
    merged = made.start(merges=[(site["B"], site["A"]) for site in start.sites])
    for site in merged.sites:
        site["B"].zero_()
    left, right = (evaluate(made.backbone, made.prepared, ROWS, own, 4) for own in (start, merged))
    assert np.abs(left.loss - right.loss).max() < 1e-4
    made.backbone.set_merge([None] * len(start.sites))


def test_scores_come_in_the_order_asked_for(bench: Maker) -> None:
    made = bench("bert")
    start = made.start()
    forward, backward = (evaluate(made.backbone, made.prepared, rows, start, 4) for rows in (ROWS, ROWS[::-1].copy()))
    assert np.allclose(forward.loss, backward.loss[::-1], atol=1e-6)
    assert len(np.unique(forward.loss.round(4))) == len(ROWS) - 1  # one example twice


def test_summaries() -> None:
    scores = PerExample(np.array([2.0, 4.0, 6.0]), np.array([1.0, 0.0, 3.0]), np.array([1.0, 1.0, 4.0]))
    assert scores.summary() == (pytest.approx(4 / 6), pytest.approx(2.0))
    assert scores.summary(slice(0, 2)) == (0.5, 3.0)
    assert scores.summary(slice(0, 0)) == (0.0, 0.0)


def test_nothing_to_measure_is_no_error(bench: Maker) -> None:
    made = bench("bert")
    assert evaluate(made.backbone, made.prepared, np.zeros(0, np.int64), made.start(), 4).summary() == (0.0, 0.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", [*AUTO, "deberta"])
def test_many_starts_at_once_are_each_by_itself(architecture: str, device: str, bench: Maker) -> None:
    made = bench(architecture, device, method="triplet")
    starts = [made.start(seed) for seed in range(3)]
    found = evaluate_many(made.backbone, made.prepared, ROWS, starts, 12)
    alone = [evaluate(made.backbone, made.prepared, ROWS, start, 5) for start in starts]
    assert found.loss.shape == (3, len(ROWS))
    assert np.abs(found.loss - [own.loss for own in alone]).max() < 1e-5 * max(1.0, float(found.loss.max()))
    assert found.correct.tolist() == [own.correct.tolist() for own in alone]
    assert found.count.tolist() == [own.count.tolist() for own in alone]
    assert np.allclose(np.transpose(found.summary()), [own.summary() for own in alone], atol=1e-5)
    assert np.ptp(found.loss, axis=0).max() > 1e-2  # the starts differ


def test_nothing_and_nobody_to_measure(bench: Maker) -> None:
    made = bench("bert")
    assert evaluate_many(made.backbone, made.prepared, ROWS, [], 4).loss.shape == (0, len(ROWS))
    accuracy, loss = evaluate_many(made.backbone, made.prepared, np.zeros(0, np.int64), [made.start()], 4).summary()
    assert accuracy.tolist() == loss.tolist() == [0.0]
