"""Operations of local training: the formula by hand, and torch's own count of a real step beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benches import Bench, Maker, make_bench
from fedlora.config import AdapterConfig, TrainingConfig
from fedlora.training.chunks import example_length
from fedlora.training.flops import counted_flops, measured_flops

CONFIG = TrainingConfig(steps=20, batch_size=8)


def measure(bench: Bench, rows: int = 16, config: TrainingConfig = CONFIG) -> float:
    return measured_flops(bench.backbone, bench.prepared, bench.job(0, bench.start(), rows=rows), config)


def linear_numbers(bench: Bench) -> int:
    """Return the numbers of the frozen products, from the shapes that tiny models are made with."""
    width, inner, layers = 32, 64, 2
    return layers * (4 * width * width + 2 * width * inner) + width * width  # blocks and BERT's pooler; the task head is trained


def test_the_formula_by_hand(bench: Maker) -> None:
    """Four operations per frozen number and token, six per trained one; embedding tables are looked up, not multiplied."""
    made = bench(method="lora", rank=4)
    sites = 4 * (4 * 32 + 32 * 4)  # query and value of two blocks, A and B of rank 4
    head = 3 * 32 + 3
    assert made.backbone.layout.size == sites + head
    assert counted_flops(made.backbone, made.prepared) == 4.0 * linear_numbers(made) + 6.0 * (sites + head)


def test_one_linear_layer_by_hand() -> None:
    """What the formula rests on: 2 operations a number forward, 2 for the input's gradient, 2 for the weight's own."""
    tokens, inside, outside = 7, 12, 5
    layer = torch.nn.Linear(inside, outside)
    given = torch.randn(tokens, inside, requires_grad=True)

    def count() -> float:
        with FlopCounterMode(display=False) as counter:
            layer(given).sum().backward()
        return float(counter.get_total_flops())

    numbers = inside * outside
    assert count() == 6 * numbers * tokens
    layer.weight.requires_grad_(False)
    assert count() == 4 * numbers * tokens


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "gpt2", "llama"])
@pytest.mark.parametrize("method", ["lora", "ravan", "triplet"])
def test_counted_is_near_to_what_torch_counts(bench: Maker, architecture: str, method: str) -> None:
    """On models this small, attention maps, padding and unused gradients are not small: within a factor of 2."""
    made = bench(architecture, method=method, rank=4)
    counted, measured = counted_flops(made.backbone, made.prepared), measure(made)
    assert 0.5 < measured / counted < 2.0


def test_conv1d_counts_as_the_linear_layer_that_it_is(bench: Maker) -> None:
    made = bench("gpt2", method="lora", rank=4)
    frozen = (counted_flops(made.backbone, made.prepared) - 6.0 * made.backbone.layout.size) / 4
    assert frozen >= 2 * (32 * 96 + 32 * 32 + 2 * 32 * 64)


def test_an_image_is_one_unit(bench: Maker, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("vit") / "vit"
    made = make_bench(folder, "vit", AdapterConfig(method="lora", rank=4))
    assert example_length(made.backbone, made.prepared) == 17  # 16 patches and the class token
    counted, measured = counted_flops(made.backbone, made.prepared), measure(made)
    assert counted > 17 * 4 * 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert 0.4 < measured / counted < 2.0


def test_what_is_measured_is_one_step_whatever_the_run_does(bench: Maker) -> None:
    """Per token: neither the number of steps nor of passes changes it, and nothing of it stays."""
    made = bench()
    one = measure(made)
    assert (
        one
        == measure(made, config=TrainingConfig(steps=1, batch_size=8))
        == measure(made, config=TrainingConfig(epochs=3, batch_size=8))
    )
    before = [parameter.detach().clone() for parameter in made.backbone.model.parameters()]
    measure(made)
    assert all(torch.equal(old, new) for old, new in zip(before, made.backbone.model.parameters(), strict=True))
    assert np.isfinite(one) and one > 0
