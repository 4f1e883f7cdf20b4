"""What several commands share: run files on the command line, and the output format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedlora.cli import completion
from fedlora.config import QUICKSTART, RunConfig, load_config
from fedlora.files import plain

_LEAST_WIDTH = 72  # below it a table of some columns has no room for words: its lines are wrapped instead


RunWords = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RUN.toml] [key=value ...]", show_default=False, autocompletion=completion.run_words),
]
"""A run on the command line: `[RUN.toml] [key=value ...]` (see `read_arguments`)."""

Resume = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a run that was cut off; goes on from its newest checkpoint.", autocompletion=completion.run_folders
    ),
]
"""The run that --resume takes up."""


class Format(StrEnum):
    """How a command prints its result."""

    text = "text"
    json = "json"


class Log(StrEnum):
    """Where a run's rounds are sent to, besides its folder."""

    wandb = "wandb"
    mlflow = "mlflow"


def print_json(value: Any) -> None:
    """Print a command's result as one JSON document on stdout; what is not finite is null."""
    typer.echo(json.dumps(plain(value), indent=2, allow_nan=False))


def talking(format: Format) -> Console:
    """Return where a command tells what happens: stdout, or stderr where stdout is for JSON."""
    return Console(stderr=format is Format.json, soft_wrap=True)


def tables(soft_wrap: bool = False) -> Console:
    """Return where tables are printed."""
    console = Console(soft_wrap=soft_wrap)
    console.width = max(console.width, _LEAST_WIDTH)
    return console


def with_log(arguments: Sequence[str], log: Sequence[Log] | None) -> list[str]:
    """Return the arguments with what --log asks for, as the key of the run file that it stands for."""
    names = ", ".join(f'"{entry}"' for entry in dict.fromkeys(log or ()))
    return [*arguments, f"output.log=[{names}]"] if log else list(arguments)


def quickstart() -> Path:
    """Return the shipped run file."""
    return QUICKSTART


def read_arguments(arguments: Sequence[str], stored: RunConfig | None = None) -> RunConfig:
    """Return the configuration that `[RUN.toml] [key=value ...]` describe; without a file, `stored` or the quickstart's."""
    path = None
    overrides = list(arguments)
    if overrides and "=" not in overrides[0]:
        path = Path(overrides.pop(0))
    if path is None and stored is not None:
        return load_config(None, overrides, stored.model_dump(exclude_none=True))
    return load_config(path or quickstart(), overrides)
