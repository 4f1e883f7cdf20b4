"""A grid for tests: what they do not look at is here, what they do they write themselves."""

from __future__ import annotations

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.run import Run


class BareGrid(Grid):
    """A grid of run 1, in which messages come from elsewhere."""

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(self, *arguments: object, **named: object) -> Message:
        raise NotImplementedError
