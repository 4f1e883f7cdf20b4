"""A run that is killed with SIGKILL and resumed ends with the same bytes as one that was not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from children import Child, Finished, fedlora_command
from fedlora.runs.simulate import simulate
from runs_compared import assert_same_run, rows
from tiny_run import Ground

KINDS = {
    "ravan": ("rounds=3",),
    "svd": ("rounds=3", "adapter.unit=svd", "policy.name=random"),  # clients keep residuals
    "stack": ("rounds=3", "adapter.method=lora", "aggregator.method=stack", "policy.name=random"),  # the state grows
    "triplet-int8": ("rounds=3", "adapter.method=triplet", "wire.dtype=int8", "wire.downlink=sliced", "training.epochs=1"),
}


@dataclass
class Whole:
    """An uninterrupted run, by the command line, and how long it took."""

    kind: str
    ground: Ground
    run: Path
    seconds: float

    @property
    def arguments(self) -> list[str]:
        """The arguments of the command that started it, but for its folder."""
        return ["simulate", *self.ground.overrides(*KINDS[self.kind])]


@pytest.fixture(scope="module", params=KINDS.keys())
def whole(request: pytest.FixtureRequest, ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """One run of each kind that nobody disturbs."""
    folder = tmp_path_factory.mktemp(request.param)
    began = time.monotonic()
    done = fedlora_command(["simulate", *ground.overrides(*KINDS[request.param]), "--out", "run"], folder)
    assert done.code == 0, done.err
    return Whole(request.param, ground, folder / "run", time.monotonic() - began)


def only(*kinds: str) -> pytest.MarkDecorator:
    """Run a test with these kinds of runs; what it shows does not depend on the kind."""
    return pytest.mark.parametrize("whole", kinds, indirect=True)


def _finish(whole: Whole, folder: Path, kill_at: int = 0) -> Finished:
    """Go on with a run as its user would, whether or not its folder says already what it is."""
    known = (folder / "run" / "config.toml").exists()
    arguments = ["simulate"] if known else whole.arguments
    return fedlora_command([*arguments, "--resume", "run"], folder, kill_at=kill_at)


@pytest.mark.parametrize("trial", range(3))
def test_killed_at_the_disk_and_resumed(whole: Whole, tmp_path: Path, trial: int) -> None:
    """Killed before a random one of the sixty times it touches the disk, then once more while it is resumed."""
    pick = random.Random(f"{whole.kind} {trial}")
    first, second = pick.randrange(1, 60), pick.randrange(1, 40)
    done = fedlora_command([*whole.arguments, "--out", "run"], tmp_path, kill_at=first)
    assert done.code == -signal.SIGKILL
    assert _finish(whole, tmp_path, kill_at=second).code in (-signal.SIGKILL, 0)
    assert _finish(whole, tmp_path).code == 0
    assert_same_run(tmp_path / "run", whole.run)


@pytest.mark.slow
@only("svd")  # whose checkpoints hold most
@pytest.mark.parametrize("event", range(1, 90))
def test_killed_before_every_single_touch_of_the_disk(whole: Whole, tmp_path: Path, event: int) -> None:
    done = fedlora_command([*whole.arguments, "--out", "run"], tmp_path, kill_at=event)
    if done.code == 0:  # the run touches the disk less often
        assert event > 70
        return
    assert _finish(whole, tmp_path).code == 0
    assert_same_run(tmp_path / "run", whole.run)


def test_killed_at_random_times(whole: Whole, tmp_path: Path) -> None:
    """Again and again, from the very beginning to the end, wherever the process happens to be."""
    pick = random.Random(7)
    arguments = [*whole.arguments, "--resume", "run"]
    for share in (0.05, pick.uniform(0.2, 0.5), pick.uniform(0.5, 0.8), 0.9):
        child = Child(arguments, tmp_path)
        child.process.join(share * whole.seconds)
        child.kill()
        assert child.wait().code in (-signal.SIGKILL, 0)
    assert _finish(whole, tmp_path).code == 0
    assert_same_run(tmp_path / "run", whole.run)


@pytest.mark.slow
def test_killed_in_a_process_of_its_own(ground: Ground, tmp_path: Path) -> None:
    """The same without any help: fresh interpreters, killed within the first seconds, before the first round, and later."""
    arguments = [sys.executable, "-m", "fedlora", "simulate", *ground.overrides("rounds=40")]
    simulate(ground.config("rounds=40"), tmp_path / "whole")
    metrics = tmp_path / "run" / "metrics.jsonl"
    for rounds in (0, 1, 2, 20, 38):  # 0: while it imports
        with subprocess.Popen([*arguments, "--resume", "run"], cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 200
            while rounds and (len(metrics.read_text().splitlines()) if metrics.exists() else 0) <= rounds:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.001)
            if not rounds:
                time.sleep(1.0)
            os.kill(process.pid, signal.SIGKILL)
    subprocess.run([*arguments, "--resume", "run"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@only("ravan", "stack")
def test_resuming_a_finished_run_changes_nothing(whole: Whole, tmp_path: Path) -> None:
    shutil.copytree(whole.run, tmp_path / "run")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    done = fedlora_command(["simulate", "--resume", "run"], tmp_path)
    assert done.code == 0 and "going on after round 3 of 3" in done.out and "run folder: run" in done.out
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after == before


@only("ravan", "stack")
def test_a_finished_run_without_its_adapter_gets_it_again(whole: Whole, tmp_path: Path) -> None:
    shutil.copytree(whole.run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapter")
    assert _finish(whole, tmp_path).code == 0
    assert_same_run(tmp_path / "run", whole.run)


def test_an_older_checkpoint_serves_as_well(whole: Whole, tmp_path: Path) -> None:
    shutil.copytree(whole.run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "round-00003")
    assert _finish(whole, tmp_path).code == 0
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"round-00002", "round-00003"}
    assert_same_run(tmp_path / "run", whole.run)


@only("ravan")
def test_a_run_from_before_a_key_was_there_goes_on(whole: Whole, tmp_path: Path) -> None:
    """Ravan's scales could not be chosen once: a folder that says nothing of them has them trained, as it was."""
    shutil.copytree(whole.run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "round-00003")
    stored = tmp_path / "run" / "config.toml"
    assert 'scales = "trained"\n' in stored.read_text()
    stored.write_text(stored.read_text().replace('scales = "trained"\n', ""))
    assert _finish(whole, tmp_path).code == 0
    assert rows(tmp_path / "run" / "metrics.jsonl") == rows(whole.run / "metrics.jsonl")
    other = fedlora_command(["simulate", "adapter.scales=fixed", "--resume", "run"], tmp_path)
    assert "(adapter.scales: 'trained' there, 'fixed' here)" in other.error and other.code == 5


@only("ravan")
@pytest.mark.parametrize("log", ["metrics", "clients"])
def test_lost_rows_are_one_error(whole: Whole, tmp_path: Path, log: str) -> None:
    shutil.copytree(whole.run, tmp_path / "run")
    path = tmp_path / "run" / f"{log}.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    error = fedlora_command(["simulate", "--resume", "run"], tmp_path).error
    assert error.startswith(f"run/{log}.jsonl has ") and "rows were removed. Restore the file to resume" in error
    path.unlink()
    assert "has 0 bytes" in fedlora_command(["simulate", "--resume", "run"], tmp_path).error


@only("ravan")
def test_events_may_be_thrown_away(whole: Whole, tmp_path: Path) -> None:
    shutil.copytree(whole.run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "tensorboard")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "round-00003")
    assert _finish(whole, tmp_path).code == 0
    assert EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Scalars("round/test_loss")[0].step == 3
    assert rows(tmp_path / "run" / "metrics.jsonl") == rows(whole.run / "metrics.jsonl")


@only("ravan")
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["rounds=5"], "(rounds: 3 there, 5 here)"),
        (["adapter.rank=2", "seed=1"], "(seed: 0 there, 1 here; adapter.rank: 4 there, 2 here)"),
        (["training.epochs=2"], "training.epochs"),
        (["wire.dtype=fp16"], "wire.dtype"),
        (["policy.options.rank=3"], "policy.options"),
    ],
)
def test_a_changed_configuration_is_refused_by_key(whole: Whole, tmp_path: Path, changes: list[str], named: str) -> None:
    done = fedlora_command(["simulate", *changes, "--resume", str(whole.run)], tmp_path)
    assert named in done.error and "started with another configuration" in done.error and done.code == 5
    assert "Resume it unchanged" in done.error


def test_two_processes_do_not_work_on_one_run(ground: Ground, tmp_path: Path) -> None:
    first = Child(["simulate", *ground.overrides("rounds=400"), "--out", "run"], tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "checkpoints" / "round-00001").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    second = fedlora_command(["simulate", "--resume", "run"], tmp_path)
    assert second.code == 5 and second.error == "another process works on run. Wait until it ends, or stop it"
    first.kill()
    assert first.wait().code == -signal.SIGKILL
    third = fedlora_command(["simulate", "--resume", "run"], tmp_path, kill_at=40)
    assert "going on after round" in third.out  # what is killed holds nothing
