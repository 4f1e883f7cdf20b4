"""The files that a repository is judged by: present, valid and true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _yaml(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_the_citation_is_of_this_version() -> None:
    found = _yaml("CITATION.cff")
    assert (found["version"], found["license"]) == (PROJECT["version"], PROJECT["license"])
    # What the format asks for: https://github.com/citation-file-format/citation-file-format/blob/main/schema-guide.md
    assert found["cff-version"] == "1.2.0" and found["message"] and found["title"] and found["authors"]
    papers = {reference["identifiers"][0]["value"]: reference for reference in found["references"]}
    assert papers.keys() == {"arXiv:2506.05568", "arXiv:2507.11515"}
    for number, reference in papers.items():
        assert reference["type"] == "article" and reference["url"].endswith(number.removeprefix("arXiv:"))
        assert all(author.keys() == {"family-names", "given-names"} for author in reference["authors"])


def test_issue_forms_ask_for_something() -> None:
    for name in ("bug", "feature"):
        form = _yaml(f".github/ISSUE_TEMPLATE/{name}.yml")
        assert form["name"] and form["description"]
        identities = [part["id"] for part in form["body"]]
        assert len(identities) == len(set(identities)) >= 3
        assert any(part.get("validations", {}).get("required") for part in form["body"])
    assert _yaml(".github/ISSUE_TEMPLATE/config.yml")["contact_links"]


def test_ci_runs_what_a_developer_runs() -> None:
    job = _yaml(".github/workflows/ci.yml")["jobs"]["run"]
    assert any(".ci/run" in step.get("run", "") for step in job["steps"])
    versions = job["strategy"]["matrix"]["python"]
    known = {
        line.rpartition(" ")[2]
        for line in PROJECT["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", line)
    }
    assert set(versions) <= known and {min(known), max(known)} <= set(versions)


def test_links_of_the_project_files_lead_somewhere() -> None:
    for name in ("CONTRIBUTING.md", "SECURITY.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
        assert targets and all((ROOT / target).exists() for target in targets), name
        for path in re.findall(r"`((?:fedlora|envs|policies|docs|\.ci)/[\w./*-]+)`", text):
            assert list(ROOT.glob(path)), f"{name} names {path}"


def test_make_targets_that_contributors_are_told_of_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"make ([a-z]+)", text.replace("makes", "")))
    assert named and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)
