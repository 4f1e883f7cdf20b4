"""`fedlora serve`: a run over real nodes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from fedlora.cli.common import Format, Log, Resume, RunWords, print_json, talking, with_log
from fedlora.cli.simulate import result_table, what_and_where
from fedlora.runs.summary import summary


def command(
    arguments: RunWords = None,
    deployment: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder made by `fedlora deploy init`.", show_default=False)
    ] = ...,  # type: ignore[assignment]  # typer's way to say that it must be given
    out: Annotated[
        Path | None, typer.Option(help="New folder for the run; default: runs/<time>-<model>-<data>-<adapter>.")
    ] = None,
    resume: Resume = None,
    insecure_plain_text: Annotated[
        bool, typer.Option("--insecure-plain-text", help="Neither encrypt nor authenticate: for tests on one machine.")
    ] = False,
    log: Annotated[list[Log] | None, typer.Option(help="Also send each round to this tracker; may be repeated.")] = None,
    format: Annotated[Format, typer.Option(help="How to print the result.")] = Format.text,
) -> None:
    """Serve a run to real nodes and watch it; without a run file, the deployment's own. Exit code 0: all rounds are done."""
    from fedlora.deploy.deploy_folder import DeployFolder
    from fedlora.deploy.serve import serve
    from fedlora.deploy.watch import LiveWatcher, Watcher

    folder = DeployFolder.open(deployment)
    given = arguments or []
    if resume is None and (not given or "=" in given[0]):
        given = [str(folder.run_file), *given]
    config, where = what_and_where(with_log(given, log), out, resume)
    console = talking(format)
    watcher = LiveWatcher(console) if console.is_terminal else Watcher(console)
    try:
        result = serve(config, folder, where, resume=resume is not None, plain_text=insecure_plain_text, watcher=watcher)
    except KeyboardInterrupt:
        begun = (where / "config.toml").is_file()
        again = f"stopped. Go on with: fedlora serve --deployment {deployment} --resume {where}"
        with contextlib.suppress(OSError):  # the terminal may be gone
            watcher.end()
            console.print(again if begun else "stopped before the first round", highlight=False, markup=False)
        raise
    finally:
        with contextlib.suppress(OSError):
            watcher.end()
    if format is Format.json:
        print_json({"folder": str(result.folder), "summary": summary(result.rounds), "rounds": result.rounds})
    else:
        console.print(result_table(summary(result.rounds)))
        console.print(f"run folder: {result.folder}", highlight=False)
