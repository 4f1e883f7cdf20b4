"""What is wrong with a key of a run file, in one sentence that says what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fedlora.errors import suggest

_MOST = 4  # told at once: a file of another kind is wrong in every line


def explain(error: ValidationError, root: type[BaseModel], prefix: str = "") -> str:
    """Return what is wrong with a tree, one line per key.

    Args:
        error: What pydantic found.
        root: The model that the tree was checked against.
        prefix: Leads the names of keys ("world.options.").
    """
    found = [_explain(item, root, prefix) for item in error.errors()]
    more = [f"... and {len(found) - _MOST} more of this kind"] if len(found) > _MOST else []
    return "\n".join(found[:_MOST] + more)


def dotted_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Return every key of a tree in dotted form, in the order of its source file."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += dotted_keys(field.annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _explain(item: Any, root: type[BaseModel], prefix: str) -> str:
    """Turn one pydantic error into a sentence that names the key and the nearest valid one, or what to give."""
    where = prefix + ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        section, parent = _section(item["loc"][:-1], root), where.rpartition(".")[0]
        here = [f"{parent}.{name}" if parent else name for name in section.model_fields]
        elsewhere = [prefix + key for key in dotted_keys(root) if key.rpartition(".")[2] == item["loc"][-1]]
        hint = f"Did you mean '{elsewhere[0]}'?" if elsewhere else suggest(where, here)
        if parent and "options" in section.model_fields and not elsewhere:
            hint += f" What belongs to the chosen name alone goes under '{parent}.options'."
        return f"unknown key '{where}'. {hint}"
    if item["type"] == "literal_error":
        valid = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        return f"unknown value '{item['input']}' for {where}. {suggest(str(item['input']), valid)}"
    message = _remedy(item, where, root)
    return f"{where} = {item['input']!r}: {message}" if where and item["type"] != "value_error" else message


_REMEDIES = {
    "int_parsing": "give a whole number",
    "int_type": "give a whole number",
    "int_from_float": "give a whole number",
    "float_parsing": "give a number",
    "float_type": "give a number",
    "finite_number": "give a finite number",
    "bool_parsing": "give true or false",
    "bool_type": "give true or false",
    "string_type": "give a text; in a file, in quotes",
    "string_too_short": "give a text that is not empty",
    "list_type": 'give a list, for example ["a", "b"]',
    "dict_type": "give keys under it: {where}.KEY=VALUE, or a section [{where}] in a file",
    "greater_than": "give more than {gt}",
    "greater_than_equal": "give {ge} or more",
    "less_than": "give less than {lt}",
    "less_than_equal": "give {le} or less",
}


def _remedy(item: Any, where: str, root: type[BaseModel]) -> str:
    """Return what to give instead; pydantic's own words where there are none better."""
    if item["type"] in ("model_type", "model_attributes_type"):
        keys = list(_section(item["loc"], root).model_fields)
        return f"this is a section of keys. Write {where}.{keys[0]}=VALUE; its keys: {', '.join(keys)}"
    words = _REMEDIES.get(item["type"])
    if words is None:
        return str(item["msg"]).removeprefix("Value error, ")
    return words.format(where=where, **{key: _short(value) for key, value in item.get("ctx", {}).items()})


def _short(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) else value


def _section(loc: Iterable[Any], root: type[BaseModel]) -> type[BaseModel]:
    """Return the innermost section on a path; names of a table's entries and numbers of a list's are passed over."""
    section = root
    for part in loc:
        field = section.model_fields.get(str(part))
        section = (_model_in(field.annotation) if field else None) or section
    return section


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section that an annotation is, or holds: X, X | None, list[X], dict[str, X]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)
