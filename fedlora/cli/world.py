"""`fedlora world`: what a radio world's links, payloads and rounds are like, in numbers and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fedlora.cli import completion
from fedlora.cli.common import Format, print_json, tables
from fedlora.config import read_overrides
from fedlora.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel

_PREFIX = "world.options."  # how a run file calls the keys; accepted here too


def command(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME] [key=value ...]", show_default=False, autocompletion=completion.worlds)
    ] = None,
    clients: Annotated[
        int | None, typer.Option(help="Clients of the world; default: as many as it holds, or 2000.", show_default=False)
    ] = None,
    per_round: Annotated[int, typer.Option(help="Clients drawn each round.")] = 10,
    payload: Annotated[int, typer.Option(help="Bytes of every message, both ways.")] = 200_000,
    rounds: Annotated[int, typer.Option(help="Rounds to simulate.")] = 50,
    seed: Annotated[int, typer.Option(help="Root of the world's streams of randomness.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the PNG files (replaced if there); default: runs/world-NAME.")
    ] = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw PNG files.")] = True,
    options: Annotated[bool, typer.Option("--options", help="Print the world's options as a run file and exit.")] = False,
    format: Annotated[Format, typer.Option(help="How to print the result.")] = Format.text,
) -> None:
    """Describe a radio world: SNR, rates, outage, what a payload costs, how rounds go. Without NAME, list the worlds.

    key=value changes an option of the world, for example `fedlora world umi-indoor uplink.bandwidth_hz=100e6`.
    """
    name, changes = _read(arguments or [])
    # Only now the heavy imports: what is no override has been refused already.
    from fedlora.federation.world import WORLDS

    if name is None:
        _list([{"name": entry.name, "what": entry.summary, "source": entry.source} for entry in WORLDS.entries()], format)
        return
    world: Any = WORLDS.get(name)
    if options:
        config = _able(world, name, "config")(**changes)
        if format is Format.json:
            print_json(config.model_dump(mode="json"))
        else:
            typer.echo(run_file(name, config))
        return
    found = _able(world, name, "portrait")(
        clients=clients,
        per_round=per_round,
        payload_bytes=payload,
        rounds=rounds,
        seed=seed,
        plots=(out or Path("runs") / f"world-{name}") if plots else None,
        options=changes,
    )
    if format is Format.json:
        print_json(found)
    else:
        _print(found)


def _read(arguments: list[str]) -> tuple[str | None, dict[str, Any]]:
    if not arguments:
        return None, {}
    name, *changes = arguments
    if "=" in name:
        raise ConfigError(f"'{name}' changes a world, but which? Put its NAME first; `fedlora world` lists them")
    return name, read_overrides((text.removeprefix(_PREFIX) for text in changes), example="uplink.bandwidth_hz=100e6")


def _able(world: Any, name: str, method: str) -> Any:
    """Return a world's method, which only worlds that can describe themselves have."""
    found = getattr(world, method, None)
    if not callable(found):
        raise ConfigError(
            f"world '{name}' cannot describe itself: its package gives it no method `{method}`. It can still be used by "
            f"`fedlora simulate world.name={name}`"
        )
    return found


def run_file(name: str, config: BaseModel) -> str:
    """Return a world's options as part of a run file: every key with its meaning beside it, unset ones as comments."""
    lines = ["[world]", f'name = "{name}"', "", *_section("world.options", config)]
    return "\n".join(lines)


def _section(path: str, config: BaseModel) -> Iterator[str]:
    import tomli_w
    from pydantic import BaseModel

    yield f"[{path}]"
    later: list[tuple[str, Any]] = []
    for key, field in type(config).model_fields.items():
        value, meaning = getattr(config, key), f"  # {field.description}" if field.description else ""
        if isinstance(value, BaseModel):
            later.append((key, value))
        elif value is None:
            yield f"# {key} ={meaning}"
        elif isinstance(value, dict):
            pairs = ", ".join(tomli_w.dumps({inner: number}).strip() for inner, number in value.items())
            yield f"{key} = {{{pairs}}}{meaning}"
        elif isinstance(value, list):
            yield f"{key} = {json.dumps(value)}{meaning}"
        else:
            yield tomli_w.dumps({key: value}).strip() + meaning
    for key, value in later:
        yield ""
        yield from _section(f"{path}.{key}", value)


# -- tables -----------------------------------------------------------------------------------------------------------


def _list(rows: list[dict[str, Any]], format: Format) -> None:
    if format is Format.json:
        print_json({"worlds": rows})
        return
    table = Table(title="worlds", title_justify="left", title_style="bold")
    for column in rows[0] if rows else []:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    tables().print(table)


def _print(found: dict[str, Any]) -> None:
    """Print a portrait: a section of rows of numbers becomes a table, whatever its rows are called."""
    console = tables(soft_wrap=True)
    console.print(f"[bold]{found['world']}[/bold]: {found['summary']}", highlight=False)
    console.print(f"sources: {found['sources']}", highlight=False)
    for title, section in found.items():
        if isinstance(section, dict) and section:
            console.print(_table(title, section))
        elif isinstance(section, list) and section and isinstance(section[0], dict):
            console.print(_records(title, section))
    for note in found.get("notes", []):
        console.print(f"note: {note}", highlight=False)
    if found.get("plots"):
        console.print("drawn: " + ", ".join(found["plots"]), highlight=False)


def _table(title: str, section: dict[str, Any]) -> Table:
    """Return percentiles side by side, single values in one column."""
    spread = next((value for value in section.values() if isinstance(value, dict)), None)
    table = Table(title=title, title_justify="left", title_style="bold", show_header=spread is not None)
    table.add_column("")
    for column in spread or ["value"]:
        table.add_column(f"{column.removeprefix('p')} %", justify="right" if spread else "left", overflow="fold")
    for key, value in section.items():
        label, unit = _label(key)
        numbers = value.values() if isinstance(value, dict) else [value]
        table.add_row(label, *(_number(number, unit) for number in numbers))
    return table


def _records(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for key, value in rows[0].items():
        table.add_column(_label(key)[0], justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(_number(value, _label(key)[1]) for key, value in row.items()))
    return table


_UNITS = {"db": "dB", "bps": "bit/s", "s": "s", "j": "J", "w": "W", "gb": "GB", "bytes": "B", "share": "%"}


def _label(key: str) -> tuple[str, str]:
    """Return (words, unit) of a key such as downlink_snr_db."""
    *words, last = key.split("_")
    return (" ".join(words).replace("snr", "SNR"), _UNITS[last]) if words and last in _UNITS else (key.replace("_", " "), "")


def _number(value: Any, unit: str) -> str:
    from fedlora.runs.progress import duration, size

    if value is None:
        return "-"
    if isinstance(value, str) or not unit:
        return str(value)
    if unit == "%":
        return f"{100 * value:.3g} %"
    if unit == "dB":
        return f"{value:.1f} dB"
    if unit == "B":
        return size(value)
    if unit == "s":
        return duration(value)
    if unit == "bit/s":
        power = sum(abs(value) >= limit for limit in (1e3, 1e6, 1e9))
        return f"{value / 1000**power:.3g} {('bit/s', 'kb/s', 'Mb/s', 'Gb/s')[power]}"
    return f"{value:.3g} {unit}"
