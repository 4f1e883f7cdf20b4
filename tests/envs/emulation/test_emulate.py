"""`fedlora emulate`: whole runs over emulated links, and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emulated import names, needs_namespaces
from fedlora.config import load_config
from fedlora.errors import ConfigError
from fedlora_envs.emulation.command import emulate as command
from fedlora_envs.emulation.run import Settings, emulate
from tiny_run import Ground

RUN = ("clients=2", "clients_per_round=2", "rounds=2", "adapter.method=lora", "adapter.rank=32", "world.name=umi-indoor")


def start(ground: Ground, folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start the command on a small run."""
    file = folder / "run.toml"
    file.write_text(ground.config(*RUN).to_toml())
    arguments = [str(file), "--out", str(folder / "run"), *options]
    return subprocess.Popen(
        [sys.executable, "-m", "fedlora_envs.emulation", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


@needs_namespaces
@pytest.mark.slow
def test_airtimes_come_out_as_predicted_and_the_learning_as_simulated(ground: Ground, tmp_path: Path) -> None:
    process = start(ground, tmp_path, "--format", "json")
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    told = json.loads(out)
    summary = told["summary"]
    assert told["folder"] == str(tmp_path / "run")
    assert (summary["rounds"], summary["clients"]) == (2, 2)
    for way in ("down", "up"):
        assert summary[way]["replies"] == 4
        assert summary[way]["airtime_error"] < 0.15
        # The payload alone explains less: what protocols add is really on the air.
        assert summary[way]["payload_alone_error"] > summary[way]["airtime_error"]
    assert summary["accuracy_difference"] < 1e-6
    assert summary["bytes_equal"]
    assert summary["round_s"]["beyond"] > 0
    run = tmp_path / "run"
    assert (run / "emulation.png").exists()
    assert {path.name for path in (run / "emulation").iterdir()} == {
        "logs", "relay.jsonl", "schedule.jsonl", "settings.json", "simulated"
    }  # fmt: skip
    played = [json.loads(line) for line in (run / "emulation" / "schedule.jsonl").read_text().splitlines()]
    assert [(row["round"], row["client"]) for row in played] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert not [name for name in names() if f"-{process.pid}-" in name]


@needs_namespaces
@pytest.mark.slow
def test_told_to_end_it_takes_everything_down(ground: Ground, tmp_path: Path) -> None:
    process = start(ground, tmp_path, "--no-simulate")
    assert process.stdout
    while "starting 2 nodes" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(3)
    own = [name for name in names() if f"-{process.pid}-" in name]
    assert len(own) == 3
    pids = [pid for name in own for pid in inside(name)]
    assert len(pids) >= 4
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=90)
    assert (process.returncode, "stopped; server, nodes and namespaces are gone" in out) == (143, True), err
    assert not [name for name in names() if f"-{process.pid}-" in name]
    assert not [pid for pid in pids if alive(pid)]


def test_it_is_refused_before_work_where_it_cannot_be(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="with half of all packets lost"):
        Settings(loss=0.5).impairment()
    with pytest.raises(ConfigError, match="less than ten packets"):
        Settings(queue_kb=10).impairment()
    with pytest.raises(ConfigError, match=r"world\.nmae"):
        command(["clients=2", "world.nmae=ideal"])
    monkeypatch.setattr("fedlora_envs.emulation.run.check_possible", lambda: None)
    with pytest.raises(ConfigError, match=r"set world\.name"):
        emulate(load_config(None, ["clients=2", "clients_per_round=2"]), tmp_path / "run", Settings())
    assert not (tmp_path / "run").exists()


def inside(name: str) -> list[int]:
    """Return the processes in a namespace."""
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in found.split()]


def alive(pid: int) -> bool:
    """Return whether a process runs (one that has ended and waits to be asked for its exit code does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
