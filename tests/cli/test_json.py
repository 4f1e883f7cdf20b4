"""`--format json`: one strict document on stdout and nothing else there, with the numbers of the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from fedlora.cli import app
from fedlora.cli.common import print_json
from fedlora.cli.ends import run
from fedlora.config import load_config

TESTED_ELSEWHERE = {
    "compare": "policies/test_compare.py",
    "doctor": "cli/test_commands.py",
    "emulate": "envs/emulation/test_emulate.py",
    "methods": "cli/test_commands.py",
    "record-response": "envs/tasks/test_recording.py",
    "simulate": "cli/test_commands.py",
    "train-policy": "cli/test_train_policy.py",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run and a deployment, as far as what reads them looks."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.toml").write_text(load_config(None, ["rounds=1"]).to_toml())
    common = {"train_loss": 0.7, "clients_selected": 5, "clients_failed": 1, "wall_time_s": 0.5, "clients_accuracy": None}
    rows = [
        {**common, "round": number, "test_accuracy": 0.25 + number / 2, "test_loss": None, "uplink_bytes": 1000 * number,
         "downlink_bytes": 2000 * number, "mean_rank": 4.0, "coverage": 1.0}
        for number in range(2)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "clients.jsonl").touch()
    for name, file, text in (
        ("study", "results.json", '{"scores": [1, NaN]}'),
        ("training", "metrics.jsonl", '{"iteration": 1, "reward": 2.5}\n'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "deployment.toml").write_text('hosts = ["lab.example"]\nnodes = {roof-1 = 0}\nrevoked = {cellar = 1}\n')
    return tmp_path


def _strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


DOCUMENTS = [
    ("assets list", lambda found: {"trec-6", "minilm-l6"} <= {row["name"] for row in found["assets"]}, "trec-6"),
    ("deploy list lab", lambda found: [row["state"] for row in found["nodes"]] == ["has a key", "revoked"], "roof-1"),
    ("watch run", lambda found: found["summary"]["accuracy_after"] == 0.75 and found["summary"]["loss_after"] is None, "0.7500"),
    ("report run", lambda found: found[0]["uplink_bytes"] == 1000 and found[0]["replies"] == 8, None),
    ("report study", lambda found: found == [{"folder": "study", "results": {"scores": [1, None]}}], None),
    ("report training", lambda found: found[0]["rows"] == [{"iteration": 1, "reward": 2.5}], None),
    ("report study run", lambda found: [one["folder"] for one in found] == ["study", "run"], None),
    ("world", lambda found: "umi-indoor" in [row["name"] for row in found["worlds"]], "umi-indoor"),
    ("world ideal --options", lambda found: isinstance(found, dict) and "uplink" in found, "[world.options]"),
]


@pytest.mark.parametrize(("line", "right", "word"), DOCUMENTS, ids=[line for line, _, _ in DOCUMENTS])
def test_one_document(line: str, right: Any, word: str | None, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, [*line.split(), "--format", "json"]) == 0
    shown = capsys.readouterr()
    found = _strict(shown.out)
    assert right(found) and "error" not in shown.err
    if word is not None:
        assert run(app, line.split()) == 0
        assert word in capsys.readouterr().out


def test_a_report_is_written_where_it_is_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["report", "run", "study", "--format", "json"]) == 0
    printed = _strict(capsys.readouterr().out)
    for _ in range(2):  # what a report wrote, a report may write over
        assert run(app, ["report", "run", "study", "--format", "json", "--out", "run/deep/table.json"]) == 0
        assert capsys.readouterr().out == "outcomes: run/deep/table.json\n"
    assert _strict((place / "run" / "deep" / "table.json").read_text()) == printed


@pytest.mark.parametrize("line", ["watch nowhere --timeout 0", "report nowhere", "deploy list nowhere", "world nowhere"])
def test_stdout_stays_empty_on_an_error(line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, [*line.split(), "--format", "json"]) != 0
    shown = capsys.readouterr()
    assert shown.out == "" and "error: " in shown.err


def test_what_is_not_finite_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [float("inf"), 1.5, (2, float("-inf"))], "c": {"d": True}})
    assert _strict(capsys.readouterr().out) == {"a": None, "b": [None, 1.5, [2, None]], "c": {"d": True}}


def test_every_command_that_prints_json_is_tested() -> None:
    def with_format(group: Any, prefix: str = "") -> set[str]:
        found = set()
        for name in group.list_commands(None):
            command = group.get_command(None, name)
            if hasattr(command, "list_commands"):
                found |= with_format(command, f"{prefix}{name} ")
            elif any(parameter.name == "format" for parameter in command.params):
                found.add(prefix + name)
        return found

    commands = with_format(get_command(app))
    here = {name for name in commands if any(line.startswith(name) for line, _, _ in DOCUMENTS)}
    # `export`, `assets fetch` and `serve` print what other tests of theirs read from disk; the document is a line of code.
    assert commands - here - TESTED_ELSEWHERE.keys() == {"assets fetch", "export", "serve"}
    for name, file in TESTED_ELSEWHERE.items():
        text = (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
        assert '"json"' in text and name in text, name
