"""`fedlora export`: a run's adapter as a stock PEFT folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the adapter.")],
    round: Annotated[int | None, typer.Option(help="Round of the checkpoint to export; default: the newest.")] = None,
) -> None:
    """Write a run's global adapter so that peft.PeftModel.from_pretrained loads it with the same logits."""
    from fedlora.runs.export import export_run

    typer.echo(f"adapter of round {export_run(run_dir, out, round)}: {out}")
