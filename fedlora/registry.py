"""One registry for everything that a run file chooses by name.

A kind ("adapter", "aggregator", "policy", "model", "data", ...) maps names to entries. fedlora registers its own by
decorator; a third-party package registers through a Python entry point in the group `fedlora.<kind>s`, whose value is the
object itself, so that nothing has to be imported uphill.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from fedlora.errors import ConfigError, UnknownNameError

T = TypeVar("T")


def construct(key: str, name: str, factory: Callable[..., T], *arguments: Any, options: Mapping[str, Any]) -> T:
    """Return `factory(*arguments, **options)`.

    Args:
        key: Key of the run file that chose the factory ("policy.name"); its section's `options` are the options.
        name: What was chosen.
        factory: Class or function.
        arguments: What every factory of the kind is given.
        options: What the user gave this one.

    Raises:
        ConfigError: Options that the factory does not take, or cannot work with.
    """
    check_options(key, name, factory, len(arguments), options)
    section = key.partition(".")[0]
    try:
        return factory(*arguments, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{section}.options = {dict(options)} cannot work with {key} = '{name}': {error}") from None


def check_options(key: str, name: str, factory: Callable[..., Any], given: int, options: Mapping[str, Any]) -> None:
    """Refuse names of options that `factory` does not take, or lacks, without calling it; see `construct`.

    Args:
        key: Key of the run file that chose the factory.
        name: What was chosen.
        factory: Class or function.
        given: How many arguments every factory of the kind is given before the options.
        options: What the user gave this one.

    Raises:
        ConfigError: Options that the factory's signature does not fit.
    """
    signature = inspect.signature(factory)
    try:
        signature.bind(*[None] * given, **options)
    except TypeError as error:
        section, known = key.partition(".")[0], ", ".join(list(signature.parameters)[given:]) or "none"
        raise ConfigError(f"{section}.options do not fit {key} = '{name}': {error}. Its options: {known}") from None


@dataclass(frozen=True)
class Entry(Generic[T]):
    """What is known of one registered name: the object, one line about it, and where it comes from."""

    name: str
    value: T
    summary: str
    source: str


class Registry(Generic[T]):
    """Names of one kind.

    Args:
        kind: What the names stand for, as error messages call it ("adapter method").
        group: The entry-point group that other packages add to, or None for a closed registry.
    """

    def __init__(self, kind: str, group: str | None = None) -> None:
        self.kind = kind
        self.group = group
        self._entries: dict[str, Entry[T]] = {}

    def add(self, name: str, value: T, summary: str = "", source: str = "fedlora") -> T:
        """Register `value` under `name`; the same name twice is a programming error."""
        if name in self._entries:
            raise ValueError(f"{self.kind} '{name}' is registered twice")
        self._entries[name] = Entry(name, value, summary, source)
        return value

    def register(self, name: str, summary: str = "") -> Callable[[T], T]:
        """Return a decorator that registers a class or function under `name`."""
        return lambda value: self.add(name, value, summary)

    def names(self) -> list[str]:
        """Return all names, those of other packages included, without importing these packages."""
        return sorted({*self._entries, *(point.name for point in self._points())})

    def entries(self) -> list[Entry[T]]:
        """Return all entries by name; loads the packages that provide them. Those whose extra is not installed are left out."""
        missing = self.missing()
        return [self.entry(name) for name in self.names() if name not in missing]

    def missing(self) -> dict[str, str]:
        """Return the names that need an extra of fedlora that is not installed, each with the command that installs it."""
        found = {}
        for point in self._points():
            if point.extras and point.name not in self._entries:
                try:
                    point.load()
                except ImportError:
                    found[point.name] = _install(point)
        return found

    def entry(self, name: str) -> Entry[T]:
        """Return the entry called `name`.

        Raises:
            UnknownNameError: No such name; the message names the nearest one.
        """
        if name not in self._entries:
            for point in self._points():
                if point.name == name:
                    value: T = self._load(point)
                    doc = (getattr(value, "__doc__", None) or "").strip().partition("\n")[0]
                    self.add(name, value, getattr(value, "summary", doc), point.value.partition(":")[0])
                    break
            else:
                raise UnknownNameError(self.kind, name, self.names())
        return self._entries[name]

    def get(self, name: str) -> T:
        """Return what is registered as `name` (see `entry`)."""
        return self.entry(name).value

    def _load(self, point: EntryPoint) -> T:
        try:
            value: T = point.load()
        except ImportError as error:
            if not point.extras:
                raise self._broken(point, error) from error
            raise ConfigError(f"{self.kind} '{point.name}' needs more packages ({error}): {_install(point)}") from error
        except Exception as error:  # whatever another package does while it is imported
            raise self._broken(point, error) from error
        return value

    def _broken(self, point: EntryPoint, error: Exception) -> ConfigError:
        return ConfigError(
            f"{self.kind} '{point.name}' comes from {point.value}, which cannot be loaded ({error!r}). "
            "Repair or remove that package"
        )

    def _points(self) -> list[EntryPoint]:
        return list(entry_points(group=self.group)) if self.group else []


def _install(point: EntryPoint) -> str:
    package = point.dist.name if point.dist is not None else "fedlora"
    return f"pip install '{package}[{','.join(point.extras)}]'"
