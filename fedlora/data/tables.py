"""Reading the user's files as tables of columns: CSV, TSV, JSON Lines, Parquet, and folders that `datasets` saved."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora.errors import DataError, suggest

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Table:
    """One split of the user's data.

    Attributes:
        where: What error messages call it.
        names: Its columns.
        rows: Number of rows.
        read: Returns the values of a column as a list.
        classes: Names behind integer labels, by column, where the file knows them.
    """

    where: str
    names: list[str]
    rows: int
    read: Callable[[str], list[Any]]
    classes: dict[str, list[str]]

    def column(self, name: str, key: str) -> list[Any]:
        """Return the values of column `name`, which the run file asked for under data.`key`."""
        if name not in self.names:
            columns = ", ".join(self.names)
            near = suggest(name, self.names)
            hint = f"{near} " if near.startswith("Did") else ""
            raise DataError(f"{self.where} has no column '{name}'. {hint}Columns: {columns}. Set data.{key}")
        return self.read(name)


def read_tables(path: Path) -> tuple[Table, Table | None]:
    """Return the training table at `path` and the test table where there is one.

    Args:
        path: A file; a folder with train.* and perhaps test.*; or a folder that `datasets` saved with `save_to_disk`.

    Raises:
        DataError: Not such a file or folder, or it cannot be read.
    """
    if path.is_file():
        return _file(path), None
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _saved(path)
    train = _split_file(path, "train")
    if train is None:
        raise DataError(
            f"the folder {path} holds no data: expected train.csv, train.tsv, train.jsonl or train.parquet (and test.*), "
            "or what datasets.Dataset.save_to_disk writes"
        )
    test = _split_file(path, "test")
    return _file(train), None if test is None else _file(test)


def _split_file(folder: Path, stem: str) -> Path | None:
    found = [folder / (stem + suffix) for suffix in SUFFIXES if (folder / (stem + suffix)).is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} holds {' and '.join(path.name for path in found)}: keep one of them")
    return found[0] if found else None


def _file(path: Path) -> Table:
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is of no known kind: data files end in {', '.join(SUFFIXES)}")
    try:
        table = reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not table.rows:
        raise DataError(f"{path} holds no rows")
    return table


def _table(path: Path, columns: dict[str, list[Any]], rows: int) -> Table:
    return Table(str(path), list(columns), rows, columns.__getitem__, {})


def _csv(path: Path) -> Table:
    # Python's limit of 131,072 characters a field is too short for some documents.
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            header = [name.strip() for name in next(lines, [])]
            rows = [row for row in lines if row]
    except csv.Error as error:
        raise DataError(f"{path} is not a well-formed CSV file: {error}") from None
    finally:
        csv.field_size_limit(limit)
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise DataError(f"{path}: row {number} has {len(row)} fields, the header has {len(header)}. Are commas quoted?")
    return _table(path, {name: [row[column] for row in rows] for column, name in enumerate(header)}, len(rows))


def _jsonl(path: Path) -> Table:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}: line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise DataError(f'{path}: line {number} is not an object; each line must look like {{"text": ..., "label": ...}}')
            rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return _table(path, {name: [row.get(name) for row in rows] for name in names}, len(rows))


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names: list[str] = list(file.schema_arrow.names)
    except pa.ArrowException as error:
        raise DataError(f"{path} is not a Parquet file: {error}") from None

    def read(name: str) -> list[Any]:
        try:
            values: list[Any] = pq.read_table(path, columns=[name])[name].to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: column '{name}' cannot be read: {error}") from None
        return values

    return Table(str(path), names, file.metadata.num_rows, read, {})


def _saved(path: Path) -> tuple[Table, Table | None]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever a damaged folder makes of it
        raise DataError(f"{path} cannot be loaded as a datasets folder: {type(error).__name__}: {error}") from None
    if not isinstance(loaded, datasets.DatasetDict):
        return _from_dataset(loaded, str(path)), None
    if "train" not in loaded:
        raise DataError(f"{path} has no split 'train'. Splits: {', '.join(loaded)}")
    test = _from_dataset(loaded["test"], f"{path} (test)") if "test" in loaded else None
    return _from_dataset(loaded["train"], f"{path} (train)"), test


def _from_dataset(data: Any, where: str) -> Table:
    import datasets

    if not data.num_rows:
        raise DataError(f"{where} holds no rows")
    classes = {name: list(feature.names) for name, feature in data.features.items() if isinstance(feature, datasets.ClassLabel)}
    # Whatever format the user left it in, columns come as plain Python values and decoded images.
    plain = data.with_format(None)

    def read(name: str) -> list[Any]:
        return list(plain[name])

    return Table(where, list(data.column_names), data.num_rows, read, classes)
