"""`fedlora report`: a page of figures for a run, or for several side by side."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fedlora.cli import completion
from fedlora.cli.common import print_json
from fedlora.errors import ConfigError


class ReportFormat(StrEnum):
    """What a report is written as."""

    html = "html"
    png = "png"
    svg = "svg"
    json = "json"


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR [RUN_DIR ...]",
            help="Folders of runs or comparisons, or results as JSON.",
            autocompletion=completion.run_folders,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="HTML or JSON file, or folder for png and svg (replaced if there); "
            "default: report.html or figures/ in RUN_DIR, JSON to stdout."
        ),
    ] = None,
    format: Annotated[
        ReportFormat, typer.Option(help="One HTML page, figures for papers, or the table of outcomes as JSON.")
    ] = ReportFormat.html,
) -> None:
    """Write a report of one run, or of several side by side, that opens in any browser without a network."""
    _check_out(paths, out, format)
    if format is ReportFormat.json:
        _json(paths, out)
        return
    # Only now what reads and draws: `fedlora --help` pays for none of it.
    from fedlora.report.build import build

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


def _check_out(paths: list[Path], out: Path | None, format: ReportFormat) -> None:
    """Refuse an --out that is no name for the format, and one that would write over what is reported on (ConfigError)."""
    if out is None:
        return
    from fedlora.runs.folder import refuse_own_file

    refuse_own_file(out)
    if any(path.is_file() and path.resolve() == out.resolve() for path in paths):
        raise ConfigError(f"--out {out} is the file to report on. Give another --out")
    endings = {ReportFormat.html: (".html", ".htm"), ReportFormat.json: (".json",)}.get(format)
    if endings and out.suffix.lower() not in endings:
        others = "; figures come by --format png or svg" if format is ReportFormat.html else ""
        raise ConfigError(f"--out {out}: with --format {format.value} give a file name that ends in {endings[0]}{others}")


def _json(paths: list[Path], out: Path | None) -> None:
    """Print what lies at each path as plain data, or write it: a run's outcome, else the results or rows as they are."""
    from fedlora.files import disk_errors, plain, write_json
    from fedlora.report.build import outcomes
    from fedlora.report.sources import find_sources
    from fedlora.runs.read import is_run

    found: list[dict[str, Any]] = []
    for path in paths:
        if is_run(path):
            found += outcomes([path])
            continue
        (source,) = find_sources([path])
        found.append({"folder": str(path), **({"results": source.found} if source.found else {"rows": source.rows})})
    if out is None:
        print_json(found)
        return
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, plain(found))
    typer.echo(f"outcomes: {out}")
