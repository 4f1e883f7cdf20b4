"""Splitting, cleaning, shuffling and limiting, on small files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedlora.config import DataConfig
from fedlora.data import Examples, load_data
from fedlora.errors import ConfigError, DataError, UnknownNameError


def _write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def sixty(tmp_path: Path) -> str:
    """Sixty texts in three classes of 30, 20 and 10."""
    labels = ["a"] * 30 + ["b"] * 20 + ["c"] * 10
    return _write(tmp_path / "sixty.jsonl", [{"text": f"text {n}", "label": label} for n, label in enumerate(labels)])


def _texts(examples: Examples) -> list[str]:
    assert examples.texts is not None
    return examples.texts


def test_a_fifth_of_each_class_is_held_out(sixty: str) -> None:
    data = load_data(DataConfig(name=sixty), seed=0)
    assert data.label_names == ["a", "b", "c"] and data.task == "classification"
    assert Counter(data.train.labels.tolist()) == {0: 24, 1: 16, 2: 8}
    assert Counter(data.test.labels.tolist()) == {0: 6, 1: 4, 2: 2}
    assert sorted(_texts(data.train) + _texts(data.test)) == sorted(f"text {n}" for n in range(60))
    for text, label in zip(_texts(data.train), data.train.labels, strict=True):
        assert data.label_names[label] == ("a" if int(text[5:]) < 30 else "b" if int(text[5:]) < 50 else "c")


def test_the_seed_decides_split_and_order(sixty: str) -> None:
    config = DataConfig(name=sixty)
    one, again, other = (load_data(config, seed) for seed in (1, 1, 2))
    assert _texts(one.train) == _texts(again.train) and _texts(one.test) == _texts(again.test)
    assert set(_texts(one.test)) != set(_texts(other.test))
    assert one.train.labels.tolist() != sorted(one.train.labels)


def test_limits_keep_a_growing_choice(sixty: str) -> None:
    whole = load_data(DataConfig(name=sixty), 3)
    small = load_data(DataConfig(name=sixty, max_examples=10, max_test_examples=4), 3)
    larger = load_data(DataConfig(name=sixty, max_examples=20), 3)
    assert (len(small.train), len(small.test), len(larger.train)) == (10, 4, 20)
    assert _texts(small.train) == _texts(larger.train)[:10] == _texts(whole.train)[:10]
    assert set(_texts(small.test)) <= set(_texts(whole.test))
    assert len(load_data(DataConfig(name=sixty, max_examples=10_000), 3).train) == len(whole.train)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_every_class_keeps_an_example_on_both_sides(sixty: str, fraction: float) -> None:
    data = load_data(DataConfig(name=sixty, test_fraction=fraction), 0)
    assert set(data.train.labels) == set(data.test.labels) == {0, 1, 2}


def test_single_examples_of_a_class_stay_in_training(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"t{n}", "label": "ab"[n == 0]} for n in range(10)]
    data = load_data(DataConfig(name=_write(tmp_path / "d.jsonl", rows)), 0)
    assert 1 in data.train.labels and 1 not in data.test.labels
    lone: list[dict[str, object]] = [{"text": f"t{n}", "label": f"l{n}"} for n in range(5)]
    with pytest.raises(DataError, match="every class has one example only"):
        load_data(DataConfig(name=_write(tmp_path / "e.jsonl", lone)), 0)


def test_training_texts_that_the_test_part_has_are_left_out(tmp_path: Path) -> None:
    train: list[dict[str, object]] = [{"text": f"t{n}", "label": n % 2} for n in range(10)]
    _write(tmp_path / "train.jsonl", train)
    _write(tmp_path / "test.jsonl", [{"text": "t3", "label": 1}, {"text": "t4", "label": 0}, {"text": "new", "label": 0}])
    data = load_data(DataConfig(name=str(tmp_path)), 0)
    assert sorted(_texts(data.train)) == ["t0", "t1", "t2", "t5", "t6", "t7", "t8", "t9"]
    assert sorted(_texts(data.test)) == ["new", "t3", "t4"]
    _write(tmp_path / "test.jsonl", train)
    with pytest.raises(DataError, match="every training text occurs in the test part too"):
        load_data(DataConfig(name=str(tmp_path)), 0)


def test_neither_a_name_nor_a_path() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown data set 'trec6'. Did you mean 'trec-6'\? There is no file or folder .*trec6 either"
    ):
        load_data(DataConfig(name="trec6"), 0)


def test_language_modelling_cuts_texts_and_needs_no_labels(tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(100)]
    rows: list[dict[str, object]] = [{"text": " ".join(words), "who": "ann"}, {"text": "a few words", "who": "bob"}]
    path = _write(tmp_path / "texts.jsonl", [*rows, *({"text": f"more {n}", "who": "ann"} for n in range(8))])
    data = load_data(DataConfig(name=path, natural_column="who", max_length=20), 0, task="causal-lm")
    assert data.task == "causal-lm" and data.label_names == [] and not data.train.labels.any()
    chunks = {text: who for part in (data.train, data.test) for text, who in zip(_texts(part), part.natural, strict=True)}  # type: ignore[arg-type]
    long = [text.split() for text in chunks if text.startswith("w")]
    # 100 words in runs of at most int(0.7 * 20) = 14: eight of nearly equal length, none lost, none in two.
    assert sorted(map(len, long)) == [12] * 4 + [13] * 4
    assert sorted(word for run in long for word in run) == sorted(words)
    assert all(run == words[words.index(run[0]) :][: len(run)] for run in long)
    assert chunks["a few words"] == "bob" and chunks[" ".join(words[:12])] == "ann"


def test_labels_become_clients_when_labelled_texts_are_modelled(sixty: str, tmp_path: Path) -> None:
    config = DataConfig(name=sixty)
    data = load_data(config, 0, task="causal-lm")
    assert data.task == "causal-lm" and len(data.train) + len(data.test) == 60
    only_text = _write(tmp_path / "plain.jsonl", [{"text": f"t{n}"} for n in range(10)])
    with pytest.raises(DataError, match="has no column 'label'"):
        load_data(DataConfig(name=only_text), 0)
    assert load_data(DataConfig(name=only_text), 0, task="causal-lm").train.natural is None


def test_examples_check_themselves() -> None:
    labels = np.zeros(2, dtype=np.int64)
    with pytest.raises(ValueError, match="either texts or images"):
        Examples(None, None, labels)
    with pytest.raises(ValueError, match="same length"):
        Examples(["a"], None, labels)
    examples = Examples(["a", "b", "c"], None, np.array([0, 1, 2]), np.array(["x", "y", "z"]))
    taken = examples.take([2, 0])
    assert taken.texts == ["c", "a"] and taken.labels.tolist() == [2, 0] and taken.natural is not None
    assert taken.natural.tolist() == ["z", "x"]
    assert examples.take(np.array([True, False, True])).texts == ["a", "c"]
    assert len(examples.take([])) == 0


def test_images_cannot_be_modelled_as_language(tmp_path: Path) -> None:
    import datasets

    images = [np.full((4, 4), n, dtype=np.uint8).tolist() for n in range(6)]
    datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 3}).save_to_disk(tmp_path / "pictures")
    with pytest.raises(ConfigError, match="needs texts"):
        load_data(DataConfig(name=str(tmp_path / "pictures")), 0, task="causal-lm")
