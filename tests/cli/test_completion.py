"""What a real bash offers at TAB, and that the question costs no heavy import."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedlora.cli import completion
from fedlora.config import RunConfig, all_keys

# Bash is asked as readline asks it, with the completion that the command installed.
_ASK = """
source "$HOME/.bash_completions/fedlora.sh"
COMP_LINE="$1"; COMP_POINT=${#COMP_LINE}
read -ra COMP_WORDS <<< "${COMP_LINE//=/ = }"
[[ "$COMP_LINE" == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_fedlora_completion fedlora "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A home folder in which completion was installed, and a PATH on which `fedlora` is this tree's."""
    home = tmp_path_factory.mktemp("home")
    program = home / "bin" / "fedlora"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fedlora "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    # Typer asks which shell has called it; here pytest has, so the shell is named.
    environment = {**os.environ, "HOME": str(home), "PATH": path, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run(
            [program, "--install-completion", shell], env=environment, check=False, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 and f"{shell} completion installed" in done.stdout, done
    return environment


def _offered(line: str, environment: dict[str, str], folder: Path) -> list[str]:
    done = subprocess.run(
        ["bash", "-c", _ASK, "ask", line], cwd=folder, env=environment, check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("fedlora dep", ["deploy"]),
        ("fedlora train-p", ["train-policy"]),
        ("fedlora simulate --res", ["--resume"]),
        ("fedlora simulate training.lr", ["training.lr=", "training.lr=0.005"]),
        ("fedlora simulate training.schedule=", ["constant", "cosine", "linear"]),
        ("fedlora simulate training.schedule=c", ["constant", "cosine"]),
        ("fedlora doctor seed=3 world.name=um", ["uma-macro", "umi-indoor"]),
        ("fedlora simulate study", ["study.toml"]),
        ("fedlora report ", ["here", "runs/one"]),
        ("fedlora simulate --resume runs/", ["runs/one"]),
        ("fedlora assets fetch tre", ["trec-50", "trec-6"]),
        ("fedlora world umi", ["umi-indoor"]),
        ("fedlora deploy revoke lab ro", ["roof-1", "roof-2"]),
        ("fedlora deploy revoke nowhere ro", []),
    ],
)
def test_bash_is_offered(line: str, offered: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    for run in ("here", "runs/one", "runs/.hidden"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "metrics.jsonl").touch()
    for folder in ("lab", "other", "runs/none"):
        (tmp_path / folder).mkdir()
    (tmp_path / "study.toml").touch()
    (tmp_path / "lab" / "deployment.toml").write_text('hosts = ["localhost"]\nnodes = {roof-1 = 0, roof-2 = 1, "cellar" = 2}\n')
    assert sorted(_offered(line, environment, tmp_path)) == offered


def test_every_key_has_values_or_none_and_none_fails() -> None:
    found = {key: completion.values(key) for key in all_keys(RunConfig)}
    assert found["engine"] == ["batched", "ray", "deployment"] and found["output.tensorboard"] == ["true", "false"]
    assert found["training.head_lr"] == [] and found["rounds"] == ["10"]
    assert "ravan" in found["adapter.method"] and "trec-6" in found["data.name"] and "vit-s14" in found["model.name"]


def test_a_question_is_cheap() -> None:
    asked = {**os.environ, "COMP_WORDS": "fedlora simulate tr", "COMP_CWORD": "2", "_FEDLORA_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fedlora"], env=asked, check=False, capture_output=True, text=True, timeout=60
    )
    assert "training.lr=" in done.stdout.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "fedlora.config" in imported
    assert not imported & {"torch", "numpy", "pandas", "transformers", "flwr", "datasets", "matplotlib", "fedlora.adapters"}


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (".zfunc/_fedlora", "#compdef fedlora"),
        (".config/fish/completions/fedlora.fish", "complete --command fedlora"),
        (".bashrc", "bash_completions/fedlora.sh"),
    ],
)
def test_files_for_each_shell(file: str, says: str, environment: dict[str, str]) -> None:
    assert says in (Path(environment["HOME"]) / file).read_text()
