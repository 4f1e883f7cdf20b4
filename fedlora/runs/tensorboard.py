"""The numbers of a run as TensorBoard events, in one file that is a log of the run like the others.

TensorBoard's own writer hands events to a thread, starts another file for every process and keeps what a killed process wrote.
Here events are appended when the round ends, and cut back with the other logs when a run is resumed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedlora.files import disk_errors
from fedlora.runs.fields import TEXTS


class Events:
    """Writes scalars per round, a histogram of ranks, and the configuration for the HParams table.

    Args:
        path: The event file; its folder is made when the first event is written.
        enabled: False writes nothing.
        step: What is counted: the column that holds its number, and the first part of every tag.
        about: The configuration, flat, for the table that compares runs.
    """

    def __init__(
        self, path: Path, enabled: bool, step: str = "round", about: Mapping[str, str | int | float | bool] | None = None
    ) -> None:
        self.path, self.enabled, self.step, self.about = path, enabled, step, about or {}

    def round(self, row: dict[str, Any], clients: list[dict[str, Any]]) -> None:
        """Append one round, or whatever else is counted (RunFolderError where the disk refuses)."""
        if not self.enabled:
            return
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        numbers = {name: value for name, value in row.items() if name != self.step and isinstance(value, int | float)}
        values = [Summary.Value(tag=f"{self.step}/{name}", simple_value=value) for name, value in numbers.items()]
        if clients:
            values.append(
                Summary.Value(tag=f"{self.step}/ranks", histo=_histogram(np.array([client["ranks"] for client in clients])))
            )
        event = Event(wall_time=time.time(), step=row[self.step], summary=Summary(value=values))
        with disk_errors(self.path):
            self.path.parent.mkdir(exist_ok=True)
            with self.path.open("ab") as file:
                writer = RecordWriter(file)
                if file.tell() == 0:
                    writer.write(Event(wall_time=event.wall_time, file_version="brain.Event:2").SerializeToString())
                    for summary in self._about(row):
                        writer.write(Event(wall_time=event.wall_time, summary=summary).SerializeToString())
                writer.write(event.SerializeToString())

    def _about(self, first: Mapping[str, Any]) -> list[Any]:
        """Return what makes the run a line of the HParams table: its configuration, and which numbers may stand beside it.

        What is null in the first row, such as losses before any training, is a number later.
        """
        if not self.about:
            return []
        from torch.utils.tensorboard.summary import hparams  # TensorBoard's own needs TensorFlow

        names = [name for name, value in first.items() if value is None or isinstance(value, int | float)]
        shown = dict.fromkeys((f"{self.step}/{name}" for name in names if name != self.step and name not in TEXTS), 0.0)
        experiment, start, _ = hparams(dict(self.about), shown)
        return [experiment, start]


def _histogram(ranks: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
    """Return how often each rank occurs, as TensorBoard wants it: right edges of bins, the first bin empty."""
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    values, counts = np.unique(ranks, return_counts=True)
    return HistogramProto(
        min=float(values[0]),
        max=float(values[-1]),
        num=ranks.size,
        sum=float(ranks.sum()),
        sum_squares=float((ranks**2).sum()),
        bucket_limit=[values[0] - 0.5, *(values + 0.5)],
        bucket=[0, *counts],
    )
