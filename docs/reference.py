"""Write docs/run-file.md, the reference of all keys, from fedlora/config.py: `python docs/reference.py`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from fedlora.config import RunConfig

HERE = Path(__file__).parent


def reference() -> str:
    """Return the page."""
    lines = [
        "# The run file",
        "",
        "Every key, its values, its default and what it means. Written from the code by `python docs/reference.py`; a test keeps",
        "the two equal. Any key can be overridden on the command line as `key=value`, for example `training.lr=0.001`.",
        "",
    ]
    lines += _table("Run", RunConfig, "")
    for name, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines += _table(f"[{name}]", field.annotation, f"{name}.")
    return "\n".join(lines)


def _table(title: str, section: type[BaseModel], prefix: str) -> list[str]:
    doc = (section.__doc__ or "").strip().partition("\n")[0]
    lines = [f"## {title}", "", doc, "", "| key | values | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        default = "" if field.default in (None, PydanticUndefined) else f"`{_toml(field.default)}`"
        lines.append(f"| `{prefix}{name}` | {_values(field.annotation)} | {default} | {field.description} |")
    return [*lines, ""]


def _values(annotation: Any) -> str:
    choices = [choice for choice in get_args(annotation) if isinstance(choice, str)]
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    words = {"str": "text", "int": "integer", "float": "number", "bool": "true, false", "dict[str, typing.Any]": "table"}
    text = re.sub(r" \| None|typing\.", "", text) if text not in words else text
    return words.get(text, text.replace("list[str]", "list of texts"))


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", '"')


if __name__ == "__main__":
    (HERE / "run-file.md").write_text(reference(), encoding="utf-8")
