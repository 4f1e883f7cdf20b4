"""Texts as tokens: encoded once, kept flat, padded per mini-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import DataError

_BATCH = 4096


@dataclass(frozen=True, eq=False)
class Encoded:
    """N token sequences of different lengths.

    Attributes:
        tokens: int32, all sequences one after the other.
        offsets: int64 [N+1], where each begins; the last is the total.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per sequence, int64 [N]."""
        return np.diff(self.offsets)

    def rows(self, indices: NDArray[np.int64] | Sequence[int]) -> list[NDArray[np.int32]]:
        """Return the sequences at `indices`, each int32 [length] (views, not copies)."""
        return [self.tokens[self.offsets[row] : self.offsets[row + 1]] for row in indices]

    def padded(
        self, indices: NDArray[np.int64] | Sequence[int], pad_id: int, multiple: int = 1
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the sequences at `indices` as one batch, padded on the right to the longest of them.

        Args:
            indices: n positions.
            pad_id: Token that fills up.
            multiple: T is rounded up to a multiple of this.

        Returns:
            (input_ids, attention_mask), both int64 [n, T].
        """
        rows = np.asarray(indices, dtype=np.int64)
        starts, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        width = -(-int(lengths.max(initial=1)) // multiple) * multiple
        columns = np.arange(width)
        mask = columns < lengths[:, None]
        ids = np.full(mask.shape, pad_id, dtype=np.int64)
        ids[mask] = self.tokens[(starts[:, None] + columns)[mask]]
        return ids, mask.astype(np.int64)


def encode_texts(texts: Sequence[str], tokenizer: Any, max_length: int) -> Encoded:
    """Tokenise every text once.

    Args:
        texts: N strings.
        tokenizer: A fast Hugging Face tokenizer; its special tokens are added as it does by default.
        max_length: Longer sequences are cut to this many tokens, special tokens included.

    Raises:
        DataError: A text has no tokens at all.
    """
    from_the_end = getattr(tokenizer, "truncation_side", "right") == "right"
    flat: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    for start in range(0, len(texts), _BATCH):
        batch = [_shorten(text, max_length) if from_the_end else text for text in texts[start : start + _BATCH]]
        options = {"truncation": True, "max_length": max_length, "padding": False}
        encoded = tokenizer(batch, return_attention_mask=False, return_token_type_ids=False, **options)["input_ids"]
        lengths += [len(sequence) for sequence in encoded]
        flat.append(np.array([token for sequence in encoded for token in sequence], dtype=np.int32))
    sizes = np.array(lengths, dtype=np.int64)
    if len(sizes) and sizes.min() == 0:
        row = int(sizes.argmin())
        raise DataError(f"example {row} ({texts[row][:40]!r}) has no tokens. Leave it out of the data")
    tokens = np.concatenate(flat) if flat else np.zeros(0, dtype=np.int32)
    return Encoded(tokens, np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]))


def _shorten(text: str, words: int) -> str:
    """Return the leading words of a text: no word makes less than a token, so what is cut here would be cut as tokens anyway."""
    pieces = text.split(None, words)
    return text[: len(text) - len(pieces[-1])] if len(pieces) > words else text
