"""Every error that fedlora raises on purpose, as one small tree.

A message says what was wrong, where, and what to do about it, in that order. The command line prints it as it stands and
exits with the code of its class (see `ExitCode`); a traceback on a user's screen means a bug in fedlora.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit code says; the tables in docs/shell.md and docs/cli.md are this one."""

    done = 0
    failed = 1
    config = 2
    material = 3
    payload = 4
    folder = 5
    training = 6
    aggregation = 7
    refused = 8
    unreachable = 9
    bug = 70
    interrupted = 130
    terminated = 143

    @property
    def meaning(self) -> str:
        """What happened, in a few words."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.done: "what was asked for is done",
    ExitCode.failed: "it was begun and could not be done: a run that stopped before its last round, a check that found something "
    "bad, output that nobody read to its end",
    ExitCode.config: "the command line, a key or a value of the run file, or a combination of them cannot work",
    ExitCode.material: "a model or a data set cannot be fetched, read or used as asked",
    ExitCode.payload: "a message is damaged, or not of the shape agreed on",
    ExitCode.folder: "a file or folder cannot be written, read or resumed, or holds something else",
    ExitCode.training: "training cannot go on, for example for want of memory",
    ExitCode.aggregation: "a round has nothing to aggregate",
    ExitCode.refused: "the server does not accept this node",
    ExitCode.unreachable: "the server cannot be reached safely: no answer, no trusted certificate, or a clock that is wrong",
    ExitCode.bug: "an error that fedlora did not foresee: please report it with what --debug prints",
    ExitCode.interrupted: "stopped by Ctrl-C",
    ExitCode.terminated: "stopped by SIGTERM",
}


class Terminated(KeyboardInterrupt):
    """The process was told to end by SIGTERM; what Ctrl-C would do is done."""


class FedLoRAError(Exception):
    """Root of the tree; catch it to catch all that fedlora refuses."""

    exit_code: int = ExitCode.failed


class ConfigError(FedLoRAError):
    """A key or value of the run file, or a combination of them, that cannot work."""

    exit_code = ExitCode.config


class UnknownNameError(ConfigError):
    """A name that no registry knows.

    Args:
        kind: What was looked up, in the user's words ("adapter method").
        name: What the user wrote.
        valid: All names that would have been accepted.
    """

    def __init__(self, kind: str, name: str, valid: Iterable[str]) -> None:
        self.kind, self.name, self.valid = kind, name, sorted(valid)
        super().__init__(f"unknown {kind} '{name}'. {suggest(name, self.valid)}")


class AssetError(FedLoRAError):
    """A packaged model or data set that cannot be fetched, verified or read."""

    exit_code = ExitCode.material


class DataError(FedLoRAError):
    """A data set that cannot be used as asked: missing columns, no labels, a client without examples."""

    exit_code = ExitCode.material


class ModelError(FedLoRAError):
    """A model that cannot be loaded or has no place for the adapter asked for."""

    exit_code = ExitCode.material


class PayloadError(FedLoRAError):
    """A message whose schema, shape, checksum or finiteness is wrong.

    Args:
        reason: One word that run records count by: "truncated", "checksum", "schema", "shape" or "non-finite".
        detail: What exactly differed.
    """

    exit_code = ExitCode.payload

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


class RunFolderError(FedLoRAError):
    """A run folder that cannot be written, read or resumed."""

    exit_code = ExitCode.folder


class TrainingError(FedLoRAError):
    """Local training that cannot go on (out of memory at one client, for example)."""

    exit_code = ExitCode.training


class AggregationError(FedLoRAError):
    """An aggregation without anything to aggregate."""

    exit_code = ExitCode.aggregation


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return "Did you mean 'x'?" for a near miss, otherwise the list of what would be accepted."""
    choices = sorted(valid)
    same = [choice for choice in choices if choice.lower() == name.lower()]
    near = same or difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if not near:
        near = difflib.get_close_matches(name.lower(), choices, n=1, cutoff=0.5)
    return f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(choices) or 'none'}."


def reason(error: Exception) -> str:
    """Return in words why a file could not be read or written: without numbers, class names and a path that is said already."""
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON ({error.msg}, line {error.lineno})"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not text in UTF-8 (byte {error.start})"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    if isinstance(error, KeyError):
        return f"{error} is not in it"
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
