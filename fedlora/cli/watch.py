"""`fedlora watch`: follow a run in the terminal, wherever it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedlora.cli.common import Format
from fedlora.cli.simulate import result_table
from fedlora.runs.summary import summary


def command(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run, or where one will be.")],
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Give up when nothing happened for so long; default: never.")
    ] = None,
    format: Annotated[Format, typer.Option(help="How to print the result.")] = Format.text,
) -> None:
    """Follow a run, begun by whatever command, until it ends. Exit code 0: all rounds are done; 1: it stopped before."""
    from fedlora.runs.follow import follow
    from fedlora.runs.progress import Lines, Live

    console = Console(stderr=format is Format.json, soft_wrap=True)
    progress = Live(console) if console.is_terminal else Lines(console)
    try:
        rows = follow(run_dir, progress, patience_s=timeout)
    finally:
        if isinstance(progress, Live):
            progress.abort()
    if format is Format.json:
        typer.echo(json.dumps({"folder": str(run_dir), "summary": summary(rows), "rounds": rows}))
    else:
        console.print(result_table(summary(rows)))
        console.print(f"run folder: {run_dir}", highlight=False)
