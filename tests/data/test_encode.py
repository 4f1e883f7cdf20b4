"""Tokenising once and padding per batch, against the tokenizer's own."""

from __future__ import annotations

import numpy as np
import pytest

from fedlora.data.encode import Encoded, encode_texts
from fedlora.errors import DataError
from tiny import tiny_tokenizer


def _texts(count: int, longest: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(f"w{word}" for word in rng.integers(0, 120, rng.integers(1, longest))) for _ in range(count)]


@pytest.mark.parametrize("pairs", [True, False])
def test_equals_the_tokenizer_with_padding_and_truncation(pairs: bool) -> None:
    tokenizer, texts = tiny_tokenizer(pairs), _texts(300, 30)
    encoded = encode_texts(texts, tokenizer, max_length=12)
    assert len(encoded) == 300 and encoded.tokens.dtype == np.int32 and encoded.offsets.dtype == np.int64
    tokenizer.pad_token = tokenizer.pad_token or "[PAD]"
    rows = np.array([7, 3, 299, 3])
    expected = tokenizer([texts[row] for row in rows], truncation=True, max_length=12, padding=True, return_tensors="np")
    ids, mask = encoded.padded(rows, pad_id=0)
    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["attention_mask"])
    assert ids.dtype == mask.dtype == np.int64
    whole = tokenizer(texts, truncation=True, max_length=12)["input_ids"]
    assert encoded.lengths.tolist() == [len(row) for row in whole] and max(encoded.lengths) == 12
    assert [row.tolist() for row in encoded.rows([0, 5])] == [whole[0], whole[5]]


def test_width_is_rounded_up() -> None:
    encoded = Encoded(np.arange(1, 9, dtype=np.int32), np.array([0, 3, 8]))
    ids, mask = encoded.padded([0, 1], pad_id=-1, multiple=4)
    assert ids.tolist() == [[1, 2, 3, -1, -1, -1, -1, -1], [4, 5, 6, 7, 8, -1, -1, -1]]
    assert mask.sum(axis=1).tolist() == [3, 5]
    assert encoded.padded([0], pad_id=-1)[0].tolist() == [[1, 2, 3]]
    assert encoded.padded([0], pad_id=-1, multiple=3)[0].shape == (1, 3)


def test_truncation_on_the_left_keeps_the_end() -> None:
    tokenizer = tiny_tokenizer(pairs=False)
    tokenizer.truncation_side = "left"
    text = " ".join(f"w{n}" for n in range(40))
    encoded = encode_texts([text], tokenizer, max_length=5)
    assert encoded.rows([0])[0].tolist() == tokenizer([" ".join(f"w{n}" for n in range(35, 40))])["input_ids"][0]


def test_no_texts_and_no_tokens() -> None:
    tokenizer = tiny_tokenizer(pairs=False)
    empty = encode_texts([], tokenizer, max_length=8)
    assert len(empty) == 0 and empty.lengths.tolist() == [] and empty.padded([], 0)[0].shape == (0, 1)
    with pytest.raises(DataError, match=r"example 1 \('  '\) has no tokens"):
        encode_texts(["w1", "  "], tokenizer, max_length=8)
