"""Commands that other packages add: `fedlora NAME` for every entry point of the group `fedlora.commands`.

The entry point names a function with typer's annotations, whose docstring is the command's help. Its module must be light to
import (heavy imports belong inside the function): it is loaded to print `fedlora --help`, and by no other command than its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperCommand
from typer.main import get_command

from fedlora.cli.ends import Group
from fedlora.errors import ConfigError
from fedlora.registry import Registry

COMMANDS: Registry[Callable[..., None]] = Registry("command", "fedlora.commands")


class PluginGroup(Group):
    """fedlora's own commands, then those of `COMMANDS`, each loaded when it is asked for. Own names cannot be taken."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._waiting = {name for name in COMMANDS.names() if name not in self.commands}
        for name in sorted(self._waiting):
            self.commands[name] = TyperCommand(name)  # holds the name, for lists and suggestions

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; one of another package is loaded now."""
        if cmd_name in self._waiting:
            self._waiting.remove(cmd_name)
            self.commands[cmd_name] = _load(cmd_name)
        return super().get_command(ctx, cmd_name)


def _load(name: str) -> Any:
    """Return the command, or one that says why it cannot be loaded: a broken package must not take the others' help away."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    try:
        app.command(name)(COMMANDS.get(name))
    except ConfigError as error:
        app.command(name, help=escape(str(error)), context_settings={"ignore_unknown_options": True})(_refusal(error))
    command = get_command(app)
    command.name = name
    return command


def _refusal(error: ConfigError) -> Callable[[list[str] | None], None]:
    def refuse(arguments: list[str] | None = typer.Argument(None, hidden=True)) -> None:
        raise error

    return refuse
