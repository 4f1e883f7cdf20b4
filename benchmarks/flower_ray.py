"""Flower's own simulation engine (Ray) with clients that train with stock peft, or do nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, cast

from contenders import cached_trainer
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
        metrics = MetricRecord({"num-examples": len(trainer.parts[client]), "train-loss": loss, "client": client})
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


class FedAvgRound:
    """One round of Flower's FedAvg over all nodes (see `contenders.Federation`)."""

    def __init__(self, grid: Grid, state: dict[str, Tensor], *, bucketing: bool = False) -> None:
        self.grid, self.bucketing = grid, bucketing
        self._nodes = len(list(grid.get_node_ids()))
        self.strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=self._nodes, min_available_nodes=self._nodes)
        self._arrays, self._replies = ArrayRecord(state), list[Message]()

    def __call__(self, number: int) -> None:
        config = ConfigRecord({"bucketing": self.bucketing})
        messages = self.strategy.configure_train(number, self._arrays, config, self.grid)
        self._replies = list(self.grid.send_and_receive(messages))
        failed = [reply.error.reason for reply in self._replies if reply.has_error()]
        if failed or len(self._replies) != self._nodes:
            raise RuntimeError(f"Flower's simulation: {len(self._replies)} replies from {self._nodes} clients; {failed[:1]}")
        self._arrays = self.strategy.aggregate_train(number, self._replies)[0] or self._arrays

    def state(self) -> dict[str, Tensor]:
        return dict(self._arrays.to_torch_state_dict())

    def losses(self) -> dict[int, float]:
        metrics = [reply.content.metric_records["metrics"] for reply in self._replies]
        return {int(cast(int, own["client"])): float(cast(float, own["train-loss"])) for own in metrics}


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
