"""The user's own data: which columns are texts, images, labels and client ids, and whether they can be used."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.config import DataConfig
from fedlora.data.base import Examples, Source
from fedlora.data.tables import Table, read_tables
from fedlora.errors import DataError

_COUNTED = "(rows count from 1, without the header)"


def read_files(path: Path, config: DataConfig, labelled: bool = True) -> Source:
    """Read the user's data at `path` (see `fedlora.data.tables.read_tables` for what it may be).

    Texts are taken where the table has the text column, else images. Labels may be strings or integers; label names come
    sorted, integers by value.

    Args:
        path: An existing file or folder.
        config: Names the columns.
        labelled: Whether labels are wanted; without them the task is causal language modelling.

    Raises:
        DataError: A column is missing, a row has no text or label, there is only one class, or the test part has a label
            that training never sees.
    """
    tables = [table for table in read_tables(path) if table is not None]
    contents = [(*_content(table, config), _natural(table, config)) for table in tables]
    names: list[str] = []
    labels = [np.zeros(table.rows, dtype=np.int64) for table in tables]
    if labelled:
        names, labels = _encode_labels(tables, config.label_column)
    parts = [Examples(texts, images, codes, who) for (texts, images, who), codes in zip(contents, labels, strict=True)]
    return Source("classification" if labelled else "causal-lm", names, *parts)


def _encode_labels(tables: list[Table], column: str) -> tuple[list[str], list[NDArray[np.int64]]]:
    """Return the label names of the first table, and every table's labels as positions in them."""
    values = [labels_of(table, column) for table in tables]
    names = _label_names(tables[0], column, values[0])
    code = {name: position for position, name in enumerate(names)}
    for table, found in zip(tables, values, strict=True):
        for row, value in enumerate(found, 1):
            if value not in code:
                raise DataError(f"{table.where}: row {row} has the label '{value}', which no training row has {_COUNTED}")
    return [str(name) for name in names], [np.array([code[value] for value in found], dtype=np.int64) for found in values]


def _content(table: Table, config: DataConfig) -> tuple[list[str] | None, NDArray[np.uint8] | None]:
    if config.text_column not in table.names and config.image_column in table.names:
        return None, _images(table, config.image_column)
    values = table.column(config.text_column, "text_column")
    for row, value in enumerate(values, 1):
        if _missing(value):
            raise DataError(f"{table.where}: row {row} has no text in column '{config.text_column}' {_COUNTED}")
        if not isinstance(value, str):
            raise DataError(
                f"{table.where}: row {row} of column '{config.text_column}' holds {type(value).__name__}, not text {_COUNTED}. "
                "Set data.text_column"
            )
    return values, None


def _natural(table: Table, config: DataConfig) -> NDArray[np.str_] | None:
    if config.natural_column is None:
        return None
    values = table.column(config.natural_column, "natural_column")
    for row, value in enumerate(values, 1):
        if _missing(value):
            raise DataError(f"{table.where}: row {row} has no client id in column '{config.natural_column}' {_COUNTED}")
    return np.array([str(value) for value in values])


def labels_of(table: Table, column: str) -> list[str] | list[int]:
    """Return one label per row: all integers, or all strings."""
    values = table.column(column, "label_column")
    classes = table.classes.get(column)
    found = []
    for row, value in enumerate(values, 1):
        # Unlabelled test sets of the hub carry -1 where a class number belongs.
        if _missing(value) or (classes is not None and value == -1):
            raise DataError(f"{table.where}: row {row} has no label in column '{column}' {_COUNTED}")
        found.append(_label(table, row, value, classes))
    if all(isinstance(label, int) or re.fullmatch(r"[+-]?\d+", label) for label in found):
        return [int(label) for label in found]
    return [str(label) for label in found]


def _label(table: Table, row: int, value: Any, classes: list[str] | None) -> str | int:
    if classes is not None:
        return classes[int(value)]
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise DataError(f"{table.where}: row {row} has the label {value!r}, which is neither a name nor a whole number {_COUNTED}")


def _label_names(table: Table, column: str, values: list[str] | list[int]) -> list[Any]:
    names: list[Any] = sorted(set(values))
    if len(names) < 2:
        raise DataError(f"{table.where}: every row has the label '{names[0]}'; classification needs two classes or more")
    if column in table.classes and isinstance(values[0], str):
        return [name for name in table.classes[column] if name in set(values)]
    return names


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value)) or (isinstance(value, str) and not value.strip())


def _images(table: Table, column: str) -> NDArray[np.uint8]:
    """Return uint8 [N, H, W] if all images are grey, else [N, H, W, 3]."""
    arrays = [_image(table, row, value) for row, value in enumerate(table.column(column, "image_column"), 1)]
    height, width = arrays[0].shape[:2]
    for row, array in enumerate(arrays, 1):
        if array.shape[:2] != (height, width):
            raise DataError(
                f"{table.where}: image {row} is {array.shape[0]} x {array.shape[1]} pixels, the first is {height} x {width}. "
                "Resize all to one size"
            )
    if any(array.ndim != arrays[0].ndim for array in arrays):
        arrays = [array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2) for array in arrays]
    return np.stack(arrays)


def _image(table: Table, row: int, value: Any) -> NDArray[np.uint8]:
    """Return one image as uint8 [H, W] or [H, W, 3]: a decoded picture, the bytes of one, or an array of 0..255."""
    from PIL import Image

    where = f"{table.where}: image {row}"
    if _missing(value):
        raise DataError(f"{where} is missing")
    if isinstance(value, dict) and value.get("bytes"):
        value = value["bytes"]
    if isinstance(value, bytes):
        try:
            value = Image.open(io.BytesIO(value))
        except OSError as error:
            raise DataError(f"{where} cannot be decoded: {error}") from None
    if isinstance(value, Image.Image):
        return np.asarray(value.convert("L" if value.mode in ("1", "L", "LA") else "RGB"))
    try:
        array = np.asarray(value)
        fits = array.dtype.kind in "ui" and array.min() >= 0 and array.max() <= 255
    except ValueError:
        fits = False
    if not fits or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise DataError(
            f"{where} is neither a picture nor an array [height, width] or [height, width, 3] of whole numbers 0 to 255"
        )
    return array.astype(np.uint8)
