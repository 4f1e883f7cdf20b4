"""`fedlora methods`: what is registered, with one line each."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from fedlora.cli.common import Format, print_json, tables


def command(format: Annotated[Format, typer.Option(help="How to print the list.")] = Format.text) -> None:
    """List methods, adapters, aggregators, policies, radio worlds, models and data sets."""
    found = registered()
    if format is Format.json:
        print_json(found)
        return
    console = tables()
    _print_methods(console, found["methods"])
    for kind, rows in found.items():
        if kind == "methods":
            continue
        table = Table(title=kind, title_justify="left", title_style="bold", show_header=bool(rows))
        columns = list(rows[0]) if rows else []
        for column in columns:
            # Names of initialisations are to be copied, so they are not broken.
            table.add_column(column.replace("_", " "), overflow="fold", min_width=12 if column == "inits" else None)
        for row in rows:
            table.add_row(*(str(row[column]) for column in columns))
        console.print(table)
    for name, remedy in not_installed().items():
        console.print(f"{name} is not installed: {remedy}", highlight=False)


def _print_methods(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print a few lines per method: its columns are too many for a terminal."""
    console.print("[bold]methods[/bold] (method = NAME; r: cap, rho: a client's own rank, per site of out x in)", highlight=False)
    for row in rows:
        console.print(f"  [bold]{row['name']}[/bold]: {row['what']}", highlight=False)
        parts = {"trains": "trained", "up": "up", "down": "down", "exact": "exact", "mixed ranks": "mixed_ranks"}
        lines = [f"{word}: {row[key]}" for word, key in parts.items()]
        lines.append(f"{row['adapter']} + {row['aggregator']}, {row['source']}")
        console.print(Padding("; ".join(lines), (0, 0, 0, 6)), highlight=False, markup=False)
    console.print()


def not_installed() -> dict[str, str]:
    """Return the names that need an extra which is not installed, with the command that installs it."""
    from fedlora.aggregation import AGGREGATORS
    from fedlora.federation.policy import POLICIES
    from fedlora.federation.world import WORLDS

    return AGGREGATORS.missing() | POLICIES.missing() | WORLDS.missing()


def registered() -> dict[str, list[dict[str, Any]]]:
    """Return all registered names by kind, as plain data."""
    from fedlora.adapters import ADAPTERS
    from fedlora.aggregation import AGGREGATORS
    from fedlora.data import DATA
    from fedlora.federation.policy import POLICIES
    from fedlora.federation.world import WORLDS
    from fedlora.methods import METHODS
    from fedlora.models import MODELS

    return {
        "methods": [
            {
                "name": entry.name,
                "what": entry.summary,
                "adapter": entry.value.adapter,
                "aggregator": entry.value.aggregator,
                "trained": entry.value.trained,
                "up": entry.value.up,
                "down": entry.value.down,
                "exact": entry.value.exact,
                "mixed_ranks": entry.value.mixed_ranks,
                "source": entry.value.source,
            }
            for entry in METHODS.entries()
        ],
        "adapters": [
            {
                "name": entry.name,
                "what": entry.summary,
                "trained": entry.value.trained,
                "averages_exactly": entry.value.averages_exactly,
                "inits": ", ".join(entry.value.inits),
                "source": entry.value.source,
            }
            for entry in ADAPTERS.entries()
        ],
        "aggregators": [
            {
                "name": entry.name,
                "what": entry.summary,
                "exact": entry.value.exact,
                "mixed_ranks": entry.value.mixed_ranks,
                "weights": entry.value.default_weighting,
                "server_optimizer": entry.value.steady,
                "source": entry.value.source,
            }
            for entry in AGGREGATORS.entries()
        ],
        "policies": [{"name": entry.name, "what": entry.summary} for entry in POLICIES.entries()],
        "worlds": [{"name": entry.name, "what": entry.summary} for entry in WORLDS.entries()],
        "models": [{"name": entry.name, "what": entry.summary} for entry in MODELS.entries()],
        "data": [{"name": entry.name, "what": entry.summary} for entry in DATA.entries()],
    }
