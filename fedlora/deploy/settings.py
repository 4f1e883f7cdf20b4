"""A run's configuration as Flower carries it: dotted keys in `[tool.flwr.app.config]`, each a text, a number or a flag.

Flower knows neither lists nor unset keys there, so every key of the run file is present (`flwr run -c` may only change keys that
are), lists and free tables are written as JSON, and an unset key is the empty text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedlora.config import RunConfig, parse_config
from fedlora.errors import ConfigError

Setting = bool | int | float | str


def to_settings(config: RunConfig) -> dict[str, Setting]:
    """Return a configuration as Flower's settings, by dotted key."""
    return {key: _plain(value) for key, value in _leaves(config.model_dump(mode="json"), "")}


def from_settings(settings: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of Flower's settings; keys that are not of a run file's sections are refused.

    Raises:
        ConfigError: Unknown key or bad value; names the nearest valid one.
    """
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *parents, leaf = key.split(".")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        if value != "":
            section[leaf] = _read(key, value)
    return parse_config(tree)


def _leaves(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        # Free tables are one setting each: which keys they have depends on a name that `-c` may change.
        nested = isinstance(value, Mapping) and key != "options"
        found += _leaves(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
    return found


def _plain(value: Any) -> Setting:
    if value is None:
        return ""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _read(key: str, value: Any) -> Any:
    if isinstance(value, str) and value[:1] in "[{":
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{key} = {value!r} is not valid JSON ({error.msg}). Write lists and tables as JSON") from None
    return value
