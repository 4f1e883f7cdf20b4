"""The benchmarks still run, and refuse to compare contenders that did other work."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from tiny_run import Ground

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`benchmarks/run.py` as a module; its plain names are gone again after the test."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    yield importlib.import_module("run")
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


def python(code: str) -> str:
    """Run code among the benchmarks, which set up threads and libraries for a process of their own; return its last line."""
    begin = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
    done = subprocess.run([sys.executable, "-c", begin + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def case(ground: Ground) -> str:
    """Return the code of a case of three clients and two steps with a tiny model."""
    return f"Case('tiny', {str(ground.folder / 'data.csv')!r}, 3, 2, threads=1, model={str(ground.folder / 'model')!r})"


@pytest.mark.slow
@pytest.mark.parametrize("pfl", [False, pytest.param(True, marks=pytest.mark.skipif(not find_spec("pfl"), reason="needs pfl"))])
def test_contenders_hold_the_same_global_adapter_after_a_round(ground: Ground, pfl: bool) -> None:
    code = f"""
import json, engine
from contenders import Case
result = engine.run_case({case(ground)}, 1, 1, {pfl})
print(json.dumps([result, engine.comparisons(result), engine.report(result)]))
"""
    result, rows, text = json.loads(python(code))
    names = {"peft", "Flower+Ray+peft"} | ({"pfl-research+peft"} if pfl else set())
    expected = {f"{name}, {batches} batches" for name in names for batches in ("fedlora's", "shuffled")}
    assert set(result["agreement"]) == expected
    for found in result["agreement"].values():
        assert found["loss"] < 1e-5
        assert 0 <= found["parameter"] < 1e-3 * found["moved"]
    assert {row["against"] for row in rows} == expected | {"central, one adapter (fedlora)"}
    assert all(row["ours"][0] > 0 and row["theirs"][0] > 0 and len(row["times"]) == 1 for row in rows)
    assert all(name in text for name in expected) and "they moved" in text


@pytest.mark.slow
def test_other_work_is_refused(ground: Ground) -> None:
    """Shuffled batches under the name of fedlora's are found out by what they lead to."""
    code = f"""
import engine, torch
from contenders import Case, FedloraRound, PeftRound, PeftTrainer, peft_state
from fedlora.federation.workbench import build
bench = build({case(ground)}.config())
start = peft_state(bench, bench.aggregator.initial(bench.backbone.initial_head()))
name = "peft, fedlora's batches"
for bucketing in (True, False):
    rounds = {{"fedlora": FedloraRound(bench), name: PeftRound(PeftTrainer(bench.config), start, bucketing=bucketing)}}
    for work in rounds.values():
        work(1)
    try:
        engine.checked(name, rounds, start, "fp32")
        print("the same")
    except RuntimeError as error:
        print(error)
"""
    assert "peft, fedlora's batches did not do the work of fedlora" in python(code)


@pytest.mark.slow
def test_tiny_mode_gathers_its_parts(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--tiny", "--only", "radio", "terminals", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "tiny" / "summary.json").read_text(encoding="utf-8"))
    text = (tmp_path / "tiny" / "summary.md").read_text(encoding="utf-8")
    assert text in done.stdout
    assert result["seconds"].keys() == {"radio", "terminals"} and not result["failed"]
    assert result["environment"]["packages"]["torch"]
    beside = {row["against"] for row in result["comparisons"]}
    for who, module in (("Sionna", "sionna"), ("mobile-env", "mobile_env")):
        assert (who in beside) is bool(find_spec(module))
        assert (who in result["left_out"]) is not bool(find_spec(module))
        assert who in text
    differences = [row["check"]["snr_db"] for row in result["comparisons"] if row["against"] == "mobile-env"]
    assert all(value < 1e-9 for value in differences)


def test_summary_names_who_failed_and_who_is_missing(run: ModuleType) -> None:
    row = {"against": "peft", "work": "TREC", "unit": "client-steps/s", "ours": [20.0, 30.0], "theirs": [10.0, 12.0]}
    part: dict[str, Any] = {
        "environment": {
            "started": "2026-01-01T00:00:00+00:00", "cpu": "a CPU", "cores": 2, "memory_gib": 8.0, "python": "3.12.1",
            "packages": {"torch": "2.13.0"}, "commit": "0" * 40,
        },
        "comparisons": [row | {"times": [2.0, 2.5], "check": {"loss": 1.2e-7, "rows": []}}],
        "left_out": {"pfl": "pfl is not installed"},
    }  # fmt: skip
    result = run.summary("short", {"engine": part}, {"radio": "exit code 1"}, {"engine": 61.2, "radio": 3.0})
    assert result["comparisons"][0]["part"] == "engine"
    text = run.page(result)
    (line,) = (line for line in text.splitlines() if "TREC" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["TREC", "peft", "client-steps/s", "25.0", "11.0", "2.25 (2.00-2.50)", "loss 1e-07"]
    assert "Left out: pfl, since pfl is not installed." in text and "Failed: radio, exit code 1." in text
    assert "a CPU, 2 cores, 8.0 GiB; Python 3.12.1, torch 2.13.0" in text and "Took: engine 61 s, radio 3 s." in text


def test_a_part_that_fails_or_hangs_is_ended(run: ModuleType, tmp_path: Path) -> None:
    assert run.ended([sys.executable, "-c", ""], 60) == ""
    assert run.ended([sys.executable, "-c", "raise SystemExit(3)"], 60) == "exit code 3"
    pid = tmp_path / "pid"
    sleeps = "import time; time.sleep(600)"
    spawn = (
        f"import pathlib, subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {sleeps!r}]); "
        f"pathlib.Path({str(pid)!r}).write_text(str(child.pid)); {sleeps}"
    )
    assert run.ended([sys.executable, "-c", spawn], 20) == "not done after 20 s"
    until = time.monotonic() + 10
    while _runs(int(pid.read_text())):
        assert time.monotonic() < until, "what the part started goes on"
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_every_contender_is_pinned_and_torch_only_once() -> None:
    def pins(path: Path) -> dict[str, str]:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        return {name.lower().replace("_", "-"): version for name, _, version in (line.partition("==") for line in lines)}

    ours, own = pins(ROOT / "constraints.txt"), pins(BENCHMARKS / "constraints.txt")
    # The Makefile lets these count in place of fedlora's: pfl's dp-accounting asks for absl-py 1 and attrs below 24.
    assert ours.keys() & own.keys() == {"absl-py", "attrs"}
    project = tomllib.loads((BENCHMARKS / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {line.split("[")[0].split(">")[0] for line in project["dependencies"]} - {"fedlora"}
    assert {"pfl", "mobile-env", "peft"} <= named <= ours.keys() | own.keys()
