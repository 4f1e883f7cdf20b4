"""How a command ends: one error on stderr and the exit code that belongs to it, whatever happened.

Nothing else prints an error. A usage error (an option that does not exist) reads like a refused value, the trace of any error is
printed on request alone, and output that cannot be written is an error like others.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

import click
import typer
from typer.core import TyperGroup

from fedlora.errors import ExitCode, FedLoRAError, Terminated, reason, suggest

DEBUG = "FEDLORA_DEBUG"
_OFF = ("", "0", "false", "no", "off")


class Group(TyperGroup):
    """Commands of which a wrong name is told with the nearest right one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the first word names (UsageError where none has that name)."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            raise click.UsageError(f"unknown command '{name}'. {suggest(name, self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; being told to end has an exit code of its own, which typer does not know."""
        try:
            return super().invoke(ctx)
        except Terminated:
            raise typer.Exit(ExitCode.terminated) from None


def run(app: typer.Typer, arguments: list[str]) -> int:
    """Run the command line `arguments` and return its exit code.

    Args:
        app: All commands.
        arguments: What follows the program's name. `--debug` may stand anywhere, for it is added to a command that failed.
    """
    words = [word for word in arguments if word != "--debug"]
    if len(words) < len(arguments):
        os.environ[DEBUG] = "1"  # for processes that the command starts, too
    _tolerant()
    try:
        with _terminable():
            code = app(args=words, prog_name="fedlora", standalone_mode=False)
            _flush()
        return code if isinstance(code, int) else ExitCode.done
    except KeyboardInterrupt as stop:  # outside a command
        return ExitCode.terminated if isinstance(stop, Terminated) else ExitCode.interrupted
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.config
    except click.Abort:  # a question that got no answer
        return _end("nothing was answered", ExitCode.interrupted)
    except click.ClickException as error:
        return _end(_usage(error), ExitCode.config)
    except FedLoRAError as error:
        return _end(str(error), error.exit_code)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _end(f"the system refuses: {reason(error)}{where}. Add --debug to see what was tried", ExitCode.failed)
    except Exception as error:
        said = " ".join(str(error).split())
        return _end(
            f"fedlora did not foresee this: {type(error).__name__}{': ' if said else ''}{said[:300]}. "
            "Please report it with what the same command prints with --debug",
            ExitCode.bug,
        )


def debugging() -> bool:
    """Return whether the trace of an error is wanted."""
    return os.environ.get(DEBUG, "").lower() not in _OFF


def _end(message: str, code: int) -> int:
    if debugging():
        traceback.print_exc()
    with contextlib.suppress(OSError):
        print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _usage(error: click.ClickException) -> str:
    """Return a usage error as every other error reads."""
    message = " ".join(error.format_message().split()).rstrip()
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "fedlora"
    end = "" if message.endswith((".", "?")) else "."
    return f"{message[:1].lower()}{message[1:]}{end} See `{path} --help`"


def _tolerant() -> None:
    """Print what a terminal's encoding lacks as an escape, instead of failing; keep a library's advice off the screen."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of a home folder that cannot be written


def _flush() -> None:
    """Write out what was printed, while an error can still be told (sys.stdout is None where it was closed)."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        # What is left cannot be written at the interpreter's end either: let it go nowhere.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does: what was begun is put in order, the cursor comes back (raises `Terminated`)."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop) if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL else None
    except ValueError:  # not in the main thread
        before = None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
