"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from fedlora.aggregation import AGGREGATORS
from fedlora.config import RunConfig, all_keys, load_config
from fedlora.methods import METHODS
from fedlora_envs.config import WorldConfig
from fedlora_envs.remote import RemoteConfig
from fedlora_policies.plus.learner import PlusConfig
from fedlora_policies.training import TrainConfig

ROOT = Path(__file__).parents[1]


def test_the_references_are_the_codes_own() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    roots = {
        "run-file.md": [RunConfig],
        "world-options.md": [WorldConfig],
        "policy-options.md": [TrainConfig, PlusConfig, RemoteConfig],
        "cli.md": [],
        "run-folder.md": [],
        "shell.md": [],
    }
    assert roots.keys() == module.PAGES.keys()
    for name, write in module.PAGES.items():
        page = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert page == write(), "run: python docs/reference.py"
        assert all(f"`{key}`" in page for root in roots[name] for key in all_keys(root))


def test_the_table_of_methods_is_the_codes_own() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for entry in METHODS.entries():
        one = entry.value
        cells = [f"`{entry.name}`", f"`{one.adapter}` + `{one.aggregator}`", one.trained, one.up, one.down, one.exact]
        assert f"| {' | '.join([*cells, one.mixed_ranks, one.source])} |" in page, entry.name
    assert all(f"`{rule}`" in page for rule in AGGREGATORS.names() if rule != "aircomp")


def test_links_between_pages_lead_somewhere() -> None:
    pages = [
        ROOT / "README.md",
        *(page for folder in ("docs", "experiments", "benchmarks") for page in (ROOT / folder).rglob("*.md")),
    ]
    pages = [page for page in pages if ".venv" not in page.parts]
    assert len(pages) > 4
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_overrides_shown_in_the_readme_are_valid() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [line.replace("key=value", "") for line in re.findall(r"fedlora (?:simulate|doctor)([^\n]*)", text)]
    overrides = re.findall(r"\b((?:[a-z_]+\.)*[a-z_]+=[^\s`]+)", "\n".join(commands))
    assert overrides
    for override in overrides:
        load_config(None, [override.strip("'\"")])
