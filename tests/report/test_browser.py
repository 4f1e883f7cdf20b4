"""The page in a real browser: every figure drawn, nothing complained of, nothing asked from a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browsers import chromium, visit
from fedlora.report.build import build
from fedlora.report.page import write_page

ROOT = Path(__file__).parents[2]
PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
LOOKS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "desktop, dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": PHONE,
    "phone, dark": {**PHONE, "color_scheme": "dark"},
}

# For each figure: what it is, whether plotly drew axes, how many marks are in it, and whether any is wider than its place.
_FIGURES = """[...document.querySelectorAll('.chart')].map((box) => ({
    id: box.id,
    axes: box.querySelectorAll('.xtick text, .ytick text').length,
    marks: box.querySelectorAll('.scatterlayer path, .barlayer path, .heatmaplayer image').length,
    wide: box.querySelector('.main-svg')?.getBoundingClientRect().right > innerWidth + 1,
}))"""

_LOOK_BEFORE_PRINT = """addEventListener('beforeprint', () => {
    window.onPaper = [...document.querySelectorAll('.chart')].map((box) =>
        [box.dataset.drawn, box.getBoundingClientRect().right - document.body.getBoundingClientRect().left,
         getComputedStyle(box.querySelector('text')).fill]);
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for the module."""
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def pages(radio_run: Path, plain_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    other = folder / "other"
    shutil.copytree(radio_run, other)
    kinds = {
        "run": [radio_run],
        "runs": [radio_run, plain_run, other],
        "policies": [ROOT / "experiments/policies/results.json"],
        "study": [ROOT / "experiments/quickstart/results.json"],
    }
    for name, paths in kinds.items():
        write_page(build(paths), folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in kinds}


@pytest.mark.parametrize("kind", ["run", "runs", "policies", "study"])
@pytest.mark.parametrize("look", LOOKS)
def test_every_figure_is_drawn(browser: Any, pages: dict[str, Path], kind: str, look: str) -> None:
    with visit(browser, pages[kind], **LOOKS[look]) as seen:
        figures = seen.page.evaluate(_FIGURES)
        assert len(figures) > 5
        for figure in figures:
            assert figure["axes"] > 1 and figure["marks"] > 0 and not figure["wide"], figure
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= LOOKS[look]["viewport"]["width"]
        assert seen.complaints == [] and seen.requests == []


def test_dark_and_light_have_readable_axes(browser: Any, pages: dict[str, Path]) -> None:
    for look, light in (("desktop", True), ("desktop, dark", False)):
        with visit(browser, pages["run"], **LOOKS[look]) as seen:
            ink = seen.page.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill")
            ground = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (_brightness(ink) < 80) == light and (_brightness(ground) > 200) == light


def _brightness(colour: str) -> float:
    return sum(float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]) / 3


def test_a_reader_chooses_a_client_and_hides_a_curve(browser: Any, pages: dict[str, Path]) -> None:
    with visit(browser, pages["run"], **LOOKS["desktop"]) as seen:
        figure = seen.page.locator("figure", has=seen.page.locator("#channel-ranks"))
        shown = "document.getElementById('channel-ranks').data[0].text.flat().join('')"
        before = seen.page.evaluate(shown)
        figure.locator("select").select_option(index=2)
        assert seen.page.evaluate(shown) != before
        curves = seen.page.locator("figure", has=seen.page.locator("#results-progress-rounds"))
        count = "document.querySelectorAll('#results-progress-rounds .scatterlayer .trace').length"
        before = seen.page.evaluate(count)
        button = curves.locator(".legend button").first
        button.click()
        assert button.get_attribute("aria-pressed") == "false" and seen.page.evaluate(count) < before
        assert seen.complaints == []


def test_paper_gets_all_figures_in_the_light(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    context = browser.new_context(**LOOKS["desktop, dark"])
    page = context.new_page()
    page.goto(pages["run"].as_uri())
    page.evaluate(_LOOK_BEFORE_PRINT)
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    figures = page.evaluate("window.onPaper")
    assert len(figures) > 15
    millimetre = 96 / 25.4
    assert all(drawn == "yes" and right <= (210 - 24) * millimetre and _brightness(ink) < 80 for drawn, right, ink in figures)
    context.close()


def test_without_scripts_the_numbers_are_there(browser: Any, pages: dict[str, Path]) -> None:
    with visit_plain(browser, pages["run"]) as page:
        assert "need JavaScript" in page.inner_text("body")
        assert "test accuracy, after" in page.inner_text("#results")
        assert "fedlora simulate" in page.inner_text("#repeat")


class visit_plain:  # noqa: N801
    """A page in a browser that runs no scripts."""

    def __init__(self, browser: Any, file: Path) -> None:
        self.context, self.file = browser.new_context(java_script_enabled=False), file

    def __enter__(self) -> Any:
        page = self.context.new_page()
        page.goto(self.file.as_uri())
        return page

    def __exit__(self, *_: object) -> None:
        self.context.close()
