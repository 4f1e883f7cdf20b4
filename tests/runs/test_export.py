"""`export`: a checkpoint of a run as a stock PEFT folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedlora.errors import RunFolderError
from fedlora.runs.export import export_run
from fedlora.runs.folder import RunFolder
from fedlora.runs.simulate import simulate
from tiny_run import Ground

FILES = {"adapter_config.json", "adapter_model.safetensors", "fedlora.json"}


@pytest.fixture(scope="module", params=["ravan", "stack"])
def run(request: pytest.FixtureRequest, ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the checkpoints of rounds 1 to 3."""
    stack = ("adapter.method=lora", "aggregator.method=stack") if request.param == "stack" else ()
    path = tmp_path_factory.mktemp(request.param) / "run"
    simulate(ground.config("rounds=3", "output.keep_checkpoints=3", *stack), path)
    return path


def test_the_newest_is_the_final_adapter(run: Path, tmp_path: Path) -> None:
    assert export_run(run, tmp_path / "out") == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (run / "adapter" / name).read_bytes()


def test_an_older_round(run: Path, ground: Ground, tmp_path: Path) -> None:
    assert export_run(run, tmp_path / "out", 1) == 1
    config = RunFolder.open(run).config
    simulate(config.model_copy(update={"rounds": 1}), tmp_path / "short")
    exported, final = (path / "adapter_model.safetensors" for path in (tmp_path / "out", tmp_path / "short" / "adapter"))
    assert exported.read_bytes() == final.read_bytes() != (run / "adapter" / "adapter_model.safetensors").read_bytes()


def test_an_empty_folder_will_do(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_run(run, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out"} and {path.name for path in (tmp_path / "out").iterdir()} == FILES


def _refused(run: Path, out: Path, round_number: int | None = None) -> str:
    there = set(out.parent.iterdir())
    with pytest.raises(RunFolderError) as caught:
        export_run(run, out, round_number)
    assert set(out.parent.iterdir()) == there
    return str(caught.value)


def test_what_cannot_be_exported(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _refused(run, out, 7) == f"{run} has no checkpoint of round 7; it has 1, 2, 3"
    assert _refused(tmp_path / "nowhere", out).startswith(f"{tmp_path / 'nowhere'} holds no run (no config.toml in it)")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    assert _refused(run, tmp_path / "full") == f"{tmp_path / 'full'} already holds other files. Choose another OUT"
    assert _refused(run, run) == f"{run} already holds a run. Choose another OUT"
    shutil.copytree(run, tmp_path / "begun")
    shutil.rmtree(tmp_path / "begun" / "checkpoints")
    assert "has no checkpoint yet. Go on with it: fedlora simulate --resume" in _refused(tmp_path / "begun", out)
