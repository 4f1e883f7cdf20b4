"""The Python API of a notebook."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fedlora
from fedlora.config import QUICKSTART, load_config
from fedlora.errors import ConfigError, RunFolderError, UnknownNameError
from tiny_run import Ground, ground

__all__ = ["ground"]


@pytest.fixture(scope="module")
def run(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> fedlora.Run:
    """A run that was made by the API."""
    out = tmp_path_factory.mktemp("api") / "run"
    return fedlora.simulate(ground.config(), "policy.name=tiers", out=out, progress=False, rounds=3, training={"steps": 2})


def test_a_run_from_python_is_a_run(run: fedlora.Run, ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.config == ground.config("policy.name=tiers", "rounds=3", "training.steps=2")
    assert run.complete and run.metrics["round"].tolist() == [0, 1, 2, 3]
    assert run.metrics["test_accuracy"].between(0, 1).all()
    assert len(run.clients) == 12 and set(run.clients["mean_rank"]) <= {4, 8, 12, 16}
    assert run.adapter() == run.path / "adapter" and (run.adapter() / "adapter_config.json").is_file()
    assert repr(run) == f"Run({str(run.path)!r}, 3 of 3 rounds)"
    again = fedlora.load_run(str(run.path))
    assert again.metrics.equals(run.metrics) and again.config == run.config


def test_the_same_rows_as_on_disk_in_every_process(run: fedlora.Run) -> None:
    from fedlora.runs.folder import RunFolder

    assert run.rows() == RunFolder.open(run.path).rows()


def test_a_log_that_no_run_has(run: fedlora.Run) -> None:
    assert run.rows("clients")[0]["client"] in range(6) and run.summary()["rounds"] == 3
    with pytest.raises(UnknownNameError, match=r"unknown log of a run 'client'\. Did you mean 'clients'\?"):
        run.rows("client")


def test_what_cannot_run_is_refused_before_anything_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"^world\.options needs world\.name, for example world\.name=umi-indoor$"):
        fedlora.simulate("quickstart", out=tmp_path / "x", world={"options": {"foo": 1}})
    with pytest.raises(ConfigError, match=r"^policy\.options do not fit"):
        fedlora.simulate("quickstart", out=tmp_path / "x", policy={"options": {"foo": 1}})
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []


def test_figures(run: fedlora.Run) -> None:
    charts = run.charts()
    assert charts["progress-rounds"] == "Accuracy and loss against rounds"
    assert run.plot().get_suptitle() == charts["progress-rounds"]
    assert run.plot("ranks", "client 0").get_suptitle() == charts["ranks"]
    drawn = run.plot("ranks", interactive=True)
    assert drawn.layout.title.text == charts["ranks"] and drawn.data[0].type == "heatmap"
    with pytest.raises(UnknownNameError, match="Did you mean 'ranks'"):
        run.plot("rnks")
    with pytest.raises(UnknownNameError, match="unknown view"):
        run.plot("ranks", "client 77")


def test_its_report(run: fedlora.Run, tmp_path: Path) -> None:
    assert run.report(tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(ConfigError, match=r"would write over metrics\.jsonl of the run in"):
        run.report(run.path / "metrics.jsonl")


def test_a_run_prints_its_rounds(ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fedlora.simulate(ground.config("rounds=1"), out=tmp_path / "run")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "loading model and data" and said[-1].startswith("round 1/1  accuracy 0.")


def test_wrong_words_are_refused_as_on_the_command_line(ground: Ground, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'adapter\.rnk'. Did you mean 'adapter\.rank'"):
        fedlora.simulate("quickstart", out=tmp_path / "x", adapter={"rnk": 3})
    with pytest.raises(ConfigError, match="the first argument names what to run"):
        fedlora.simulate("rounds=3", out=tmp_path / "x")
    with pytest.raises(ConfigError, match="there is no run file"):
        fedlora.simulate("nowhere.toml", out=tmp_path / "x")
    with pytest.raises(ConfigError, match="give 'quickstart', a run file"):
        fedlora.simulate(3, out=tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^3 is not an override\. Give text such as 'rounds=3', or a keyword"):
        fedlora.simulate("quickstart", 3, out=tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^out = 3: give the path of a folder"):
        fedlora.simulate("quickstart", out=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^path = None: give the path of a folder"):
        fedlora.load_run(None)  # type: ignore[arg-type]
    with pytest.raises(RunFolderError, match="holds no run"):
        fedlora.load_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_changes_as_values_are_changes_as_words() -> None:
    words = load_config(QUICKSTART, ["training.epochs=2", "world.name=umi-indoor", "world.options.deadline_s=3", "method=fedit"])
    tree = {"training": {"epochs": 2}, "world": {"name": "umi-indoor", "options": {"deadline_s": 3}}, "method": "fedit"}
    assert load_config(QUICKSTART, changes=tree) == words
    assert load_config(QUICKSTART, changes={"training.epochs": 2, "world.name": "umi-indoor"}).training.steps is None


def test_what_the_module_offers_is_light_until_it_is_used() -> None:
    code = (
        "import sys, fedlora; assert 'simulate' in dir(fedlora);"
        "heavy = {'pandas', 'numpy', 'torch', 'plotly', 'matplotlib'} & set(sys.modules); assert not heavy, heavy;"
        "fedlora.load_run; heavy = {'torch', 'plotly', 'matplotlib', 'pandas'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'smulate'"):
        fedlora.smulate  # noqa: B018
