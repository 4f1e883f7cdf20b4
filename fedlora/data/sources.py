"""The packaged data sets: one small reader each, and the registry that other packages may add to.

A reader is a function `(DataConfig) -> Source`. It decodes and cleans; splitting, shuffling and limits are common to all
(see `fedlora.data.load`). Readers of sets without an official test part return each text once.
"""

from __future__ import annotations

import csv
import gzip
import html
import re
import warnings
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.assets import asset_path
from fedlora.config import DataConfig
from fedlora.data.base import Examples, Reader, Source
from fedlora.errors import DataError
from fedlora.registry import Registry

DATA: Registry[Reader] = Registry("data set", "fedlora.data")

# Domain, file and what its texts are; ratings are means of 20 people in [-4, 4].
_VADER = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}
_NEUTRAL = 0.5

_CLOTHING = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]

_NOVELS = {
    "emma": "Emma",
    "mansfieldpark": "Mansfield Park",
    "northangerabbey": "Northanger Abbey",
    "persuasion": "Persuasion",
    "prideprejudice": "Pride and Prejudice",
    "sensesensibility": "Sense and Sensibility",
}


def _trec(config: DataConfig, *, fine: bool) -> Source:
    """TREC questions: the file repeats its smaller editions, and one question carries two fine types (the first counts)."""
    lines = (asset_path("trec-50" if fine else "trec-6") / "question_labels.txt").read_text(encoding="utf-8").split("\n")
    rows = [line.partition(" ") for line in lines if line.strip()]
    types = [name if fine else name.partition(":")[0] for name, _, _ in rows]
    return _classification([text.strip() for _, _, text in rows], types)


def _vader(config: DataConfig, *, domains: Sequence[str]) -> Source:
    """VADER sentiment: the sign of the mean rating; near-neutral texts are left out."""
    folder = asset_path("vader")
    texts: list[str] = []
    labels: list[str] = []
    origins: list[str] = []
    for domain in domains:
        lines = (folder / _VADER[domain]).read_text(encoding="utf-8").split("\n")[1:]
        for line in lines:
            _, rating, text = line.split("\t")
            if abs(float(rating)) >= _NEUTRAL:
                texts.append(_plain(text))
                labels.append("positive" if float(rating) > 0 else "negative")
                origins.append(domain)
    return _classification(texts, labels, natural=origins if len(domains) > 1 else None)


def _sms(config: DataConfig) -> Source:
    """SMS spam: stray quotes made eight rows of the file swallow 737 messages, each still behind its own label."""
    with (asset_path("sms-spam") / "sms-spam.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    texts, labels = [], []
    for _, spam, text in rows:
        pieces = ["spam" if spam == "1" else "ham", *re.split(r"\r?\n(ham|spam)\t", text)]
        labels += pieces[::2]
        texts += [_plain(piece) for piece in pieces[1::2]]
    return _classification(texts, labels)


def _tab(config: DataConfig, *, asset: str, stem: str) -> Source:
    """Orange's tab files (20 Newsgroups, Reuters): three header lines; Reuters R52 has a blank row."""
    parts = []
    for part in ("train", "test"):
        lines = (asset_path(asset) / f"{stem}-{part}.tab").read_text(encoding="utf-8").split("\n")[3:]
        rows = [line.split("\t") for line in lines if line.strip()]
        parts.append(([text.strip() for _, text in rows], [topic for topic, _ in rows]))
    (train_texts, train_topics), (test_texts, test_topics) = parts
    names = sorted(set(train_topics))
    train = Examples(train_texts, None, _codes(train_topics, names))
    return Source("classification", names, train, Examples(test_texts, None, _codes(test_topics, names)))


def _fashion_mnist(config: DataConfig) -> Source:
    folder = asset_path("fashion-mnist")
    parts = [
        Examples(
            None, _idx(folder / f"{part}-images-idx3-ubyte.gz"), _idx(folder / f"{part}-labels-idx1-ubyte.gz").astype(np.int64)
        )
        for part in ("train", "t10k")
    ]
    return Source("classification", list(_CLOTHING), *parts)


def _austen(config: DataConfig) -> Source:
    """Six novels, each one text; the last `test_fraction` of the words of each is the test part."""
    train, test = [], []
    novels = _lazy_r_data(asset_path("austen") / "Rdata")
    for name in _NOVELS:
        words = " ".join(novels[name]).split()
        cut = max(1, round(len(words) * (1 - config.test_fraction)))
        train.append(" ".join(words[:cut]))
        test.append(" ".join(words[cut:]))
    labels, titles = np.zeros(len(_NOVELS), np.int64), np.array(list(_NOVELS.values()))
    return Source("causal-lm", [], Examples(train, None, labels, titles), Examples(test, None, labels, titles))


def _classification(texts: list[str], labels: list[str], natural: list[str] | None = None) -> Source:
    """Return a source of unique texts (the first of equal ones is kept) with the label names sorted."""
    first = {text: row for row, text in reversed(list(enumerate(texts)))}
    rows = sorted(first.values())
    names = sorted(set(labels))
    examples = Examples(texts, None, _codes(labels, names), None if natural is None else np.array(natural))
    return Source("classification", names, examples.take(rows))


def _plain(text: str) -> str:
    """Undo HTML escapes; some files carry them twice ("&amp;amp;")."""
    return html.unescape(html.unescape(text)).strip()


def _codes(labels: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    code = {name: position for position, name in enumerate(names)}
    return np.array([code[label] for label in labels], dtype=np.int64)


def _idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes: two zero bytes, type 8, number of axes, their big-endian lengths, then the data."""
    raw = gzip.decompress(path.read_bytes())
    axes = raw[3]
    shape = np.frombuffer(raw, ">u4", axes, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _lazy_r_data(stem: Path) -> dict[str, list[str]]:
    """Read R's lazy-load database of character vectors: an index (.rdx) of offsets and lengths into compressed blocks (.rdb)."""
    try:
        import rdata
    except ImportError:
        raise DataError(
            "the data set 'austen' is stored by R and needs the package rdata: pip install 'fedlora[assets]'"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rdata remarks that the file type is not named in the file

        def read(raw: bytes) -> Any:
            return rdata.conversion.convert(rdata.parser.parse_data(raw))

        index = read(gzip.decompress(stem.with_suffix(".rdx").read_bytes()))
        blocks = stem.with_suffix(".rdb").read_bytes()
        found = {}
        for name, (start, length) in index["variables"].items():
            # The first four bytes of a block are its unpacked length.
            found[str(name)] = [str(line) for line in read(zlib.decompress(blocks[start + 4 : start + length]))]
    return found


DATA.add("trec-6", partial(_trec, fine=False), "question type, 6 classes")
DATA.add("trec-50", partial(_trec, fine=True), "question type, 50 classes")
DATA.add("20newsgroups", partial(_tab, asset="20newsgroups", stem="20newsgroups"), "topic of a newsgroup post, 20 classes")
DATA.add("r8", partial(_tab, asset="r8", stem="reuters-r8"), "topic of a Reuters news item, 8 skewed classes")
DATA.add("r52", partial(_tab, asset="r52", stem="reuters-r52"), "topic of a Reuters news item, 52 skewed classes")
DATA.add("vader", partial(_vader, domains=tuple(_VADER)), "sentiment, 2 classes; natural clients: 4 domains")
for _domain in _VADER:
    DATA.add(f"vader-{_domain}", partial(_vader, domains=(_domain,)), f"sentiment of the domain {_domain}, 2 classes")
DATA.add("sms-spam", _sms, "spam among text messages, 2 skewed classes")
DATA.add("fashion-mnist", _fashion_mnist, "kind of clothing, 10 classes, grey images of 28 x 28")
DATA.add("austen", _austen, "causal language modelling; natural clients: 6 novels of Jane Austen")
