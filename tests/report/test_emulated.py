"""Predicted against measured of an emulated run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlora.report.build import build
from fedlora.report.charts import Line, Points


def _rows() -> list[dict[str, Any]]:
    """Return rows as fedlora_envs.emulation writes them: predictions 10 % short on the way up, right on the way down."""
    rows: list[dict[str, Any]] = []
    for number in (1, 2):
        for client in range(3):
            status = "ok" if client < 2 else "late: too late"
            row: dict[str, Any] = {"kind": "client", "round": number, "client": client, "status": status}
            for way, seconds, right in (("down", 0.1 * number, 1.0), ("up", 1.0 + client, 0.9)):
                row |= {f"measured_s_{way}": seconds, f"predicted_s_{way}": right * seconds}
                row |= {f"measured_bytes_{way}": 1000, f"predicted_bytes_{way}": 980}
            rows.append(row)
        rows.append(
            {"kind": "round", "round": number, "predicted_s": 2.0, "measured_s": 9.0, "accuracy": 0.5, "simulated_accuracy": 0.5}
        )
    return rows


@pytest.fixture
def emulated_run(radio_run: Path, tmp_path: Path) -> Path:
    run = tmp_path / "emulated"
    shutil.copytree(radio_run, run)
    (run / "emulation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows()))
    return run


def test_predictions_lie_beside_measurements(emulated_run: Path) -> None:
    section = next(section for section in build([emulated_run]).sections if section.key == "emulation")
    charts = {chart.key: chart.view[0].marks for chart in section.charts}
    assert set(charts) == {f"emulated-{what}" for what in ("airtime", "airtime-rounds", "times", "bytes", "accuracy")}
    up = next(mark for mark in charts["emulated-airtime"] if mark.label == "uplink")  # type: ignore[union-attr]
    assert isinstance(up, Points) and np.allclose(up.x, 0.9 * up.y) and len(up.x) == 4, "late replies do not count"
    by_round = [mark for mark in charts["emulated-airtime-rounds"] if isinstance(mark, Line)]
    assert [mark.label for mark in by_round] == [
        f"{way}, {what}" for way in ("downlink", "uplink") for what in ("measured", "predicted")
    ]
    assert by_round[2].y.tolist() == [1.5, 1.5]
    sent = next(mark for mark in charts["emulated-bytes"] if isinstance(mark, Line))
    assert sent.y.tolist() == [0.002, 0.002]


def test_errors_in_numbers(emulated_run: Path) -> None:
    section = next(section for section in build([emulated_run]).sections if section.key == "emulation")
    rows = {row[0]: row[1:] for row in section.tables[0].rows}
    assert rows["downlink, airtime"] == ("0.0%", "100%", "0.0%", "4")
    assert rows["uplink, airtime"] == ("10.0%", "100%", "10.0%", "4")
    assert rows["uplink, bytes"] == ("2.0%", "100%", "2.0%", "4")


def test_it_is_repeated_by_emulation(emulated_run: Path) -> None:
    text = next(text for text in build([emulated_run]).texts if text.title == "command")
    assert text.body.startswith("fedlora emulate ")
