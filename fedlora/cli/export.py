"""`fedlora export`: a run's adapter as a stock PEFT folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlora.cli import completion
from fedlora.cli.common import Format, print_json


def command(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run.", autocompletion=completion.run_folders)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the adapter.")],
    round: Annotated[int | None, typer.Option(help="Round of the checkpoint to export; default: the newest.")] = None,
    format: Annotated[Format, typer.Option(help="How to print what was done.")] = Format.text,
) -> None:
    """Write a run's global adapter so that peft.PeftModel.from_pretrained loads it with the same logits."""
    from fedlora.runs.export import export_run

    done = export_run(run_dir, out, round)
    if format is Format.json:
        print_json({"adapter": str(out), "round": done})
    else:
        typer.echo(f"adapter of round {done}: {out}")
