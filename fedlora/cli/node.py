"""`fedlora node`: join a deployment with this device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    superlink: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server's address.", show_default=False)],
    ca: Annotated[
        Path | None, typer.Option(help="Certificate of the deployment's authority.", show_default="the system's")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="This node's private key.", show_default=False)] = None,
    data: Annotated[
        Path | None, typer.Option(help="Train on this file instead of a part of the run's data set.", show_default=False)
    ] = None,
    client: Annotated[
        int | None, typer.Option(help="This node's client number, from 0.", show_default="the number its key's name ends with")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="The node's own folder.", show_default="~/.local/state/fedlora/nodes/...")
    ] = None,
    max_retries: Annotated[
        int | None,
        typer.Option(min=0, help="Tries again where the server does not answer.", show_default="10, once in: for ever"),
    ] = None,
    poll_s: Annotated[float, typer.Option(help="Seconds between two looks for work.")] = 0.5,
    insecure_plain_text: Annotated[bool, typer.Option("--insecure-plain-text", help="Speak plain text, without a key.")] = False,
) -> None:
    """Join a deployment: train for its server until stopped. The model is loaded once, not for every message."""
    from fedlora.deploy.node import NodeOptions, client_number, default_state, run_node

    number = client_number(key, client)
    folder = state or default_state(key, number)
    run_node(NodeOptions(superlink, number, folder, ca, key, data, max_retries, poll_s, insecure_plain_text))
