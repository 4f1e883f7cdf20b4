"""Flower's SuperExec with warm client apps: each message's process is forked from one that has the imports behind it.

Flower's SuperNode starts a program called `flower-superexec`, which starts `flwr-clientapp` for every message: a second of
processor time for imports before any of our code runs. `fedlora node` puts a `flower-superexec` of its own first on the
SuperNode's path; it runs this module. The processes stay what they were, one per message, and see nothing of each other. It looks
for work when the SuperNode rings, and once a second.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import entry_points
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from fedlora.deploy.doorbell import DOORBELL, Doorbell
from fedlora.deploy.flower_private import hasten_pulls, launch_clients_by, sleep_in_superexec_by

_CLIENT = "flwr-clientapp"
_context = multiprocessing.get_context("forkserver")


def write_program(folder: Path) -> None:
    """Write a `flower-superexec` into `folder` that runs this module."""
    program = folder / "flower-superexec"
    python = sys.executable.replace("'", "'\\''")
    program.write_text(f"#!/bin/sh\nexec '{python}' -m fedlora.deploy.superexec \"$@\"\n")
    program.chmod(0o700)


def main() -> None:
    """Run a SuperExec until it ends; it exits as Flower does."""
    _context.set_forkserver_preload(["flwr.supernode.cli.flwr_clientapp", "fedlora.deploy.client_app"])
    if not launch_clients_by(_CLIENT, _launch):
        print("Flower launches client apps in another way than in 1.41: each message takes a second longer", file=sys.stderr)
    if (bell := os.environ.get(DOORBELL)) and not sleep_in_superexec_by(Doorbell(Path(bell)).wait):
        print("Flower looks for work in another way than in 1.41: each message takes half a second longer", file=sys.stderr)
    _run("flower-superexec", sys.argv[1:])


def _launch(arguments: Sequence[str]) -> Any:
    """Start a client app with this command line."""
    multiprocessing.active_children()  # forget those that have ended
    process: Any = _context.Process(target=_client, args=(list(arguments[1:]),))
    process.start()
    return process


def _client(arguments: list[str]) -> None:
    threading.Thread(target=_end_with_superexec, daemon=True).start()
    hasten_pulls()
    _run(_CLIENT, arguments)


def _end_with_superexec() -> None:
    """End this process when the SuperExec is gone: Flower's would try for ever to hand its reply to a SuperNode that is dead."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _run(name: str, arguments: list[str]) -> None:
    (command,) = entry_points(group="console_scripts", name=name)
    sys.argv = [name, *arguments]
    command.load()()


if __name__ == "__main__":
    main()
