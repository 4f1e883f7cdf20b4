"""A Flower app whose nodes send back as much as they get: Flower's FedAvg, over Flower's own grid or over fedlora's."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()


@client.train()
def echo(message: Message, context: Context) -> Message:
    """Send back arrays of the same shapes."""
    # Other numbers than those that came: Flower sends no object that the other side holds already, and each round's model is new.
    random = np.random.default_rng()
    came = message.content.array_records["arrays"]
    arrays = ArrayRecord({name: Array(random.random(array.numpy().shape, np.float32)) for name, array in came.items()})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """Run the rounds and write down how long each took, seconds."""
    settings = context.run_config
    rounds, nodes, count = (int(settings[key]) for key in ("rounds", "nodes", "arrays"))
    if settings["polling"]:
        from fedlora.config import DeploymentConfig
        from fedlora.deploy.polling import PollingGrid

        grid = PollingGrid(grid, DeploymentConfig())
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    pieces = np.array_split(np.random.default_rng(0).random(int(settings["numbers"]), np.float32), count)
    arrays = ArrayRecord({f"layer{number}": Array(piece) for number, piece in enumerate(pieces)})
    seconds = []
    while len(list(grid.get_node_ids())) < nodes:
        time.sleep(0.2)
    for number in range(1, rounds + 1):
        began = time.perf_counter()
        replies = list(grid.send_and_receive(strategy.configure_train(number, arrays, ConfigRecord(), grid)))
        failed = [reply.error.reason for reply in replies if reply.has_error()]
        if failed or len(replies) != nodes:
            raise RuntimeError(f"{len(replies)} replies from {nodes} nodes; {failed[:1]}")
        arrays = strategy.aggregate_train(number, replies)[0] or arrays
        seconds.append(time.perf_counter() - began)
    Path(str(settings["report"])).write_text(json.dumps(seconds))
