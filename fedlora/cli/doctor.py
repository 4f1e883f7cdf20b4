"""`fedlora doctor`: what is installed here, and whether a run file can run."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedlora.cli.common import Format, read_arguments


def command(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[RUN.toml] [key=value ...]", show_default=False)] = None,
    format: Annotated[Format, typer.Option(help="How to print the findings.")] = Format.text,
) -> None:
    """Print versions and devices; for a run file, also what the run will need. Refuses a run that cannot work."""
    from fedlora.runs.preflight import installation, preflight

    findings: dict[str, Any] = {"installation": installation()}
    if arguments:
        findings["preflight"] = preflight(read_arguments(arguments))
    if format is Format.json:
        typer.echo(json.dumps(findings, indent=2))
        return
    console = Console(soft_wrap=True)
    for title, rows in findings.items():
        table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
        for key, value in rows.items():
            table.add_row(key.replace("_", " "), str(value))
        console.print(table)
