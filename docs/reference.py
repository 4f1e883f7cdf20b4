"""Write the references of keys, commands and logs from the code: `python docs/reference.py`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.main import get_command

from fedlora.cli import app
from fedlora.config import RunConfig
from fedlora.errors import ExitCode
from fedlora.runs import fields
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
        "the two equal. Any key can be overridden on the command line as `key=value`, for example `training.lr=0.001`. Keys of",
        "`adapter` and `server` that were changed and that the chosen adapter or server optimiser does not read are noted before",
        "the run.",
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


def commands() -> str:
    """Return the page of the command line."""
    lines = [
        "# The command line",
        "",
        "Every command with its arguments and options. Written from the code by `python docs/reference.py`; a test keeps the two",
        "equal. Commands of other packages (entry-point group `fedlora.commands`) join the list where they are installed.",
        "",
        "`fedlora --debug COMMAND ...` shows the traceback behind an error; `fedlora --install-completion` sets up the shell.",
        "",
        "## Exit codes",
        "",
        _exit_codes(),
    ]
    return "\n".join([*lines, *_commands("fedlora", get_command(app))])


def run_folder() -> str:
    """Return the page of the run folder, whose tables of columns are the code's."""
    text = (HERE / "run-folder.md").read_text(encoding="utf-8")
    for name in ("METRICS", "WORLD_METRICS", "NODE_METRICS", "CLIENTS", "REPLY_COLUMNS", "WORLD_COLUMNS", "NODE_COLUMNS"):
        text = _with(text, f"{name} of fedlora/runs/fields.py", _columns(getattr(fields, name)))
    return text


def shell() -> str:
    """Return the page of the shell, whose table of exit codes is the code's."""
    text = (HERE / "shell.md").read_text(encoding="utf-8")
    return _with(text, "ExitCode of fedlora/errors.py", _exit_codes())


PAGES: dict[str, Callable[[], str]] = {
    "run-file.md": run_file,
    "world-options.md": world_options,
    "policy-options.md": policy_options,
    "cli.md": commands,
    "run-folder.md": run_folder,
    "shell.md": shell,
}


def _with(text: str, name: str, table: str) -> str:
    """Return a page with the table between the comment `name` and the comment "end" written anew."""
    begin, end = f"<!-- {name} -->\n", "<!-- end -->"
    before, after = text.split(begin)
    return before + begin + table + after[after.index(end) :]


def _columns(columns: Mapping[str, fields.Column]) -> str:
    rows = [f"| `{name}` | {column.unit} | {column.meaning} |" for name, column in columns.items()]
    return "\n".join(["| field | unit | meaning |", "| --- | --- | --- |", *rows, ""])


def _exit_codes() -> str:
    rows = [f"| {code.value} | {code.meaning} |" for code in ExitCode]
    return "\n".join(["| code | meaning |", "| --- | --- |", *rows, ""])


def _commands(path: str, command: Any) -> Iterator[str]:
    """Yield the sections of a command and of those below it, in the order of their names."""
    with command.make_context(path, [], resilient_parsing=True) as context:
        names = command.list_commands(context) if hasattr(command, "list_commands") else []
        below = {name: command.get_command(context, name) for name in sorted(names)}
        if not below:
            yield from [f"## {path}", "", f"`{_usage(path, command, context)}`", "", *_help(command), *_parameters(command)]
    for name, one in below.items():
        if not one.hidden:
            yield from _commands(f"{path} {name}", one)


def _usage(path: str, command: Any, context: Any) -> str:
    return " ".join([path, *command.collect_usage_pieces(context)])


def _help(command: Any) -> list[str]:
    paragraphs = re.split(r"\n\s*\n", (command.help or "").strip())
    return [line for paragraph in paragraphs for line in (" ".join(paragraph.split()), "")]


def _parameters(command: Any) -> list[str]:
    rows = []
    for one in command.params:
        if getattr(one, "hidden", False) or one.name == "help":
            continue
        if one.param_type_name == "argument":
            if one.help:
                rows.append(f"| `{one.metavar or one.name}` | | {one.help} |")
            continue
        names = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
        kind = "" if one.is_flag else f" {_kind(one)}"
        help = (one.help or "").replace("<", "&lt;")
        rows.append(f"| {names}{kind} | {_default(one.default)} | {help} |")
    return ["| | default | |", "| --- | --- | --- |", *rows, ""] if rows else []


def _default(value: Any) -> str:
    if value is None or value is False or value is ... or value == "" or callable(value):
        return ""
    return "on" if value is True else f"`{getattr(value, 'value', value)}`"


def _kind(option: Any) -> str:
    choices = getattr(option.type, "choices", None)
    if choices:
        return " or ".join(f"`{getattr(choice, 'value', choice)}`" for choice in choices)
    return f"`{option.metavar or option.type.name.upper().removesuffix(' RANGE')}`"


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
    inner = [choice for one in get_args(annotation) for choice in get_args(one) if isinstance(choice, str)]
    if inner and str(annotation).startswith("list"):
        return "list of " + ", ".join(f"`{choice}`" for choice in inner)
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
