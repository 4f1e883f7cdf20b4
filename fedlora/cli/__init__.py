"""The command line: one file per command, parsing and printing only."""

from __future__ import annotations

import sys

import typer

from fedlora.cli import assets, deploy, doctor, export, methods, node, report, serve, simulate, watch, world
from fedlora.cli.ends import run
from fedlora.cli.plugins import PluginGroup
from fedlora.quiet_env import calm

app = typer.Typer(
    name="fedlora",
    cls=PluginGroup,
    help="Federated LoRA fine-tuning, simulated over a radio link.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command("simulate")(simulate.command)
app.command("watch")(watch.command)
app.command("world")(world.command)
app.command("methods")(methods.command)
app.command("doctor")(doctor.command)
app.command("export")(export.command)
app.command("report")(report.command)
app.command("node")(node.command)
app.command("serve")(serve.command)
app.add_typer(assets.app, name="assets")
app.add_typer(deploy.app, name="deploy")


def _version(show: bool) -> None:
    if show:
        from fedlora import __version__

        typer.echo(f"fedlora {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", callback=_version, is_eager=True),
    debug: bool = typer.Option(False, "--debug", help="Print the trace of an error, too; also as FEDLORA_DEBUG=1."),
) -> None:
    """Options of all commands; --debug was read before (see `ends.run`)."""


def main() -> None:
    """Run the command line; a refused input is one error on stderr and the exit code of its class."""
    calm()
    sys.exit(run(app, sys.argv[1:]))
