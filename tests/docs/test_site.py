"""The documentation as a site: it builds strictly, leads nowhere that is not there, and asks for nothing from a network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from browsers import chromium
from doc_blocks import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; notebooks are not run for it (test_notebooks.py runs them)."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "FEDLORA_DOCS_NOTEBOOKS": "0", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


class Page(HTMLParser):
    """What a page refers to, and what in it can be referred to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.assets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note links, assets and anchors."""
        values = {name: value for name, value in attrs if value is not None}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.assets.append(values["href"])
        elif tag in ("script", "img", "iframe", "source", "video") and "src" in values:
            self.assets.append(values["src"])


@pytest.fixture(scope="module")
def html(site: Path) -> dict[Path, Page]:
    """Every page of the site."""
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_page_is_there(site: Path, html: dict[Path, Page]) -> None:
    pages = {path.relative_to(site).with_suffix("").as_posix() for path in html}
    written = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert written | {"notebooks/round", "notebooks/policy", "results/quickstart", "results/ravan", "changelog"} <= pages


def test_links_and_anchors_lead_somewhere(site: Path, html: dict[Path, Page]) -> None:
    for path, page in html.items():
        if path.name == "404.html":  # its links are the server's
            continue
        for link in page.links:
            there = urlsplit(link)
            if there.scheme or there.netloc:
                continue
            target = (path.parent / unquote(there.path)).resolve() if there.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.relative_to(site)} leads to {link}"
            if there.fragment and target in html:
                assert unquote(there.fragment) in html[target].anchors, f"{path.relative_to(site)}: no anchor {link}"


def test_links_to_the_repository_name_files_that_it_has(html: dict[Path, Page]) -> None:
    repository = "https://github.com/fedlora/fedlora/"
    found = {link.partition("#")[0] for page in html.values() for link in page.links if link.startswith(repository)}
    assert len(found) > 20
    for link in found:
        kind, branch, path = link.removeprefix(repository).split("/", 2)
        there = ROOT / path
        assert branch == "main" and (there.is_dir() if kind == "tree" else there.is_file()), link


def test_nothing_comes_from_a_network(site: Path, html: dict[Path, Page]) -> None:
    for path, page in html.items():
        for asset in page.assets:
            assert not urlsplit(asset).scheme or asset.startswith("data:"), f"{path.relative_to(site)} loads {asset}"
            assert not asset.startswith("//"), f"{path.relative_to(site)} loads {asset}"
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert "url(http" not in text and "@import" not in text, sheet


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """One browser for the module."""
    with chromium() as started:
        yield started


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_finds_all_it_needs(browser: object, site: Path, scheme: str) -> None:
    for name in ("index", "concepts", "physics", "api", "howto/own-policy"):
        context = browser.new_context(color_scheme=scheme, viewport={"width": 360, "height": 740})  # type: ignore[attr-defined]
        page = context.new_page()
        page.set_default_timeout(180_000)  # machines that run the suite are shared
        asked: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto((site / f"{name}.html").as_uri())
        page.wait_for_timeout(300)
        assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == [], name
        missing = page.evaluate("[...document.images].filter((image) => !image.naturalWidth).map((image) => image.src)")
        assert missing == [], name
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(","))) > 382) == (scheme == "light"), name
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, f"{name} is wider than a phone"
        if name == "physics":
            assert page.evaluate("document.querySelectorAll('math').length") > 60
        context.close()
