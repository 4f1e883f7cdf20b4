"""Flower's SuperNode, with shorter waits and a meter on its link.

Run as `python -m fedlora.deploy.supernode --link FILE --poll-s SECONDS [--parent PID] -- ARGUMENTS OF flower-supernode`.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from fedlora.deploy.child_processes import end_with_parent
from fedlora.deploy.doorbell import DOORBELL, Doorbell
from fedlora.deploy.flower_private import hasten_supernode, keep_trying
from fedlora.deploy.link_meter import LinkMeter


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a SuperNode until it ends; it exits as Flower does."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    split = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(prog="python -m fedlora.deploy.supernode", description="Run a metered SuperNode.")
    parser.add_argument("--link", type=Path, required=True, help="file to note measurements of the link in")
    parser.add_argument("--poll-s", type=float, required=True, help="seconds between two looks for a message")
    parser.add_argument("--parent", type=int, default=0, help="process to end with")
    options = parser.parse_args(given[:split])
    (command,) = entry_points(group="console_scripts", name="flower-supernode")
    supernode = command.load()
    for name in hasten_supernode(options.poll_s):
        print(f"{name} is not as in Flower 1.41: its waits stay as they are, rounds take seconds longer", file=sys.stderr)
    for name in keep_trying():
        print(f"{name} is not as in Flower 1.41: a server that is killed takes this node's connection with it", file=sys.stderr)
    meter = LinkMeter(options.link)
    if bell := os.environ.get(DOORBELL):
        meter.on_message = Doorbell(Path(bell)).ring
    meter.watch()
    end_with_parent(options.parent)
    sys.argv = ["flower-supernode", *given[split + 1 :]]
    supernode()
    # It returns where it has given up on its server, and a thread of it that serves its client apps would keep the process for
    # ever: a node that looks alive and does nothing. Whoever started this process starts another.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
