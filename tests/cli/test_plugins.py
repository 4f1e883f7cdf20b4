"""Commands of other packages: found by entry point, loaded only when asked for, harmless when broken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from fedlora.cli import app, main
from fedlora.cli.plugins import COMMANDS

POINTS = """[fedlora.commands]
greet = fedlora_greeting_for_tests:greet
crash = fedlora_no_such_module:command
extra = fedlora_no_such_module:command [radio]
simulate = fedlora_greeting_for_tests:greet
"""
GREETING = '''
from typing import Annotated
import typer

def greet(name: str, loud: Annotated[bool, typer.Option(help="Shout.")] = False) -> None:
    """Greet somebody.

    And more about it.
    """
    print(name.upper() if loud else name)
'''


@pytest.fixture(autouse=True)
def _thirdparty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "greeting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\nProvides-Extra: radio\n")
    (info / "entry_points.txt").write_text(POINTS)
    (tmp_path / "fedlora_greeting_for_tests.py").write_text(GREETING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(COMMANDS, "_entries", {})
    monkeypatch.delitem(sys.modules, "fedlora_greeting_for_tests", raising=False)


def _fedlora(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fedlora", *arguments])
    main()


def test_a_command_of_another_package_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        _fedlora("greet", "ann", "--loud", monkeypatch=monkeypatch)
    assert ended.value.code == 0 and capsys.readouterr().out == "ANN\n"


def test_its_help_is_its_own_and_the_list_has_one_line_of_it() -> None:
    result = CliRunner().invoke(app, ["greet", "--help"])
    assert "And more about it." in result.output and "--loud" in result.output
    everything = CliRunner().invoke(app, ["--help"])
    assert everything.exit_code == 0
    assert "Greet somebody." in everything.output and "And more about it." not in everything.output
    assert "pip install 'greeting[radio]'" in " ".join(everything.output.replace("│", " ").split())


def test_nothing_is_loaded_for_another_command() -> None:
    result = CliRunner().invoke(app, ["simulate", "--help"])
    assert "--resume" in result.output  # fedlora's own: the name cannot be taken
    assert "fedlora_greeting_for_tests" not in sys.modules
    assert {"greet", "crash", "extra"} <= set(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "says"), [("crash", "Repair or remove that package"), ("extra", "pip install 'greeting[radio]'")]
)
def test_a_broken_one_is_one_error(
    name: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        _fedlora(name, "key=value", "--option", "3", monkeypatch=monkeypatch)
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: command '") and says in lines[0]


def test_a_typo_finds_them_too() -> None:
    result = CliRunner().invoke(app, ["gret"])
    assert result.exit_code == 2 and "greet" in result.output
