"""Reports of runs whose logs lack rows, fields or whole columns: what is there is shown, what is not is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlora.api import load_run
from fedlora.report.build import build, outcomes
from fedlora.report.channel import timeline
from fedlora.report.charts import Bars, Chart, Heat, Line, share_axis
from fedlora.report.clients import heat_maps
from fedlora.report.curves import costs, progress
from fedlora.report.interactive import draw, plotly_figure
from fedlora.runs.read import read_run
from fedlora.runs.rows import rounds_text
from fedlora.runs.summary import summary

Rows = list[dict[str, Any]]


def _with(run: Path, to: Path, log: str, change: Callable[[Rows], Rows]) -> Path:
    """Copy a run with other rows in one of its logs."""
    shutil.copytree(run, to)
    file = to / f"{log}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))
    return to


def _without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def _lines(charts: list[Chart], key: str) -> dict[str, Line]:
    chart = next((chart for chart in charts if chart.key == key), None)
    marks = chart.view[0].marks if chart else ()
    return {mark.label: mark for mark in marks if isinstance(mark, Line)}


def test_runs_without_energy_have_no_curve_against_joules(radio_run: Path, plain_run: Path) -> None:
    charts = progress([("radio", read_run(radio_run)), ("plain", read_run(plain_run))])
    assert set(_lines(charts, "progress-joules")) == {"radio"}
    assert set(_lines(charts, "progress-bytes")) == {"radio", "plain"}


def test_sums_end_where_a_round_is_not_known(radio_run: Path, tmp_path: Path) -> None:
    lacking = _with(
        radio_run, tmp_path / "lacking", "metrics", lambda rows: [*rows[:2], _without(rows[2], "energy_j"), *rows[3:]]
    )
    run = read_run(lacking)
    assert run.missing == ["metrics.jsonl: energy_j of round 2"]
    assert len(_lines(progress([("it", run)]), "progress-joules")["server's test set"].x) == 2
    assert run.summary()["energy_j"] == pytest.approx(sum(row["energy_j"] for row in run.rows() if row["energy_j"] is not None))


_CHANGES: dict[str, Callable[[dict[str, Any], str], dict[str, Any]]] = {
    "no field": _without,
    "null": lambda row, name: {**row, name: None},
    "a word": lambda row, name: {**row, name: "much"},
}


@pytest.mark.parametrize("change", list(_CHANGES))
@pytest.mark.parametrize(
    ("log", "name"),
    [
        *(("metrics", name) for name in ("uplink_bytes", "clients_selected", "clients_failed", "wall_time_s", "virtual_time_s")),
        *(("clients", name) for name in ("client", "round", "status", "ranks", "uplink_bytes")),
    ],
)
def test_a_page_of_rows_that_lack_a_field(radio_run: Path, tmp_path: Path, log: str, name: str, change: str) -> None:
    change_one = _CHANGES[change]
    one = _with(radio_run, tmp_path / "one", log, lambda rows: [*rows[:2], change_one(rows[2], name), *rows[3:]])
    every = _with(radio_run, tmp_path / "all", log, lambda rows: [change_one(row, name) for row in rows])
    for damaged in (one, every):
        report = build([damaged])
        # A word may be a status that another version knows; a column of a world that is nowhere is one that the world has not.
        if (name, change) not in (("status", "a word"), ("virtual_time_s", "no field")):
            assert any(text.startswith(f"{log}.jsonl: ") for text in report.missing)
        for chart in report.charts():
            plotly_figure(chart)
        json.dumps(outcomes([damaged]), allow_nan=False)


def test_a_client_row_without_its_client_or_status_is_no_failure(radio_run: Path, tmp_path: Path) -> None:
    def lose(rows: Rows) -> Rows:
        return [_without(rows[0], "client"), _without(rows[1], "status"), {**rows[2], "ranks": None}, *rows[3:]]

    damaged = _with(radio_run, tmp_path / "damaged", "clients", lose)
    run, whole = read_run(damaged), read_run(radio_run)
    assert run.missing == [
        "clients.jsonl: 1 row without round or client passed over",
        "clients.jsonl: status of 1 row",
        "clients.jsonl: ranks of 1 row",
    ]
    assert len(run.clients) == len(whole.clients) - 1
    outcome = heat_maps(run)[0].view[0].marks[0]
    assert isinstance(outcome, Heat) and np.isfinite(outcome.z).sum() == len(run.clients) - 1
    assert {name for name, _ in outcome.kinds} == {"ok", "late"}
    assert "ranks" in {chart.key for chart in build([damaged]).charts()}


def test_rounds_that_are_not_there_are_named_and_not_drawn(radio_run: Path, tmp_path: Path) -> None:
    run = read_run(_with(radio_run, tmp_path / "headless", "metrics", lambda rows: rows[2:]))
    assert run.missing == ["metrics.jsonl: rounds 0 to 1; sums are of the others"]
    assert run.summary()["accuracy_before"] is None and run.summary()["accuracy_after"] is not None
    charts = costs([("it", run)])
    assert all(mark.x.tolist() == [2, 3, 4] for mark in _lines(charts, "energy").values())
    assert np.isnan(_lines(charts, "round-time")["it"].y).tolist() == [True, False, False]
    sent = next(chart for chart in charts if chart.key == "bytes").view[0].marks[0]
    assert isinstance(sent, Bars) and sent.at.tolist() == [2, 3, 4]
    bars = [mark for mark in timeline(run)[0].view[0].marks if isinstance(mark, Bars)]
    assert {note for mark in bars for note in mark.notes} == {"round 3", "round 4"}
    assert "progress-bytes" not in {chart.key for chart in progress([("it", run)])}
    holed = read_run(_with(radio_run, tmp_path / "holed", "metrics", lambda rows: [*rows[:2], *rows[3:]]))
    assert holed.missing == ["metrics.jsonl: round 2; sums are of the others"]


def test_a_repeated_row_counts_once(radio_run: Path, tmp_path: Path) -> None:
    run = read_run(_with(radio_run, tmp_path / "twice", "metrics", lambda rows: [*rows, {**rows[-1], "energy_j": 7.0}]))
    whole = read_run(radio_run)
    assert run.missing == ["metrics.jsonl: rows of round 4 are there more than once; the last of each counts"]
    assert run.summary()["uplink_bytes"] == whole.summary()["uplink_bytes"] and run.rows()[-1]["energy_j"] == 7.0


def test_the_last_measured_accuracy_of_an_unfinished_run(radio_run: Path, tmp_path: Path) -> None:
    unmeasured = {"test_accuracy": None, "test_loss": None}
    run = read_run(_with(radio_run, tmp_path / "cut", "metrics", lambda rows: [*rows[:3], {**rows[3], **unmeasured}]))
    rows = run.rows()
    assert run.missing == ["round 4 of 4: the run goes on, or was cut off"]
    found = run.summary()
    assert (found["accuracy_after"], found["evaluated_round"], found["rounds"]) == (rows[2]["test_accuracy"], 2, 3)
    cells = dict((row[0], row[1]) for row in build([run.path]).sections[0].tables[0].rows)
    assert cells["test accuracy, after"] == f"{rows[2]['test_accuracy']:.4f} (round 2)"
    whole = dict((row[0], row[1]) for row in build([radio_run]).sections[0].tables[0].rows)
    assert "round" not in whole["test accuracy, after"]
    assert summary([{"round": 0}])["accuracy_after"] is None


def test_blank_cells_are_what_the_caption_says(radio_run: Path) -> None:
    maps = {chart.key: chart for chart in heat_maps(read_run(radio_run))}
    lost = maps["clients-losses"]  # replies that were late
    assert lost.caption == "Blank: not asked in that round, or no number came back."
    assert maps["clients-outcomes"].caption == "Blank: not asked in that round."
    said = str(draw(lost.view)["data"][0]["text"])
    assert said.count("<br>late: ") == (read_run(radio_run).clients["status"] != "ok").sum() and "nan" not in said


def test_scales_that_compare_from_run_to_run(radio_run: Path, plain_run: Path) -> None:
    for path in (radio_run, plain_run):
        run = read_run(path)
        assert run.federation is not None
        heats = {chart.key: chart.view[0].marks[0] for chart in heat_maps(run)}
        ranks, accuracies = heats["clients-ranks"], heats["clients-accuracies"]
        assert isinstance(ranks, Heat) and (ranks.low, ranks.high) == (0.0, max(run.federation.caps))
        assert isinstance(accuracies, Heat) and (accuracies.low, accuracies.high) == (0.0, 1.0)


def test_an_axis_of_accuracy_stays_between_0_and_1() -> None:
    assert share_axis("a", [np.full(3, 0.25)]).range == pytest.approx((0.2, 0.3))
    assert share_axis("a", [np.array([0.0, np.nan, 0.9]), np.ones(1)]).range == (0.0, 1.0)
    assert share_axis("a", []).range == (0.0, 1.0)


def test_the_accuracy_of_a_run_has_such_an_axis(radio_run: Path) -> None:
    for chart in progress([("it", read_run(radio_run))]):
        reach = chart.view[0].y.range
        assert reach is not None and 0.0 <= reach[0] < reach[1] <= 1.0


def test_no_figure_of_a_run_before_its_first_round(radio_run: Path, tmp_path: Path) -> None:
    assert build([_with(radio_run, tmp_path / "empty", "metrics", lambda _: [])]).charts()
    assert costs([("it", read_run(tmp_path / "empty"))]) == []
    begun = read_run(_with(radio_run, tmp_path / "begun", "metrics", lambda rows: rows[:1]))
    assert costs([("it", begun)]) == [] and costs([("it", begun), ("too", begun)]) == []


def test_a_record_is_itself_and_stays_where_it_is(radio_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(radio_run, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    run, again = read_run("runs/mine"), load_run("runs/mine")
    assert run == run and run != read_run("runs/mine") and len({run, again}) == 2
    assert outcomes([Path("runs/mine")])[0]["folder"] == os.path.join("runs", "mine")
    assert "fedlora simulate runs/mine/config.toml" in build([Path("runs/mine")]).texts[0].body
    monkeypatch.chdir(tmp_path.parent)
    assert run.complete and run.adapter().is_dir() and again.report(tmp_path / "page.html").is_file()


def test_rounds_as_words() -> None:
    assert [rounds_text(found) for found in ([3], [1, 0, 2, 5], [7, 9])] == ["round 3", "rounds 0 to 2, 5", "rounds 7, 9"]
