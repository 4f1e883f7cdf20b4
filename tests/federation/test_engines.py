"""What stands behind the grid: roll call, and Flower's own simulation engine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest
from flwr.app import Error, Message
from safetensors.torch import load_file

from fedlora.errors import ConfigError, FedLoRAError
from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.roll import call_roll
from fedlora.federation.workbench import build
from fedlora.runs.simulate import simulate
from tiny_run import Ground, play


class _Deaf(BatchedGrid):
    """Replies to the roll call get lost, or come as errors, for all nodes above `reachable`."""

    reachable = 0
    reason: str | None = None

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        sent = list(messages)
        for message, reply in zip(sent, super().send_and_receive(sent), strict=True):
            if message.metadata.dst_node_id <= self.reachable or message.metadata.message_type != "query":
                yield reply
            elif self.reason is not None:
                yield Message(Error(0, self.reason), reply_to=message)


def test_the_roll_names_every_client_and_its_examples(ground: Ground) -> None:
    bench = build(ground.config())
    assert call_roll(BatchedGrid(bench), 6) == {client: (client + 1, len(part)) for client, part in enumerate(bench.parts)}


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (
            None,
            "of 6 nodes that are online none answered within 600 s. .*trainer.log in its --state folder says what else is wrong",
        ),
        ("Traceback\nValueError: no such model", "ValueError: no such model"),
    ],
)
def test_nobody_at_the_roll_is_one_error(ground: Ground, reason: str | None, message: str) -> None:
    grid = _Deaf(build(ground.config()))
    grid.reason = reason
    with pytest.raises(FedLoRAError, match=f"^no client takes part: {message}$"):
        call_roll(grid, 6)


def test_rounds_draw_from_those_who_answered(ground: Ground) -> None:
    bench = build(ground.config("rounds=3"))
    grid = _Deaf(bench)
    grid.reachable, grid.reason = 3, "out of memory"
    _, records = play(bench, grid)
    assert [[row["client"] for row in record.clients] for record in records] == [[0, 1, 2]] * 3


def test_without_ray_the_engine_is_refused(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # what Python notes of a module that cannot be imported
    with pytest.raises(ConfigError, match="engine = 'ray' needs Ray: pip install"):
        simulate(ground.config("engine=ray"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _started_since(before: set[psutil.Process], patience: float = 20.0) -> list[str]:
    """Return the command lines of processes that do not end by themselves; Ray's take a moment."""
    left = set(psutil.Process().children(recursive=True)) - before
    _, alive = psutil.wait_procs(list(left), timeout=patience)
    return [" ".join(process.cmdline()) for process in alive]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [(), ("adapter.unit=svd", "policy.name=random")], ids=["ravan", "svd-residuals"])
def test_ray_gives_the_same_adapter(ground: Ground, tmp_path: Path, changes: tuple[str, ...]) -> None:
    few = ("clients=4", "clients_per_round=3", "ray.num_cpus=2", "rounds=3", *changes)
    before = set(psutil.Process().children(recursive=True))
    ours = simulate(ground.config(*few), tmp_path / "batched")
    theirs = simulate(ground.config(*few, "engine=ray"), tmp_path / "ray")
    left, right = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("batched", "ray"))
    assert left.keys() == right.keys()
    assert max(float((left[name] - right[name]).abs().max()) for name in left) < 1e-5
    for row, other in zip(ours.rounds, theirs.rounds, strict=True):
        assert row["test_loss"] == pytest.approx(other["test_loss"], abs=1e-5)
        assert {key: row[key] for key in row if key.endswith("bytes") or key.startswith("clients_")} == pytest.approx(
            {key: other[key] for key in row if key.endswith("bytes") or key.startswith("clients_")}, abs=1e-5
        )
    assert _started_since(before) == []


@pytest.mark.slow
def test_ray_by_the_command_line(ground: Ground, tmp_path: Path) -> None:
    """One JSON document on stdout, no remarks of libraries on stderr; Ctrl-C ends it, and all processes with it."""
    few = ground.overrides("clients=4", "clients_per_round=2", "engine=ray", "ray.num_cpus=2")
    command = [sys.executable, "-m", "fedlora", "simulate", *few]
    done = subprocess.run(
        [*command, "rounds=1", "--out", "one", "--format", "json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["summary"]["replies"] == 2
    assert [line for line in done.stderr.splitlines() if not line.startswith(("loading model", "ravan on", "round "))] == []

    with subprocess.Popen([*command, "rounds=5000", "--out", "many"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("round    1/"):
            assert process.poll() is None
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        *_, last = process.stdout.read().splitlines()
        assert process.wait(30) == 130 and last == "stopped. Go on with: fedlora simulate --resume many"
    _, alive = psutil.wait_procs(started, timeout=20)
    assert len(started) > 2 and alive == []
