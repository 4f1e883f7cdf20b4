"""Faults in a served run over three real nodes: nothing is lost, what was hit is named, and the run is whole again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import fault_cases
from deployments import wait_until
from faulty_runs import FaultyRun, faulty_run
from tiny_run import Ground

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Residuals that clients keep between rounds, so that a node's disk is written.
_RUN = ("rounds=100000", "clients=3", "clients_per_round=3", "adapter.unit=svd", "deployment.start_timeout_s=45")
# Checkpoints larger than what else the server app writes.
_RUN += ("adapter.rank=16", "adapter.heads=8")
_CLOCK = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


@pytest.fixture(scope="module")
def run(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyRun]:
    """A run that goes on until the module's last test stops it; node 2 is not there when it begins."""
    with faulty_run(tmp_path_factory.mktemp("lab"), ground.overrides(*_RUN), 3) as made:
        made.start_node(0)
        made.start_node(1)
        made.serve()
        made.told.wait(r"^round +2/", 0.0)
        yield made


@pytest.fixture(scope="module")
def clock(run: FaultyRun) -> Path:
    """What the clock of node 2 is off by, as faketime reads it."""
    path = run.lab.folder / "clock"
    path.write_text("+0\n")
    return path


# faketime spoils the system call behind time.sleep where it is to leave the monotonic clock alone; select does as well.
_SLEEP = "import select, time\ntime.sleep = lambda seconds: select.select([], [], [], max(0.0, seconds)) and None\n"


def _with_clock(clock: Path) -> list[str]:
    """Return what a command is given to so that its clock is off by what the file says; nothing where faketime is missing."""
    if not _CLOCK:
        return []
    (clock.parent / "sleep").mkdir(exist_ok=True)
    (clock.parent / "sleep" / "sitecustomize.py").write_text(_SLEEP)
    path = os.pathsep.join(filter(None, [str(clock.parent / "sleep"), os.environ.get("PYTHONPATH", "")]))
    settings = [f"FAKETIME_TIMESTAMP_FILE={clock}", "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", f"PYTHONPATH={path}"]
    return ["env", f"LD_PRELOAD={_CLOCK}", *settings]


def _all_others_ok(run: FaultyRun, client: int) -> None:
    """Check that nobody but the client was hit, ever since all three were there."""
    others = {row["status"] for row in run.rows() if row["client"] != client}
    assert others == {"ok"}, others


def test_a_node_that_comes_late_takes_part(run: FaultyRun, clock: Path) -> None:
    assert {row["client"] for row in run.rows()} == {0, 1}
    began = time.monotonic()
    run.start_node(2, wrapper=_with_clock(clock))
    line, _ = run.told.wait("takes part from round", began)
    assert re.fullmatch(r"client 2 takes part from round \d+ on", line)
    assert run.status(int(line.split()[-2]), 2) == "ok"
    _all_others_ok(run, 2)


def test_a_trainer_that_is_killed(run: FaultyRun) -> None:
    told = fault_cases.trainer_killed(run)
    assert told.status == "failed: the node's trainer stopped while it worked on this message; the next message finds a new one"
    assert told.noticed_s < 15


def test_a_client_app_that_is_killed(run: FaultyRun) -> None:
    told = fault_cases.client_app_killed(run)
    assert told.status.startswith("failed: ")


def test_a_disk_that_is_full_on_a_node(run: FaultyRun) -> None:
    told = fault_cases.node_disk_full(run)
    wanted = r"failed: cannot write state-0/clients/\S+: File too large\. Free some space there; the node goes on by itself then"
    assert re.fullmatch(wanted, told.status)


def test_a_link_that_is_down_for_20_s_in_a_round(run: FaultyRun) -> None:
    """The round's deadline is far off: it waits, and nothing is lost."""
    told = fault_cases.link_down(run)
    assert told.status == "ok"
    assert run.nodes[1].process.poll() is None


def test_a_server_that_is_out_of_reach_for_longer_than_a_node_waits_at_its_start(run: FaultyRun) -> None:
    told = fault_cases.server_out_of_reach(run)
    assert told.status.startswith("failed: ") and told.line.endswith("; trying until it does") and told.noticed_s < 30
    assert run.nodes[1].process.poll() is None and run.nodes[1].out.count("answers again") == run.nodes[1].out.count(
        "trying until"
    )


def test_a_supernode_that_is_killed_in_a_round(run: FaultyRun) -> None:
    told = fault_cases.supernode_killed(run)
    # Flower says that it is offline after a minute, unless its successor comes first, which is sent the message once more.
    assert (told.status == "ok" or told.status.startswith("failed: ")) and told.noticed_s < 100
    assert "the SuperNode was ended by signal 9; starting another" in run.nodes[1].out


def test_a_node_that_is_killed_in_a_round_leaves_nothing_that_its_successor_does_not_clear(run: FaultyRun) -> None:
    told = fault_cases.node_killed(run)
    assert told.status.startswith("failed: ") and told.noticed_s < 30
    living = [node for node in run.nodes.values() if node.process.poll() is None]
    assert len(living) == 3 and len(list(run.scratch.glob("fedlora-node-*"))) == 3


def test_a_superlink_that_is_killed(run: FaultyRun) -> None:
    told = fault_cases.superlink_killed(run)
    assert told.status == "ok" and told.line == "Flower's superlink died (signal SIGKILL); starting it again"


@pytest.mark.skipif(_CLOCK is None, reason="needs libfaketime (Debian: faketime)")
def test_a_clock_that_jumps_while_the_node_is_online(run: FaultyRun, clock: Path) -> None:
    told = fault_cases.clock_set(run, clock)
    assert re.match(r"this device's clock is 3\d{3} s ahead of the server's; at most 5 s ahead", told.line)


@pytest.mark.skipif(_CLOCK is None, reason="needs libfaketime (Debian: faketime)")
@pytest.mark.parametrize("seconds", [60, -3600])
def test_a_clock_that_is_wrong_from_the_start(run: FaultyRun, tmp_path: Path, seconds: int) -> None:
    (tmp_path / "clock").write_text(f"{seconds:+d}\n")
    node = run.lab.start_node(0, None, "--state", str(tmp_path / "state"), wrapper=_with_clock(tmp_path / "clock"))
    assert node.wait(120) == 9
    side = "ahead of" if seconds > 0 else "behind"
    assert f" s {side} the server's; at most 5 s ahead and 305 s behind are accepted" in node.error


def test_a_run_that_somebody_starts_beside_it_by_flwr_run(run: FaultyRun) -> None:
    """Its settings override the app's, and who watches the other run does not notice."""
    lab, watched = run.lab, run.lab.status.pid
    out = lab.folder / "beside"
    environment = {
        **os.environ,
        "FLWR_HOME": str(lab.path / "flwr"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = ["flwr", "run", str(lab.path / "app"), "fedlora", "-c", f"rounds=1 training.steps=1 out='{out}'"]
    subprocess.run(command, env=environment, check=True, timeout=120, capture_output=True)
    wait_until((out / "adapter" / "adapter_model.safetensors").exists, 240, "the other run's adapter")
    rows = [json.loads(line) for line in (out / "clients.jsonl").read_text().splitlines()]
    assert {(row["round"], row["client"], row["steps"], row["status"]) for row in rows} == {
        (1, n, 1, "ok") for n in fault_cases.ALL
    }
    assert lab.status.pid == watched and lab.status.phase == "running"
    run.whole(time.monotonic(), fault_cases.ALL)


def test_a_key_that_is_revoked_while_the_run_goes_on(run: FaultyRun) -> None:
    began = time.monotonic()
    command = [sys.executable, "-m", "fedlora", "deploy", "revoke", str(run.lab.path), "node-2"]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout == "node-2 is shut out\n"
    assert run.nodes[2].wait(60) == 8
    assert "no longer accepts this node: its key was revoked" in run.nodes[2].error
    run.told.wait("went: node-2", began)
    number = run.round + 1
    assert run.status(number, 2) == "failed: the node is offline"
    assert [run.status(number, client) for client in (0, 1)] == ["ok", "ok"]


def test_a_server_that_has_no_more_room_goes_on_when_there_is_some(run: FaultyRun) -> None:
    began = time.monotonic()
    run.fill_server_disk()
    assert run.server.wait(120) == 5
    again = f"Go on with: fedlora serve --deployment {run.lab.path} --resume {run.out}"
    assert re.fullmatch(rf"cannot write {run.out}/\S+: File too large\. Free some space there; .*\. {again}", run.server.error)
    assert run.lab.left() == []
    done = max(row["round"] for row in run.rows())
    run.serve("--resume", "run")
    run.told.wait("went|came", began)
    wait_until(lambda: run.round > done + 1, 180, "the run that goes on")


def test_terminals_that_are_closed(run: FaultyRun) -> None:
    """Last of all: everything ends, in order, and nothing stays behind."""
    node, server = run.nodes[0], run.server
    node.signal(signal.SIGHUP)
    assert node.wait(60) == 0 and node.out.endswith("stopped\n")
    assert _of_node(run, 0) == []
    server.signal(signal.SIGHUP)
    assert server.wait(120) == 143 and run.lab.left() == []


def _of_node(run: FaultyRun, number: int) -> list[str]:
    """Return the command lines of a node's processes."""
    state, found = str(run.lab.folder / f"state-{number}"), []
    for process in psutil.process_iter(["cmdline", "environ"]):
        if (process.info["environ"] or {}).get("FLWR_HOME", "").startswith(state):
            found.append(" ".join(process.info["cmdline"] or []))
    return found
