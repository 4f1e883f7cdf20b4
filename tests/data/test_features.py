"""Linguistic features: by hand, against scipy, and on real questions, where each of them varies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fedlora.config import DataConfig, ModelConfig
from fedlora.data.encode import encode_texts
from fedlora.data.features import Corpus, read_corpus, text_features
from tiny import tiny_tokenizer

WORD_PIECES = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "un": 4, "##do": 5, "it": 6, "##s": 7, "?": 8}


def word_piece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(WORD_PIECES, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def corpus_of(texts: list[str], tokenizer: PreTrainedTokenizerFast, length: int = 64) -> Corpus:
    return read_corpus(encode_texts(texts, tokenizer, length), texts, tokenizer)


def test_by_hand() -> None:
    """Words w0 w0 w1 w2: shares 1/2, 1/4, 1/4 carry 1.5 bits out of log2(3); each token's surprisal is that of its share."""
    corpus = corpus_of(["w0 w0", "w1 w2"], tiny_tokenizer())
    both, first, second = text_features(corpus, [np.array([0, 1]), np.array([0]), np.array([1])])
    assert both == pytest.approx([1.5 / np.log2(3), 1.5 / 2, 0.0])
    assert first == pytest.approx([0.0, 1 / 2, 0.0])  # one token again and again; one bit each, the rarest has two
    assert second == pytest.approx([1.0, 1.0, 0.0])


def test_split_words_are_counted_in_words() -> None:
    corpus = corpus_of(["undo it", "its?", "undo undo what"], word_piece())
    assert corpus.words.tolist() == [2, 2, 3] and corpus.split.tolist() == [1, 1, 2]
    features = text_features(corpus, [np.array([0]), np.array([2]), np.array([0, 1, 2])])
    assert features[:, 2] == pytest.approx([1 / 2, 2 / 3, 4 / 7])


def test_special_tokens_do_not_count_and_unknown_ones_do() -> None:
    corpus = corpus_of(["w1 nobody", "w1 w1"], tiny_tokenizer())
    assert corpus.content.lengths.tolist() == [2, 2]
    unknown = corpus.content.rows([0])[0][1]
    assert corpus.surprisal[unknown] == pytest.approx(2.0)  # one of four
    assert corpus.surprisal[2] == corpus.surprisal[3] == 0.0  # [CLS], [SEP]
    assert text_features(corpus, [np.array([0])])[0, 0] == pytest.approx(1.0)


def test_entropy_is_scipys() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in rng.integers(0, 40, rng.integers(1, 20))) for _ in range(50)]
    corpus = corpus_of(texts, tiny_tokenizer())
    rows = rng.choice(50, 12, replace=False)
    words = " ".join(texts[row] for row in rows).split()
    counts = np.unique(words, return_counts=True)[1]
    everything, number = np.unique(" ".join(texts).split(), return_counts=True)
    bits = dict(zip(everything, -np.log2(number / number.sum()), strict=True))
    found = text_features(corpus, [rows])[0]
    assert found[0] == pytest.approx(entropy(counts, base=2) / np.log2(len(counts)))
    assert found[1] == pytest.approx(np.mean([bits[word] for word in words]) / max(bits.values()))


def test_texts_are_cut_where_the_tokens_were() -> None:
    corpus = corpus_of(["undo undo undo undo", "it"], word_piece(), length=6)  # [CLS], 4 tokens, [SEP]
    assert corpus.content.lengths.tolist() == [4, 1] and corpus.words.tolist() == [2, 1]


def test_nothing_has_no_features() -> None:
    corpus = corpus_of(["w1 w2"], tiny_tokenizer())
    assert text_features(corpus, [np.zeros(0, np.int64)]).tolist() == [[0.0, 0.0, 0.0]]
    assert text_features(corpus, []).shape == (0, 3)


@pytest.mark.assets
def test_on_questions_every_feature_varies() -> None:
    from fedlora.data.load import load_data
    from fedlora.models import load_model

    dataset = load_data(DataConfig(name="trec-6"), 0)
    tokenizer = load_model(ModelConfig(name="minilm-l6"), "text", dataset.task, dataset.label_names).tokenizer
    texts = dataset.train.texts
    assert texts is not None
    corpus = read_corpus(encode_texts(texts, tokenizer, 64), texts, tokenizer)
    rng = np.random.default_rng(0)
    features = text_features(corpus, [rng.choice(len(texts), 80, replace=False) for _ in range(100)])
    assert (features > 0).all() and (features < 1).all()
    assert (features.std(axis=0) > 0.003).all()
