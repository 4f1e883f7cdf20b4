"""`fedlora methods`: what is registered, with one line each."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedlora.cli.common import Format


def command(format: Annotated[Format, typer.Option(help="How to print the list.")] = Format.text) -> None:
    """List adapters, aggregators, policies, radio worlds, models and data sets."""
    found = registered()
    if format is Format.json:
        typer.echo(json.dumps(found, indent=2))
        return
    console = Console()
    for kind, rows in found.items():
        table = Table(title=kind, title_justify="left", title_style="bold", show_header=bool(rows))
        columns = list(rows[0]) if rows else []
        for column in columns:
            table.add_column(column.replace("_", " "), overflow="fold")
        for row in rows:
            table.add_row(*(str(row[column]) for column in columns))
        console.print(table)
    for name, remedy in not_installed().items():
        console.print(f"{name} is not installed: {remedy}", highlight=False)


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
    from fedlora.models import MODELS

    return {
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
                "source": entry.value.source,
            }
            for entry in AGGREGATORS.entries()
        ],
        "policies": [{"name": entry.name, "what": entry.summary} for entry in POLICIES.entries()],
        "worlds": [{"name": entry.name, "what": entry.summary} for entry in WORLDS.entries()],
        "models": [{"name": entry.name, "what": entry.summary} for entry in MODELS.entries()],
        "data": [{"name": entry.name, "what": entry.summary} for entry in DATA.entries()],
    }
