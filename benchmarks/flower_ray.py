"""Flower's own simulation engine (Ray) with clients that train with stock peft, or do nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, cast

from contenders import Round, cached_trainer
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedlora.config import RunConfig


def peft_app(config: RunConfig) -> ClientApp:
    """Return a ClientApp as a user of peft writes it; the model is loaded once per actor."""
    text = config.model_dump_json()
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        trainer = cached_trainer(text)
        settings = message.content.config_records["config"]
        client = int(cast(int, context.node_config["partition-id"]))
        state = dict(message.content.array_records["arrays"].to_torch_state_dict())
        after, loss = trainer.train(state, int(cast(int, settings["server-round"])), client, bool(settings["bucketing"]))
        metrics = MetricRecord({"num-examples": len(trainer.parts[client]), "train-loss": loss})
        return Message(RecordDict({"arrays": ArrayRecord(after), "metrics": metrics}), reply_to=message)

    return app


def idle_app() -> ClientApp:
    """Return a ClientApp that sends back what it got."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = RecordDict({"arrays": message.content.array_records["arrays"], "metrics": MetricRecord({"num-examples": 1})})
        return Message(content, reply_to=message)

    return app


def fedavg_round(grid: Grid, state: dict[str, Tensor], *, bucketing: bool = False) -> Round:
    """Return one round of Flower's FedAvg over all nodes."""
    nodes = len(list(grid.get_node_ids()))
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    arrays = ArrayRecord(state)

    def work(number: int) -> None:
        nonlocal arrays
        messages = strategy.configure_train(number, arrays, ConfigRecord({"bucketing": bucketing}), grid)
        replies = list(grid.send_and_receive(messages))
        failed = [reply.error.reason for reply in replies if reply.has_error()]
        if failed or len(replies) != nodes:
            raise RuntimeError(f"Flower's simulation: {len(replies)} replies from {nodes} clients; {failed[:1]}")
        arrays = strategy.aggregate_train(number, replies)[0] or arrays

    return work


def in_simulation(app: ClientApp, clients: int, cores: int, actor_cores: int, body: Callable[[Grid], None]) -> None:
    """Run `body` as the server of a simulation.

    Args:
        app: What the nodes run.
        clients: Number of nodes.
        cores: Cores for Ray.
        actor_cores: Of these for each actor (`num_cpus`), which Ray gives as many threads.
        body: Called once with the grid, when all nodes are there.
    """
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    server, failure = ServerApp(), list[BaseException]()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            while len(list(grid.get_node_ids())) < clients:
                time.sleep(0.05)
            body(grid)
        except BaseException as error:  # Flower replaces what is raised in its server thread
            failure.append(error)
            raise

    resources = {"num_cpus": actor_cores, "num_gpus": 0.0}
    init = {"num_cpus": cores, "log_to_driver": False, "include_dashboard": False}
    try:
        run_simulation(server, app, clients, backend_config=cast(Any, {"client_resources": resources, "init_args": init}))
    except Exception as error:
        raise failure[0] if failure else error from None
