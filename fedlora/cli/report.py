"""`fedlora report`: a page of figures for a run, or for several side by side."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class ReportFormat(StrEnum):
    """What a report is written as."""

    html = "html"
    png = "png"
    svg = "svg"
    json = "json"


def command(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR [RUN_DIR ...]", help="Folders of runs or comparisons, or results as JSON.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="HTML file, or folder for png and svg (replaced if there); default: report.html or figures/ in RUN_DIR."
        ),
    ] = None,
    format: Annotated[
        ReportFormat, typer.Option(help="One HTML page, figures for papers, or the table of outcomes as JSON on stdout.")
    ] = ReportFormat.html,
) -> None:
    """Write a report of one run, or of several side by side, that opens in any browser without a network."""
    # Only now what reads and draws: `fedlora --help` pays for none of it.
    from fedlora.report.build import build, outcomes

    if format is ReportFormat.json:
        typer.echo(json.dumps(outcomes(paths)))
        return
    report = build(paths)
    for what in report.missing:
        typer.echo(f"not here: {what}", err=True)
    home = (paths[0] if paths[0].is_dir() else paths[0].parent) if len(paths) == 1 else Path()
    if format is ReportFormat.html:
        from fedlora.report.page import write_page

        target = out or home / "report.html"
        write_page(report, target)
        typer.echo(f"report: {target}")
        return
    from fedlora.report.papers import save_charts

    folder = out or home / "figures"
    saved = save_charts(report.charts(), folder, format.value)
    typer.echo(f"figures: {len(saved)} files in {folder}")
