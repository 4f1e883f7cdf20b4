"""Flower's simulation engine at scale: a thousand nodes, GPUs, a cluster, a process that dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from fedlora.errors import ConfigError
from fedlora.runs.simulate import simulate
from tiny_run import Ground, write_rows

pytestmark = pytest.mark.slow
SEEN_LOADS = Path(__file__).parents[1] / "seen_loads"


def _difference(left: Path, right: Path) -> float:
    """Return the largest difference between the final adapters of two runs."""
    ours, theirs = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (left, right))
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def _rows(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "clients.jsonl").read_text().splitlines()]


def test_a_thousand_nodes(ground: Ground, tmp_path: Path) -> None:
    """Two processes at a time, as the share of a GPU says; each loads the model once, and results are those of one process."""
    data = write_rows(tmp_path / "data.csv", rows=4000)
    changes = ["clients=1000", "clients_per_round=12", "rounds=3", "policy.name=random", "device=auto"]
    few = ground.overrides(*changes, f"data.name={data}", "data.partition=iid", "data.client_test_fraction=0")
    ray = ["engine=ray", "ray.num_cpus=4", "ray.num_gpus=1", "ray.client_gpus=0.5", "training.precision=fp32"]
    paths = os.pathsep.join([str(SEEN_LOADS), *filter(None, [os.environ.get("PYTHONPATH")])])
    watched = {**os.environ, "PYTHONPATH": paths, "SEEN_FILE": str(data), "SEEN_LOG": str(tmp_path / "loads")}
    # Ray makes up a GPU for its books; nothing here needs one.
    for name, more in (("ray", ray), ("batched", [])):
        command = [sys.executable, "-m", "fedlora", "simulate", *few, *more, "--out", name]
        done = subprocess.run(command, cwd=tmp_path, env=watched, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    seen = [line.split() for line in (tmp_path / "loads").read_text().splitlines()]
    loads = Counter(process for process, _ in seen)
    # The two drivers and two actors, each with what one load takes; twelve messages a round went through the actors.
    assert len(loads) == 4 and len(set(loads.values())) == 1, seen
    assert Counter(gpus for _, gpus in dict(map(tuple, seen)).items())["0"] == 2, seen
    rows = _rows(tmp_path / "ray")
    assert [row["status"] for row in rows] == ["ok"] * 36
    assert len({tuple(row["ranks"]) for row in rows}) > 3  # type: ignore[arg-type]
    assert max(int(row["client"]) for row in rows) > 500  # type: ignore[call-overload]
    assert _difference(tmp_path / "ray", tmp_path / "batched") < 1e-5


def test_a_policy_in_a_radio_world_gives_the_same_adapter(ground: Ground, tmp_path: Path) -> None:
    """Ranks follow from links and worth of components, and from what the policy owes: all of it the same on both engines."""
    few = ("clients=6", "clients_per_round=5", "rounds=3", "world.name=umi-indoor", "policy.name=lyapunov", "ray.num_cpus=2")
    for engine in ("batched", "ray"):
        simulate(ground.config(*few, f"engine={engine}"), tmp_path / engine)
    ours, theirs = (_rows(tmp_path / engine) for engine in ("batched", "ray"))
    same = ("round", "client", "status", "ranks", "uplink_bytes", "downlink_bytes")
    assert [{key: row[key] for key in same} for row in ours] == [{key: row[key] for key in same} for row in theirs]
    assert len({tuple(row["ranks"]) for row in ours}) > 1  # type: ignore[arg-type]
    assert _difference(tmp_path / "batched", tmp_path / "ray") < 1e-5


def test_no_room_for_a_client_is_one_error(ground: Ground, tmp_path: Path) -> None:
    config = ground.config("engine=ray", "ray.num_cpus=1", "ray.num_gpus=0", "ray.client_gpus=0.5")
    with pytest.raises(ConfigError, match=r"^Ray has no room for a single client: ray.client_cpus = 1, ray.client_gpus = 0\.5"):
        simulate(config, tmp_path / "run")


def test_a_process_that_dies_ends_the_run_and_it_goes_on(ground: Ground, tmp_path: Path) -> None:
    few = ground.overrides("rounds=5000", "engine=ray", "ray.num_cpus=1", "evaluation.every=5000")
    command = [sys.executable, "-m", "fedlora", "simulate", *few, "--out", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        while not process.stdout.readline().startswith("round    1/"):
            assert process.poll() is None
        actors = [child for child in psutil.Process(process.pid).children(True) if "ClientAppActor" in child.cmdline()[0]]
        assert len(actors) == 1
        actors[0].kill()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 6
    *_, last = errors.splitlines()
    assert last.startswith("error: a process of Ray's that trains clients died (ActorDiedError), most often for lack of memory")
    done = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert 1 < done < 5000
    assert all(row["status"] == "ok" for row in _rows(tmp_path / "run"))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """A Ray cluster of one machine, started as its owner would; gives the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # --dashboard-port: see `engines.ray_arguments`.
    start = ["ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    start += ["--include-dashboard=false", "--dashboard-port=-1"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    folder = Path(f"/tmp/ray-{port}")  # short: Ray's sockets lie in it
    with open(tmp_path / "cluster.log", "wb") as log:
        process = subprocess.Popen(
            [*start, f"--temp-dir={folder}"],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in (tmp_path / "cluster.log").read_text():
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "cluster.log").read_text()
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        psutil.wait_procs(started, timeout=20)
        shutil.rmtree(folder)


def test_a_cluster(ground: Ground, tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its address, and found by itself; it is still there afterwards."""
    few = ("clients=4", "clients_per_round=3", "policy.name=random")
    simulate(ground.config(*few), tmp_path / "batched")
    simulate(ground.config(*few, "engine=ray", f"ray.address={cluster}"), tmp_path / "named")
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    simulate(ground.config(*few, "engine=ray", "ray.address=auto"), tmp_path / "found")
    for name in ("named", "found"):
        assert _difference(tmp_path / "batched", tmp_path / name) < 1e-5
