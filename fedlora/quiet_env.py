"""The one place for environment variables that keep libraries quiet: nothing sent to anybody, nothing drawn on the screen.

Libraries read some of these when they are imported, so `import fedlora` sets those about the network; whoever starts other
processes hands them on. What a user has set already is left alone.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

NETWORK = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # or Flower runs `uv sync` before each run of an app
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
"""Telemetry, update checks and installations that nobody asked for, off."""

SCREEN = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",  # forked processes of a parallel tokenizer warn
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
"""Bars that libraries draw themselves, and warnings about what a user cannot change."""


def no_telemetry(environment: MutableMapping[str, str] = os.environ) -> None:
    """Keep libraries from phoning home, in this process and in those that it starts."""
    _set_unset(environment, NETWORK)


def calm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Keep libraries from phoning home, drawing bars of their own and warning about what a user cannot change.

    Args:
        environment: Where to set it: this process's own (default), or that of a process to be started.
    """
    _set_unset(environment, NETWORK | SCREEN)


def _set_unset(environment: MutableMapping[str, str], settings: dict[str, str]) -> None:
    for key, value in settings.items():
        environment.setdefault(key, value)
