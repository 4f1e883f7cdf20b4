"""Every error that fedlora raises on purpose, as one small tree.

A message says what was wrong, where, and what to do about it, in that order. The command line prints it as it stands and
exits with the code of its class; a traceback on a user's screen means a bug in fedlora.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedLoRAError(Exception):
    """Root of the tree; catch it to catch all that fedlora refuses."""

    exit_code = 1


class ConfigError(FedLoRAError):
    """A key or value of the run file, or a combination of them, that cannot work."""

    exit_code = 2


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

    exit_code = 3


class DataError(FedLoRAError):
    """A data set that cannot be used as asked: missing columns, no labels, a client without examples."""

    exit_code = 3


class ModelError(FedLoRAError):
    """A model that cannot be loaded or has no place for the adapter asked for."""

    exit_code = 3


class PayloadError(FedLoRAError):
    """A message whose schema, shape, checksum or finiteness is wrong.

    Args:
        reason: One word that run records count by: "truncated", "checksum", "schema", "shape" or "non-finite".
        detail: What exactly differed.
    """

    exit_code = 4

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


class RunFolderError(FedLoRAError):
    """A run folder that cannot be written, read or resumed."""

    exit_code = 5


class TrainingError(FedLoRAError):
    """Local training that cannot go on (out of memory at one client, for example)."""

    exit_code = 6


class AggregationError(FedLoRAError):
    """An aggregation without anything to aggregate."""

    exit_code = 7


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return "Did you mean 'x'?" for a near miss, otherwise the list of what would be accepted."""
    choices = sorted(valid)
    same = [choice for choice in choices if choice.lower() == name.lower()]
    near = same or difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if not near:
        near = difflib.get_close_matches(name.lower(), choices, n=1, cutoff=0.5)
    return f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(choices) or 'none'}."
