"""What stands behind the Grid: this process, or Flower's own simulation engine."""

from __future__ import annotations

from typing import Any

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedlora.errors import FedLoRAError
from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.client import make_client_app
from fedlora.federation.workbench import Workbench


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
    watched = ServerApp()

    @watched.main()
    def main(grid: Grid, context: Context) -> None:
        # Flower runs this in a thread of its own and replaces what it raises; the first error is the one to tell.
        try:
            app(grid, context)
        except BaseException as error:
            failure.append(error)
            raise

    try:
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
