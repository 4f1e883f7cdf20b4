"""The user's own data: every kind of file, and every way it can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedlora.config import DataConfig
from fedlora.data import load_data
from fedlora.data.base import Source
from fedlora.data.files import read_files
from fedlora.errors import DataError

Rows = list[dict[str, Any]]

ROWS: Rows = [{"text": f"line {n}, with a comma", "label": ["cat", "dog"][n % 2], "who": f"u{n % 3}"} for n in range(12)]


def _csv(path: Path, rows: Rows) -> Path:
    path = path.with_suffix(".csv")
    lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path


def _tsv(path: Path, rows: Rows) -> Path:
    path = path.with_suffix(".tsv")
    path.write_text("\n".join(["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]))
    return path


def _jsonl(path: Path, rows: Rows) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def _parquet(path: Path, rows: Rows) -> Path:
    path = path.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def _saved(path: Path, rows: Rows) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(path / "saved")
    return path / "saved"


WRITERS: list[Callable[[Path, Rows], Path]] = [_csv, _tsv, _jsonl, _parquet, _saved]


def _read(path: Path, **changes: Any) -> Source:
    return read_files(path, DataConfig(name=str(path), **changes))


@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_of_file_gives_the_same(write: Callable[[Path, Rows], Path], tmp_path: Path) -> None:
    source = _read(write(tmp_path / "mine", ROWS), natural_column="who")
    assert source.task == "classification" and source.label_names == ["cat", "dog"] and source.test is None
    assert source.train.texts == [row["text"] for row in ROWS]
    assert source.train.labels.tolist() == [0, 1] * 6 and source.train.labels.dtype == np.int64
    assert source.train.natural is not None and source.train.natural.tolist() == [row["who"] for row in ROWS]


@pytest.mark.parametrize("write", WRITERS)
def test_integer_labels_keep_numeric_order(write: Callable[[Path, Rows], Path], tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": [10, 9, -1, 2][n % 4]} for n in range(8)]
    source = _read(write(tmp_path / "mine", rows))
    assert source.label_names == ["-1", "2", "9", "10"]
    assert source.train.labels.tolist() == [3, 2, 0, 1] * 2


def test_other_column_names_and_labels_of_other_types(tmp_path: Path) -> None:
    rows = [{"question": f"t{n}", "good": n % 2 == 0, "stars": float(n % 3)} for n in range(6)]
    path = _jsonl(tmp_path / "mine", rows)
    assert _read(path, text_column="question", label_column="good").label_names == ["False", "True"]
    assert _read(path, text_column="question", label_column="stars").label_names == ["0", "1", "2"]


@pytest.mark.parametrize("write", [_csv, _jsonl, _parquet])
def test_a_folder_of_train_and_test_files(write: Callable[[Path, Rows], Path], tmp_path: Path) -> None:
    write(tmp_path / "train", ROWS)
    write(tmp_path / "test", [{"text": "held out", "label": "dog"}])
    source = _read(tmp_path)
    assert source.test is not None and source.test.texts == ["held out"] and source.test.labels.tolist() == [1]
    data = load_data(DataConfig(name=str(tmp_path)), 0)
    assert (len(data.train), len(data.test)) == (12, 1)


def test_a_saved_dict_with_class_names(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["zebra", "ant"])})
    train = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]}, features=features)
    test = datasets.Dataset.from_dict({"text": ["d"], "label": [1]}, features=features)
    datasets.DatasetDict(train=train.with_format("numpy"), test=test).save_to_disk(tmp_path / "d")
    source = _read(tmp_path / "d")
    # The order of the classes is the data set's own.
    assert source.label_names == ["zebra", "ant"] and source.train.labels.tolist() == [0, 1, 0]
    assert source.test is not None and source.test.labels.tolist() == [1]
    datasets.DatasetDict(test=test).save_to_disk(tmp_path / "e")
    with pytest.raises(DataError, match=r"has no split 'train'\. Splits: test"):
        _read(tmp_path / "e")
    unlabelled = datasets.Dataset.from_dict({"text": ["d"], "label": [-1]}, features=features)
    datasets.DatasetDict(train=train, test=unlabelled).save_to_disk(tmp_path / "f")
    with pytest.raises(DataError, match=r"\(test\): row 1 has no label in column 'label'"):
        _read(tmp_path / "f")


@pytest.mark.parametrize("colour", [False, True])
def test_images_of_a_saved_data_set(colour: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (6, 5, 3) if colour and n % 2 else (6, 5), dtype=np.uint8) for n in range(4)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"image": [Image.fromarray(array) for array in arrays], "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "d")
    images = _read(tmp_path / "d").train.images
    assert images is not None and images.dtype == np.uint8 and images.shape == ((4, 6, 5, 3) if colour else (4, 6, 5))
    # Grey pictures become RGB only where others have colour.
    expected = [np.stack([array] * 3, -1) if colour and array.ndim == 2 else array for array in arrays]
    np.testing.assert_array_equal(images, np.stack(expected))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([np.zeros((4, 4), int), np.zeros((4, 5), int)], "image 2 is 4 x 5 pixels, the first is 4 x 4"),
        ([np.zeros((4, 4), int), np.full((4, 4), 256)], "image 2 is neither a picture nor an array"),
        ([np.zeros((4, 4), int), None], "image 2 is missing"),
    ],
)
def test_images_that_cannot_be_used(images: list[Any], message: str, tmp_path: Path) -> None:
    values = [image if image is None else image.tolist() for image in images]
    datasets.Dataset.from_dict({"image": values, "label": [0, 1]}).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match=message):
        _read(tmp_path / "d")


def _broken(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", "", "empty.csv holds no rows"),
        ("head.csv", "text,label\n", "head.csv holds no rows"),
        ("empty.jsonl", "\n", "empty.jsonl holds no rows"),
        (
            "a.csv",
            "tekst,label\na,1\n",
            r"a.csv has no column 'text'\. Did you mean 'tekst'\? Columns: tekst, label\. Set data\.text_column",
        ),
        ("a.csv", "text,y\na,1\n", r"a.csv has no column 'label'\. Columns: text, y\. Set data\.label_column"),
        (
            "a.csv",
            "text,label\na,1\nb,\nc,2\n",
            r"row 2 has no label in column 'label' \(rows count from 1, without the header\)",
        ),
        ("a.csv", "text,label\na,1\nb,  \n", "row 2 has no label"),
        ("a.csv", "text,label\na,1\n  ,2\n", "row 2 has no text in column 'text'"),
        ("a.csv", "text,label\na,1\nb,1\n", "every row has the label '1'; classification needs two classes"),
        ("a.csv", "text,label\none, two,1\n", r"row 1 has 3 fields, the header has 2\. Are commas quoted\?"),
        ("a.csv", 'text,label\n"never closed,1\n', "not a well-formed CSV file"),
        ("a.csv", b"text,label\ncaf\xe9,1\n", "a.csv is not UTF-8 text"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "row 2 has no label"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": ', "line 2 is not JSON"),
        ("a.jsonl", '["a", 1]\n', "line 1 is not an object"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": 5, "label": 2}\n', "row 2 of column 'text' holds int, not text"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": 0.5}\n', "row 2 has the label 0.5, which is neither"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": [1]}\n', r"row 2 has the label \[1\], which is neither"),
        ("a.jsonl", '{"text": "a", "label": NaN}\n{"text": "b", "label": 2}\n', "row 1 has no label"),
        ("a.parquet", "PAR1 but not really", "a.parquet is not a Parquet file"),
        ("a.xlsx", "PK", r"a.xlsx is of no known kind: data files end in \.csv, \.tsv, \.jsonl, \.parquet"),
    ],
)
def test_files_that_cannot_be_used(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        _read(_broken(tmp_path / name, content))


def test_a_column_of_clients_must_be_there_and_full(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "mine", [*ROWS, {"text": "x", "label": "cat", "who": None}])
    with pytest.raises(DataError, match=r"has no column 'whom'\. Did you mean 'who'\? .*Set data\.natural_column"):
        _read(path, natural_column="whom")
    with pytest.raises(DataError, match="row 13 has no client id in column 'who'"):
        _read(path, natural_column="who")


def test_a_test_label_that_training_never_sees(tmp_path: Path) -> None:
    _csv(tmp_path / "train", ROWS)
    _csv(tmp_path / "test", [{"text": "a", "label": "cat"}, {"text": "b", "label": "cow"}])
    with pytest.raises(DataError, match=r"test\.csv: row 2 has the label 'cow', which no training row has"):
        _read(tmp_path)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no data: expected train\.csv"):
        _read(tmp_path)
    _csv(tmp_path / "train", ROWS)
    _jsonl(tmp_path / "train", ROWS)
    with pytest.raises(DataError, match=r"holds train\.csv and train\.jsonl: keep one of them"):
        _read(tmp_path)
    saved = _saved(tmp_path / "s", ROWS)
    for file in saved.glob("*.arrow"):
        file.write_bytes(b"damaged")
    with pytest.raises(DataError, match="cannot be loaded as a datasets folder"):
        _read(saved)


def test_long_texts_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text(f'text,label\n"{"word " * 60_000}\n second line",1\n\nb,2\n')
    texts = _read(path).train.texts
    assert texts is not None and len(texts[0]) > 300_000 and texts[1] == "b"
