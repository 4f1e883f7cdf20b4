"""What a data set is to the rest of fedlora: texts or images, labels, and possibly who they belong to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedlora.config import DataConfig

Task = Literal["classification", "causal-lm"]


@dataclass(frozen=True, eq=False)
class Examples:
    """N examples, either texts or images.

    Attributes:
        texts: N strings, or None for images.
        images: uint8 [N, H, W] (grey) or [N, H, W, 3] (RGB), or None for texts.
        labels: int64 [N], positions in `DataSet.label_names`; all zero for causal language modelling.
        natural: str [N], the client each example belongs to by nature (author, domain, novel), or None.
    """

    texts: list[str] | None
    images: NDArray[np.uint8] | None
    labels: NDArray[np.int64]
    natural: NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        if (self.texts is None) == (self.images is None):
            raise ValueError("examples hold either texts or images")
        columns = (self.texts, self.images, self.natural)
        if any(column is not None and len(column) != len(self.labels) for column in columns):
            raise ValueError("texts, images, labels and natural must have the same length")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[Any] | list[int]) -> Examples:
        """Return the examples at `indices` (integers, or a mask of length N), in that order."""
        rows = np.arange(len(self))[np.asarray(indices, dtype=None if len(indices) else np.int64)]
        return Examples(
            texts=None if self.texts is None else [self.texts[row] for row in rows],
            images=None if self.images is None else self.images[rows],
            labels=self.labels[rows],
            natural=None if self.natural is None else self.natural[rows],
        )


@dataclass(frozen=True)
class DataSet:
    """Training examples, to be spread over clients, and the server's test examples.

    Attributes:
        name: What the run file calls it.
        task: "classification" or "causal-lm".
        label_names: By label; empty for causal language modelling.
    """

    name: str
    task: Task
    label_names: list[str]
    train: Examples
    test: Examples


@dataclass(frozen=True)
class Source:
    """What a reader returns: the data as published, before any split, shuffle or limit of the run.

    Attributes:
        test: The official test part, or None where there is none and `data.test_fraction` is to be held out.
    """

    task: Task
    label_names: list[str]
    train: Examples
    test: Examples | None = None


Reader = Callable[[DataConfig], Source]
