"""The frozen model: merged updates come and go without a trace, heads start as they should, bf16 stays close to fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benches import DEVICES, Bench, Maker, make_bench, tensors_of
from fedlora.config import AdapterConfig, ModelConfig, TrainingConfig
from fedlora.models import load_model
from fedlora.training.backbone import Backbone
from fedlora.training.device import place
from fedlora.training.evaluation import evaluate
from fedlora.training.local import train_clients
from tiny import tiny_text_model


def weights(made: Bench) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in made.backbone.model.named_parameters()}


def merges_of(made: Bench, seed: int, rank: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(site.out_features, rank, generator=generator), torch.randn(rank, site.in_features, generator=generator))
        for site in made.backbone.sites
    ]


# -- merged updates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2-lm"])
def test_the_untouched_weights_come_back_bit_by_bit(architecture: str, precision: str, bench: Maker) -> None:
    made = bench(architecture, precision=precision, method="lora")
    before = weights(made)
    empty = [(torch.zeros(site.out_features, 0), torch.zeros(0, site.in_features)) for site in made.backbone.sites]
    for back in ([None] * len(before), empty):
        for seed in range(3):
            made.backbone.set_merge(merges_of(made, seed))
            changed = [name for name, tensor in weights(made).items() if not torch.equal(tensor, before[name])]
            assert len(changed) == len(made.backbone.sites)
        made.backbone.set_merge(back[: len(made.backbone.sites)])
        assert all(torch.equal(tensor, before[name]) for name, tensor in weights(made).items())


@pytest.mark.parametrize("architecture", ["bert", "gpt2-lm"])
def test_a_merge_replaces_the_one_before(architecture: str, bench: Maker) -> None:
    made = bench(architecture, method="lora")
    fresh = [layer.base.weight.detach().clone() for layer in made.backbone.layers]
    first, second = merges_of(made, 1), merges_of(made, 2)
    made.backbone.set_merge(first)
    made.backbone.set_merge(second)
    for layer, own, site, (b, a) in zip(made.backbone.layers, fresh, made.backbone.sites, second, strict=True):
        wanted = own + ((b @ a).T if site.transposed else b @ a)
        assert torch.equal(layer.base.weight, wanted)


def test_training_leaves_the_frozen_model_alone(bench: Maker) -> None:
    made = bench("bert")
    before = weights(made)
    config = TrainingConfig(steps=2, batch_size=4, weight_decay=0.1)
    train_clients(made.backbone, made.prepared, [made.job(0, made.start())], config)
    after = weights(made)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in made.backbone.model.parameters())


def test_clients_train_on_top_of_the_merged_update(bench: Maker) -> None:
    """Merging an update and adding it as an adapter's factors start from the same loss."""
    made = bench("bert", method="lora", rank=4, alpha=4.0)
    config = TrainingConfig(steps=1, batch_size=8, lr=1e-9)
    start = made.start()
    zero = [{"A": site["A"], "B": torch.zeros_like(site["B"])} for site in start.sites]
    merged = made.start(merges=[(site["B"], site["A"]) for site in start.sites])
    merged.sites[:] = zero
    ours = train_clients(made.backbone, made.prepared, [made.job(0, start)], config)[0].loss
    theirs = train_clients(made.backbone, made.prepared, [made.job(0, merged)], config)[0].loss
    plain = train_clients(made.backbone, made.prepared, [made.job(0, made.start(scale=0.3, merges=None))], config)[0].loss
    assert theirs == pytest.approx(ours, abs=1e-5) and plain == pytest.approx(ours, abs=1e-6)
    bare = made.start()
    bare.sites[:] = zero
    assert train_clients(made.backbone, made.prepared, [made.job(0, bare)], config)[0].loss != pytest.approx(ours, abs=1e-4)


# -- the task head -----------------------------------------------------------------------------------------------------


def test_a_head_that_fits_the_labels_is_kept(bench: Maker) -> None:
    made = bench("bert")
    saved = load_file(made.folder / "model.safetensors")
    head = made.backbone.initial_head()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in head.items())
    head.clear()  # what is handed out is the caller's
    assert made.backbone.initial_head()


def test_another_head_is_drawn_from_the_seed(tmp_path: Path) -> None:
    tiny_text_model(tmp_path, "bert", classes=7)
    heads = []
    for seed in (0, 0, 1):
        loaded = load_model(ModelConfig(name=str(tmp_path)), "text", "classification", ["a", "b", "c"])
        torch.manual_seed(len(heads))  # the global generator has no say
        heads.append(Backbone(loaded, AdapterConfig(method="lora", rank=2), seed, place("cpu", "fp32")).initial_head())
    first, again, other = heads
    assert first["classifier.weight"].shape == (3, 32) and not first["classifier.bias"].any()
    assert float(first["classifier.weight"].std()) == pytest.approx(0.02, rel=0.25)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_adapters_and_heads_are_where_the_model_calls_them(bench: Maker) -> None:
    made = bench("bert")
    model = made.backbone.model
    for site, layer in zip(made.backbone.sites, made.backbone.layers, strict=True):
        assert model.get_submodule(site.name) is layer
    assert {name: tuple(t.shape) for name, t in made.backbone.initial_head().items()} == {
        "classifier.weight": (3, 32),
        "classifier.bias": (3,),
    }


# -- precision ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ["bert", "gpt2-lm", "vit", "llama-lm"])
def test_bf16_stays_close_to_fp32(architecture: str, device: str, bench: Maker) -> None:
    config = TrainingConfig(steps=4, batch_size=8, lr=5e-3)
    found = []
    for precision in ("fp32", "bf16"):
        made = bench(architecture, device, precision)
        job = made.job(0, made.start(), rows=24)
        outcome = train_clients(made.backbone, made.prepared, [job, made.job(1, job.start)], config)[0]
        start = {**{f"{i}/{n}": t for i, site in enumerate(job.start.sites) for n, t in site.items()}, **job.start.head}
        change = torch.cat([(tensor - start[name]).ravel() for name, tensor in tensors_of(outcome).items()])
        found.append((outcome.loss, change))
    (loss, exact), (rough_loss, rough) = found
    assert rough_loss == pytest.approx(loss, rel=0.02) and rough_loss != loss
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=0) > 0.9


def test_bf16_keeps_what_is_added_up_from_layer_to_layer_in_fp32(tmp_path: Path) -> None:
    """The output layer of a language model may share its weight with the embedding, which must stay as it is."""
    made = make_bench(tmp_path / "tied", "llama-lm", AdapterConfig(rank=4, heads=4), precision="bf16", tie_word_embeddings=True)
    model = made.backbone.model
    assert model.get_input_embeddings().weight.dtype == torch.float32
    assert model.get_output_embeddings().weight.dtype == torch.bfloat16
    seen = []
    model.model.layers[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    evaluate(made.backbone, made.prepared, np.arange(4), made.start(), 4)
    assert seen == [torch.float32]
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert linear and all(module.weight.dtype == torch.bfloat16 for module in linear)
    # The same numbers, only rounded: no weight was lost on the way.
    exact = make_bench(tmp_path / "tied", "llama-lm", AdapterConfig(rank=4, heads=4))
    for name, parameter in exact.backbone.model.named_parameters():
        rounded = dict(model.named_parameters(remove_duplicate=False))[name]
        assert torch.allclose(parameter, rounded.float(), rtol=2**-8, atol=0)
