"""The packaged models: what the table says, and the real ones, against numbers from the runtimes their files were made for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from fedlora.config import ModelConfig
from fedlora.errors import ConfigError
from fedlora.models import MODELS, ImageSpec, LoadedModel, load_model, pixels
from fedlora.sites import find_sites

LABELS = ("one", "two", "three", "four")


def load(name: str, kind: str = "text", task: str = "classification", **config: object) -> LoadedModel:
    return load_model(ModelConfig(name=name, **config), kind, task, LABELS)


def test_the_table_of_packaged_models_gives_size_and_licence() -> None:
    table = {entry.name: entry.summary for entry in MODELS.entries()}
    assert table.keys() == {"minilm-l3", "minilm-l6", "smollm2-135m", "vit-s14"}
    assert (
        table["minilm-l6"]
        == "all-MiniLM-L6-v2: BERT encoder, 6 layers, 22.7 M parameters; 84 MB; Apache-2.0 (weights), MIT (package)"
    )
    assert "de-quantised" in table["smollm2-135m"]


def test_packaged_models_have_no_revisions() -> None:
    with pytest.raises(ConfigError, match="applies to models of the hub only"):
        load("minilm-l6", revision="main")


@pytest.mark.assets
@pytest.mark.parametrize(("name", "layers"), [("minilm-l6", 6), ("minilm-l3", 3)])
def test_minilm_loads_with_a_fresh_classifier(name: str, layers: int) -> None:
    loaded = load(name)
    assert (loaded.head, loaded.fresh_head, loaded.max_tokens) == (("classifier",), True, 512)
    sites = find_sites(loaded.model, exclude=loaded.head)
    assert [site.name for site in sites] == [
        f"bert.encoder.layer.{layer}.attention.self.{end}" for layer in range(layers) for end in ("query", "value")
    ]
    assert {(site.in_features, site.out_features, site.transposed) for site in sites} == {(384, 384, False)}
    batch = loaded.tokenizer(["How did serfdom develop ?", "A biopic"], padding=True, return_tensors="pt")
    assert loaded.model(**batch).logits.shape == (2, 4)


@pytest.mark.assets
@pytest.mark.parametrize("name", ["minilm-l6", "minilm-l3"])
def test_minilm_knows_what_is_alike(name: str) -> None:
    """Random weights give any two of these texts a similarity near one; the trained ones tell them apart."""
    near, other = "A man is eating food.", "The stock market fell sharply today."
    first, second, third = (embed(load(name).source, text) for text in ("Someone is having a meal.", near, other))
    assert torch.cosine_similarity(first, second, dim=0) > 0.5
    assert torch.cosine_similarity(first, third, dim=0) < 0.2


@pytest.mark.assets
def test_minilm_l3_is_what_its_onnx_graph_computes() -> None:
    found = embed(load("minilm-l3").source, "How did serfdom develop in and then leave Russia ?")
    # Output "461" of the packaged graph under onnxruntime 1.31.
    expected = [0.1794731318950653, 0.007502515334635973, -0.29466742277145386, -0.04212485998868942, 0.146143838763237]
    np.testing.assert_allclose(found[:5].numpy(), expected, atol=1e-5)
    assert abs(float(found.norm()) - 4.600750923156738) < 1e-4


@pytest.mark.assets
def test_vit_s14_is_what_its_onnx_graph_computes() -> None:
    backbone = AutoModel.from_pretrained(load("vit-s14", "image").source)
    images = torch.from_numpy(np.linspace(-2, 2, 3 * 224 * 224, dtype=np.float32)).view(1, 3, 224, 224)
    with torch.no_grad():
        states = backbone(pixel_values=images).last_hidden_state[0]
    # Output of the last layer norm of the packaged graph's backbone under onnxruntime 1.31: class token, and mean of the patches.
    first = [0.7768042087554932, 0.5537152886390686, 2.630708932876587, -4.272351264953613, -1.056863784790039]
    mean = [1.1442846059799194, 0.37695157527923584, 1.213234543800354, -4.356384754180908, -1.3915926218032837]
    np.testing.assert_allclose(states[0, :5].numpy(), first, atol=1e-4)
    np.testing.assert_allclose(states[1:].mean(0)[:5].numpy(), mean, atol=1e-4)


@pytest.mark.assets
def test_vit_s14_takes_small_images_by_default() -> None:
    loaded = load("vit-s14", "image")
    assert loaded.image == ImageSpec(56)
    assert (loaded.head, loaded.fresh_head, loaded.forward_kwargs) == (("classifier",), True, {})
    assert len(find_sites(loaded.model, exclude=loaded.head)) == 24
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    assert loaded.model(pixel_values=pixels(images, loaded.image)).logits.shape == (3, 4)
    assert load("vit-s14", "image", image_size=84).image == ImageSpec(84)


@pytest.mark.assets
@pytest.mark.slow
def test_smollm2_speaks() -> None:
    loaded = load("smollm2-135m", task="causal-lm")
    assert (loaded.head, loaded.fresh_head, loaded.max_tokens) == ((), False, 8192)
    assert len(find_sites(loaded.model)) == 60
    assert next_word(loaded.model, loaded.tokenizer) == " Paris"
    opening = (
        "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife."
    )
    batch = loaded.tokenizer(opening, return_tensors="pt")
    with torch.no_grad():
        loss = loaded.model(**batch, labels=batch["input_ids"]).loss
    assert abs(float(loss.exp()) - 15.886) < 0.01  # as the GGUF file gives it through transformers
    # Anyone can load the converted folder, without fedlora.
    stock = AutoModelForCausalLM.from_pretrained(loaded.source)
    assert next_word(stock, AutoTokenizer.from_pretrained(loaded.source)) == " Paris"


@pytest.mark.assets
@pytest.mark.slow
def test_smollm2_classifies_with_a_fresh_head() -> None:
    loaded = load("smollm2-135m")
    assert (loaded.head, loaded.fresh_head) == (("score",), True)
    batch = loaded.tokenizer(["a text", "a longer text than that"], padding=True, return_tensors="pt")
    assert loaded.model(**batch).logits.shape == (2, 4)


def embed(folder: str, text: str) -> torch.Tensor:
    """Return the mean of the token states of `text`, [width], by stock transformers."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)


def next_word(model: torch.nn.Module, tokenizer: object) -> str:
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    return tokenizer.decode(logits[0, -1].argmax())
