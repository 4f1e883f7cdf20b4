"""`fedlora watch`: what it says, when it ends, and its exit code."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from children import Child, fedlora_command
from fedlora.errors import RunFolderError
from fedlora.runs import follow as following
from fedlora.runs.follow import StoppedError, follow
from fedlora.runs.holding import HOLDER, Held, held, hold
from fedlora.runs.progress import Quiet
from fedlora.runs.simulate import simulate
from tiny_run import Ground


@pytest.fixture(scope="module")
def finished(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three rounds."""
    out = tmp_path_factory.mktemp("watched") / "run"
    simulate(ground.config("rounds=3"), out)
    return out


class _Heard(Quiet):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.rounds: list[int] = []
        self.clients: list[int] = []
        self.stopped = False

    def say(self, text: str) -> None:
        self.said.append(text)

    def round(self, row: dict[str, Any], clients: list[dict[str, Any]]) -> None:
        self.rounds.append(row["round"])
        self.clients.append(len(clients))

    def stop(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        self.stopped = True


def test_a_finished_run_is_shown_and_ends_at_once(finished: Path, tmp_path: Path) -> None:
    done = fedlora_command(["watch", str(finished)], tmp_path)
    assert done.code == 0 and done.err == ""
    assert [line.split()[1] for line in done.out.splitlines() if line.startswith("round ")] == ["0/3", "1/3", "2/3", "3/3"]
    assert "test accuracy" in done.out and done.out.splitlines()[-1] == f"run folder: {finished}"


def test_as_json_on_stdout_alone(finished: Path, tmp_path: Path) -> None:
    done = fedlora_command(["watch", str(finished), "--format", "json"], tmp_path)
    found = json.loads(done.out)
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert done.code == 0 and found["rounds"] == rows and found["summary"]["rounds"] == 3
    assert "round 3/3" in done.err


def test_a_run_that_begins_later_is_waited_for_and_followed(ground: Ground, tmp_path: Path) -> None:
    watching = Child(["watch", "run"], tmp_path)
    time.sleep(1.0)
    running = fedlora_command(["simulate", *ground.overrides("rounds=3"), "--out", "run"], tmp_path)
    done = watching.wait()
    assert running.code == 0 and done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "waiting for run: there is no run yet"
    assert sum(line.startswith("round ") for line in lines) == 4
    table = lines.index(next(line for line in lines if line.startswith("┏")))
    assert lines[table:-1] == running.out.splitlines()[-len(lines[table:]) : -1], "the same table as the run's own"


def test_a_killed_run_is_said_to_have_stopped(ground: Ground, tmp_path: Path) -> None:
    running = Child(["simulate", *ground.overrides("rounds=500"), "--out", "run"], tmp_path)
    watching = Child(["watch", "run"], tmp_path)
    _wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and held(tmp_path / "run") is Held.yes)
    running.kill()
    done = watching.wait()
    assert done.code == 1 and "nobody works on run any more: it stopped " in done.err
    assert "Go on with: fedlora simulate --resume run" in done.err
    assert (tmp_path / "run" / HOLDER).exists(), "a killed process cannot tidy up"


def _wait_for(true: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def test_what_is_no_run_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "config.toml").write_text("learner = 'ppo'\n")
    assert "is a file, not the folder of a run" in fedlora_command(["watch", "file"], tmp_path).error
    refused = fedlora_command(["watch", "training"], tmp_path)
    assert refused.code == 5 and "is the folder of something else than a federated run" in refused.error
    assert len(refused.err.splitlines()) == 1
    for name, file, says in (
        ("scores", "compare.json", "holds no run but compare.json"),
        ("rest", "metrics.jsonl", "no config.toml"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}\n")
        refused = fedlora_command(["watch", name], tmp_path)
        assert refused.code == 5 and says in refused.error and refused.out == ""
    late = fedlora_command(["watch", "nowhere", "--timeout", "0.2"], tmp_path)
    assert late.code == 1 and "no run began in nowhere within 0.2 s" in late.error
    assert "waiting for nowhere" in late.out


def test_rows_that_lack_something_are_shown_as_far_as_they_go(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    rows = {
        log: [json.loads(line) for line in (finished / f"{log}.jsonl").read_text().splitlines()] for log in ("metrics", "clients")
    }
    del rows["metrics"][1]["uplink_bytes"], rows["metrics"][2]["clients_failed"], rows["clients"][0]["status"]
    del rows["clients"][1]["round"], rows["clients"][2]["client"]
    rows["metrics"][3]["train_loss"], rows["metrics"][3]["downlink_bytes"] = "low", None
    for log, found in rows.items():
        (tmp_path / "run" / f"{log}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    done = fedlora_command(["watch", "run"], tmp_path)
    assert done.code == 0, done.err
    assert "clients.jsonl: 2 damaged rows passed over" in done.out and "client 0: its row has no status" in done.out
    shown = [line for line in done.out.splitlines() if line.startswith("round ")]
    assert "up ?, down" in shown[1] and "down ?" in shown[3] and "train loss" not in shown[3] and len(shown) == 4


def test_a_folder_that_a_copy_of_a_run_comes_into_is_waited_for(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    shutil.copy(finished / "clients.jsonl", tmp_path / "copy")
    late = fedlora_command(["watch", "copy", "--timeout", "0.2"], tmp_path)
    assert late.code == 1 and "no run began in copy within 0.2 s" in late.error


def _without_end(finished: Path, to: Path) -> Path:
    shutil.copytree(finished, to)
    shutil.rmtree(to / "adapter")
    lines = (to / "metrics.jsonl").read_text().splitlines(keepends=True)
    (to / "metrics.jsonl").write_text("".join(lines[:2]))
    return to


def test_a_run_of_another_machine_is_waited_for(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock cannot be seen from here, so silence alone does not say that it stopped."""
    run, heard = _without_end(finished, tmp_path / "run"), _Heard()
    (run / HOLDER).write_text('{"boot": "another", "pid": 1}\n')
    assert held(run) is Held.unknown
    monkeypatch.setattr(following, "GRACE_S", 0.1)
    monkeypatch.setattr(following, "_SILENCE_S", 0.1)
    with pytest.raises(StoppedError, match=r"no round of .* ended within 0.6 s"):
        follow(run, heard, poll_s=0.05, patience_s=0.6)
    assert heard.rounds == [0, 1] and heard.clients == [0, 4]
    assert len([text for text in heard.said if "cannot be seen from this machine" in text]) == 1


def test_a_run_that_nobody_holds_has_stopped(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _without_end(finished, tmp_path / "run")
    monkeypatch.setattr(following, "GRACE_S", 0.1)
    with pytest.raises(StoppedError, match=r"stopped after round 1 of 3. Go on with: fedlora simulate --resume"):
        follow(run, Quiet(), poll_s=0.05)
    shutil.copy(finished / "metrics.jsonl", run)
    with pytest.raises(StoppedError, match=r"all 3 rounds .* are done, but the adapter was not exported"):
        follow(run, Quiet(), poll_s=0.05)


def test_holding_is_seen_and_looking_disturbs_nobody(finished: Path, tmp_path: Path) -> None:
    run = _without_end(finished, tmp_path / "run")
    assert held(run) is Held.no
    with hold(run):
        if not Path("/proc/sys/kernel/random/boot_id").exists():
            pytest.skip("the system does not name its boots")
        assert held(run) is Held.yes
        assert json.loads((run / HOLDER).read_text())["pid"] == os.getpid()
        with pytest.raises(RunFolderError, match="another process works on"), hold(run):
            pass
        assert held(run) is Held.yes
    assert held(run) is Held.no and not (run / HOLDER).exists()
