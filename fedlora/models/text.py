"""Tokenizers: found with their model and given what batches need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedlora.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from fedlora.models.sources import Source

# Tokenizers without a limit say so by a number far beyond any context.
_NO_LIMIT = 10**7


def prepare_tokenizer(source: Source, settings: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `source`, with a padding token and padding on the right, and tell `settings` of that token.

    Decoder models mostly come without a padding token: the end token stands in for it, as is usual; the attention mask keeps
    it out of the computation. By `settings.pad_token_id` transformers finds the last real token of each text, so the two agree.

    Raises:
        ModelError: There is no tokenizer, or it has neither a padding nor an end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.name, **source.arguments)
    except Exception as error:  # as many kinds as there are tokenizer formats
        raise ModelError(source.explain("its tokenizer", error)) from error
    # Without any tokenizer file transformers may build one that knows nothing but its special tokens.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(f"{source.label} has no tokenizer: its vocabulary is empty. Add the tokenizer's files beside the model")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"the tokenizer of {source.label} has neither a padding nor an end token; batches need one of them")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    for part in (settings, settings.get_text_config()):  # the same, but for models that read more than text
        part.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def longest_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the longest text that the model takes, tokens, or None where nothing limits it."""
    limits = []
    if tokenizer.model_max_length < _NO_LIMIT:
        limits.append(tokenizer.model_max_length)
    positions = getattr(model.config, "max_position_embeddings", None)
    # T5 and its kin have relative positions and no such limit.
    if isinstance(positions, int) and positions > 0:
        limits.append(positions - _unused_positions(model))
    return min(limits, default=None)


def _unused_positions(model: PreTrainedModel) -> int:
    """Return how many rows of the position table no token can use: RoBERTa and its kin count from beyond the padding index."""
    from torch import nn

    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0
