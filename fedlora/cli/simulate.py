"""`fedlora simulate`: run simulated federated rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fedlora.cli.common import Format, Log, Resume, RunWords, print_json, read_arguments, talking, with_log
from fedlora.config import RunConfig
from fedlora.errors import ConfigError
from fedlora.runs.summary import summary


def command(
    arguments: RunWords = None,
    out: Annotated[
        Path | None, typer.Option(help="New folder for the run; default: runs/<time>-<model>-<data>-<adapter>.")
    ] = None,
    resume: Resume = None,
    log: Annotated[list[Log] | None, typer.Option(help="Also send each round to this tracker; may be repeated.")] = None,
    format: Annotated[Format, typer.Option(help="How to print the result.")] = Format.text,
) -> None:
    """Run simulated federated rounds; without a run file, the quickstart."""
    config, folder = what_and_where(with_log(arguments or [], log), out, resume)
    # Only now the heavy imports: a wrong key has been refused already.
    from fedlora.runs.progress import Lines, Live
    from fedlora.runs.simulate import simulate

    console = talking(format)
    progress = Live(console) if console.is_terminal else Lines(console)
    try:
        result = simulate(config, folder, resume=resume is not None, progress=progress)
    except KeyboardInterrupt:
        known = (folder / "config.toml").is_file()
        console.print(f"stopped. Go on with: fedlora simulate --resume {folder}" if known else "stopped before the first round")
        raise
    finally:
        if isinstance(progress, Live):
            progress.abort()
    if format is Format.json:
        print_json({"folder": str(result.folder), "summary": summary(result.rounds), "rounds": result.rounds})
    else:
        console.print(result_table(summary(result.rounds)))
        console.print(f"run folder: {result.folder}", highlight=False)


def what_and_where(arguments: list[str], out: Path | None, resume: Path | None) -> tuple[RunConfig, Path]:
    """Return the run that the command line describes and its folder (that of `resume`, `out`, or a new one)."""
    from fedlora.runs.folder import RunFolder, default_folder, holds_run

    if out is not None and resume is not None:
        raise ConfigError("--out names a new run's folder and --resume an old one's: give one of them")
    if resume is None:
        config = read_arguments(arguments)
        return config, out or default_folder(config)

    if arguments and not holds_run(resume):  # a run that was cut off before its folder said what it was
        return read_arguments(arguments), resume
    stored = RunFolder.open(resume).config
    return (read_arguments(arguments, stored) if arguments else stored), resume


def result_table(result: dict[str, Any]) -> Table:
    """Return a run's outcome as people read it."""
    from fedlora.runs.progress import duration, number, size

    table = Table(show_header=True, header_style="bold")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    if result["accuracy_after"] is None:  # the server has nothing whole to measure: clients keep a part of the model
        table.add_row("accuracy at clients", "", number(result["clients_accuracy"]))
    else:
        table.add_row("test accuracy", *(number(result[f"accuracy_{when}"]) for when in ("before", "after")))
        table.add_row("test loss", *(number(result[f"loss_{when}"]) for when in ("before", "after")))
    table.add_section()
    table.add_row("bytes up", "", size(result["uplink_bytes"]))
    table.add_row("bytes down", "", size(result["downlink_bytes"]))
    lost = {what: result.get(f"replies_{what}", 0) for what in ("failed", "dropped", "late")}
    named = "".join(f", {count} {what}" for what, count in lost.items() if count)
    table.add_row("replies", "", f"{result['replies']} of {result['replies'] + sum(lost.values())}{named}")
    table.add_row("rounds", "", str(result["rounds"]))
    table.add_row("time in rounds", "", f"{result['wall_time_s']:.1f} s")
    if "virtual_time_s" in result:
        table.add_row("virtual time", "", duration(result["virtual_time_s"]))
        table.add_row("energy at clients", "", f"{result['energy_j']:.4g} J")
    return table
