"""Data and models that cannot be used: one line that names the file, the row or the client, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from children import Finished, fedlora_command
from tiny import tiny_text_model
from tiny_run import Ground


def _simulate(ground: Ground, folder: Path, *changes: str) -> Finished:
    done = fedlora_command(["simulate", *ground.overrides(*changes), "--out", "run"], folder)
    assert not (folder / "run").exists()
    return done


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("text,label\nw1,a\nw2,\nw3,b\n", "data.csv: row 2 has no label in column 'label'"),
        ("text,label\nw1,a\n,b\n", "data.csv: row 2 has no text in column 'text'"),
        ("text,label\nw1,a\nw2,a\n", "data.csv: every row has the label 'a'; classification needs two classes or more"),
        (
            "texts,label\nw1,a\nw2,b\n",
            "data.csv has no column 'text'. Did you mean 'texts'? Columns: texts, label. Set data.text_column",
        ),
        ("text,category\nw1,a\nw2,b\n", "data.csv has no column 'label'. Columns: text, category. Set data.label_column"),
        ("text,label\n", "data.csv"),
        ("", "data.csv"),
    ],
    ids=["no-label", "no-text", "one-class", "text-column", "label-column", "no-rows", "empty"],
)
def test_rows_that_cannot_be_used(ground: Ground, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "data.csv").write_text(text)
    done = _simulate(ground, tmp_path, "data.name=data.csv")
    assert done.code == 3 and done.error.startswith(says)


def test_data_that_is_not_there(ground: Ground, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    missing = _simulate(ground, tmp_path, "data.name=data.csv")
    assert missing.code == 3 and missing.error.startswith(
        f"there is no data file or folder {tmp_path / 'data.csv'}. Check data.name"
    )
    unknown = _simulate(ground, tmp_path, "data.name=nowhere")
    assert unknown.code == 2 and unknown.error.endswith(f"There is no file or folder {tmp_path / 'nowhere'} either")
    assert "holds no data: expected train.csv" in _simulate(ground, tmp_path, "data.name=folder").error
    assert "is of no known kind: data files end in .csv" in _simulate(ground, tmp_path, "data.name=notes.txt").error


def test_a_client_without_data(ground: Ground, tmp_path: Path) -> None:
    lines = (ground.folder / "data.csv").read_text().splitlines()
    rows = [f"{lines[0]},who", *(f"{line},{'lonely' if row == 50 else 'pq'[row % 2]}" for row, line in enumerate(lines[1:]))]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.csv").write_text("\n".join(rows[:90]) + "\n")
    (tmp_path / "own" / "test.csv").write_text("\n".join([rows[0], *rows[90:]]) + "\n")
    natural = ("data.name=own", "data.partition=natural", "data.natural_column=who", "clients_per_round=1")
    done = _simulate(ground, tmp_path, *natural, "clients=3")
    assert done.code == 3
    assert done.error.startswith("client 0 ('lonely') has 1 training example; each needs 2. Leave out such clients")
    done = _simulate(ground, tmp_path, *natural, "clients=5")
    assert done.error == "clients = 5, but the training examples belong to 3. Set clients = 3"
    done = _simulate(ground, tmp_path, "data.alpha=0.0001")
    assert done.code == 2 and "client " in done.error and "Raise data.alpha or lower clients" in done.error
    done = _simulate(ground, tmp_path, "clients=49", "data.partition=iid")
    assert done.error.startswith("96 training examples are too few for clients = 49: each needs 2. Set clients to 48 or less")
    assert "Name the column in data.natural_column" in _simulate(ground, tmp_path, "data.partition=natural").error


def test_models_that_are_none(ground: Ground, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    done = _simulate(ground, tmp_path, "model.name=folder")
    assert done.code == 3 and done.error.startswith("the folder folder is not a model: it has no config.json")
    assert _simulate(ground, tmp_path, "model.name=./none").error.startswith("the model folder ./none does not exist")
    assert "Did you mean 'minilm-l6'?" in _simulate(ground, tmp_path, "model.name=minilm-l7").error
    broken = tiny_text_model(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    done = _simulate(ground, tmp_path, "model.name=broken")
    assert done.code == 3 and "the model in broken: its weights cannot be loaded" in done.error
