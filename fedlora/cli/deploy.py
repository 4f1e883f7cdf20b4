"""`fedlora deploy`: the folder of a deployment and the keys in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fedlora.cli import completion
from fedlora.cli.common import Format, RunWords, print_json, read_arguments, tables
from fedlora.cli.ends import Group
from fedlora.errors import ConfigError

app = typer.Typer(cls=Group, help="Set up a deployment on real devices: keys, certificates, instructions.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the deployment.", show_default=False)]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The node's name.", show_default=False)]
KnownName = Annotated[
    str, typer.Argument(metavar="NAME", help="The node's name.", show_default=False, autocompletion=completion.nodes)
]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host", metavar="NAME_OR_IP", help="What devices type to reach the server; may be repeated.", show_default=False
    ),
]


@app.command("init")
def init(
    folder: Folder,
    arguments: RunWords = None,
    host: Hosts = None,
    nodes: Annotated[
        int | None,
        typer.Option(min=1, help="Nodes that get a key; default: the clients of RUN.toml, else 2.", show_default=False),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The server's port; 0: one that is free now.")] = 9092,
    bind: Annotated[
        str, typer.Option(help="Address to listen on; default: all, or this machine's own where no host is another.")
    ] = "",
) -> None:
    """Make the folder of a deployment: Flower app, certificates, keys, systemd units, and a README with the exact commands."""
    from fedlora.deploy.deploy_folder import DeployFolder, free_port
    from fedlora.federation.workbench import check_combination
    from fedlora.runs.folder import refuse_taken

    refuse_taken(folder, "DIR")
    given = arguments or []
    config = read_arguments(given)
    count = nodes or (config.clients if given and "=" not in given[0] else 2)
    config = read_arguments(
        [
            *given,
            "engine=deployment",
            f"clients={count}",
            f"clients_per_round={min(config.clients_per_round, count)}",
        ]
    )
    check_combination(config)  # rather now than once devices have their keys
    made = DeployFolder.create(folder, host or _ask_hosts(), count, config, bind, port or free_port(bind))
    typer.echo(f"deployment of {count} nodes at {made.address}: {folder}\nnext: {folder / 'README.md'}")


@app.command("add-node")
def add_node(folder: Folder, name: Name) -> None:
    """Give one more node a key; it takes effect at the next `fedlora serve`."""
    from fedlora.deploy.deploy_folder import DeployFolder
    from fedlora.deploy.instructions import start_commands

    made = DeployFolder.open(folder)
    node = made.add_node(name)
    typer.echo(f"{name} is client {node.client}; its key: {node.key}\non the device:")
    typer.echo(start_commands(made.address, name, node.client))


@app.command("list")
def list_nodes(folder: Folder, format: Annotated[Format, typer.Option(help="How to print the list.")] = Format.text) -> None:
    """List the nodes of a deployment: client number, key, whether the key is valid and whether a server has taken it on."""
    from fedlora.deploy.deploy_folder import DeployFolder

    made = DeployFolder.open(folder)
    known = made.registered()
    rows: list[dict[str, Any]] = [
        {"node": node.name, "client": node.client, "state": "known to the server" if node.name in known else "has a key",
         "key": str(node.key)}
        for node in made.nodes()
    ]  # fmt: skip
    rows += [{"node": name, "client": client, "state": "revoked", "key": None} for name, client in made.server.revoked.items()]
    if format is Format.json:
        print_json({"folder": str(made.path), "server": made.address, "nodes": rows})
        return
    table = Table(title=f"{made.path}: server at {made.address}", title_justify="left", title_style="bold")
    for column in ("node", "client", "state"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(str(row["node"]), str(row["client"]), str(row["state"]))
    tables().print(table)


@app.command("revoke")
def revoke(folder: Folder, name: KnownName) -> None:
    """Shut a node out, at once and for good: its key is worth nothing any more."""
    from fedlora.deploy.deploy_folder import DeployFolder
    from fedlora.deploy.superlink import shut_out

    shut_out(DeployFolder.open(folder), name)
    typer.echo(f"{name} is shut out")


@app.command("renew")
def renew(folder: Folder, host: Hosts = None) -> None:
    """Give the server a new certificate, for other hosts if any are named; devices keep their ca.crt."""
    from fedlora.deploy.deploy_folder import DeployFolder

    made = DeployFolder.open(folder)
    made.renew(host or made.server.hosts)
    typer.echo(
        f"new certificate for {', '.join(made.server.hosts)}: {made.certificate}; it takes effect at the next `fedlora serve`"
    )


def _ask_hosts() -> list[str]:
    """Ask whoever sits at the terminal for the server's names."""
    if not sys.stdin.isatty():
        raise ConfigError(
            "how do devices reach the server? Give its name or address, for example --host 192.168.1.20 "
            "(--host may be repeated; --host localhost for a trial on one machine)"
        )
    import socket

    typer.echo("How do devices reach the server? Names and addresses, separated by spaces; the first is the one they are told.")
    answer = typer.prompt("hosts", default=socket.gethostname())
    return str(answer).replace(",", " ").split()
