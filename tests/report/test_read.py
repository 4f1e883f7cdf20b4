"""What is read of a run's folder, whole or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedlora.errors import RunFolderError
from fedlora.runs.folder import RunFolder
from fedlora.runs.read import read_run


def _copy(run: Path, to: Path, *without: str) -> Path:
    shutil.copytree(run, to)
    for name in without:
        shutil.rmtree(to / name) if (to / name).is_dir() else (to / name).unlink()
    return to


def test_a_finished_run_is_read_whole(radio_run: Path) -> None:
    run, folder = read_run(radio_run), RunFolder.open(radio_run)
    assert run.missing == [] and run.complete and (run.rounds_done, run.rounds) == (4, 4)
    assert run.rows() == folder.rows() and run.config == folder.config
    assert [row["ranks"] for row in run.rows("clients")] == [row["ranks"] for row in folder.rows("clients")]
    assert run.clients["snr_db"].dtype == np.float64
    assert run.adapter() == radio_run / "adapter" and run.name == "tiers-run"
    assert run.environment["packages"]["fedlora"]


def test_labels_and_sites_are_those_of_the_run(radio_run: Path) -> None:
    who = read_run(radio_run).federation
    assert who is not None and who.labels == ["a", "b", "c"]
    assert who.counts.shape == (6, 3) and who.counts.sum() == 96  # 120 rows, a fifth of them the server's
    assert len(who.sites) == len(who.caps) == 4 and all(site.endswith(("query", "value")) for site in who.sites)


def test_a_half_written_folder_gives_what_it_has_and_names_what_it_lacks(radio_run: Path, tmp_path: Path) -> None:
    half = _copy(radio_run, tmp_path / "half", "adapter", "clients.jsonl", "environment.json", "federation.json", "checkpoints")
    lines = (half / "metrics.jsonl").read_text().splitlines(keepends=True)
    (half / "metrics.jsonl").write_text(lines[0] + lines[1] + lines[2][:25])
    run = read_run(half)
    assert run.rounds_done == 1 and not run.complete and len(run.clients) == 0 and run.federation is None
    for word in ("clients.jsonl", "environment.json", "federation.json", "rounds 2 to 4 of 4"):
        assert any(word in text for text in run.missing), word
    with pytest.raises(RunFolderError, match="has no adapter yet"):
        run.adapter()


def test_a_run_of_another_version_is_read_without_its_typed_keys(radio_run: Path, tmp_path: Path) -> None:
    other = _copy(radio_run, tmp_path / "other")
    (other / "config.toml").write_text((other / "config.toml").read_text() + "\n[teleport]\nspeed = 3\n")
    run = read_run(other)
    assert run.config is None and "[teleport]" in run.config_text and run.rounds_done == 4
    assert any("unknown key 'teleport'" in text for text in run.missing)


def test_a_run_before_its_first_row(radio_run: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(radio_run / "config.toml", tmp_path / "new")
    run = read_run(tmp_path / "new")
    assert run.rounds_done == 0 and run.summary() == {} and run.rows() == []


def test_damaged_rows_are_said(radio_run: Path, tmp_path: Path) -> None:
    other = _copy(radio_run, tmp_path / "other")
    (other / "clients.jsonl").write_text("{no json}\n" + (other / "clients.jsonl").read_text())
    (other / "federation.json").write_text(json.dumps({"labels": ["a"], "counts": [[1, 2]], "sites": [], "caps": []}))
    run = read_run(other)
    assert "clients.jsonl: 1 damaged line passed over" in run.missing
    assert len(run.clients) == len(read_run(radio_run).clients)
    assert run.federation is None and any("labels and counts differ" in text for text in run.missing)


@pytest.mark.parametrize("make", ["nothing", "empty", "file", "training"])
def test_what_is_no_run_is_refused(tmp_path: Path, make: str) -> None:
    path = tmp_path / "it"
    if make in ("empty", "training"):
        path.mkdir()
    if make == "file":
        path.write_text("")
    if make == "training":
        (path / "config.toml").write_text("learner = 'ppo'\n")
        (path / "metrics.jsonl").write_text('{"iteration": 0}\n')
    with pytest.raises(RunFolderError, match="holds no run"):
        read_run(path)
