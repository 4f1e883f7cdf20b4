"""The commands: what they print for people and for programs, and how they end."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from children import Child, Finished, fedlora_command
from fedlora.config import load_config
from fedlora.runs.folder import RunFolder
from tiny_run import Ground


def _ok(arguments: list[str], folder: Path) -> Finished:
    done = fedlora_command(arguments, folder)
    assert done.code == 0, done.err
    return done


def _json(arguments: list[str], folder: Path) -> Any:
    """Return what a command prints with --format json; nothing else may be on stdout."""
    done = _ok([*arguments, "--format", "json"], folder)
    return json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


# -- simulate ---------------------------------------------------------------------------------------------------------


def test_simulate_prints_lines_a_table_and_the_folder(ground: Ground, tmp_path: Path) -> None:
    done = _ok(["simulate", *ground.overrides(), "--out", "run"], tmp_path)
    lines = done.out.splitlines()
    assert lines[0] == "loading model and data" and lines[-1] == "run folder: run" and done.err == ""
    assert lines[1].startswith("ravan on ") and "over 6 clients (dirichlet), 4 a round, engine batched" in lines[1]
    rounds = [line for line in lines if re.match(r"round \d/2  accuracy 0\.\d{4}  loss \d", line)]
    assert len(rounds) == 3 and all("4/4 clients" in line and " kB, down " in line for line in rounds[1:])
    assert "\x1b" not in done.out
    table = "\n".join(lines[-14:])
    for words in ("test accuracy", "test loss", "bytes up", "bytes down", "8 of 8", "time in rounds"):
        assert words in table


def test_simulate_prints_one_json_document(ground: Ground, tmp_path: Path) -> None:
    found = _json(["simulate", *ground.overrides("evaluation.every=2"), "--out", "run"], tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert found["folder"] == "run" and found["rounds"] == rows
    assert found["summary"]["uplink_bytes"] == sum(row["uplink_bytes"] for row in rows)
    assert found["summary"]["accuracy_before"] == rows[0]["test_accuracy"]
    assert found["summary"]["loss_after"] == rows[-1]["test_loss"]
    assert (found["summary"]["rounds"], found["summary"]["replies"], found["summary"]["replies_failed"]) == (2, 8, 0)


def test_simulate_over_a_radio(ground: Ground, tmp_path: Path) -> None:
    found = _json(["simulate", *ground.overrides("world.name=umi-indoor"), "--out", "run"], tmp_path)
    assert [row["void"] for row in found["rounds"]] == [None] * 3
    assert 0 == found["rounds"][0]["virtual_time_s"] < found["rounds"][1]["virtual_time_s"] < found["rounds"][2]["virtual_time_s"]
    done = fedlora_command(["simulate", *ground.overrides("world.name=umi-indoor"), "--out", "lines"], tmp_path)
    assert done.code == 0 and done.err == ""


def test_numbers_that_are_not_finite_are_null_in_json_and_named_in_the_table(ground: Ground, tmp_path: Path) -> None:
    lost = ground.overrides("training.lr=1e37", "training.clip=0", "training.steps=1", "training.optimizer=sgd")
    assert _json(["simulate", *lost, "--out", "run"], tmp_path)["summary"]["loss_after"] is None
    assert "not finite" in _ok(["simulate", "--resume", "run"], tmp_path).out


def test_a_run_file_and_overrides(ground: Ground, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(ground.config("rounds=7", "training.epochs=1").to_toml())
    _ok(["simulate", "study.toml", "rounds=1", "training.steps=2", "seed=5", "--out", "run"], tmp_path)
    config = RunFolder.open(tmp_path / "run").config
    assert (config.rounds, config.seed, config.training.steps, config.training.epochs) == (1, 5, 2, None)


def test_without_a_file_it_is_the_quickstart() -> None:
    from fedlora.cli.common import quickstart, read_arguments

    assert read_arguments([]) == load_config(quickstart())
    assert read_arguments(["seed=9"]) == load_config(quickstart(), ["seed=9"])


def test_runs_get_a_folder_of_their_own(ground: Ground, tmp_path: Path) -> None:
    folders = [_json(["simulate", *ground.overrides("rounds=1")], tmp_path)["folder"] for _ in range(2)]
    assert len(set(folders)) == 2
    for folder in folders:
        assert re.fullmatch(r"runs/\d{8}-\d{6}-model-data-ravan(-2)?", folder) and (tmp_path / folder / "metrics.jsonl").exists()


def test_on_a_terminal_there_is_a_bar(ground: Ground, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    # Long enough for the bar to be redrawn while clients train; it is, ten times a second.
    arguments = ground.overrides("training.steps=150")
    command = [sys.executable, "-m", "fedlora", "simulate", *arguments, "--out", "run"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=follower, stderr=follower, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the other side has closed
                break
            if not part:
                break
            shown += part
    os.close(leader)
    text = shown.decode()
    assert process.returncode == 0, text
    assert "━" in text and "local steps" in text and "round 2/2" in text and "run folder: run" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0  # the cursor comes back


# -- interrupted ------------------------------------------------------------------------------------------------------


def _interrupt(ground: Ground, folder: Path, file: str, by: signal.Signals = signal.SIGINT) -> Finished:
    child = Child(["simulate", *ground.overrides("rounds=500"), "--out", "run"], folder)
    deadline = time.monotonic() + 60
    while not (folder / file).exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert child.process.pid is not None
    os.kill(child.process.pid, by)
    return child.wait()


def test_ctrl_c_says_how_to_go_on(ground: Ground, tmp_path: Path) -> None:
    done = _interrupt(ground, tmp_path, "run/checkpoints/round-00002")
    assert done.code == 130 and done.out.splitlines()[-1] == "stopped. Go on with: fedlora simulate --resume run"
    assert "Traceback" not in done.err
    again = fedlora_command(["simulate", "rounds=500", "--resume", "run"], tmp_path, kill_at=30)  # it takes the run up
    assert "going on after round" in again.out


def test_sigterm_says_it_too(ground: Ground, tmp_path: Path) -> None:
    done = _interrupt(ground, tmp_path, "run/checkpoints/round-00001", signal.SIGTERM)
    assert done.code == 143 and done.out.splitlines()[-1] == "stopped. Go on with: fedlora simulate --resume run"
    assert done.err == ""


def test_ctrl_c_before_there_is_a_run(ground: Ground, tmp_path: Path) -> None:
    child = Child(["simulate", *ground.overrides(), "--out", "run"], tmp_path)
    while not (child.printed[0].exists() and "loading" in child.printed[0].read_text()):
        time.sleep(0.001)
    assert child.process.pid is not None
    os.kill(child.process.pid, signal.SIGINT)
    done = child.wait()
    assert done.code == 130 and "Traceback" not in done.err
    known = (tmp_path / "run" / "config.toml").exists()
    assert done.out.splitlines()[-1].startswith("stopped. Go on with" if known else "stopped before the first round")


# -- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nowhere", "file", "files"])
def test_nothing_to_resume(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "thesis.tex").write_text("")
    done = fedlora_command(["simulate", "--resume", name], tmp_path)
    assert done.error == f"{name} holds no run (no config.toml in it). Give the folder that `fedlora simulate` printed"
    assert done.code == 5


def test_out_and_resume_exclude_each_other(tmp_path: Path) -> None:
    done = fedlora_command(["simulate", "--out", "new", "--resume", "old"], tmp_path)
    assert done.code == 2 and done.error.startswith("--out names a new run's folder and --resume an old one's")


def test_an_edited_run_file_is_refused_too(ground: Ground, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(ground.config("rounds=1").to_toml())
    _ok(["simulate", "study.toml", "--out", "run"], tmp_path)
    _ok(["simulate", "study.toml", "--resume", "run"], tmp_path)
    (tmp_path / "study.toml").write_text(ground.config("rounds=1", "training.lr=0.5").to_toml())
    done = fedlora_command(["simulate", "study.toml", "--resume", "run"], tmp_path)
    assert done.code == 5 and "(training.lr: 0.01 there, 0.5 here)" in done.error


# -- the other commands -----------------------------------------------------------------------------------------------


def test_methods_lists_what_is_registered(tmp_path: Path) -> None:
    found = _json(["methods"], tmp_path)
    names = {kind: {row["name"] for row in rows} for kind, rows in found.items()}
    assert {"fedit", "fedex-lora", "fed-sb", "ravan", "full"} <= names["methods"]
    columns = {"trained", "up", "down", "exact", "mixed_ranks", "source", "adapter", "aggregator"}
    assert all(columns <= row.keys() and all(row.values()) for row in found["methods"])
    assert {"lora", "ravan", "triplet"} <= names["adapters"]
    assert {"fedavg-factors", "fedex", "median", "ravan", "stack"} <= names["aggregators"]
    assert {"fixed", "full", "random", "tiers"} <= names["policies"]
    assert names["worlds"] >= {"airllm", "airllm-markov", "ideal", "inh-office", "trace", "uma-macro", "umi-indoor", "yang2021"}
    assert "aircomp" in names["aggregators"]
    assert {"minilm-l6", "smollm2-135m", "vit-s14"} <= names["models"] and {"trec-6", "austen", "r8"} <= names["data"]
    assert all(row["what"] and "\n" not in row["what"] for rows in found.values() for row in rows)
    text = _ok(["methods"], tmp_path).out
    assert all(kind in text for kind in found) and "gram-schmidt" in text


def test_assets_lists_what_is_packaged(tmp_path: Path) -> None:
    found = _json(["assets", "list"], tmp_path)
    assert {"minilm-l6", "trec-6"} <= {row["name"] for row in found["assets"]}
    assert all({"kind", "cached", "size_mb", "package", "licence", "what"} <= row.keys() for row in found["assets"])
    assert found["cache"] in _ok(["assets", "list"], tmp_path).out
    unknown = fedlora_command(["assets", "fetch", "minilm-l9"], tmp_path)
    assert unknown.code == 2 and "Did you mean 'minilm-l6'?" in unknown.error


def test_doctor_describes_machine_and_run(ground: Ground, tmp_path: Path) -> None:
    found = _json(["doctor", *ground.overrides("policy.name=random")], tmp_path)
    run = _json(["simulate", *ground.overrides("policy.name=random"), "--out", "run"], tmp_path)
    assert found["installation"].keys() >= {"torch", "flwr", "devices"}
    assert found["preflight"]["uplink_bytes_in_round_1"] == run["rounds"][1]["uplink_bytes"]
    assert found["preflight"]["downlink_bytes_in_round_1"] == run["rounds"][1]["downlink_bytes"]
    assert found["preflight"]["trainable_numbers_per_client"] == 4 * (4 * 4 * 4 + 4) + 3 * 32 + 3
    assert _json(["doctor"], tmp_path).keys() == {"installation"}
    text = _ok(["doctor", *ground.overrides()], tmp_path).out
    assert "preflight" in text and "uplink bytes in round 1" in text
    radio = _json(["doctor", *ground.overrides("policy.name=random", "world.name=umi-indoor")], tmp_path)
    assert radio["preflight"]["uplink_bytes_in_round_1"] == found["preflight"]["uplink_bytes_in_round_1"]
    unknown = fedlora_command(["doctor", *ground.overrides("world.name=umi-indor")], tmp_path)
    assert unknown.code == 2 and "Did you mean 'umi-indoor'?" in unknown.error
    refused = fedlora_command(["doctor", *ground.overrides("adapter.rank=33")], tmp_path)
    assert refused.code == 2 and "choose 1 to 32" in refused.error


def test_export_by_command(ground: Ground, tmp_path: Path) -> None:
    _ok(["simulate", *ground.overrides(), "--out", "run"], tmp_path)
    assert _ok(["export", "run", "out"], tmp_path).out == "adapter of round 2: out\n"
    assert _ok(["export", "run", "older", "--round", "1"], tmp_path).out == "adapter of round 1: older\n"
    assert (
        fedlora_command(["export", "run", "third", "--round", "9"], tmp_path).error
        == "run has no checkpoint of round 9; it has 1, 2"
    )
    assert fedlora_command(["export", "run", "out"], tmp_path).error == "out already holds other files. Choose another OUT"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["older", "out", "run"]


def test_debug_adds_the_traceback(tmp_path: Path) -> None:
    done = fedlora_command(["--debug", "simulate", "seed=-1"], tmp_path)
    assert done.code == 2 and "Traceback" in done.err and done.err.splitlines()[-1].startswith("error: seed = -1")


# -- light and quick --------------------------------------------------------------------------------------------------

_HEAVY = ("torch", "transformers", "flwr", "datasets", "matplotlib", "tensorboard", "ray", "pandas", "scipy")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["simulate", "--help"], ["--version"], ["assets", "list"], ["simulate", "lr=3"], ["simulate", "no.toml"]],
)
def test_light_commands_import_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    code = (
        "import sys, time; began = time.process_time(); sys.argv = ['fedlora', *sys.argv[1:]]\n"
        "from fedlora.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', *sorted(set({_HEAVY!r}) & set(sys.modules)), time.process_time() - began)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
    _, *heavy, seconds = done.stdout.splitlines()[-1].split()
    assert heavy == []
    assert float(seconds) < 1.0  # of processor time: the machine may be busy
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m fedlora assets list --format json | head -c 10"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("{") and "Traceback" not in done.stderr


def test_log_on_the_command_line_is_the_key_of_the_run_file() -> None:
    from fedlora.cli.common import Log, read_arguments, with_log

    arguments = with_log(["rounds=1"], [Log.wandb, Log.mlflow, Log.wandb])
    assert read_arguments(arguments).output.log == ["wandb", "mlflow"]
    assert with_log(["rounds=1"], None) == ["rounds=1"]
