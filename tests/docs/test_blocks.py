"""Every code block of the documentation works: what can run runs, the rest is read by the loaders and parsers that users meet."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from typer.main import get_command

from doc_blocks import LANGUAGES, ROOT, Block, blocks, commands, pages
from fedlora.cli import app
from fedlora.cli.common import read_arguments
from fedlora.config import load_config, read_overrides, read_toml
from fedlora.errors import ConfigError
from fedlora.federation.policy import POLICIES
from fedlora.federation.workbench import check_combination
from fedlora.federation.world import WORLDS
from fedlora_policies.compare import parse_compare, read_compare
from fedlora_policies.training import parse_train, read_train

PAGES = {page.relative_to(ROOT).as_posix(): blocks(page) for page in pages()}
BLOCKS = [block for found in PAGES.values() for block in found]
SHIPPED_COMPARE = ROOT / "policies" / "fedlora_policies" / "compare.toml"


def _runs(block: Block) -> bool:
    return block.language in ("bash", "python") and not block.reason and not block.file


def test_every_block_says_what_it_is() -> None:
    assert len(BLOCKS) > 30
    for block in BLOCKS:
        assert block.language in LANGUAGES, f"{block}: its language is '{block.language}', known are {LANGUAGES}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "bash"], ids=str)
def test_commands_are_what_the_command_line_takes(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _install(block.page, tmp_path, monkeypatch)
    for words in commands(block):
        if words[0] == "fedlora":
            _parse(words[1:])
        elif words[0] == "make":
            assert _makes(words[1:]), f"{block}: the Makefile has no such target: {words}"
        elif words[0] == "python" and len(words) > 1 and words[1].endswith(".py"):
            known = [other.file for other in PAGES[block.page]]
            assert words[1] in known or (ROOT / words[1]).is_file(), f"{block}: there is no {words[1]}"


def test_what_the_command_line_refuses_is_found_here_too() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'adapter\.rank'"):
        _parse(["simulate", "adapter.rnk=3"])
    with pytest.raises(ConfigError, match="deadline_s"):
        _parse(["world", "umi-indoor", "dedline_s=3"])
    with pytest.raises(click.UsageError, match="No such option"):
        _parse(["report", "runs/mine", "--to", "page.html"])
    with pytest.raises(click.UsageError, match="unknown command"):
        _parse(["deploy", "begin", "lab"])


def test_scripts_that_pages_name_are_there() -> None:
    found = set()
    for folder in ("docs", "experiments", "benchmarks", "README.md"):
        path = ROOT / folder
        for page in [path] if path.is_file() else path.rglob("*.md"):
            found |= set(re.findall(r"python\s+([a-z_]+/[\w/]+\.py)", page.read_text(encoding="utf-8")))
    assert len(found) > 10
    assert {name for name in found if not (ROOT / name).is_file()} == set()


def _makes(words: list[str]) -> bool:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return all(word in targets for word in words if "=" not in word)


def _parse(words: list[str]) -> None:
    """Let the real command line parse a command, and resolve the configuration that it names."""
    command: Any = get_command(app)
    context = command.make_context("fedlora", list(words))
    while hasattr(command, "resolve_command") and context._protected_args:
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    given = [word for word in context.params.get("arguments") or [] if word not in ("key=value", "...")]
    # A file that the page does not show is the reader's own.
    own = bool(given) and "=" not in given[0] and not Path(given[0]).is_file() and not (ROOT / given[0]).is_file()
    match context.info_name:
        case "simulate" | "doctor" | "serve" | "emulate" | "init" | "record-response":
            check_combination(read_arguments(_here(given[own:])))
        case "train-policy":
            read_train(*_split(given[own:]))
        case "compare":
            read_compare(*_split(given[own:]))
        case "world" if given:
            world: Any = WORLDS.get(given[0])
            changes = (word.removeprefix("world.options.") for word in given[1:])
            world.config(**read_overrides(changes, example="deadline_s=10"))
        case _:
            pass


def _here(given: list[str]) -> list[str]:
    return [str(ROOT / given[0]), *given[1:]] if given and "=" not in given[0] and not Path(given[0]).is_file() else given


def _split(given: list[str]) -> tuple[Path | None, list[str]]:
    given = _here(given)
    return (Path(given[0]), given[1:]) if given and "=" not in given[0] else (None, given)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "toml"], ids=str)
def test_toml_is_what_its_loader_takes(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(block.page, tmp_path, monkeypatch)
    tree = tomllib.loads(block.text)
    if block.file.endswith("pyproject.toml"):
        groups = set(tree["project"].get("entry-points", {}))
        known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
        assert groups and groups <= set(known), block
    elif "policies" in tree:
        shipped = read_toml(SHIPPED_COMPARE)
        parse_compare({**shipped, **tree, "policies": {**shipped["policies"], **tree["policies"]}})
    elif "policy" in tree and isinstance(tree["policy"], str):
        parse_train(tree)
    else:
        path = tmp_path / "run.toml"
        path.write_text(block.text, encoding="utf-8")
        check_combination(load_config(path, []))


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_python_is_python(block: Block) -> None:
    assert ast.parse(block.text).body


def test_what_is_not_run_says_why() -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert len(re.findall(r"<!-- not run", text)) == sum(bool(block.reason) for block in blocks(page)), page


@pytest.mark.slow
@pytest.mark.assets
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [name for name, found in PAGES.items() if any(map(_runs, found))])
def test_blocks_run_from_top_to_bottom(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    environment = _environment(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in PAGES[page]:
        if block.file:
            _write_file(block, tmp_path)
        elif _runs(block) and block.language == "python":
            exec(compile(block.text, str(block), "exec"), namespace)
        elif _runs(block):
            command = ["bash", "-euo", "pipefail", "-c", block.text]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


def _install(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a page's files, and let this process find the packages among them as if they were installed."""
    for registry in (POLICIES, WORLDS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    for block in PAGES[page]:
        _write_file(block, folder)
        if block.file.endswith("pyproject.toml"):
            project, root = tomllib.loads(block.text)["project"], (folder / block.file).parent
            info = root / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
            info.mkdir(exist_ok=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
            groups = project["entry-points"].items()
            lines = [line for group, points in groups for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))]
            (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
            monkeypatch.syspath_prepend(root)


def _write_file(block: Block, folder: Path) -> None:
    if block.file:
        path = folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of shell blocks: this code as `fedlora`, and pip installing into the folder, from no index."""
    programs = folder / ".bin"
    programs.mkdir()
    for name, words in (("fedlora", "-m fedlora"), ("python", ""), ("pip", "-m pip")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    site = folder / ".site"
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)]),
        "PIP_TARGET": str(site),
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as the value of --build-isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "COLUMNS": "130",
    }
