"""Reports of comparisons, of studies' results and of a policy's training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlora.errors import RunFolderError
from fedlora.report.build import build
from fedlora.report.charts import Chart, Heat, Line, Points
from fedlora.report.studies import study

ROOT = Path(__file__).parents[2]


def _row(policy: str, score: float, sent: float, difference: float = 0.0) -> dict[str, Any]:
    def about(value: float, half: float) -> dict[str, float]:
        return {"value": value, "low": value - half, "high": value + half}

    return {
        "policy": policy, "options": {}, "score": about(score, 0.1), "difference": about(difference, 0.01),
        "normalised": about(score, 0.1), "bytes": about(sent, 1e4), "accuracy": 0.8, "latency_s": None,
    }  # fmt: skip


def _comparison() -> dict[str, Any]:
    rows = [_row("random", 0.0, 2e6), _row("good", 0.9, 1e6, 0.4), _row("oracle", 1.0, 1e6, 0.5), _row("awful", -50.0, 3e6, -50)]
    config = {"reference": "random", "low": "random", "high": "oracle", "metric": "return", "episodes": 7, "policies": {}}
    return {"config": config, "worlds": {"near": rows, "far": rows[:2]}}


def test_a_comparison_of_policies(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text(json.dumps(_comparison()))
    report = build([tmp_path])
    assert [section.title for section in report.sections] == ["all worlds", "near", "far"]
    (overview,) = report.sections[0].charts
    heat = overview.view[0].marks[0]
    assert isinstance(heat, Heat) and heat.z.shape == (4, 2)
    assert np.isnan(heat.z[2, 1]) and heat.z[1].tolist() == [0.9, 0.9]
    charts = {chart.key: chart for chart in report.sections[1].charts}
    assert "awful" in charts["scores"].caption and "7 test episodes" in charts["scores"].caption
    labels = [mark.label for mark in charts["pareto"].view[0].marks if isinstance(mark, Points)]
    assert labels == ["random", "good", "oracle"]
    table = report.sections[1].tables[0]
    assert table.rows[1][:3] == ("good", "0.9", "+0.4 ± 0.01 *") and "-" in table.rows[1]


def test_the_same_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(_comparison()))
    assert [section.key for section in build([tmp_path / "mine.json"]).sections] == ["worlds", "world-near", "world-far"]


def test_a_study_of_any_shape() -> None:
    found = {
        "environment": {"cores": 2},
        "test_accuracy": {"federated": {"mean": 0.8, "half_width_95": 0.1}, "central": {"mean": 0.9, "half_width_95": None}},
        "saved": {"uplink_bytes": {"ratio": 0.5, "low": 0.4, "high": 0.6}},
        "runs": {"96": {"0": {"loss": 0.5}, "1": {"loss": 0.7}}, "tiers": {"0": {"loss": 0.4}, "1": {"loss": 0.3}}},
        "outcomes": {"federated": {"0": {"accuracy_by_round": [0.1, None, None, None, None, 0.5, None, None, 0.9]}}},
        "note": "words",
    }
    charts = {chart.key: chart for chart in study("it", found).charts}
    assert set(charts) == {"results-test_accuracy", "results-uplink_bytes ratio", "results-loss", "course-accuracy_by_round"}
    assert _names(charts["results-test_accuracy"]) == ("federated", "central")
    assert _names(charts["results-loss"]) == ("96", "tiers")
    interval = charts["results-test_accuracy"].view[0].marks[0]
    assert isinstance(interval, Points) and interval.x_range is not None
    assert np.allclose(interval.x_range, [[0.7, 0.9], [0.9, 0.9]])
    course = charts["course-accuracy_by_round"].view[0].marks[0]
    assert isinstance(course, Line) and course.x.tolist() == [0, 5, 8] and course.y.tolist() == [0.1, 0.5, 0.9]


def _names(chart: Chart) -> tuple[str, ...]:
    return chart.view[0].y.names


# Beside results there are figures of papers and summaries of runs; results alone name what they were measured on.
_RESULTS = [path for path in sorted((ROOT / "experiments").rglob("*.json")) if "environment" in json.loads(path.read_text())]


@pytest.mark.parametrize("path", _RESULTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_studies_of_this_repository(path: Path) -> None:
    report = build([path])
    charts = report.charts()
    assert len(charts) >= 3 and len({chart.key for chart in charts}) == len(charts)
    assert any(text.title.endswith(("environment", "config")) for text in report.texts)


def test_a_study_without_anything_to_draw_says_so(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"note": "nothing measured"}')
    (section,) = build([tmp_path]).sections
    assert section.charts == [] and "Nothing in it" in section.notes[0]


def test_the_training_of_a_policy(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("learner = 'ppo'\n")
    rows = [{"iteration": step, "return": -1.0 / (step + 1), "note": "x"} for step in range(4)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (section,) = build([tmp_path]).sections
    (chart,) = section.charts
    line = chart.view[0].marks[0]
    assert isinstance(line, Line) and line.y.tolist() == [row["return"] for row in rows]


@pytest.mark.parametrize(("text", "says"), [("{", "cannot be read as JSON"), ("[1]", "holds no results")])
def test_files_that_hold_nothing_are_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RunFolderError, match=says):
        build([tmp_path / "x.json"])
