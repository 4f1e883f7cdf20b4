"""What stands behind the Grid: this process, or Flower's own simulation engine."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedlora.config import RunConfig
from fedlora.errors import ConfigError, FedLoRAError
from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.client import make_client_app
from fedlora.federation.workbench import Workbench


def refuse_deployment(config: RunConfig) -> None:
    """Refuse to be the engine of a run that real nodes are to do (ConfigError)."""
    if config.engine == "deployment":
        raise ConfigError(
            "engine = 'deployment' works with real nodes: start it by `fedlora serve RUN.toml --deployment DIR` "
            "(DIR is made by `fedlora deploy init`), or simulate it with engine=batched"
        )


def run_engine(bench: Workbench, app: ServerApp) -> None:
    """Run a ServerApp on the engine that the configuration names.

    Raises:
        FedLoRAError: Whatever the server app refuses, from whichever thread it ran in.
    """
    if bench.config.engine == "batched":
        app(BatchedGrid(bench), Context(1, 0, {}, RecordDict(), {}))
    else:
        _run_ray(bench, app)


def _run_ray(bench: Workbench, app: ServerApp) -> None:
    from flwr.simulation import run_simulation

    config = bench.config.ray
    init: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False}
    if config.num_cpus is not None:
        init["num_cpus"] = config.num_cpus
    failure: list[BaseException] = []
    stopped = threading.Event()
    watched = ServerApp()

    @watched.main()
    def main(grid: Grid, context: Context) -> None:
        # Flower runs this in a thread of its own and replaces what it raises; the first error is the one to tell.
        try:
            _heed(grid, stopped)
            app(grid, context)
        except BaseException as error:
            failure.append(error)
            raise

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Ray's of its own next versions
            run_simulation(
                server_app=watched,
                client_app=make_client_app(bench.config),
                num_supernodes=bench.config.clients,
                backend_config={
                    "init_args": init,
                    "client_resources": {"num_cpus": config.client_cpus, "num_gpus": config.client_gpus},
                },
            )
    except Exception as error:
        cause = failure[0] if failure else error
        raise (
            cause if isinstance(cause, FedLoRAError) else FedLoRAError(f"Flower's simulation engine failed: {cause!r}")
        ) from error
    finally:
        stopped.set()


def _heed(grid: Grid, stopped: threading.Event) -> None:
    """Let a grid's waits end when the engine has: Flower's server thread would wait an hour for replies that nobody sends."""

    def unless_stopped(wait: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*arguments: Any, **named: Any) -> Any:
            if stopped.is_set():
                raise FedLoRAError("the run was stopped")
            return wait(*arguments, **named)

        return checked

    for name in ("get_node_ids", "pull_messages"):
        setattr(grid, name, unless_stopped(getattr(grid, name)))
