"""What a set of texts is like in three numbers: token entropy, unigram surprisal, share of words that the tokenizer splits.

These are the linguistic features that rank policies see (AirLLM, arXiv 2507.11515, has the first; its rate of unknown tokens is
zero for every tokenizer, because the unknown token is removed as a special one before it is counted). Here a token counts if it
stands for a part of the text: [CLS], [SEP] and padding do not, the unknown token does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.data.encode import Encoded

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Corpus:
    """N texts as the features need them.

    Attributes:
        content: Their tokens without special ones.
        words: Words of each text, int64 [N].
        split: Words of each text that the tokenizer makes two or more tokens of, int64 [N].
        surprisal: -log2 of each token's share of the corpus (0 where it does not occur), float64 [vocabulary].
    """

    content: Encoded
    words: NDArray[np.int64]
    split: NDArray[np.int64]
    surprisal: Floats


def read_corpus(encoded: Encoded, texts: Sequence[str], tokenizer: Any) -> Corpus:
    """Return what the features need to know of N texts.

    Args:
        encoded: Their tokens.
        texts: The texts, for where words begin and end.
        tokenizer: The fast Hugging Face tokenizer that `encoded` comes from.
    """
    special = np.array([token for token in tokenizer.all_special_ids if token != tokenizer.unk_token_id], np.int64)
    keep = ~np.isin(encoded.tokens, special)
    kept = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep)])
    content = Encoded(encoded.tokens[keep], kept[encoded.offsets])
    counts = np.bincount(content.tokens)
    shares = counts / max(int(counts.sum()), 1)
    surprisal = -np.log2(shares, where=counts > 0, out=np.zeros(len(counts)))
    limit = int(encoded.lengths.max(initial=1))
    sizes = [_word_sizes(encoding) for encoding in tokenizer(list(texts), truncation=True, max_length=limit).encodings or []]
    words = np.array([len(own) for own in sizes], np.int64)
    return Corpus(content, words, np.array([int((own > 1).sum()) for own in sizes], np.int64), surprisal)


def text_features(corpus: Corpus, sets: Sequence[NDArray[np.int64]]) -> Floats:
    """Return the features of sets of texts, `[sets, 3]`, each in 0..1.

    * token entropy: of the set's own tokens, over log2 of how many different ones it has (1: all equally frequent);
    * unigram surprisal: mean of -log2 of the tokens' shares of the corpus, over that of its rarest token;
    * split words: share of the set's words that become two or more tokens.

    Args:
        corpus: Where the texts are.
        sets: Positions of the texts of each set.
    """
    return np.array([_features(corpus, rows) for rows in sets]).reshape(len(sets), 3)


def _features(corpus: Corpus, rows: NDArray[np.int64]) -> tuple[float, float, float]:
    tokens = np.concatenate([np.zeros(0, np.int32), *corpus.content.rows(rows)])
    words = int(corpus.words[rows].sum())
    split = int(corpus.split[rows].sum()) / words if words else 0.0
    if not len(tokens):
        return 0.0, 0.0, split
    counts = np.unique(tokens, return_counts=True)[1]
    shares = counts / len(tokens)
    entropy = float(-(shares * np.log2(shares)).sum()) / max(np.log2(len(counts)), 1.0)
    surprisal = float(corpus.surprisal[tokens].mean()) / (float(corpus.surprisal.max()) or 1.0)
    return min(entropy, 1.0), surprisal, split


def _word_sizes(encoding: Any) -> NDArray[np.int64]:
    """Return how many tokens each word of one text became."""
    numbers = np.array([word for word in encoding.word_ids if word is not None], np.int64)
    return np.unique(numbers, return_counts=True)[1]
