"""From the name in a run file to a data set ready for partitioning: split, clean of leaks, shuffled, limited."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedlora.config import DataConfig
from fedlora.data import files
from fedlora.data.base import DataSet, Examples, Source
from fedlora.data.sources import DATA
from fedlora.data.tables import SUFFIXES
from fedlora.errors import ConfigError, DataError, UnknownNameError

# Words per token of English prose, with room to spare, so that a chunk of words seldom exceeds the block length.
_WORDS_PER_TOKEN = 0.7

_log = logging.getLogger(__name__)


def load_data(config: DataConfig, seed: int, task: Literal["auto", "classification", "causal-lm"] = "auto") -> DataSet:
    """Return the data set that `config.name` stands for: a registered name, or the path of the user's own data.

    Both parts come shuffled by `seed`. Where there is no test part, `test_fraction` of each class is held out. Training
    texts that also occur in the test part are left out. For causal language modelling long texts become several examples
    of consecutive words.

    Args:
        config: The run file's `data` section.
        seed: The run's seed; it decides split, order and which examples `max_examples` keeps (a larger limit keeps more
            of the same).
        task: What the model is to do; "auto" follows the data set. "causal-lm" on labelled data drops the labels, which
            then serve as natural client ids if there are no others.

    Raises:
        UnknownNameError: Neither a registered name nor an existing path.
        DataError: The data cannot be used, or a path leads nowhere; says where and why.
        AssetError: A packaged set cannot be fetched.
    """
    from fedlora.streams import stream

    source = _source(config, task)
    if not source.label_names and task == "classification":
        raise ConfigError(f'{config.name} has no labels to classify; set model.task = "causal-lm" or name another data set')
    train, test = source.train, source.test
    if test is None:
        train, test = _hold_out(train, config.test_fraction, stream(seed, "test split"))
    train = _without(train, test, config.name)
    names: list[str] = [] if task == "causal-lm" else source.label_names
    if not names:
        train, test = (for_language_modelling(part, source.label_names, config.max_length) for part in (train, test))
    train = train.take(stream(seed, "training examples").permutation(len(train))[: config.max_examples])
    test = test.take(stream(seed, "test examples").permutation(len(test))[: config.max_test_examples])
    return DataSet(config.name, "classification" if names else "causal-lm", names, train, test)


def _source(config: DataConfig, task: str) -> Source:
    if config.name in DATA.names():
        return DATA.get(config.name)(config)
    path = Path(config.name).expanduser()
    if path.exists():
        return files.read_files(path, config, labelled=task != "causal-lm")
    if config.name.startswith((".", "~")) or "/" in config.name or "\\" in config.name or path.suffix.lower() in SUFFIXES:
        raise DataError(f"there is no data file or folder {path.absolute()}. Check data.name, or give the name of a data set")
    error = UnknownNameError("data set", config.name, DATA.names())
    error.args = (f"{error} There is no file or folder {path.absolute()} either",)
    raise error


def _hold_out(examples: Examples, fraction: float, rng: np.random.Generator) -> tuple[Examples, Examples]:
    """Split off `fraction` of each class, at least one of every class with two examples; single ones stay in training."""
    if len(examples) < 2:
        raise DataError("the data set has fewer than 2 examples: none can be held out for testing")
    held = np.zeros(len(examples), dtype=bool)
    for label in np.unique(examples.labels):
        rows = rng.permutation(np.flatnonzero(examples.labels == label))
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        held[rows[:count]] = True
    if not held.any():
        raise DataError("every class has one example only: none can be held out for testing. Give a test file or more examples")
    return examples.take(~held), examples.take(held)


def _without(train: Examples, test: Examples, name: str) -> Examples:
    """Return `train` without the texts that `test` holds too."""
    if train.texts is None or test.texts is None:
        return train
    seen = set(test.texts)
    fresh = np.array([text not in seen for text in train.texts], dtype=bool)
    if not fresh.any():
        raise DataError(f"{name}: every training text occurs in the test part too, so nothing is left to train on")
    if not fresh.all():
        _log.info("%s: left out %d training texts that occur in the test part", name, int((~fresh).sum()))
    return train.take(fresh)


def for_language_modelling(examples: Examples, label_names: list[str], max_length: int) -> Examples:
    """Cut texts into runs of consecutive words of about equal length that fit `max_length` tokens, most of the time."""
    if examples.texts is None:
        raise ConfigError("causal language modelling needs texts; this data set holds images")
    longest = max(1, int(_WORDS_PER_TOKEN * max_length))
    natural = examples.natural
    if natural is None and label_names:
        natural = np.array(label_names)[examples.labels]
    chunks: list[str] = []
    origin: list[int] = []
    for row, text in enumerate(examples.texts):
        words = text.split()
        bounds = np.linspace(0, len(words), -(-len(words) // longest) + 1).astype(int)
        chunks += [" ".join(words[start:stop]) for start, stop in pairwise(bounds)]
        origin += [row] * (len(bounds) - 1)
    labels: NDArray[np.int64] = np.zeros(len(chunks), dtype=np.int64)
    return Examples(chunks, None, labels, None if natural is None else natural[origin])
