"""The reference of the logs names the columns that runs write, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedlora.deploy.measured import REPORTED
from fedlora.runs import fields
from fedlora.runs.simulate import simulate
from tiny_run import Ground


def _columns(run: Path, log: str) -> set[str]:
    return {name for line in (run / f"{log}.jsonl").read_text().splitlines() for name in json.loads(line)}


@pytest.mark.parametrize(
    ("changes", "metrics", "clients"),
    [
        ((), set(), set()),
        (("world.name=umi-indoor",), set(fields.WORLD_METRICS), set(fields.WORLD_COLUMNS)),
        (("method=hetlora", "adapter.rank=8", "aggregator.options.sparsity=0.5"), set(), {"ranks_kept"}),
    ],
    ids=["plain", "world", "pruning"],
)
def test_runs_write_these_columns(
    ground: Ground, tmp_path: Path, changes: tuple[str, ...], metrics: set[str], clients: set[str]
) -> None:
    simulate(ground.config(*changes), tmp_path / "run")
    assert _columns(tmp_path / "run", "metrics") == set(fields.METRICS) | metrics
    reply = set(fields.REPLY_COLUMNS) - {"ranks_kept"}
    assert _columns(tmp_path / "run", "clients") == set(fields.CLIENTS) | reply | clients


def test_nodes_tell_these() -> None:
    assert set(fields.NODE_COLUMNS) == set(REPORTED.values()) - {"tokens"}
