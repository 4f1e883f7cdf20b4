"""Loading local folders of many architectures: heads, what is frozen, what is fresh, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fedlora.config import ModelConfig
from fedlora.errors import ConfigError, ModelError
from fedlora.models import ImageSpec, LoadedModel, load_model, pixels
from fedlora.sites import find_sites
from tiny import ENCODERS, TEXT, tiny_image_model, tiny_text_model, tiny_tokenizer

HEADS = {
    "bert": ("classifier",),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "distilbert": ("pre_classifier", "classifier"),
    "deberta": ("pooler.dense", "classifier"),
    "modernbert": ("head.dense", "classifier"),
    "t5": ("classification_head.dense", "classification_head.out_proj"),
    **dict.fromkeys(("gpt2", "llama", "opt", "gpt-neox", "phi3"), ("score",)),
}
ABC = ("a", "b", "c")


def load(
    folder: Path, labels: tuple[str, ...] = ABC, *, kind: str = "text", task: str = "classification", **config: object
) -> LoadedModel:
    return load_model(ModelConfig(name=str(folder), **config), kind, task, labels)


def logits(loaded: LoadedModel, texts: list[str]) -> torch.Tensor:
    batch = loaded.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return loaded.model(**batch, **loaded.forward_kwargs).logits


@pytest.mark.parametrize("architecture", TEXT)
def test_every_architecture_loads_ready_for_adapters(architecture: str, tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path, architecture)
    loaded = load(folder)
    assert loaded.head == HEADS[architecture]
    assert not loaded.fresh_head
    assert (loaded.task, loaded.kind, loaded.image, loaded.source) == ("classification", "text", None, str(folder))
    assert not loaded.model.training
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" and not p.requires_grad for p in loaded.model.parameters())
    assert all(isinstance(loaded.model.get_submodule(name), torch.nn.Linear) for name in loaded.head)
    assert not {site.name for site in find_sites(loaded.model, ["*"], loaded.head)} & set(loaded.head)
    assert loaded.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert logits(loaded, ["w1 w2 w3", "w4"]).shape == (2, 3)


@pytest.mark.parametrize("architecture", TEXT)
def test_a_text_counts_the_same_alone_and_padded(architecture: str, tmp_path: Path) -> None:
    """Decoders read the last real token: this fails where the padding token is not the one the model looks for."""
    loaded = load(tiny_text_model(tmp_path, architecture))
    together = logits(loaded, ["w1 w2 w3 w4 w5 w6", "w7 w8"])
    torch.testing.assert_close(together[1:], logits(loaded, ["w7 w8"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", TEXT)
def test_a_bare_backbone_gets_a_fresh_head_of_zeros(architecture: str, tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path, architecture, task="backbone")
    loaded = load(folder, ("a", "b", "c", "d", "e"))
    assert loaded.fresh_head
    assert loaded.head == HEADS[architecture]
    for name in loaded.head:
        assert all(not parameter.any() for parameter in loaded.model.get_submodule(name).parameters())
    saved = load_file(folder / "model.safetensors")
    kept = {name.removeprefix(f"{loaded.model.base_model_prefix}."): tensor for name, tensor in loaded.model.state_dict().items()}
    assert all(torch.equal(kept[name], tensor) for name, tensor in saved.items() if name in kept)
    assert len(saved.keys() & kept.keys()) >= len(saved) - 2  # RoBERTa's and ViT's pooler is of no use to their classifiers


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_a_head_for_another_number_of_labels_is_fresh_as_a_whole(architecture: str, tmp_path: Path) -> None:
    loaded = load(tiny_text_model(tmp_path, architecture, classes=3), ("a", "b", "c", "d"))
    assert loaded.fresh_head
    assert logits(loaded, ["w1"]).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("own", "fresh"),
    [({0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, False), ({0: "A", 1: "b", 2: "c"}, False), ({0: "b", 1: "a", 2: "c"}, True)],
)
def test_a_head_trained_for_other_labels_is_not_reused(own: dict[int, str], fresh: bool, tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path, id2label=own, label2id={name: number for number, name in own.items()})
    assert load(folder).fresh_head == fresh


def test_a_checkpoint_without_pooler_gets_it_as_part_of_the_fresh_head(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path, task="backbone")
    drop(folder, "pooler")
    loaded = load(folder)
    assert loaded.head == ("bert.pooler.dense", "classifier")
    assert loaded.fresh_head


@pytest.mark.parametrize("task", ["backbone", "classification"])
def test_a_checkpoint_with_a_hole_in_the_backbone_is_refused(task: str, tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path, task=task)
    drop(folder, "layer.1.attention.self.key.weight")
    with pytest.raises(ModelError, match=r"has no weights for bert.encoder.layer.1.attention.self.key.weight of BertForSeq"):
        load(folder)


def test_a_backbone_of_another_width_is_refused(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path / "narrow", width=16)
    shutil.copy(tiny_text_model(tmp_path / "wide", width=32) / "config.json", folder)
    with pytest.raises(ModelError, match=r"has no weights for bert\..* and \d+ more"):
        load(folder)


def test_loading_neither_reads_nor_moves_the_global_generator(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path, "modernbert", task="backbone")
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        states.append(load(folder).model.state_dict())
        assert torch.equal(before, torch.get_rng_state())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("architecture", sorted(set(TEXT) - ENCODERS))
def test_causal_language_models_have_no_head_to_train(architecture: str, tmp_path: Path) -> None:
    loaded = load(tiny_text_model(tmp_path, architecture, task="causal-lm"), (), task="causal-lm")
    assert (loaded.head, loaded.fresh_head, loaded.task) == ((), False, "causal-lm")
    assert logits(loaded, ["w1 w2 w3"]).shape == (1, 3, 105)
    assert loaded.model.config.use_cache is False
    assert find_sites(loaded.model, exclude=loaded.head)


def test_a_language_model_without_output_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no weights for lm_head.weight of LlamaForCausalLM"):
        load(tiny_text_model(tmp_path, "llama", task="backbone"), (), task="causal-lm")


def test_a_language_model_classifies_with_a_fresh_head(tmp_path: Path) -> None:
    loaded = load(tiny_text_model(tmp_path, "llama", task="causal-lm"))
    assert (loaded.head, loaded.fresh_head) == (("score",), True)


def test_attention_is_sdpa_where_the_architecture_has_it(tmp_path: Path) -> None:
    found = {
        name: load(tiny_text_model(tmp_path / name, name)).model.config._attn_implementation
        for name in ("bert", "llama", "deberta")
    }
    assert found == {"bert": "sdpa", "llama": "sdpa", "deberta": "eager"}


def test_decoder_tokenizers_pad_with_the_end_token_on_the_right(tmp_path: Path) -> None:
    loaded = load(tiny_text_model(tmp_path, "llama"))
    assert loaded.tokenizer.pad_token == loaded.tokenizer.eos_token
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id
    batch = loaded.tokenizer(["w1 w2", "w3"], padding=True)
    assert batch["attention_mask"] == [[1, 1], [1, 0]]


def test_the_model_looks_for_the_padding_token_that_the_tokenizer_writes(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path, "llama")
    edit(folder, lambda config: config.update(pad_token_id=7))  # "w2"
    loaded = load(folder)
    together = logits(loaded, ["w1 w2 w3 w4", "w1 w2"])
    torch.testing.assert_close(together[1:], logits(loaded, ["w1 w2"]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[1:], logits(loaded, ["w1"]), atol=1e-3)


@pytest.mark.parametrize("architecture", sorted(set(TEXT) - {"t5"}))
def test_the_longest_text_that_fits_is_known(architecture: str, tmp_path: Path) -> None:
    loaded = load(tiny_text_model(tmp_path, architecture))
    assert loaded.max_tokens == (127 if architecture == "roberta" else 128)
    ids = torch.full((1, loaded.max_tokens), 7)
    assert loaded.model(input_ids=ids).logits.isfinite().all()


def test_relative_positions_have_no_longest_text(tmp_path: Path) -> None:
    assert load(tiny_text_model(tmp_path, "t5")).max_tokens is None


def test_a_limit_of_the_tokenizer_counts(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 50
    tokenizer.save_pretrained(folder)
    assert load(folder).max_tokens == 50


def test_old_weight_files_load_without_running_what_is_in_them(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path)
    safe = load(folder).model.state_dict()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    old = load(folder).model.state_dict()
    assert all(torch.equal(old[name], safe[name]) for name in safe)

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"bert.pooler.dense.weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="its weights cannot be loaded"):
        load(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_cut_short_is_one_clear_error(file: str, tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path)
    path = folder / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    part = {"model.safetensors": "weights", "config.json": "configuration", "tokenizer.json": "tokenizer"}[file]
    with pytest.raises(ModelError, match=f"the model in .*: its {part} cannot be loaded") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_one_clear_error(file: str, tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path)
    (folder / file).unlink()
    with pytest.raises(ModelError, match="the model in"):
        load(folder)


def test_a_configuration_that_names_no_architecture_is_refused(tmp_path: Path) -> None:
    edit(tiny_text_model(tmp_path), lambda config: config.pop("model_type"))
    with pytest.raises(ModelError, match="its configuration cannot be loaded"):
        load(tmp_path)


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path)
    (folder / "own.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'sprung')!r}).touch()\n")
    edit(folder, lambda config: config.update(model_type="own", auto_map={"AutoConfig": "own.OwnConfig"}))
    with pytest.raises(ModelError, match="needs Python code of its own"):
        load(folder)
    assert not (tmp_path / "sprung").exists()


def test_a_quantised_checkpoint_is_refused(tmp_path: Path) -> None:
    edit(tiny_text_model(tmp_path), lambda config: config.update(quantization_config={"quant_method": "gptq", "bits": 4}))
    with pytest.raises(ModelError, match="is quantised"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("make", "kind", "task", "wanted"),
    [
        (
            tiny_image_model,
            "text",
            "classification",
            "is a vit model; transformers has none of that type for text classification",
        ),
        (
            tiny_text_model,
            "image",
            "classification",
            "is a bert model; transformers has none of that type for image classification",
        ),
        (tiny_image_model, "text", "causal-lm", "for causal language modelling"),
    ],
)
def test_a_model_of_the_wrong_kind_is_refused(make: object, kind: str, task: str, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=wanted):
        load(make(tmp_path), kind=kind, task=task)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["one", "more"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="has 107 tokens, its model embeds only 105"):
        load(folder)


def test_requests_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path)
    with pytest.raises(ModelError, match="at least two labels; the data set has 1"):
        load(folder, ("only",))
    with pytest.raises(ModelError, match="images can only be classified"):
        load(folder, kind="image", task="causal-lm")
    with pytest.raises(ConfigError, match=r"model.revision = 'main' applies to models of the hub only"):
        load(folder, revision="main")


@pytest.mark.parametrize("architecture", ["vit", "dinov2"])
def test_image_models_load_ready_for_adapters(architecture: str, tmp_path: Path) -> None:
    loaded = load(tiny_image_model(tmp_path, architecture), kind="image")
    assert (loaded.head, loaded.fresh_head, loaded.kind) == (("classifier",), False, "image")
    assert loaded.image == ImageSpec(16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (loaded.tokenizer, loaded.forward_kwargs, loaded.max_tokens) == (None, {}, None)
    assert [site.name.rpartition(".")[2] for site in find_sites(loaded.model, exclude=loaded.head)] == 2 * ["q_proj", "v_proj"]


@pytest.mark.parametrize("architecture", ["vit", "dinov2"])
def test_images_of_another_size_interpolate_the_positions(architecture: str, tmp_path: Path) -> None:
    loaded = load(tiny_image_model(tmp_path, architecture, task="backbone"), kind="image", image_size=24)
    assert loaded.fresh_head
    assert loaded.image.size == 24
    assert loaded.forward_kwargs == ({"interpolate_pos_encoding": True} if architecture == "vit" else {})
    images = np.zeros((2, 28, 28), dtype=np.uint8)
    assert loaded.model(pixel_values=pixels(images, loaded.image), **loaded.forward_kwargs).logits.shape == (2, 3)


def test_an_image_size_that_does_not_divide_into_patches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model.image_size = 18 is not a multiple of the model's patch size 4. Use 16 or 20"):
        load(tiny_image_model(tmp_path), kind="image", image_size=18)


def test_a_model_that_takes_one_size_only_says_so(tmp_path: Path) -> None:
    config = transformers.LevitConfig(image_size=32, num_channels=3, hidden_sizes=[16, 16, 16], num_attention_heads=[2, 2, 2], depths=[1, 1, 1], key_dim=[8, 8, 8])  # fmt: skip  # noqa: E501
    transformers.LevitForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="made for images of 32 pixels does not take 64"):
        load(tmp_path, ("a", "b"), kind="image", image_size=64)


def test_a_model_for_grey_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="takes images of 1 channels"):
        load(tiny_image_model(tmp_path, num_channels=1), kind="image")


def drop(folder: Path, part: str) -> None:
    """Remove the tensors whose names contain `part` from a saved checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if part not in name}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def edit(folder: Path, change: object) -> None:
    """Change the configuration file of a saved model."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
