"""What figures show, in numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fedlora.errors import ConfigError
from fedlora.report.build import build, run_report
from fedlora.report.channel import short_names, timeline
from fedlora.report.charts import STATUSES, Bars, Chart, Heat, Line, Mark, Points
from fedlora.report.clients import heat_maps, kind_of
from fedlora.report.curves import progress
from fedlora.report.interactive import draw, plotly_figure
from fedlora.report.papers import matplotlib_figure
from fedlora.runs.read import read_run


def _marks(chart: Chart) -> list[Mark]:
    return [mark for panel in chart.view for mark in panel.marks]


def test_curves_hold_the_rows_of_the_log(radio_run: Path) -> None:
    run = read_run(radio_run)
    charts = {chart.key: chart for chart in progress([("it", run)])}
    assert list(charts) == ["progress-rounds", "progress-bytes", "progress-seconds", "progress-joules"]
    rows = run.rows()
    accuracy = _marks(charts["progress-seconds"])[0]
    assert isinstance(accuracy, Line)
    assert accuracy.x.tolist() == [row["virtual_time_s"] for row in rows]
    assert accuracy.y.tolist() == [row["test_accuracy"] for row in rows]
    sent = _marks(charts["progress-bytes"])[0]
    assert isinstance(sent, Line) and sent.x[-1] == pytest.approx(
        sum(row["uplink_bytes"] + row["downlink_bytes"] for row in rows) / 1e6
    )


def test_a_run_without_a_radio_has_its_own_clock_and_no_timeline(plain_run: Path) -> None:
    run = read_run(plain_run)
    charts = {chart.key: chart for chart in progress([("it", run)])}
    assert list(charts) == ["progress-rounds", "progress-bytes", "progress-seconds"]
    assert "wall time" in charts["progress-seconds"].title
    assert timeline(run) == []


def test_heat_maps_have_a_cell_per_client_and_round(radio_run: Path) -> None:
    run = read_run(radio_run)
    maps = {chart.key: _marks(chart)[0] for chart in heat_maps(run)}
    losses, outcomes = maps["clients-losses"], maps["clients-outcomes"]
    assert isinstance(losses, Heat) and isinstance(outcomes, Heat) and losses.z.shape == (6, 4)
    for row in run.rows("clients"):
        client, place = int(row["client"]), row["round"] - 1
        assert outcomes.kinds[int(outcomes.z[client, place])][0] == row["status"].partition(":")[0]
        loss = losses.z[client, place]
        assert loss == row["train_loss"] if row.get("train_loss") is not None else np.isnan(loss)
    assert np.isfinite(outcomes.z).sum() == len(run.clients)
    assert {name for name, _ in outcomes.kinds} == {"ok", "late"}


def test_outcomes_by_the_first_word_of_the_status() -> None:
    said = ["ok", "late: not through", "dropped: offline", "failed: OutOfMemory", "rejected: shape: x", "no reply", "what?", None]
    names = list(STATUSES)
    found = kind_of(said).tolist()
    assert [names[place] for place in found[:-1]] == ["ok", "late", "dropped", "failed", "rejected", "no reply", "failed"]
    assert found[-1] == -1


def test_the_timeline_follows_the_clock(radio_run: Path) -> None:
    run = read_run(radio_run)
    (chart,) = timeline(run)
    bars = [mark for mark in _marks(chart) if isinstance(mark, Bars)]
    assert [mark.label for mark in bars] == ["downlink", "compute", "uplink"]
    ends = dict(zip(run.metrics["round"], run.metrics["virtual_time_s"], strict=True))
    starts = bars[0].start
    assert starts is not None
    assert starts.tolist() == [ends[number - 1] for number in run.clients["round"]]
    last = bars[2]
    assert last.start is not None
    done = np.array([ends[number] for number in run.clients["round"]])
    assert (last.start + last.length <= done + 1e-7).all(), "nobody is busy beyond the end of the round"
    crosses = next(mark for mark in _marks(chart) if isinstance(mark, Points))
    assert len(crosses.x) == (run.clients["status"] != "ok").sum() > 0


def test_ranks_have_a_view_for_everybody_and_for_each(radio_run: Path) -> None:
    run = read_run(radio_run)
    chart = next(chart for chart in run_report(run).charts() if chart.key == "ranks")
    asked = sorted(set(run.clients["client"]))
    assert list(chart.views) == ["all clients, mean", *(f"client {client}" for client in asked)]
    heat = chart.views[f"client {asked[0]}"][0].marks[0]
    assert isinstance(heat, Heat)
    for row in run.rows("clients"):
        if row["client"] == asked[0]:
            assert heat.z[:, row["round"] - 1].tolist() == row["ranks"]
    assert chart.view[0].y.names == ("0.query", "0.value", "1.query", "1.value")


def test_names_of_sites_lose_what_all_of_them_share() -> None:
    assert short_names(["m.layer.0.q", "m.layer.0.v", "m.layer.1.q"]) == ("0.q", "0.v", "1.q")
    assert short_names(["m.q"]) == ("m.q",)
    assert short_names(["a.b", "c"]) == ("a.b", "c")


def test_both_renderers_take_every_figure(radio_run: Path, plain_run: Path) -> None:
    charts = [*build([radio_run]).charts(), *build([radio_run, plain_run]).charts()]
    assert len({chart.key for chart in charts}) > 30
    for chart in charts:
        for view in chart.views:
            drawn = plotly_figure(chart, view)
            assert len(drawn.data) >= len(chart.views[view])
        figure = matplotlib_figure(chart)
        assert figure.get_suptitle() == chart.title
        drawn_axes = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        assert len(drawn_axes) == len(chart.view)
        assert all(axes.has_data() for axes in drawn_axes), chart.key


def test_every_axis_of_numbers_says_what_it_is(radio_run: Path, plain_run: Path) -> None:
    for chart in [*build([radio_run]).charts(), *build([radio_run, plain_run]).charts()]:
        assert chart.title
        for panel in chart.view:
            for axis in (panel.x, panel.y):
                assert axis.label or axis.kind == "names", chart.key


def test_markup_in_names_is_text(radio_run: Path) -> None:
    chart = next(chart for chart in run_report(read_run(radio_run)).charts() if chart.key == "clients-outcomes")
    heat = chart.view[0].marks[0]
    assert isinstance(heat, Heat) and heat.notes is not None
    notes = heat.notes.copy()
    notes[:] = "failed: <a href='http://evil'>x</a>"
    panel = dataclasses.replace(chart.view[0], marks=(dataclasses.replace(heat, notes=notes),))
    assert "<a" not in str(draw((panel,))["data"][0]["text"])


def test_a_view_that_is_not_there_is_refused(radio_run: Path) -> None:
    chart = next(chart for chart in run_report(read_run(radio_run)).charts() if chart.key == "ranks")
    with pytest.raises(ConfigError, match="no view 'client 99'"):
        plotly_figure(chart, "client 99")
