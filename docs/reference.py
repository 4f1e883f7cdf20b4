"""Write the references of all keys, docs/run-file.md and docs/world-options.md, from the code: `python docs/reference.py`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from fedlora.config import RunConfig
from fedlora_envs.config import WorldConfig
from fedlora_envs.federated import FederatedConfig
from fedlora_envs.remote import RemoteConfig
from fedlora_policies.airllm.policy import AirllmConfig
from fedlora_policies.compare import CompareConfig, PolicyEntry
from fedlora_policies.plus.learner import PlusConfig
from fedlora_policies.ppo import PpoConfig
from fedlora_policies.training import TrainConfig

HERE = Path(__file__).parent


def run_file() -> str:
    """Return the page of the run file."""
    lines = [
        "# The run file",
        "",
        "Every key, its values, its default and what it means. Written from the code by `python docs/reference.py`; a test keeps",
        "the two equal. Any key can be overridden on the command line as `key=value`, for example `training.lr=0.001`.",
        "",
    ]
    return "\n".join([*lines, *_tables("Run", RunConfig)])


def world_options() -> str:
    """Return the page of a world's options."""
    lines = [
        "# Options of a world",
        "",
        "Every key of a world, its values, its default and what it means. A preset sets some of them",
        "(`fedlora world NAME --options` prints the result); a run file changes them under `[world.options]`, the command line",
        "as `world.options.uplink.sharing=min_max` (`fedlora simulate`) or `uplink.sharing=min_max` (`fedlora world NAME`).",
        "Written from the code by `python docs/reference.py`; a test keeps the two equal.",
        "",
    ]
    return "\n".join([*lines, *_tables("World", WorldConfig)])


def policy_options() -> str:
    """Return the page of training, comparing and rank environments."""
    lines = [
        "# Keys of training files, comparisons and rank environments",
        "",
        "Keys of `fedlora train-policy` and `fedlora compare`, options of the learners (`[learner]`) and of the environments",
        "(`[options]`, or keyword arguments of `gymnasium.make`). Written from the code by `python docs/reference.py`; a test",
        "keeps the two equal.",
        "",
    ]
    sections: list[tuple[str, type[BaseModel]]] = [
        ("Training file", TrainConfig),
        ("[learner] of airllm-plus", PlusConfig),
        ("[learner] of airllm", AirllmConfig),
        ("[learner] of ppo", PpoConfig),
        ("Comparison", CompareConfig),
        ("[policies.LABEL] of a comparison", PolicyEntry),
        ("fedlora/RemoteFineTuning-v0", RemoteConfig),
        ("fedlora/FederatedRankAllocation-v0", FederatedConfig),
    ]
    return "\n".join([*lines, *(line for title, section in sections for line in _table(title, section, ""))])


PAGES: dict[str, Callable[[], str]] = {
    "run-file.md": run_file,
    "world-options.md": world_options,
    "policy-options.md": policy_options,
}


def _tables(title: str, root: type[BaseModel]) -> list[str]:
    lines = _table(title, root, "")
    for name, field in root.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines += _table(f"[{name}]", field.annotation, f"{name}.")
    return lines


def _table(title: str, section: type[BaseModel], prefix: str) -> list[str]:
    doc = (section.__doc__ or "").strip().partition("\n")[0]
    lines = [f"## {title}", "", doc, "", "| key | values | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        default = "" if field.default in (None, "", PydanticUndefined) else f"`{_toml(field.default)}`"
        lines.append(f"| `{prefix}{name}` | {_values(field.annotation)} | {default} | {field.description} |")
    return [*lines, ""]


def _values(annotation: Any) -> str:
    choices = [choice for choice in get_args(annotation) if isinstance(choice, str)]
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    words = {
        "str": "text",
        "int": "integer",
        "float": "number",
        "bool": "true, false",
        "dict[str, typing.Any]": "table",
        "dict[str, float]": "table of numbers",
    }
    text = re.sub(r" \| None|typing\.", "", text) if text not in words else text
    if "dict[str, " in text and text not in words:
        return "list of tables" if text.startswith("list") else "tables by name"
    return words.get(text, text.replace("list[str]", "list of texts").replace("list[float]", "list of numbers"))


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", '"')


if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
