"""The Flower app of a deployment: a folder that `flwr run` takes, with every setting of the run file in it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from fedlora.config import RunConfig, read_toml
from fedlora.deploy.settings import Setting, to_settings
from fedlora.files import disk_errors, write_atomic

SERVER_DEFAULTS: dict[str, Setting] = {"out": "", "resume": False, "run": ""}
"""Settings that are the server's own (see `server_app`)."""

_HEADER = """\
# A Flower app: `flwr run` sends it to the SuperLink. It holds no code of its own; both sides have fedlora installed.
# [tool.flwr.app.config] is the run file as Flower carries it. Change a value for one run by -c, for example -c 'rounds=3';
# lists and tables are JSON texts, and an empty text is a key that is not set. `fedlora serve` sets all of them itself.

"""


def write_app(folder: Path, config: RunConfig) -> None:
    """Write the app, or replace its settings."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # No dependencies but Flower: Flower may install them anew for each run, and torch for its own idea of the machine.
    tree = {
        "project": {
            "name": "fedlora-run",
            "version": version("fedlora").partition("+")[0],
            "description": "Federated LoRA fine-tuning by fedlora",
            "license": "Apache-2.0",
            "dependencies": ["flwr>=1.41,<1.43"],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fedlora",
                    "components": {
                        "serverapp": "fedlora.deploy.server_app:app",
                        "clientapp": "fedlora.deploy.client_app:app",
                    },
                    "config": _nested({**to_settings(config), **SERVER_DEFAULTS}),
                }
            }
        },
    }
    write_atomic(folder / "pyproject.toml", _HEADER + tomli_w.dumps(tree))


def settings_file(path: Path, config: RunConfig, out: Path, resume: bool, name: str) -> None:
    """Write the settings of one run as `flwr run -c FILE` reads them."""
    own: dict[str, Setting] = {"out": str(out), "resume": resume, "run": name}
    write_atomic(path, tomli_w.dumps(_nested({**to_settings(config), **own})))


def flat_settings(file: Path) -> dict[str, Setting]:
    """Return the settings of an app by dotted key (ConfigError where its pyproject.toml cannot be read)."""
    tree = read_toml(file, "app's settings file")
    config = tree.get("tool", {}).get("flwr", {}).get("app", {}).get("config", {})
    flat: dict[str, Setting] = {}

    def walk(section: dict[str, Any], prefix: str) -> None:
        for key, value in section.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = value

    walk(config, "")
    return flat


def _nested(settings: dict[str, Setting]) -> dict[str, object]:
    """Return dotted keys as TOML's tables."""
    tree: dict[str, object] = {}
    for key, value in settings.items():
        *parents, leaf = key.split(".")
        section = tree
        for parent in parents:
            inner = section.setdefault(parent, {})
            assert isinstance(inner, dict)
            section = inner
        section[leaf] = value
    return tree
