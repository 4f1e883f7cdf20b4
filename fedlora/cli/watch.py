"""`fedlora watch`: follow a run in the terminal, wherever it runs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedlora.cli import completion
from fedlora.cli.common import Format, print_json, talking
from fedlora.cli.simulate import result_table
from fedlora.errors import ConfigError, FedLoRAError
from fedlora.runs.summary import summary

_FAILED, _NOT_FOUND = 255, 127  # exit codes of ssh itself, and of a shell that does not find a program


def command(
    run_dir: Annotated[
        Path,
        typer.Argument(
            metavar="[[USER@]HOST:]RUN_DIR",
            help="Folder of a run, or where one will be; with HOST, on that machine, by ssh.",
            autocompletion=completion.run_folders,
        ),
    ],
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Give up when nothing happened for so long; default: never.")
    ] = None,
    format: Annotated[Format, typer.Option(help="How to print the result.")] = Format.text,
    program: Annotated[
        str, typer.Option(help="With HOST: what fedlora is called there, for example .venv/bin/fedlora.")
    ] = "fedlora",
) -> None:
    """Follow a run, begun by whatever command, until it ends. Exit code 0: all rounds are done; 1: it stopped before."""
    other = elsewhere(str(run_dir)) if not run_dir.exists() else None
    if other is not None:
        raise typer.Exit(_by_ssh(*other, timeout, format, program))
    from fedlora.runs.follow import follow
    from fedlora.runs.progress import Lines, Live

    console = talking(format)
    progress = Live(console) if console.is_terminal else Lines(console)
    try:
        rows = follow(run_dir, progress, patience_s=timeout)
    finally:
        if isinstance(progress, Live):
            progress.abort()
    if format is Format.json:
        print_json({"folder": str(run_dir), "summary": summary(rows), "rounds": rows})
    else:
        console.print(result_table(summary(rows)))
        console.print(f"run folder: {run_dir}", highlight=False)


def elsewhere(text: str) -> tuple[str, str] | None:
    """Return (host, folder) of a folder on another machine, as scp and rsync write it; None where it is none."""
    found = re.fullmatch(r"((?:[\w.-]+@)?(?:[\w.-]+|\[[\da-fA-F:.]+\])):(.+)", text)
    return (found[1].replace("[", "").replace("]", ""), found[2]) if found and len(found[1]) > 1 else None


def _by_ssh(host: str, folder: str, timeout: float | None, format: Format, program: str) -> int:
    """Run the same command on another machine and return its exit code: the run is followed where its files and its lock are."""
    if shutil.which("ssh") is None:
        raise ConfigError(f"{host} is followed by ssh, which is not installed here. Install it, or watch the run where it is")
    words = [program, "watch", folder, "--format", format.value, *(["--timeout", str(timeout)] if timeout is not None else [])]
    # A terminal there, if there is one here: for the bar, and so that Ctrl-C arrives.
    terminal = ["-t"] if sys.stdout.isatty() and sys.stdin.isatty() else ["-T"]
    code = subprocess.run(["ssh", *terminal, "--", host, shlex.join(words)], check=False).returncode
    if code == _FAILED:
        raise FedLoRAError(f"ssh could not reach {host}. Try `ssh {host}`; keys, ports and other names go into ~/.ssh/config")
    if code == _NOT_FOUND:
        raise FedLoRAError(f"{host} knows no command '{program}'. Say where it is: --program /path/to/fedlora")
    return code
