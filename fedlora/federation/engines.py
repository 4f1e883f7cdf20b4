"""What stands behind the Grid: this process, or Flower's own simulation engine."""

from __future__ import annotations

import logging
import os
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedlora.config import RayConfig, RunConfig
from fedlora.errors import ConfigError, FedLoRAError
from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.client import make_client_app
from fedlora.federation.windowed_grid import WindowedGrid
from fedlora.federation.workbench import Workbench
from fedlora.quiet_env import calm

_PATIENCE_S = 5.0


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
    calm()  # Ray's processes take this one's environment
    from flwr.simulation import run_simulation

    config = bench.config.ray
    check_address(config.address)
    failure: list[BaseException] = []
    stopped = threading.Event()
    watched = ServerApp()

    @watched.main()
    def main(grid: Grid, context: Context) -> None:
        # Flower runs this in a thread of its own and replaces what it raises; the first error is the one to tell.
        try:
            app(WindowedGrid(grid, 2 * most_at_a_time(config), stopped), context)
        except BaseException as error:
            failure.append(error)
            raise

    try:
        with warnings.catch_warnings(), _unlogged("flwr"):
            warnings.simplefilter("ignore", FutureWarning)  # Ray's of its own next versions
            run_simulation(
                server_app=watched,
                client_app=make_client_app(bench.config),
                num_supernodes=bench.config.clients,
                backend_config={
                    "init_args": ray_arguments(config),
                    "client_resources": {"num_cpus": config.client_cpus, "num_gpus": config.client_gpus},
                },
            )
    except Exception as error:
        first = failure[0] if failure else error
        raise (first if isinstance(first, FedLoRAError) else _explain(first, config)) from error
    finally:
        stopped.set()


@contextmanager
def _unlogged(name: str) -> Iterator[None]:
    """Keep a library from logging: Flower writes the traceback of every error that it also raises or puts into a reply."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def ray_arguments(config: RayConfig) -> dict[str, Any]:
    """Return what `ray.init` is called with.

    "local" and not None, which would join the cluster that the variable RAY_ADDRESS names. A Ray of its own gets an impossible
    port for its dashboard process, which then does not start: it shows nothing here (`include_dashboard` is off), but asks cloud
    providers' metadata servers who runs this machine, whether usage statistics are on or not. Ray logs that as an error, hence
    the level.
    """
    arguments: dict[str, Any] = {"address": config.address or "local", "log_to_driver": False, "logging_level": 50}
    if config.address is not None:
        return arguments
    arguments |= {"include_dashboard": False, "dashboard_port": -1}
    if config.object_store_mb is not None:
        arguments["object_store_memory"] = config.object_store_mb * 10**6
    sizes = {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus}
    return arguments | {name: size for name, size in sizes.items() if size is not None}


def most_at_a_time(config: RayConfig) -> int:
    """Return how many clients can train at a time at most, as far as this machine tells.

    Flower drives actors from a pool of threads of the standard size, whatever a cluster has.
    """
    cores = os.cpu_count() or 1
    threads = min(32, cores + 4)
    if config.address is not None:
        return threads
    return max(1, min(threads, int((config.num_cpus or cores) / config.client_cpus)))


def check_address(address: str | None) -> None:
    """Refuse a cluster address that nobody answers at; Ray itself tries for minutes.

    Raises:
        ConfigError: Malformed, or no answer within five seconds.
    """
    if address is None or address == "auto":
        return
    try:
        parts = urlsplit(address if "://" in address else f"ray-gcs://{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port is None or parts.scheme not in ("ray", "ray-gcs"):
        raise ConfigError(f"ray.address = '{address}' is no address. Use host:port, ray://host:port or auto")
    try:
        socket.create_connection((host, port), timeout=_PATIENCE_S).close()
    except OSError as error:
        raise ConfigError(
            f"ray.address = '{address}': no Ray cluster answers there ({error.strerror or error}). Start one with "
            "'ray start --head', check host, port and firewall, or leave ray.address out to compute here"
        ) from None


def _explain(error: BaseException, config: RayConfig) -> FedLoRAError:
    """Turn what Flower or Ray failed with into one sentence; Flower wraps the cause several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = " ".join(str(error).split()) or type(error).__name__
    if said.startswith("ActorPool is empty"):
        return ConfigError(
            f"Ray has no room for a single client: ray.client_cpus = {config.client_cpus:g}, ray.client_gpus = "
            f"{config.client_gpus:g}. Lower them, or give Ray more (ray.num_cpus, ray.num_gpus, another ray.address)"
        )
    if "timed out during startup" in said:
        return FedLoRAError(
            "Ray's own processes did not start in time: Ray gives them about 15 s, which an overloaded machine may not manage. "
            "Start again when it is less busy, or use engine = 'batched'"
        )
    if config.address is not None and isinstance(error, ConnectionError):
        return ConfigError(f"ray.address = '{config.address}': no Ray cluster found ({said[:200]})")
    return FedLoRAError(f"Flower's simulation engine failed: {type(error).__name__}: {said[:300]}")
