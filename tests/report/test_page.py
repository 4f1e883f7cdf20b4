"""The command and the page that it writes."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from children import Finished, fedlora_command
from fedlora.errors import ConfigError
from fedlora.report.build import build
from fedlora.report.page import write_page
from fedlora.report.papers import save_charts


def _ok(arguments: list[str], folder: Path) -> Finished:
    done = fedlora_command(["report", *arguments], folder)
    assert done.code == 0, done.err
    return done


class _Page(HTMLParser):
    """What a page has in it: places and tags with their attributes, scripts by their id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self._script: str | None = None
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append((tag, dict(attrs)))
        self._script = str(dict(attrs).get("id", len(self.scripts))) if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        """Leave a script."""
        self._script = None

    def handle_data(self, data: str) -> None:
        """Note text."""
        if self._script is None:
            self.text += data
        else:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data


def _read(path: Path) -> _Page:
    return _Page(path.read_text(encoding="utf-8"))


def test_a_report_is_one_file_that_loads_nothing(radio_run: Path, tmp_path: Path) -> None:
    done = _ok([str(radio_run), "--out", "deep/page.html"], tmp_path)
    assert done.out.strip() == "report: deep/page.html" and done.err == ""
    page = _read(tmp_path / "deep" / "page.html")
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'")
    assert sum("Plotly, Inc." in text for text in page.scripts.values()) == 1, "plotly is inside once"
    assert [path.name for path in tmp_path.iterdir() if path.suffix] == [] and len(list((tmp_path / "deep").iterdir())) == 1


def test_it_says_what_ran_and_how_to_repeat_it(radio_run: Path, tmp_path: Path) -> None:
    shutil.copytree(radio_run, tmp_path / "it")
    assert _ok(["it"], tmp_path).out.strip() == "report: it/report.html"
    page = _read(tmp_path / "it" / "report.html")
    rows = [json.loads(line) for line in (radio_run / "metrics.jsonl").read_text().splitlines()]
    for words in (
        "over 6 clients (dirichlet), 4 a round, policy tiers, behind umi-indoor, engine batched; 4 of 4 rounds done.",
        "fedlora simulate it/config.toml",
        'partition = "dirichlet"',
        f"{rows[-1]['test_accuracy']:.4f}",
    ):
        assert words in page.text
    charts = json.loads(page.scripts["charts"])
    drawn = {attributes["id"] for tag, attributes in page.tags if attributes.get("class") == "chart"}
    assert drawn == set(charts) and len(drawn) > 15
    keys = {attributes.get("id") for _, attributes in page.tags}
    links = [str(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
    assert links and all(link[1:] in keys for link in links)


def test_several_runs_side_by_side(radio_run: Path, plain_run: Path, tmp_path: Path) -> None:
    _ok([str(radio_run), str(plain_run), "--out", "both.html"], tmp_path)
    page = _read(tmp_path / "both.html")
    assert "tiers-run" in page.text and "plain-run" in page.text
    assert re.search(r"policy\.name\s*tiers\s*full", page.text) or "policy.nametiersfull" in page.text
    figure = json.loads(page.scripts["charts"])["results-progress-rounds"]["views"][0]["figure"]
    assert {trace["name"] for trace in figure["data"]} == {"tiers-run", "plain-run"}


def test_the_same_run_twice_has_two_names(radio_run: Path, tmp_path: Path) -> None:
    _ok([str(radio_run), str(radio_run), "--out", "both.html"], tmp_path)
    assert "tiers-run (1)" in _read(tmp_path / "both.html").text


def test_words_from_other_machines_stay_words(radio_run: Path, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=http://evil/x>"
    run = tmp_path / "<b>run"
    shutil.copytree(radio_run, run)
    rows = [json.loads(line) for line in (run / "clients.jsonl").read_text().splitlines()]
    rows[0]["status"] = f"failed: {evil}"
    (run / "clients.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    federation = json.loads((run / "federation.json").read_text())
    federation["labels"][0] = federation["sites"][0] = evil
    (run / "federation.json").write_text(json.dumps(federation))
    _ok([str(run), "--out", "page.html"], tmp_path)
    page = _read(tmp_path / "page.html")
    assert len(page.scripts) == 3 and not any(tag in ("img", "b") for tag, _ in page.tags)
    assert "alert(1)" in page.scripts["charts"] and "<" not in page.scripts["charts"]


def test_a_half_finished_run_is_reported_and_says_what_it_lacks(radio_run: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(radio_run, half)
    shutil.rmtree(half / "adapter")
    for name in ("clients.jsonl", "federation.json", "environment.json"):
        (half / name).unlink()
    (half / "metrics.jsonl").write_text("".join((half / "metrics.jsonl").read_text().splitlines(keepends=True)[:2]) + '{"rou')
    done = _ok(["half"], tmp_path)
    assert "rounds 2 to 4 of 4" in done.err and "clients.jsonl" in done.err
    page = _read(half / "report.html")
    assert "Not here:" in page.text and "federation.json" in page.text and "1 of 4 rounds done" in page.text


def test_a_run_that_has_only_begun(radio_run: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(radio_run / "config.toml", tmp_path / "new")
    _ok(["new"], tmp_path)
    assert "0 of 4 rounds done" in _read(tmp_path / "new" / "report.html").text


@pytest.mark.parametrize(("form", "head"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_same_figures_for_papers(radio_run: Path, tmp_path: Path, form: str, head: bytes) -> None:
    done = _ok([str(radio_run), "--format", form, "--out", "figures"], tmp_path)
    files = sorted((tmp_path / "figures").iterdir())
    assert done.out.strip() == f"figures: {len(files)} files in figures" and len(files) > 15
    assert all(path.suffix == f".{form}" and path.read_bytes().startswith(head) for path in files)
    assert {"progress-rounds", "ranks", "timeline", "skew", "clients-losses"} <= {path.stem for path in files}


def test_outcomes_as_json(radio_run: Path, plain_run: Path, tmp_path: Path) -> None:
    found: list[dict[str, Any]] = json.loads(_ok([str(radio_run), str(plain_run), "--format", "json"], tmp_path).out)
    assert [row["rounds"] for row in found] == [4, 2] and [row["complete"] for row in found] == [True, True]
    rows = [json.loads(line) for line in (radio_run / "metrics.jsonl").read_text().splitlines()]
    assert found[0]["accuracy_after"] == rows[-1]["test_accuracy"] and found[0]["missing"] == []
    assert list(tmp_path.glob("*.html")) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "there is no such folder or file"),
        (["empty"], "holds nothing to report on"),
        (["words.json"], "cannot be read as JSON"),
        (["empty", "--format", "json"], "holds nothing to report on"),
    ],
)
def test_what_cannot_be_reported_is_one_error(tmp_path: Path, arguments: list[str], says: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.json").write_text("no json")
    done = fedlora_command(["report", *arguments], tmp_path)
    assert says in done.error and done.code == 5
    assert not list(tmp_path.rglob("*.html"))


def test_a_place_that_cannot_be_written_is_one_error(radio_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = fedlora_command(["report", str(radio_run), "--out", "file/page.html"], tmp_path)
    assert "cannot write" in done.error and done.code == 5


def test_without_plotly_one_error_says_what_to_install(radio_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedlora\[report\]', or take png or svg"):
        write_page(build([radio_run]), tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
    assert save_charts(build([radio_run]).charts()[:1], tmp_path, "svg")
