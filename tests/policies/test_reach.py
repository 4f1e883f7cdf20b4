"""What equal accuracy takes: by hand, with late measurements, with episodes that never get there, and in the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlora_policies.compare import compare, parse_compare
from fedlora_policies.compare_report import tables, write
from fedlora_policies.reach import Floats, reaches
from fedlora_policies.rollout import Episodes
from rank_problem import RankProblem

NAN = np.nan


def episodes(loss: list[list[float]], sent: list[list[float]], accuracy: float = NAN) -> Episodes:
    """Return episodes by their courses, `[E][steps]`; latency is a thousandth of the bytes."""
    losses: Floats = np.array(loss).T
    bytes_: Floats = np.where(np.isnan(losses), NAN, np.cumsum(np.array(sent).T, axis=0))
    count = losses.shape[1]
    total = np.nanmax(bytes_, axis=0)
    last = np.array([own[~np.isnan(own)][-1] for own in losses.T])
    course = {"bytes": bytes_, "latency_s": bytes_ / 1000, "loss": losses, "accuracy": np.full_like(losses, accuracy)}
    zeros = np.zeros(count)
    return Episodes(
        zeros, {"bytes": total, "latency_s": total / 1000}, {"loss": last, "accuracy": np.full(count, accuracy)}, zeros, zeros,
        zeros, zeros, zeros, np.zeros((3, count)), course,
    )  # fmt: skip


# The reference ends at 0.5 and 0.7; the second episode was there a step earlier by luck.
REFERENCE = episodes([[0.9, 0.6, 0.5], [0.9, 0.6, 0.7]], [[10, 10, 10], [20, 20, 20]])


def test_the_first_step_that_is_as_good_counts() -> None:
    other = episodes([[0.5, 0.9, 0.9], [0.8, 0.71, 0.69]], [[15, 100, 100], [5, 5, 5]])
    found = reaches({"fixed": [REFERENCE], "other": [other]}, "fixed", 200, 0)
    own, best = found["fixed"]["loss"], found["other"]["loss"]
    assert own.share == best.share == 1
    assert own.spent["bytes"].value == (30 + 40) / 2 and own.less["bytes"].value == own.less["latency_s"].value == 0
    assert best.spent["bytes"].value == (15 + 15) / 2 and best.less["bytes"].value == -(15 + 25) / 2
    assert best.spent["latency_s"].value == pytest.approx(0.015)
    assert (best.less["bytes"].low, best.less["bytes"].high) == (-25, -15)
    assert "accuracy" not in found["fixed"]  # nobody measured it


def test_who_never_gets_there_does_not_look_cheap() -> None:
    idle = episodes([[0.9, 0.9, 0.9], [0.9, 0.6, NAN]], [[1, 1, 1], [100, 100, 100]])
    wasteful = episodes([[0.9, 0.9, NAN], [0.9, 0.9, 0.9]], [[40, 40, 0], [1, 1, 1]])
    found = reaches({"fixed": [REFERENCE], "idle": [idle], "wasteful": [wasteful]}, "fixed", 200, 0)
    assert found["idle"]["loss"].share == 0.5 and found["wasteful"]["loss"].share == 0
    assert found["idle"]["loss"].spent["bytes"].value == (30 + 200) / 2
    assert found["wasteful"]["loss"].spent["bytes"].value == (80 + 60) / 2


def test_accuracy_counts_upwards_and_runs_are_averaged() -> None:
    first, second = (episodes([[0.9, 0.5]], [[10, 10]], accuracy=value) for value in (0.4, 0.6))
    found = reaches({"learned": [first, second], "fixed": [first]}, "learned", 100, 0)
    # The level is the mean over the reference's runs, 0.5: the second run is there at once, the first never.
    assert found["learned"]["accuracy"].share == 0.5 and found["learned"]["accuracy"].spent["bytes"].value == (20 + 10) / 2
    assert found["fixed"]["accuracy"].share == 0


class Measured(RankProblem):
    """Reports a loss and an accuracy after every step."""

    def step(self, ranks: Any) -> Any:
        step = super().step(ranks)
        held = 1.0 / (1.0 + step.info["bits"] + self._step)
        return replace(step, info={**step.info, "loss": held, "accuracy": 1 - held})


def measured(episodes: int, **options: Any) -> RankProblem:
    return Measured(episodes, **options)


def test_reported_where_every_step_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tree = {
        "env": "rank_problem:problem", "episodes": 6, "validation_episodes": 2, "draws": 100, "options": {"horizon": 4},
        "policies": {"random-feasible": {}, "greedy": {}, "oracle": {"grid": {"share": [0.3, 1.0]}, "choose": "hindsight"}},
    }  # fmt: skip
    blind = compare(parse_compare(tree))
    assert [table.row_count for table in tables(blind)] == [3] and not blind.worlds["default"][0].reach
    # The last loss and the bytes of the whole episode are known all the same.
    assert set(blind.worlds["default"][0].differences) == {"bytes", "latency_s", "loss", "accuracy"}
    monkeypatch.setattr("rank_problem.problem", measured)
    found = compare(parse_compare(tree))
    assert [table.row_count for table in tables(found)] == [3, 3]
    stored = json.loads(write(found, tmp_path)[0].read_text())["worlds"]["default"]
    for row in stored:
        assert set(row["reach"]) == {"loss", "accuracy"}
        assert row["reach"]["loss"]["spent"]["bytes"]["value"] <= max(row["bytes"]["value"], stored[1]["bytes"]["value"]) + 1e-9
    greedy = stored[1]
    assert greedy["policy"] == "greedy" and greedy["reach"]["loss"]["share"] == 1
    assert greedy["differences"]["bytes"] == {"value": 0, "low": 0, "high": 0}
    other = stored[0]
    assert other["differences"]["bytes"]["value"] == pytest.approx(other["bytes"]["value"] - greedy["bytes"]["value"])
