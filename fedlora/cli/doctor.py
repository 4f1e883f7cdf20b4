"""`fedlora doctor`: what is installed here, whether a run file can run, and whether a device can join a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedlora.cli.common import Format, RunWords, print_json, read_arguments, tables
from fedlora.errors import ConfigError


def command(
    arguments: RunWords = None,
    format: Annotated[Format, typer.Option(help="How to print the findings.")] = Format.text,
    edge: Annotated[bool, typer.Option("--edge", help="Check this device as a node instead.")] = False,
    superlink: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="With --edge: the server.", show_default=False)
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="With --edge: the authority's certificate.", show_default=False)] = None,
    key: Annotated[Path | None, typer.Option(help="With --edge: the node's private key.", show_default=False)] = None,
    state: Annotated[Path, typer.Option(help="With --edge: the node's own folder.")] = Path("."),
    insecure_plain_text: Annotated[bool, typer.Option("--insecure-plain-text", help="With --edge: speak plain text.")] = False,
) -> None:
    """Print versions and devices; for a run file, also what the run will need. Refuses a run that cannot work.

    With --edge, print one line for each thing that a node needs; the exit code is 1 if one of them is bad.
    """
    if edge:
        if arguments:
            raise ConfigError(f"--edge checks a device and takes no run: leave out {' '.join(arguments)}")
        _edge(superlink, ca, key, state, insecure_plain_text, format)
        return
    from fedlora.runs.preflight import installation, preflight

    findings: dict[str, Any] = {"installation": installation()}
    if arguments:
        findings["preflight"] = preflight(read_arguments(arguments))
    if format is Format.json:
        print_json(findings)
        return
    console = tables(soft_wrap=True)
    for title, rows in findings.items():
        table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
        for key_, value in rows.items():
            table.add_row(key_.replace("_", " "), str(value))
        console.print(table)


def _edge(superlink: str | None, ca: Path | None, key: Path | None, state: Path, plain: bool, format: Format) -> None:
    from fedlora.deploy.edge_check import check_edge

    findings = check_edge(superlink, ca, key, state, plain)
    if format is Format.json:
        print_json([{"name": item.name, "level": item.level, "text": item.text} for item in findings])
    else:
        console = Console(soft_wrap=True, highlight=False)
        style = {"ok": "green", "warning": "yellow", "bad": "bold red"}
        for item in findings:
            console.print(f"[{style[item.level]}]{item.level:8}[/] {item.name:12}", end="")
            console.print(item.text, markup=False)
    if any(item.level == "bad" for item in findings):
        raise typer.Exit(1)
