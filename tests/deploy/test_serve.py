"""`fedlora serve` with two real nodes: a run as it should be, and the ways in which the server's side can go wrong."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from deployments import Deployment, assert_same_served, deployment, wait_until
from fedlora.runs.simulate import simulate
from runs_compared import rows
from tiny_run import Ground

pytestmark = pytest.mark.slow

# Residuals that clients keep between rounds, and ranks that differ.
_RUN = ("rounds=6", "clients=2", "clients_per_round=2", "adapter.unit=svd", "policy.name=random")
# A policy that sees a simulated radio, which lies over the real nodes.
_RADIO = ("rounds=3", "adapter.unit=heads", "world.name=umi-indoor", "policy.name=lyapunov")
_ADAPTER = Path("adapter") / "adapter_model.safetensors"


@pytest.fixture(scope="module")
def lab(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment whose two nodes run all the time; they came before the server."""
    with deployment(tmp_path_factory.mktemp("lab"), ground.overrides(*_RUN)) as made:
        made.hand_out()
        made.start_nodes()
        yield made


@pytest.fixture(scope="module")
def whole(lab: Deployment) -> Path:
    """A run that nothing disturbed."""
    serve = lab.serve("--out", "whole")
    assert serve.wait() == 0, serve.files[1].read_text()
    print(serve.out)
    assert lab.left() == []
    return lab.folder / "whole"


def _difference(run: Path, other: Path) -> float:
    ours, theirs = (load_file(folder / _ADAPTER) for folder in (run, other))
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def _decided(run: Path) -> list[dict[str, object]]:
    same = ("round", "client", "status", "ranks", "uplink_bytes", "downlink_bytes")
    return [{key: row[key] for key in same} for row in rows(run / "clients.jsonl")]


@pytest.mark.parametrize("changes", [(), _RADIO], ids=["mixed-ranks-and-residuals", "policy-in-a-radio-world"])
def test_one_run_file_three_engines_one_adapter(
    lab: Deployment, ground: Ground, tmp_path: Path, request: pytest.FixtureRequest, changes: tuple[str, ...]
) -> None:
    if changes:
        serve = lab.serve(*changes, "--out", "radio")
        assert serve.wait() == 0, serve.files[1].read_text()
    deployed = lab.folder / "radio" if changes else request.getfixturevalue("whole")
    for engine in (("engine=batched",), ("engine=ray", "ray.num_cpus=2")):
        simulated = tmp_path / engine[0]
        simulate(ground.config(*_RUN, *changes, *engine), simulated)
        assert _difference(deployed, simulated) < 1e-5
        assert _decided(deployed) == _decided(simulated)
    assert len({tuple(row["ranks"]) for row in _decided(deployed)}) > 1  # type: ignore[arg-type]
    assert max(float(tensor.abs().max()) for tensor in load_file(deployed / _ADAPTER).values()) > 0


def test_what_is_shown(lab: Deployment, whole: Path) -> None:
    lines = (lab.folder / "serve-1.out").read_text().splitlines()
    assert lines[0].startswith("serving at localhost:")
    assert any(line.startswith("2 of 2 nodes online") and "node-0" in line for line in lines)
    assert [line.split("  ")[0] for line in lines if line.startswith("round ")] == [f"round {number}/6" for number in range(7)]
    assert lines[-1] == "run folder: " + str(whole)
    assert "token" not in (whole / "environment.json").read_text()


def test_a_finished_run_has_nothing_left_to_do(lab: Deployment, whole: Path) -> None:
    serve = lab.serve("--resume", "whole")
    assert serve.wait(60) == 0
    assert serve.out.startswith("all 6 rounds of ")


def test_a_run_that_is_cut_off_in_every_way_ends_as_one_that_is_not(lab: Deployment, whole: Path) -> None:
    again = f"Go on with: fedlora serve --deployment {lab.path} --resume {lab.folder / 'cut'}"
    serve = lab.serve("--out", "cut")
    serve.wait_for("round 0/6")
    serve.signal(signal.SIGINT)
    assert serve.wait(120) == 130
    assert lab.left() == []
    assert serve.out.splitlines()[-1] == "stopped. Go on with: fedlora serve --deployment lab --resume cut"

    serve = lab.serve("--resume", "cut")
    serve.wait_for("\nround ")
    serve.signal(signal.SIGKILL)
    serve.wait(10)
    orphan = psutil.Process(lab.status.pid)
    assert len(lab.left()) >= 3

    serve = lab.serve("--resume", "cut")
    serve.wait_for("nodes online")
    assert not orphan.is_running()
    os.kill(lab.status.pid, signal.SIGKILL)
    assert serve.wait(120) == 1
    assert re.fullmatch(rf"the server app died in round \d; what was done until then is kept\. {re.escape(again)}", serve.error)
    assert lab.left() == []

    assert lab.serve("--resume", "cut").wait() == 0
    assert_same_served(lab.folder / "cut", whole)


def test_the_superlink_is_killed_and_the_run_goes_on(lab: Deployment, whole: Path) -> None:
    serve = lab.serve("--out", "survives")
    serve.wait_for("round 1/6")
    lab.server_process("superlink_process").kill()
    assert serve.wait() == 0, serve.files[1].read_text()
    print(serve.out)
    assert "Flower's superlink died (signal SIGKILL); starting it again" in serve.out
    assert_same_served(lab.folder / "survives", whole)


def test_a_full_disk_reaches_the_screen(lab: Deployment, whole: Path) -> None:
    """The server app gets too little room for its next checkpoint, in the middle of the run."""
    serve = lab.serve("adapter.rank=16", "adapter.heads=8", "--out", "full")
    serve.wait_for("round 0/6")
    newest = lab.folder / "full" / "checkpoints" / "round-00000" / "state.safetensors"
    wait_until(newest.exists)
    limit = newest.stat().st_size - 1
    psutil.Process(lab.status.pid).rlimit(psutil.RLIMIT_FSIZE, (limit, limit))
    assert serve.wait() == 5
    assert serve.error.startswith(f"cannot write {lab.folder / 'full' / 'checkpoints'}/round-0000")
    assert f"{os.strerror(errno.EFBIG)}. Free some space there" in serve.error and serve.error.endswith(
        "--resume " + str(lab.folder / "full")
    )
    assert lab.left() == []


def test_one_server_at_a_time_and_an_orderly_end(lab: Deployment, whole: Path) -> None:
    first = lab.serve("--out", "first")
    wait_until(lab.left)
    second = lab.serve("--out", "second")
    assert second.wait(60) == 1
    assert second.error == f"another `fedlora serve` works on {lab.path}. Wait until it ends, or stop it"
    first.signal(signal.SIGTERM)
    assert first.wait(120) == 143
    assert lab.left() == []
