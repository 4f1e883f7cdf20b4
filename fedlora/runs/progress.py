"""Who is told how far a run is: nobody, a log, or a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from fedlora.config import RunConfig
from fedlora.runs.summary import counted


class Progress(Protocol):
    """Called at the turns of a run; rows are those of metrics.jsonl and clients.jsonl."""

    def say(self, text: str) -> None:
        """Tell what happens now."""

    def start(self, config: RunConfig, rows: list[dict[str, Any]]) -> None:
        """The rounds begin; `rows` are those already done."""

    def step(self, clients: int) -> None:
        """So many clients took a local step together."""

    def round(self, row: dict[str, Any], clients: list[dict[str, Any]]) -> None:
        """A round is done."""

    def stop(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        """The run is done."""


class Quiet:
    """Tells nobody."""

    def say(self, text: str) -> None:
        """Tell nobody."""

    def start(self, config: RunConfig, rows: list[dict[str, Any]]) -> None:
        """Tell nobody."""

    def step(self, clients: int) -> None:
        """Tell nobody."""

    def round(self, row: dict[str, Any], clients: list[dict[str, Any]]) -> None:
        """Tell nobody."""

    def stop(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        """Tell nobody."""


class Lines(Quiet):
    """One plain line per event, for logs and pipes.

    Args:
        console: Where to print.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rounds = 0

    def say(self, text: str) -> None:
        """Print what happens now."""
        self.console.print(text, highlight=False, markup=False)  # texts of other machines are among it

    def start(self, config: RunConfig, rows: list[dict[str, Any]]) -> None:
        """Say what runs, and from where a resumed run goes on."""
        self.rounds = config.rounds
        self.say(
            f"{config.method or config.adapter.method} on {config.model.name}, {config.data.name} over {config.clients} clients "
            f"({config.data.partition}), {config.clients_per_round} a round, engine {config.engine}"
        )
        if rows:
            self.say(f"going on after round {rows[-1]['round']} of {config.rounds}")

    def round(self, row: dict[str, Any], clients: list[dict[str, Any]]) -> None:
        """Print the round's numbers, and each client that failed."""
        self.say(round_line(row, self.rounds))
        for client in clients:
            if client.get("status") != "ok":
                self.say(f"  client {client.get('client', '?')}: {client.get('status') or 'its row has no status'}")


class Live(Lines):
    """A progress bar with the newest numbers below the lines, for terminals."""

    def start(self, config: RunConfig, rows: list[dict[str, Any]]) -> None:
        """Show the bar."""
        super().start(config, rows)
        self.bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self.done, self.steps = rows[-1]["round"] if rows else 0, 0
        self.task = self.bar.add_task("starting", total=config.rounds, completed=self.done)
        self.bar.start()

    def step(self, clients: int) -> None:
        """Count local steps beside the bar."""
        self.steps += clients
        self.bar.update(self.task, description=f"round {self.done + 1}: {self.steps} local steps")

    def round(self, row: dict[str, Any], clients: list[dict[str, Any]]) -> None:
        """Move the bar."""
        super().round(row, clients)
        self.done, self.steps = row["round"], 0
        self.bar.update(self.task, completed=self.done, description=f"round {min(self.done + 1, self.rounds)}")

    def stop(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        """Take the bar away."""
        self.bar.stop()

    def abort(self) -> None:
        """Take the bar away after an error."""
        if hasattr(self, "bar"):
            self.bar.stop()


def number(value: float | None) -> str:
    """Return a measured number as people read it; what is not finite is None once it was written down."""
    return f"{value:.4f}" if value is not None and math.isfinite(value) else "not finite"


def round_line(row: dict[str, Any], rounds: int) -> str:
    """Return a round's numbers as one line; "?" stands for what a damaged row lacks."""
    parts = [f"round {row['round']:>{len(str(rounds))}}/{rounds}"]
    if row.get("test_accuracy") is not None:
        parts.append(f"accuracy {row['test_accuracy']:.4f}")
        parts.append(f"loss {number(row.get('test_loss'))}")
    elif row.get("clients_accuracy") is not None:
        parts.append(f"accuracy at clients {row['clients_accuracy']:.4f}")
    if row.get("train_loss") is not None:
        parts.append(f"train loss {number(row['train_loss'])}")
    if row.get("clients_selected"):
        parts.append(f"up {_or_unknown(row, 'uplink_bytes', size)}, down {_or_unknown(row, 'downlink_bytes', size)}")
        parts.append(f"{counted(row)}/{row['clients_selected']} clients")
        if row.get("virtual_time_s"):
            parts.append(f"at {duration(row['virtual_time_s'])}, {_or_unknown(row, 'energy_j', '{:.3g}'.format)} J")
        if not counted(row):
            parts.append(f"void: {row.get('void') or 'no sound reply'}")
    elif row["round"] and "clients_selected" in row:
        parts.append("void: nobody was asked")
    return "  ".join([*parts, f"{_or_unknown(row, 'wall_time_s', '{:.1f}'.format)} s"])


def _or_unknown(row: dict[str, Any], name: str, how: Callable[[float], str]) -> str:
    return "?" if row.get(name) is None else how(row[name])


def duration(seconds: float) -> str:
    """Return a time of the virtual clock: seconds, or hours and minutes where it is long."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Return bytes with a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError
