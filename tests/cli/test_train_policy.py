"""`fedlora train-policy` as its user sees it: lines, one JSON document, going on, and one line for what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from children import fedlora_command
from fedlora.cli import app
from fedlora.errors import ConfigError, FedLoRAError, RunFolderError

FILE = """
env = "rank_problem:problem"
iterations = 3
validate_every = 2
validation_episodes = 4

[options]
sites = 3
cap = 2
horizon = 3

[learner]
lessons = 2
imitations = 2
batch = 8
channels = 2
copies = 2
width = 8
blocks = 1
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training of seconds; the test stands in its folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.toml").write_text(FILE)
    return tmp_path / "train.toml"


def train(*arguments: str) -> Any:
    """Run the command in this process; what is refused is raised."""
    return CliRunner().invoke(app, ["train-policy", *arguments], catch_exceptions=False)


def test_lines_and_the_policy(file: Path) -> None:
    done = train("train.toml", "iterations=5", "seed=3", "--out", "mine")
    assert done.exit_code == 0
    lines = done.output.splitlines()
    validated = [line for line in lines if line.startswith("iteration ")]
    assert [line.split()[1] for line in validated] == ["2/5", "4/5", "5/5"]
    assert all(re.search(r"return -?\d.*validation -?\d.*feasible \d+\.\d %.*rank \d", line) for line in validated)
    assert lines[-1] == "policy: mine/policy.safetensors" and lines[-2].startswith("policy kept, on validation: return ")
    rows = [json.loads(line) for line in Path("mine/metrics.jsonl").read_text().splitlines()]
    best = max(row["validation_return"] for row in rows if "validation_return" in row)
    assert lines[-2] == f"policy kept, on validation: return {best:.4g}" and [row["iteration"] for row in rows] == [
        0,
        1,
        2,
        3,
        4,
        5,
    ]
    assert "seed = 3" in Path("mine/config.toml").read_text()


def test_one_json_document_and_a_folder_of_its_own(file: Path) -> None:
    done = train("train.toml", "--format", "json")
    told = json.loads(done.stdout)
    policy = Path(told["policy"])
    assert policy.is_file() and re.fullmatch(r"runs/policies/\d{8}-\d{6}-airllm-plus/policy\.safetensors", str(policy))
    assert [row["iteration"] for row in told["iterations"]] == [0, 1, 2, 3]
    assert told["iterations"] == [json.loads(line) for line in (policy.parent / "metrics.jsonl").read_text().splitlines()]
    assert "iteration 3/3" in done.stderr


def test_going_on(file: Path) -> None:
    train("train.toml", "--out", "cut")
    before = Path("cut/policy.safetensors").read_bytes()
    text = Path("cut/config.toml").read_text()
    Path("cut/config.toml").write_text(text.replace("iterations = 3", "iterations = 6"))
    done = train("--resume", "cut")
    assert done.exit_code == 0 and "iteration 6/6" in done.output and "iteration 2/" not in done.output
    assert done.output.splitlines()[-1] == "policy: cut/policy.safetensors" and before
    rows = [json.loads(line) for line in Path("cut/metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(7))


def test_an_interrupted_one_says_how_to_go_on(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedlora_policies.plus.learner import PlusLearner

    iterate = PlusLearner.iterate

    def interrupted(learner: PlusLearner) -> dict[str, float]:
        if learner.iteration == 2:
            raise KeyboardInterrupt
        return iterate(learner)

    monkeypatch.setattr(PlusLearner, "iterate", interrupted)
    done = CliRunner().invoke(app, ["train-policy", "train.toml", "--out", "cut"])
    assert done.exit_code == 130 and "stopped. Go on with: fedlora train-policy --resume cut" in done.output
    monkeypatch.undo()
    assert train("--resume", str(file.parent / "cut")).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["none.toml"], ConfigError, "there is no training file none.toml"),
        (["train.toml", "iteration=3"], ConfigError, "unknown key 'iteration'. Did you mean 'iterations'?"),
        (["train.toml", "iterations=many"], ConfigError, "iterations = 'many'"),
        (["train.toml", "policy=airllm-pls"], ConfigError, "Did you mean 'airllm-plus'?"),
        (["train.toml", "learner.blokcs=3"], ConfigError, "unknown key 'learner.blokcs'. Did you mean 'learner.blocks'?"),
        (["train.toml", "options.site=3"], ConfigError, "env = 'rank_problem:problem' cannot be made"),
        (["train.toml", "--out", "train.toml"], RunFolderError, "is a file, not a folder"),
        (["--resume", "nowhere"], RunFolderError, "nowhere holds no training (no config.toml in it)"),
        (["--resume", "nowhere", "seed=3"], ConfigError, "--resume goes on with what the folder says"),
        (["--resume", "nowhere", "--out", "x"], ConfigError, "--resume goes on with what the folder says"),
    ],
)
def test_what_is_refused_is_one_line(file: Path, arguments: list[str], error: type[FedLoRAError], says: str) -> None:
    with pytest.raises(error) as caught:
        train(*arguments)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in file.parent.iterdir()] == ["train.toml"]


def test_errors_are_read_aloud_in_one_line(file: Path) -> None:
    done = fedlora_command(["train-policy", "train.toml", "policy=airllm-pls"], file.parent)
    assert done.code == 2 and "Did you mean 'airllm-plus'?" in done.error and not done.out
