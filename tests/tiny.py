"""Tiny random Hugging Face models, saved complete with their tokenizers, for tests that must run without any download.

A text is words out of "w0" .. "w99"; anything else is the unknown token. The builders leave the global generator alone and give
the same weights for the same arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

Task = Literal["classification", "causal-lm", "backbone"]

WORDS = tuple(f"w{number}" for number in range(100))
_SPECIALS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
_PAD, _CLS, _SEP = 0, 2, 3
# Decoders have no padding token, as most on the hub; whoever needs one has to set it.
_ENDS: dict[str, Any] = {"bos_token_id": _CLS, "eos_token_id": _SEP, "pad_token_id": None}
VOCABULARY = {word: number for number, word in enumerate((*_SPECIALS.values(), *WORDS))}


def tiny_text_model(
    folder: Path,
    architecture: str = "bert",
    classes: int = 3,
    layers: int = 2,
    width: int = 32,
    *,
    task: Task = "classification",
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Save a random text model and its tokenizer under `folder`, and return the folder.

    Args:
        folder: Created where it does not exist.
        architecture: A key of `TEXT`.
        classes: Labels of the saved classification head.
        layers: Transformer blocks.
        width: Hidden size, a multiple of 8; four heads, two of them shared keys and values where the architecture has that.
        task: What is saved: with a classification head, as a language model, or the bare backbone.
        seed: Of the random weights.
        changes: Further fields of the model's configuration.
    """
    make_config, class_stem = TEXT[architecture]
    config = make_config(layers, width, num_labels=classes, initializer_range=0.1, pad_token_id=_PAD, **changes)
    suffix = {"classification": "ForSequenceClassification", "causal-lm": "ForCausalLM", "backbone": "Model"}[task]
    name = "GPT2LMHeadModel" if class_stem + suffix == "GPT2ForCausalLM" else class_stem + suffix
    _save(name, config, folder, seed)
    tiny_tokenizer(pairs=architecture in ENCODERS).save_pretrained(folder)
    return folder


def tiny_image_model(
    folder: Path,
    architecture: str = "vit",
    classes: int = 3,
    layers: int = 2,
    width: int = 32,
    *,
    task: Task = "classification",
    size: int = 16,
    patch: int = 4,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Save a random image model ("vit" or "dinov2") for `size` x `size` RGB images under `folder`, and return the folder."""
    stem = {"vit": "ViT", "dinov2": "Dinov2"}[architecture]
    config = getattr(transformers, f"{stem}Config")(
        num_labels=classes,
        image_size=size,
        patch_size=patch,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        initializer_range=0.1,
        **({"intermediate_size": 2 * width} if architecture == "vit" else {"mlp_ratio": 2}),
        **changes,
    )
    _save(stem + ("ForImageClassification" if task == "classification" else "Model"), config, folder, seed)
    return folder


def tiny_tokenizer(pairs: bool = True) -> PreTrainedTokenizerFast:
    """Return a whitespace tokenizer over `VOCABULARY`; with `pairs` it adds [CLS] and [SEP] as BERT does."""
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if pairs:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", _CLS), ("[SEP]", _SEP)]
        )
        return _wrap(backend, _SPECIALS)
    return _wrap(backend, {"unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"})


def _wrap(backend: Tokenizer, specials: dict[str, str]) -> PreTrainedTokenizerFast:
    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return make(tokenizer_object=backend, **specials)


def _save(class_name: str, config: PretrainedConfig, folder: Path, seed: int) -> None:
    with _private_generator(seed):
        model: PreTrainedModel = getattr(transformers, class_name)(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)


@contextmanager
def _private_generator(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _bert_like(config_name: str) -> Callable[..., PretrainedConfig]:
    def make(layers: int, width: int, **rest: Any) -> PretrainedConfig:
        make_config: Callable[..., PretrainedConfig] = getattr(transformers, config_name)
        return make_config(
            vocab_size=len(VOCABULARY),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=2 * width,
            max_position_embeddings=128,
            **rest,
        )

    return make


def _llama_like(config_name: str) -> Callable[..., PretrainedConfig]:
    def make(layers: int, width: int, **rest: Any) -> PretrainedConfig:
        known = inspect.signature(getattr(transformers, config_name)).parameters
        shared = {"num_key_value_heads": 2} if "num_key_value_heads" in known else {}
        tied = {"ffn_dim": 2 * width, "word_embed_proj_dim": width} if "ffn_dim" in known else {}
        return _bert_like(config_name)(layers, width, **{**rest, **shared, **tied, **_ENDS})

    return make


def _distilbert(layers: int, width: int, **rest: Any) -> PretrainedConfig:
    sizes = {"dim": width, "hidden_dim": 2 * width, "n_layers": layers, "n_heads": 4, "max_position_embeddings": 128}
    return transformers.DistilBertConfig(vocab_size=len(VOCABULARY), **{**rest, **sizes})


def _gpt2(layers: int, width: int, **rest: Any) -> PretrainedConfig:
    sizes = {"n_embd": width, "n_layer": layers, "n_head": 4, "n_positions": 128}
    return transformers.GPT2Config(vocab_size=len(VOCABULARY), **{**rest, **sizes, **_ENDS})


def _t5(layers: int, width: int, **rest: Any) -> PretrainedConfig:
    rest.pop("initializer_range")
    sizes = {"d_model": width, "d_kv": width // 4, "d_ff": 2 * width, "num_layers": layers, "num_heads": 4}
    ends: dict[str, Any] = {"eos_token_id": _SEP, "decoder_start_token_id": _PAD}
    return transformers.T5Config(vocab_size=len(VOCABULARY), **{**rest, **sizes, **ends})


# Architecture -> how its configuration is made, and the stem of its class names.
TEXT: dict[str, tuple[Callable[..., PretrainedConfig], str]] = {
    "bert": (_bert_like("BertConfig"), "Bert"),
    "roberta": (_bert_like("RobertaConfig"), "Roberta"),
    "distilbert": (_distilbert, "DistilBert"),
    "deberta": (_bert_like("DebertaV2Config"), "DebertaV2"),
    "modernbert": (_bert_like("ModernBertConfig"), "ModernBert"),
    "gpt2": (_gpt2, "GPT2"),
    "llama": (_llama_like("LlamaConfig"), "Llama"),
    "opt": (_llama_like("OPTConfig"), "OPT"),
    "gpt-neox": (_llama_like("GPTNeoXConfig"), "GPTNeoX"),
    "phi3": (_llama_like("Phi3Config"), "Phi3"),
    "t5": (_t5, "T5"),
}
ENCODERS = frozenset({"bert", "roberta", "distilbert", "deberta", "modernbert", "t5"})
