"""Whole runs in a second or two: a tiny model, a few rows of text in three classes, and a federation of six."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from torch import Tensor

from fedlora.config import RunConfig, load_config
from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.roll import call_roll
from fedlora.federation.strategy import RoundRecord, RoundStrategy, ServerState
from fedlora.federation.workbench import Workbench
from tiny import tiny_text_model

DEFAULTS = (
    "rounds=2",
    "clients=6",
    "clients_per_round=4",
    "device=cpu",
    "data.alpha=1",
    "data.max_length=16",
    "adapter.rank=4",
    "adapter.heads=4",
    "training.steps=3",
    "training.batch_size=4",
    "training.lr=0.01",
)


@dataclass(frozen=True)
class Ground:
    """Where runs start from: a folder with `model/` and `data.csv`."""

    folder: Path

    def overrides(self, *changes: str) -> list[str]:
        """Return a small run as `key=value` arguments, `changes` last."""
        return [f"model.name={self.folder / 'model'}", f"data.name={self.folder / 'data.csv'}", *DEFAULTS, *changes]

    def config(self, *changes: str) -> RunConfig:
        """Return a small run with some keys changed."""
        return load_config(None, self.overrides(*changes))


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A tiny model and data set, made once."""
    folder = tmp_path_factory.mktemp("ground")
    tiny_text_model(folder / "model")
    write_rows(folder / "data.csv")
    return Ground(folder)


def write_rows(path: Path, rows: int = 120, header: str = "text,label") -> Path:
    """Write texts of 3 to 11 words whose label follows from the words."""
    rng = np.random.default_rng(0)
    lines = [header]
    for row in range(rows):
        words = rng.integers(0, 30, rng.integers(3, 12)) + 30 * (row % 3)
        lines.append(" ".join(f"w{word}" for word in words) + "," + "abc"[row % 3])
    path.write_text("\n".join(lines) + "\n")
    return path


class OneByOneGrid(BatchedGrid):
    """Hands the very same messages to the client code one at a time."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer each message by itself."""
        return [name for message in messages for name in super(OneByOneGrid, self).push_messages([message])]


def fresh_state(bench: Workbench) -> ServerState:
    """Return the server's state before the first round."""
    previous = np.zeros((bench.config.clients, len(bench.adapters)), np.int64)
    return ServerState(0, bench.initial(), previous)


def play(bench: Workbench, grid: BatchedGrid) -> tuple[dict[str, Tensor], list[RoundRecord]]:
    """Run all rounds on a grid; return the global state and a record per round."""
    records: list[RoundRecord] = []
    strategy = RoundStrategy(bench, call_roll(grid, bench.config.clients), fresh_state(bench))
    strategy.start(
        grid,
        strategy.broadcast(),
        num_rounds=bench.config.rounds,
        evaluate_fn=lambda number, _: records.append(strategy.record) if number else None,
    )
    return strategy.state.adapter.flat(), records
