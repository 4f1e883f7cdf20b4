"""The table of formulas names tests that exist, and leaves no formula without one."""

from __future__ import annotations

import ast
import re

from doc_blocks import ROOT

PAGE = ROOT / "docs" / "physics.md"
_TEST = re.compile(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)")


def test_named_tests_exist() -> None:
    named = _TEST.findall(PAGE.read_text(encoding="utf-8"))
    assert len(named) > 60
    for test, path in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{path} has no {test}"


def test_every_formula_has_a_source_and_a_test() -> None:
    """A row may lean on the row above ("the same"), which then has to name a test."""
    above = False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| ") else []
        if len(cells) != 4 or cells[0] in ("what", "---"):
            above = False
            continue
        named = bool(_TEST.search(cells[3])) or (above and cells[3].startswith("the same"))
        assert named, f"no test holds: {cells[0]}"
        above = named
