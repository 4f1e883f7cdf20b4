"""A node that trains on its own file: all of it is this client's part, under the names that the run gives its labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedlora.config import RunConfig
from fedlora.data.base import DataSet, Examples, Task
from fedlora.data.files import labels_of, read_files
from fedlora.data.load import for_language_modelling, load_data
from fedlora.data.partition import split_client
from fedlora.data.tables import read_tables
from fedlora.errors import DataError, FedLoRAError
from fedlora.federation.workbench import Workbench, assemble, check_combination

_FEWEST = 2  # one to train on and one to hold out


def own_workbench(config: RunConfig, path: Path, client: int, labels: list[str] | None) -> Workbench:
    """Return the workbench of a client whose examples are its own; it knows no other client's, and no test set.

    Args:
        config: The run's configuration; the columns it names are looked for in the file.
        path: The node's file or folder, as `data.name` takes them.
        client: This client's number.
        labels: The run's label names, as the server told them; None reads them from the run's data set, which must then be here.

    Raises:
        DataError: The file cannot be used, or has a label that the run does not know.
        FedLoRAError: Whatever else of the run cannot work here.
    """
    check_combination(config)
    names = _run_labels(config) if labels is None else labels
    own = read_own(path, config, names)
    task: Task = "classification" if names else "causal-lm"
    mine, rest = split_client(np.arange(len(own), dtype=np.int64), config.data.client_test_fraction, config.seed, client)
    parts, held = ([np.zeros(0, np.int64) for _ in range(config.clients)] for _ in range(2))
    parts[client], held[client] = mine, rest
    return assemble(config, DataSet(str(path), task, names, own, own.take([0])), parts, held, 1)


def read_own(path: Path, config: RunConfig, names: list[str]) -> Examples:
    """Return a node's own examples, labels as positions in `names` (empty: causal language modelling).

    A file of one label alone is welcome: what a device sees is often of one kind.

    Raises:
        DataError: The file cannot be used, or has a label that is not among `names`.
    """
    if not path.exists():
        raise DataError(f"there is no file or folder {path} to train on. Check --data")
    examples = read_files(path, config.data, labelled=False).train
    if len(examples) < _FEWEST:
        raise DataError(f"{path} has {len(examples)} examples; a client needs {_FEWEST}, one of them to measure on")
    if not names:
        return for_language_modelling(examples, [], config.data.max_length)
    column = config.data.label_column
    code = {name: position for position, name in enumerate(names)}
    found = [str(label) for label in labels_of(read_tables(path)[0], column)]
    for row, label in enumerate(found, 1):
        if label not in code:
            known = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise DataError(
                f"{path}: row {row} has the label '{label}' in column '{column}', which the run does not know "
                f"(rows count from 1, without the header). Its labels: {known}"
            )
    return Examples(examples.texts, examples.images, np.array([code[label] for label in found], np.int64))


def _run_labels(config: RunConfig) -> list[str]:
    """Return the label names of the run's own data set."""
    try:
        return load_data(config.data, config.seed, config.model.task).label_names
    except FedLoRAError as error:
        raise DataError(
            f"the run's labels are not known here: the server does not tell them, and its data set cannot be read: {error}"
        ) from None
