"""A headless Chromium for tests of pages: the system's, or the one that playwright downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a started browser (playwright's `Browser`); skip the test, and say why, where there is none."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        pytest.skip("no playwright: pip install playwright")
    own = next((path for name in _NAMES if (path := shutil.which(name))), None)
    with sync_playwright() as play:
        # Root has no sandbox of its own; the pages are ours.
        arguments = ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []
        try:
            browser = play.chromium.launch(executable_path=own, args=arguments)
        except Error as error:
            pytest.skip(f"no Chromium (apt-get install chromium, or playwright install chromium): {str(error).splitlines()[0]}")
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page that was opened and scrolled to its end.

    Attributes:
        page: Playwright's page.
        complaints: Errors and warnings of the console, and exceptions that nobody caught.
        requests: Addresses that it asked for, other than its own file and what is inside it.
    """

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def visit(browser: Any, file: Path, **look: Any) -> Iterator[Visit]:
    """Open a file as a reader with such a screen would, scroll through it, and yield what happened."""
    context = browser.new_context(**look)
    seen = Visit(context.new_page())
    seen.page.on(
        "console", lambda said: seen.complaints.append(said.text) if said.type in ("error", "warning", "trace") else None
    )
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("request", lambda asked: None if _inside(asked.url, file) else seen.requests.append(asked.url))
    try:
        seen.page.goto(file.as_uri())
        place, end = 0, 1
        while place < end:
            seen.page.evaluate(f"scrollTo(0, {place})")
            seen.page.wait_for_timeout(30)
            place, end = place + 600, seen.page.evaluate("document.documentElement.scrollHeight")
        yield seen
    finally:
        context.close()


def _inside(url: str, file: Path) -> bool:
    return url == file.as_uri() or url.startswith(("data:", "blob:"))
