"""`fedlora record-response`: real fine-tunes at random ranks, written down whole, gone on with, and fitted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fedlora.config import RunConfig
from fedlora.errors import ConfigError
from fedlora_envs import commands
from fedlora_envs.tasks import recording
from fedlora_envs.tasks.live import LiveTask, alone
from fedlora_envs.tasks.recording import random_ranks, read_records, record
from fedlora_envs.tasks.response import load
from tiny_run import Ground

CHANGES = ("adapter.method=triplet", "data.client_test_fraction=0.3", "training.lr=0.05")


def config(ground: Ground, *changes: str) -> RunConfig:
    return ground.config(*CHANGES, *changes)


def app() -> typer.Typer:
    made = typer.Typer(pretty_exceptions_enable=False)
    made.command()(commands.record_response)
    return made


def test_what_is_recorded_is_what_the_live_task_does(ground: Ground, tmp_path: Path) -> None:
    found = record(config(ground), tmp_path / "r.jsonl", 3, 4, seed=2, local_steps=2, heldout=8)
    assert found.ranks.shape == (3, 4, 4) and found.gains.shape == (3, 4, 4, 4) and found.text.shape == (3, 4, 3)
    task = LiveTask(config(ground), 1, 2, 8)
    task.begin(np.ones(1, np.bool_), np.array([2], np.uint64), np.array([1]), fresh=True)
    ranks, measured = random_ranks(task.sites, 4, 2, 1)
    for step in range(4):
        assert found.text[1, step] == pytest.approx(task.text()[0], abs=1e-5)
        batch = task.train(ranks[[step]], np.ones(1, np.bool_))
        assert found.batch_loss[1, step] == pytest.approx(batch[0], abs=1e-4)
        assert found.loss[1, step] == pytest.approx(task.measure(measured[[step]])[0][0], abs=1e-4)
        assert found.gains[1, step] == pytest.approx(task.gains()[0], rel=0.01, abs=1e-4)
    header = found.header
    assert header["caps"] == [4] * 4 and header["run"] == alone(config(ground), 2).model_dump(mode="json", exclude_none=True)


def test_a_recording_is_gone_on_with(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_AT_ONCE", 2)
    whole = record(config(ground), tmp_path / "whole.jsonl", 4, 2, local_steps=1, heldout=8)
    path = tmp_path / "parts.jsonl"
    said: list[str] = []

    def stop(text: str) -> None:
        said.append(text)
        if text.startswith("episodes 2 to 3: step 1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(config(ground), path, 4, 2, local_steps=1, heldout=8, say=stop)
    assert len(read_records(path)) == 2  # whole groups only
    # What makes no difference to a fine-tune may differ.
    record(config(ground, "rounds=9", "clients=3", "clients_per_round=3"), path, 4, 2, local_steps=1, heldout=8, say=said.append)
    assert path.read_text() == (tmp_path / "whole.jsonl").read_text() and len(whole) == 4
    assert f"2 of 4 episodes are in {path}" in said


def test_records_of_something_else_are_refused(ground: Ground, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    record(config(ground), path, 2, 2, local_steps=1, heldout=8)
    for changes, options in ((("training.lr=0.01",), {}), ((), {"seed": 1}), ((), {"heldout": 9})):
        with pytest.raises(ConfigError, match="holds a recording of another run"):
            record(config(ground, *changes), path, 2, 2, **{"local_steps": 1, "heldout": 8, **options})
    lines = path.read_text().splitlines()
    for bad in ("", "not json", "{}", lines[0] + '\n{"episode": 0}', lines[0] + "\n[]", lines[0] + "\n" + lines[1][:50]):
        path.write_text(bad)
        with pytest.raises(ConfigError, match="cannot be read as records"):
            read_records(path)
    path.write_text(json.dumps({**json.loads(lines[0]), "format": 9}))
    with pytest.raises(ConfigError, match="has format 9; this version reads 1"):
        read_records(path)


def test_the_command_records_fits_and_says_how_well(ground: Ground, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(config(ground).to_toml())
    out = tmp_path / "new" / "response.json"
    arguments = [str(tmp_path / "run.toml"), "training.batch_size=4", "--out", str(out), "--horizon", "3", "--local-steps", "1"]
    result = CliRunner().invoke(app(), [*arguments, "--episodes", "4", "--heldout", "8"])
    assert result.exit_code == 0, result.output
    assert "episodes 0 to 3: step 3 of 3" in result.output
    made = load(out)
    assert f"RMSE {made.errors['loss_rmse']:.4f}" in result.output and made.errors["episodes"] == 4
    assert len(made.sites) == 4 and made.source["horizon"] == 3
    again = CliRunner().invoke(app(), [*arguments, "--episodes", "4", "--heldout", "8", "--format", "json"])
    assert json.loads(again.stdout)["errors"] == made.errors and "loading" not in again.output
    refused = CliRunner().invoke(app(), ["adapter.rnak=3"])
    assert isinstance(refused.exception, ConfigError) and "adapter.rank" in str(refused.exception)
