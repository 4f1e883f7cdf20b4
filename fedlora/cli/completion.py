"""What the shell offers for an unfinished word: keys of run files and their values, registered names, folders of runs.

Nothing here imports torch: a shell asks at every TAB, in a new process. What is offered is help, never a rule: the command checks
what it takes.
"""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel

from fedlora.config import RunConfig, all_keys

Words = list[str]


def _never_fails(complete: Callable[[typer.Context, str], Iterable[str]]) -> Callable[[typer.Context, str], Words]:
    """Return a completer that offers nothing where it fails: no error may be printed into a line that somebody types."""

    def guarded(ctx: typer.Context, incomplete: str) -> Words:
        with contextlib.suppress(Exception):
            return sorted(complete(ctx, incomplete))
        return []

    return guarded


@_never_fails
def run_words(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """Offer `[RUN.toml] [key=value ...]`: TOML files for the first word, keys of the run file for any, and values after '='."""
    given: Words = list(ctx.params.get("arguments") or [])
    key, equals, begun = incomplete.partition("=")
    # Bash makes three words of key=value and asks for the last; of "=" alone, click makes an empty one.
    if given[-1:] == ["="]:
        return _starting(incomplete, values(given[-2]))
    if not incomplete and os.environ.get("COMP_WORDS", "").endswith("="):
        return values(given[-1])
    if equals:
        return (f"{key}={value}" for value in _starting(begun, values(key)))
    files = [] if given else [str(path) for path in _beginning(incomplete) if path.suffix == ".toml"]
    return [*files, *_keys(incomplete)]


@_never_fails
def run_folders(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """Offer folders that hold a run, here or one level below."""
    near = [path for path in _beginning(incomplete) if path.is_dir()]
    inside = [path for folder in near if not _is_run(folder) for path in folder.iterdir()]
    if incomplete in ("", "./"):
        inside += [path for path in Path("runs").glob("*") if path not in inside]
    return {str(path) for path in (*near, *inside) if _is_run(path) and not path.name.startswith(".")}


@_never_fails
def assets(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """Offer packaged models and data sets."""
    return _starting(incomplete, ["all", *_assets()])


@_never_fails
def worlds(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """Offer the names of radio worlds, as the first word."""
    return [] if ctx.params.get("arguments") else _starting(incomplete, _points("worlds"))


@_never_fails
def nodes(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """Offer the nodes of the deployment that was named before."""
    file = Path(ctx.params["folder"]) / "deployment.toml"
    return _starting(incomplete, tomllib.loads(file.read_text(encoding="utf-8"))["nodes"])


def values(key: str) -> list[str]:
    """Return values that a key of the run file takes: all of a choice, registered names, else its default."""
    names = _NAMES.get(key)
    if names is not None:
        return list(names())
    section: Any = RunConfig
    *parents, leaf = key.split(".")
    for part in parents:
        section = section.model_fields[part].annotation
    field = section.model_fields[leaf]
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        return []
    choices = _choices(field.annotation)
    default = field.get_default(call_default_factory=True)
    return choices or ([] if default in (None, [], {}, "") else [str(default)])


def _keys(incomplete: str) -> Iterable[str]:
    """Return "key=" for every key that begins so; of a single one the values too, lest the shell puts a space after '='."""
    found = list(_starting(incomplete, all_keys()))
    if len(found) != 1:
        return [f"{key}=" for key in found]
    return [f"{found[0]}=", *(f"{found[0]}={value}" for value in values(found[0]))]


def _choices(annotation: Any) -> list[str]:
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return []


def _assets(kind: str = "") -> list[str]:
    from fedlora.assets import catalogue

    return [asset.name for asset in catalogue().values() if kind in ("", asset.kind)]


def _points(group: str) -> list[str]:
    from importlib.metadata import entry_points

    return [point.name for point in entry_points(group=f"fedlora.{group}")]


def _methods() -> list[str]:
    from fedlora.methods import METHODS

    return METHODS.names()


def _parts(part: str) -> set[str]:
    """Return the adapters or aggregators of all methods: the registries themselves cost torch."""
    from fedlora.methods import METHODS

    return {getattr(entry.value, part) for entry in METHODS.entries()}


_NAMES: dict[str, Callable[[], Iterable[str]]] = {
    "adapter.method": lambda: _parts("adapter"),
    "aggregator.method": lambda: {"auto", *_parts("aggregator"), *_points("aggregators")},
    "data.name": lambda: _assets("data"),
    "device": lambda: ["auto", "cpu", "cuda", "mps"],
    "method": _methods,
    "model.name": lambda: _assets("model"),
    "policy.name": lambda: ["full", *_points("policies")],
    "world.name": lambda: _points("worlds"),
}


def _starting(incomplete: str, words: Iterable[str]) -> Iterable[str]:
    return (word for word in words if word.startswith(incomplete))


def _beginning(incomplete: str) -> list[Path]:
    """Return the paths whose name begins so."""
    folder, name = os.path.split(incomplete)
    return [path for path in Path(folder).glob("*") if path.name.startswith(name) and (name or not path.name.startswith("."))]


def _is_run(path: Path) -> bool:
    return (path / "metrics.jsonl").is_file() or (path / "config.toml").is_file()
