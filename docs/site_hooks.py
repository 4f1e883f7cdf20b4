"""What MkDocs is told about this repository: pages that live elsewhere in it, notebooks, links out of docs/, and formulas.

`mkdocs.yml` names this file. FEDLORA_DOCS_NOTEBOOKS=0 shows notebooks without running them, for a quick look at the pages.
"""

from __future__ import annotations

import html
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from site_notebooks import notebook_page

ROOT = Path(__file__).resolve().parents[1]

# Pages of the repository that are pages of the site too, and where they are there.
GUESTS = {
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "results/benchmarks.md",
    "policies/fedlora_policies/data/airllm-plus.md": "results/airllm-plus.md",
    **{
        f"experiments/{name}/README.md": f"results/{name}.md"
        for name in ("quickstart", "policies", "airllm", "live", "ravan", "emulation")
    },
}

_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?(\s+\"[^\"]*\")?\)")
_FENCE = re.compile(r"^(```+|~~~+).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/, the pictures that they show, and the notebooks."""
    pictures: set[str] = set()
    for source, page in GUESTS.items():
        text = _relinked((ROOT / source).read_text(encoding="utf-8"), source, page, config.extra["repository"], pictures)
        files.append(File.generated(config, page, content=text))
    run = os.environ.get("FEDLORA_DOCS_NOTEBOOKS", "1") != "0"
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        text, outputs = notebook_page(notebook, run)
        page = f"notebooks/{notebook.stem}.md"
        text = _relinked(text, f"docs/notebooks/{notebook.name}", page, config.extra["repository"], pictures)
        files.append(File.generated(config, page, content=text))
        for name, data in outputs.items():
            files.append(File.generated(config, f"notebooks/{name}", content=data))
    for source in sorted(pictures):
        files.append(File.generated(config, f"results/pictures/{_flat(source)}", content=(ROOT / source).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that leave docs/ lead to the same page on the site, or to the repository."""
    if page.file.generated_by is not None:
        return markdown
    return _relinked(markdown, f"docs/{page.file.src_uri}", page.file.src_uri, config.extra["repository"], set())


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write formulas as MathML, which browsers draw by themselves."""
    return re.sub(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', _formula, html, flags=re.DOTALL)


def _formula(found: re.Match[str]) -> str:
    text = html.unescape(found[3])
    try:
        drawn = convert(text, display="block" if found[2] == "[" else "inline")
    except Exception as error:  # whatever a parser of LaTeX does with what is none
        raise PluginError(f"no formula: {text!r} ({error!r})") from error
    if "\\" in drawn:
        raise PluginError(f"a command that cannot be drawn, in {text!r}")
    return drawn


def _relinked(text: str, source: str, page: str, repository: str, pictures: set[str]) -> str:
    """Return a page's text with its links as they must be on the site.

    Args:
        text: Markdown as it stands in the repository.
        source: Its path from the repository's root.
        page: Its path from docs/.
        repository: Address of the repository.
        pictures: Gets the pictures that the page shows and that are not in docs/.
    """

    def link(found: re.Match[str]) -> str:
        target = found[2]
        if "://" in target or target.startswith(("mailto:", "/")):
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        anchor, title = found[3] or "", found[4] or ""
        if path in GUESTS:
            goal = _relative(GUESTS[path], page)
        elif path.startswith("docs/") and (ROOT / path).is_file() and not path.endswith((".py", ".ipynb")):
            goal = _relative(path.removeprefix("docs/"), page)
        elif path.startswith("docs/notebooks/") and path.endswith(".ipynb"):
            goal = _relative(path.removeprefix("docs/").removesuffix(".ipynb") + ".md", page)
        elif found[1].startswith("!") and not (ROOT / path).is_file():
            return found[0]  # made while the site is built
        elif found[1].startswith("!"):
            pictures.add(path)
            goal = _relative(f"results/pictures/{_flat(path)}", page)
        else:
            goal = f"{repository}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"
        return f"{found[1]}{goal}{anchor}{title})"

    kept: list[str] = []

    def keep(found: re.Match[str]) -> str:
        kept.append(found[0])
        return f"\0{len(kept) - 1}\0"

    text = _LINK.sub(link, _FENCE.sub(keep, text))
    return re.sub(r"\0(\d+)\0", lambda found: kept[int(found[1])], text)


def _relative(target: str, page: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def _flat(path: str) -> str:
    return path.replace("/", "-")


__all__: list[Any] = ["on_files", "on_page_content", "on_page_markdown"]
