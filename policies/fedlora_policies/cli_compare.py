"""`fedlora compare`: policies against each other on the same channels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlora.cli.common import Format, print_json, tables


def command(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[COMPARE.toml] [key=value ...]", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="Folder for compare.json and pareto.png (replaced if there).")] = Path("runs/compare"),
    format: Annotated[Format, typer.Option(help="How to print the result.")] = Format.text,
) -> None:
    """Compare rank policies on the same test channels: paired differences, normalised scores, bytes, with intervals.

    Options of policies are tuned on validation channels. Without a file, the shipped comparison runs; key=value changes it, for
    example `fedlora compare episodes=20 policies.greedy.options.price=0.5`.
    """
    import json

    from rich.console import Console

    from fedlora_policies.compare import compare, read_compare
    from fedlora_policies.compare_report import tables as compared
    from fedlora_policies.compare_report import write

    changes = list(arguments or [])
    path = Path(changes.pop(0)) if changes and "=" not in changes[0] else None
    config = read_compare(path, changes)
    talk = Console(stderr=True)
    with talk.status("comparing") as status:
        found = compare(config, status.update)
    written = write(found, out)
    if format is Format.json:
        print_json(json.loads(written[0].read_text(encoding="utf-8")))
        return
    console = tables()
    if not console.is_terminal:
        console.width = 160  # a file has no edge to fold tables at
    for table in compared(found):
        console.print(table)
    note = "± is half a 95 % interval; * marks paired differences whose interval excludes 0; ρ: rank correlation of rank and SNR"
    console.print(note, highlight=False, soft_wrap=True)
    console.print(f"written: {', '.join(str(item) for item in written)}", highlight=False, soft_wrap=True)
