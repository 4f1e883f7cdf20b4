"""When two runs are the same: everything but what a clock said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

_TIMES = ("wall_time_s", "seconds")


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log without what a clock said."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in _TIMES} for row in found]


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Compare two finished runs: logs, final adapter, newest checkpoint and events, and that nothing else lies around."""
    for log in ("metrics.jsonl", "clients.jsonl"):
        assert rows(ours / log) == rows(theirs / log), log
    for file in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "config.toml"):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes(), file
    names = [sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (ours, theirs)]
    assert names[0] == names[1]
    newest = [max((run / "checkpoints").iterdir()) / "state.safetensors" for run in (ours, theirs)]
    assert newest[0].read_bytes() == newest[1].read_bytes()
    assert losses(ours) == losses(theirs)


def losses(run: Path) -> list[tuple[int, float]]:
    """Return (round, test loss) as TensorBoard reads them; none where the run has no events."""
    if not (run / "tensorboard").exists():
        return []
    events = EventAccumulator(str(run / "tensorboard")).Reload().Scalars("round/test_loss")
    return [(event.step, event.value) for event in events]
