"""Rounds sent to Weights & Biases and MLflow, without a network."""

from __future__ import annotations

import importlib.util
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from fedlora.errors import ConfigError
from fedlora.runs import fields, trackers
from fedlora.runs.progress import Quiet
from fedlora.runs.simulate import simulate
from tiny_run import Ground


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where a tracker's package is not installed."""
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


class _Cut(Quiet):
    """Stops the run after a round."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def round(self, row: dict[str, Any], clients: list[dict[str, Any]]) -> None:
        if row["round"] == self.after:
            raise KeyboardInterrupt


def _rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@needs("mlflow")
@pytest.mark.parametrize("kind", ["sqlite", "file"])
def test_mlflow_has_every_round_and_a_resumed_run_goes_on(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from mlflow.tracking import MlflowClient

    address = f"sqlite:///{tmp_path / 'them.db'}" if kind == "sqlite" else (tmp_path / "them").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config = ground.config("rounds=3", 'output.log=["mlflow"]')
    with pytest.raises(KeyboardInterrupt):
        simulate(config, tmp_path / "run", progress=_Cut(1))
    client = MlflowClient()
    experiment = client.get_experiment_by_name("fedlora")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FAILED" and found.info.run_name == "run"
    simulate(config, tmp_path / "run", resume=True)
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["adapter.rank"] == "4" and found.data.params["seed"] == "0"
    history = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "test_accuracy")}
    assert history == {row["round"]: row["test_accuracy"] for row in _rows(tmp_path / "run")}


@needs("wandb")
def test_wandb_offline_has_every_round(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    simulate(ground.config("rounds=2", 'output.log=["wandb"]'), run)
    (file,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    identity = json.loads((run / "trackers.json").read_text())["wandb"]
    assert file.name == f"run-{identity}.wandb"
    end = time.monotonic() + 30
    while len(_read_wandb(file)[0]) < 3 and time.monotonic() < end:  # another process writes it
        time.sleep(0.2)
    rows, config = _read_wandb(file)
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert [row["test_accuracy"] for row in rows] == [row["test_accuracy"] for row in _rows(run)]
    assert config["adapter.method"] == "ravan" and config["rounds"] == 2


def _read_wandb(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows and the configuration that a file of an offline run holds."""
    from wandb.proto import wandb_internal_pb2

    rows: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    for data in _records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = record.history.item
        if items:
            rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
        config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return rows, config


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format: blocks of 32 KiB, pieces that begin with checksum, length and kind."""
    place, record = 7, b""  # the file's own head
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def test_a_tracker_that_is_not_installed_is_refused_before_any_work(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "wandb", (trackers.WandbTracker, "no_such_package"))
    with pytest.raises(ConfigError, match=r"names 'wandb', which is not installed: pip install 'fedlora\[no_such_package\]'"):
        simulate(ground.config('output.log=["wandb"]'), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_fails_costs_itself_and_not_the_run(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        identity = "x"

        def __init__(self, *_: Any) -> None:
            pass

        def log(self, number: int, numbers: Any) -> None:
            if number == 1:
                raise OSError("no route to host")

        def close(self, done: bool) -> None:
            raise AssertionError("it was given up before")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", (Failing, "torch"))
    heard = _Cut(-1)
    assert len(simulate(ground.config('output.log=["wandb"]'), tmp_path / "run", progress=heard).rounds) == 3
    assert [text for text in heard.said if "wandb" in text] == ["wandb fails, the run goes on without it: no route to host"]


def test_tensorboard_has_the_configuration_of_the_run(ground: Ground, tmp_path: Path) -> None:
    simulate(ground.config("rounds=1", "policy.name=tiers"), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    content = events.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
    assert start["policy.name"].string_value == "tiers" and start["adapter.rank"].number_value == 4
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    offered = {info.name.tag for info in experiment.metric_infos}
    assert offered == {f"round/{name}" for name in fields.METRICS if name != "round"}, "null before any training or not"
    assert set(events.Tags()["histograms"]) == {"round/ranks"} and "round/test_accuracy" in events.Tags()["scalars"]
