"""What `fedlora serve` shows: plain lines for logs, or lines and a few that stay below them on a terminal."""

from __future__ import annotations

import re
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedlora.config import RunConfig
from fedlora.deploy.status import Status
from fedlora.runs.progress import round_line, size


class Watcher:
    """Prints what happens, a line each.

    Args:
        console: Where to print.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.names: dict[int, str] = {}
        self.rounds = self.expected = self._told = 0
        self._online: list[int] = []
        self._error = ""

    def say(self, text: str) -> None:
        """Tell what happens now."""
        self.console.print(text, highlight=False, markup=False)

    def begin(self, config: RunConfig, names: dict[int, str], address: str) -> None:
        """The server is up and about to start the run.

        Args:
            config: The run.
            names: Name of each node, by Flower's id.
            address: Where the nodes reach it.
        """
        self.names, self.rounds, self.expected = names, config.rounds, config.clients
        self.say(f"serving at {address}; starting the run")

    def status(self, status: Status) -> None:
        """The server app is so far."""
        for text in status.said[self._told :]:
            self.say(text)
        self._told = max(self._told, len(status.said))
        if set(status.nodes) != set(self._online):
            self._tell_nodes(status.nodes)
        if status.last_error and status.last_error != self._error:
            self._error = status.last_error
            self.say(f"  {self._named(status.last_error)}")

    def round(self, row: dict[str, Any], clients: list[dict[str, Any]]) -> None:
        """A round is done: its rows of metrics.jsonl and clients.jsonl."""
        self.say(round_line(row, self.rounds))
        for client in clients:
            if client["status"] != "ok":
                self.say(f"  client {client['client']}: {client['status']}")

    def end(self) -> None:
        """Nothing more will happen."""

    def _tell_nodes(self, nodes: list[int]) -> None:
        gone = [self._name(node) for node in self._online if node not in nodes]
        come = [self._name(node) for node in nodes if node not in self._online]
        parts = [f"{len(nodes)} of {self.expected} nodes online"]
        parts += [f"came: {', '.join(come)}"] if come else []
        parts += [f"went: {', '.join(gone)}"] if gone else []
        self._online = list(nodes)
        self.say("; ".join(parts))

    def _name(self, node: int) -> str:
        return self.names.get(node, f"node {node}")

    def _named(self, text: str) -> str:
        return re.sub(r"^node (\d+)", lambda found: self._name(int(found[1])), text)


class LiveWatcher(Watcher):
    """Keeps the newest numbers below the lines, for terminals."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.began = time.monotonic()
        self.up = self.down = 0
        self._status = Status()
        self.live = Live(console=console, get_renderable=self._table, refresh_per_second=4, transient=True)

    def begin(self, config: RunConfig, names: dict[int, str], address: str) -> None:
        """Show the numbers."""
        super().begin(config, names, address)
        self.live.start()

    def status(self, status: Status) -> None:
        """The server app is so far."""
        super().status(status)
        self._status = status

    def round(self, row: dict[str, Any], clients: list[dict[str, Any]]) -> None:
        """A round is done."""
        super().round(row, clients)
        self.up += row["uplink_bytes"]
        self.down += row["downlink_bytes"]

    def end(self) -> None:
        """Take the numbers away."""
        self.live.stop()

    def _table(self) -> Table:
        status = self._status
        nodes = f"{len(status.nodes)} of {self.expected} online"
        nodes += _listed("missing:", [name for node, name in self.names.items() if node not in status.nodes])
        replies = f", {status.replies} of {status.asked} replies" if status.asked else ""
        if status.replies:
            replies += _listed("waiting for", [self._name(node) for node in status.waiting])
        seconds = int(time.monotonic() - self.began)
        table = Table.grid(padding=(0, 2))
        for key, value in {
            "nodes": nodes,
            "round": f"{min(status.round, self.rounds)} of {self.rounds}{replies}" if status.round else "not begun",
            "bytes": f"up {size(self.up)}, down {size(self.down)}",
            "time": f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}",
            "last error": self._named(status.last_error) or "none",
        }.items():
            table.add_row(Text(key, style="bold"), Text(value, overflow="ellipsis", no_wrap=True))
        return table


def _listed(what: str, names: list[str]) -> str:
    return f", {what} {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else ""
