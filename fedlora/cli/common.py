"""What several commands share: run files on the command line, and the output format."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from fedlora.config import QUICKSTART, RunConfig, load_config


class Format(StrEnum):
    """How a command prints its result."""

    text = "text"
    json = "json"


class Log(StrEnum):
    """Where a run's rounds are sent to, besides its folder."""

    wandb = "wandb"
    mlflow = "mlflow"


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
