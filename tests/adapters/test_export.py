"""An exported adapter gives the same logits in stock peft, whatever the method and the architecture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from cases import Case, draw_state
from fedlora.config import AdapterConfig, ModelConfig
from fedlora.models import load_model
from fedlora.runs.export import export_peft
from fedlora.training.backbone import Backbone, Batch
from fedlora.training.device import place
from tiny import tiny_image_model, tiny_text_model

METHODS = [
    Case("lora", "kaiming"),
    Case("triplet", "gaussian"),
    Case("ravan", "random", (("unit", "heads"),)),
]
TASKS = {
    "bert": ("classification", transformers.AutoModelForSequenceClassification),
    "distilbert": ("classification", transformers.AutoModelForSequenceClassification),
    "roberta": ("classification", transformers.AutoModelForSequenceClassification),
    "gpt2": ("causal-lm", transformers.AutoModelForCausalLM),  # Conv1D: the weight is stored [in, out]
    "llama": ("classification", transformers.AutoModelForSequenceClassification),
    "vit": ("classification", transformers.AutoModelForImageClassification),
}


def backbone(folder: Path, architecture: str, case: Case, **changes: object) -> tuple[Backbone, Batch]:
    task, _ = TASKS[architecture]
    names = ["a", "b", "c"]
    if architecture == "vit":
        tiny_image_model(folder, layers=1)
        inputs = {"pixel_values": torch.randn(4, 3, 16, 16)}
    else:
        tiny_text_model(folder, architecture, task=task, layers=1)
        ids = torch.randint(5, 100, (4, 6))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    loaded = load_model(ModelConfig(name=str(folder)), "image" if architecture == "vit" else "text", task, names)
    section = {"method": case.method, "init": case.init, "rank": 3, "heads": 4, "alpha": 6.0, **dict(case.options), **changes}
    return Backbone(loaded, AdapterConfig(**section), 0, place("cpu", "fp32")), Batch(inputs, torch.zeros(4))


def logits_of(bench: Backbone, batch: Batch, states: list[dict[str, Tensor]], head: dict[str, Tensor]) -> Tensor:
    params = [adapter.params(state) for adapter, state in zip(bench.adapters, states, strict=True)]
    bench.bind(*bench.layout.views(bench.layout.row(params, head).unsqueeze(0)))
    with torch.inference_mode():
        return bench.model(**batch.inputs, **bench.loaded.forward_kwargs).logits


def peft_logits(architecture: str, base: Path, out: Path, batch: Batch, bench: Backbone) -> tuple[Tensor, Tensor]:
    """Return the logits of the stock model with and without the exported adapter."""
    model = TASKS[architecture][1].from_pretrained(base).eval()
    if architecture == "llama":  # to find the last token of each row; the checkpoint does not say
        model.config.pad_token_id = 0
    with torch.inference_mode():
        before = model(**batch.inputs, **bench.loaded.forward_kwargs).logits.clone()
        loaded = PeftModel.from_pretrained(model, out).eval()
        return loaded(**batch.inputs, **bench.loaded.forward_kwargs).logits, before


@pytest.mark.parametrize("architecture", TASKS)
@pytest.mark.parametrize("case", METHODS, ids=str)
def test_stock_peft_gives_the_same_logits(case: Case, architecture: str, tmp_path: Path) -> None:
    bench, batch = backbone(tmp_path / "base", architecture, case)
    states = [draw_state(adapter, index, torch.float32) for index, adapter in enumerate(bench.adapters)]
    head = {name: 0.1 * torch.randn(tensor.shape) for name, tensor in bench.initial_head().items()}
    expected = logits_of(bench, batch, states, head)
    factors = [adapter.factors(state) for adapter, state in zip(bench.adapters, states, strict=True)]
    export_peft(tmp_path / "out", bench.loaded, bench.sites, factors, head, ["a", "b", "c"])
    found, before = peft_logits(architecture, tmp_path / "base", tmp_path / "out", batch, bench)
    assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    assert (before - expected).abs().max() > 1e-2
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == (12 if case.method == "ravan" else 3)
    assert config["target_modules"] == [site.name for site in bench.sites]


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_ranks_may_differ_from_site_to_site(architecture: str, tmp_path: Path) -> None:
    """FLoRA's accumulated update has another number of columns at every site, and none where nobody sent anything."""
    targets = ["*.attention.*" if architecture == "bert" else "*.attn.*"]
    bench, batch = backbone(tmp_path / "base", architecture, Case("lora", "kaiming"), targets=targets)
    factors = [
        (torch.randn(site.out_features, rank), 0.1 * torch.randn(rank, site.in_features))
        for rank, site in zip((5, 0, 2, 7)[: len(bench.sites)], bench.sites, strict=True)
    ]
    states = [adapter.init_state() for adapter in bench.adapters]
    bench.set_merge(factors)
    head = {name: torch.randn(tensor.shape) for name, tensor in bench.initial_head().items()}
    expected = logits_of(bench, batch, states, head)
    export_peft(tmp_path / "out", bench.loaded, bench.sites, factors, head, [])
    found, before = peft_logits(architecture, tmp_path / "base", tmp_path / "out", batch, bench)
    assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    assert (before - expected).abs().max() > 1e-2


def test_a_state_that_has_learned_nothing_yet_is_exported_as_zero(tmp_path: Path) -> None:
    bench, batch = backbone(tmp_path / "base", "gpt2", Case("lora", "kaiming"))
    empty = [(torch.zeros(site.out_features, 0), torch.zeros(0, site.in_features)) for site in bench.sites]
    export_peft(tmp_path / "out", bench.loaded, bench.sites, empty, {}, [])
    found, before = peft_logits("gpt2", tmp_path / "base", tmp_path / "out", batch, bench)
    assert torch.equal(found, before)


def test_a_pooler_that_the_checkpoint_lacks_is_trained_and_exported_with_the_head(tmp_path: Path) -> None:
    tiny_text_model(tmp_path / "base", "bert", layers=1)
    file = tmp_path / "base" / "model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if "pooler" not in name}, file, metadata={"format": "pt"})
    loaded = load_model(ModelConfig(name=str(tmp_path / "base")), "text", "classification", ["a", "b", "c"])
    bench = Backbone(loaded, AdapterConfig(method="lora", rank=2), 0, place("cpu", "fp32"))
    head = {name: torch.randn(tensor.shape) for name, tensor in bench.initial_head().items()}
    assert "bert.pooler.dense.weight" in head
    states = [draw_state(adapter, index, torch.float32) for index, adapter in enumerate(bench.adapters)]
    ids = torch.randint(5, 100, (4, 6))
    batch = Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.zeros(4))
    expected = logits_of(bench, batch, states, head)
    factors = [adapter.factors(state) for adapter, state in zip(bench.adapters, states, strict=True)]
    export_peft(tmp_path / "out", loaded, bench.sites, factors, head, ["a", "b", "c"])
    found, _ = peft_logits("bert", tmp_path / "base", tmp_path / "out", batch, bench)
    assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
