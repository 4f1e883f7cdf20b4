"""Code blocks of the documentation, and what is done with each: run, loaded by fedlora itself, or at least parsed.

The rules, as they stand in docs/howto/index.md:

* every block names its language: bash, python, toml, text (what was printed, drawings);
* a block whose first line is a comment with a file's name ("# my-run.toml") is that file for the blocks after it;
* a page's blocks run from top to bottom in one empty folder, Python ones in one namespace;
* `<!-- not run: REASON -->` before a block says that it is not run, and why; its commands are parsed all the same.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LANGUAGES = ("bash", "python", "toml", "text")

_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n\n?)?^(?P<fence>```+)(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
_NAMED = re.compile(r"\A# (?P<name>[\w./-]+\.(?:toml|py|csv|yaml|jsonl))\n")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: Its page, from the repository's root.
        line: Where its fence is.
        language: What the fence says.
        text: What is in it.
        reason: Why it is not run; empty where it is.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str = ""

    @property
    def file(self) -> str:
        """Name of the file that the block is, or nothing."""
        named = _NAMED.match(self.text)
        return named["name"] if named and self.language != "text" else ""

    def __str__(self) -> str:
        """Return where it stands."""
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Return the README and every page of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    found = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("fence")) + 1
        found.append(Block(name, line, match["language"].strip(), match["text"], match["reason"] or ""))
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the words of every command of a block, without what stands before a program (sudo, variables) and redirections."""
    for line in block.text.replace("\\\n", " ").splitlines():
        for part in re.split(r"\s(?:&&|\||;)\s|\s&\s*$", line):
            words = shlex.split(part, comments=True)
            while words and (words[0] in ("sudo", "time", "nohup") or re.fullmatch(r"[A-Z_]+=.*", words[0])):
                words = words[1:]
            if words:
                end = next((place for place, word in enumerate(words) if word in (">", ">>", "2>", "<")), None)
                yield words[:end]
