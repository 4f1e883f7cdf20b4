"""The rows of a run sent to Weights & Biases or MLflow too, while it runs.

The run folder stays the record: a tracker that fails later is said once and left alone, and what it has may be more than what
the folder has, since a tracker's rows cannot be cut back when a killed run is resumed.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedlora.config import RunConfig
from fedlora.errors import ConfigError
from fedlora.files import write_json

IDENTITIES = "trackers.json"
"""What the run is called there, so that a resumed run goes on under the same name."""

_MOST_PARAMS = 100
_LONGEST_PARAM = 500


class Tracker(Protocol):
    """Somebody outside who is told of a run."""

    identity: str
    """What the run is called there."""

    def log(self, number: int, numbers: Mapping[str, float]) -> None:
        """Take in the numbers of a round."""

    def close(self, done: bool) -> None:
        """The run is over, or was cut off."""


class WandbTracker:
    """A run of Weights & Biases in project "fedlora"; WANDB_MODE, WANDB_PROJECT and the like hold as ever."""

    def __init__(self, folder: Path, config: Mapping[str, Any], identity: str | None) -> None:
        import wandb

        self.identity = identity or secrets.token_hex(4)
        project = None if os.environ.get("WANDB_PROJECT") else "fedlora"
        self.run = wandb.init(
            project=project, name=folder.resolve().name, id=self.identity, resume="allow", dir=str(folder), config=dict(config),
            settings=wandb.Settings(silent=True, disable_git=True, save_code=False),
        )  # fmt: skip
        self.run.define_metric("*", step_metric="round")

    def log(self, number: int, numbers: Mapping[str, float]) -> None:
        """Take in the numbers of a round."""
        self.run.log({"round": number, **numbers})

    def close(self, done: bool) -> None:
        """Hand over what is left."""
        self.run.finish(exit_code=0 if done else 1)


class MlflowTracker:
    """A run of MLflow in experiment "fedlora" at MLFLOW_TRACKING_URI (default: MLflow's own)."""

    def __init__(self, folder: Path, config: Mapping[str, Any], identity: str | None) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)  # a new database says each of its steps
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fedlora")
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(name)
        if identity is not None:
            self.identity = identity
            self.client.set_terminated(identity, "RUNNING")
            return
        self.identity = self.client.create_run(number, run_name=folder.resolve().name).info.run_id
        params = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in config.items()]
        for start in range(0, len(params), _MOST_PARAMS):
            self.client.log_batch(self.identity, params=params[start : start + _MOST_PARAMS])

    def log(self, number: int, numbers: Mapping[str, float]) -> None:
        """Take in the numbers of a round."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(self.identity, metrics=[Metric(key, value, now, number) for key, value in numbers.items()])

    def close(self, done: bool) -> None:
        """Say how it ended."""
        self.client.set_terminated(self.identity, "FINISHED" if done else "FAILED")


TRACKERS: dict[str, tuple[Callable[[Path, Mapping[str, Any], str | None], Tracker], str]] = {
    "wandb": (WandbTracker, "wandb"),
    "mlflow": (MlflowTracker, "mlflow"),
}
"""Name in `output.log` -> how it is made, and the package (and extra of fedlora) that it needs."""


def check_trackers(config: RunConfig) -> None:
    """Raise ConfigError where a tracker that the run names is not installed."""
    for name in config.output.log:
        package = TRACKERS[name][1]
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"output.log names '{name}', which is not installed: pip install 'fedlora[{package}]'")


class Trackers:
    """All trackers of a run.

    Args:
        folder: The run's folder.
        config: Its configuration.
        say: Who is told when one of them fails.
    """

    def __init__(self, folder: Path, config: RunConfig, say: Callable[[str], None]) -> None:
        self.say = say
        self._open: dict[str, Tracker] = {}
        if not config.output.log:
            return
        known = _identities(folder)
        flat = flat_config(config)
        for name in config.output.log:
            tracker = self._guarded(name, lambda name=name: TRACKERS[name][0](folder, flat, known.get(name)))  # type: ignore[misc]
            if tracker is not None:
                self._open[name] = tracker
                known[name] = tracker.identity
        if self._open:
            write_json(folder / IDENTITIES, known)

    def round(self, row: Mapping[str, Any], clients: list[dict[str, Any]]) -> None:
        """Send a round: every number of its row, and how ranks were spread."""
        numbers = {key: float(value) for key, value in row.items() if key != "round" and _is_number(value)}
        if clients:
            ranks = np.array([client["ranks"] for client in clients])
            numbers |= {"rank_min": float(ranks.min()), "rank_max": float(ranks.max())}
        for name, tracker in list(self._open.items()):
            if self._guarded(name, lambda tracker=tracker: tracker.log(int(row["round"]), numbers) or True) is None:  # type: ignore[misc]
                del self._open[name]

    def close(self, done: bool) -> None:
        """The run is over, or was cut off."""
        for name, tracker in self._open.items():
            self._guarded(name, lambda tracker=tracker: tracker.close(done))  # type: ignore[misc]
        self._open = {}

    def _guarded(self, name: str, work: Callable[[], Any]) -> Any:
        """Return what `work` returns; a library's own error (no network, no key, a full quota) costs the tracker, not the run."""
        try:
            return work()
        except Exception as error:
            reason = str(error).strip().splitlines()
            self.say(f"{name} fails, the run goes on without it: {reason[0] if reason else type(error).__name__}")
            return None


def flat_config(config: RunConfig) -> dict[str, str | int | float | bool]:
    """Return a configuration as dotted keys and plain values; what is unset is left out."""
    flat: dict[str, str | int | float | bool] = {}

    def walk(tree: Mapping[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, Mapping):
                walk(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = value if isinstance(value, str | int | float | bool) else json.dumps(value)

    walk(config.model_dump(mode="json", exclude_none=True), "")
    return flat


def _identities(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / IDENTITIES).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
