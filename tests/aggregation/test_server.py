"""Server optimisers give what Flower's own strategies give on the same payloads, and leave alone what nobody sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvgM, FedYogi
from flwr.supercore.task_identity import TaskIdentity

from cases import Case, draw, draw_state
from fedlora.aggregation import AGGREGATORS, GlobalState, Update
from fedlora.aggregation.server import server_step
from fedlora.config import ServerConfig
from rounds import HEAD, adapters_of, make_update

FLOWER: dict[str, tuple[Any, dict[str, Any]]] = {
    "fedavgm": (FedAvgM, {"server_learning_rate": 0.7, "server_momentum": 0.8}),
    "fedadam": (FedAdam, {"eta": 0.05, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-2}),
    "fedyogi": (FedYogi, {"eta": 0.05, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-2}),
}
OURS = {
    "fedavgm": ServerConfig(optimizer="fedavgm", lr=0.7, momentum=0.8),
    "fedadam": ServerConfig(optimizer="fedadam", lr=0.05, momentum=0.8, second_momentum=0.95, tau=1e-2),
    "fedyogi": ServerConfig(optimizer="fedyogi", lr=0.05, momentum=0.8, second_momentum=0.95, tau=1e-2),
}


def record_of(state: GlobalState) -> ArrayRecord:
    return ArrayRecord({key: Array(tensor.numpy()) for key, tensor in state.flat().items()})


def flat_update(update: Update, adapters: list[Any]) -> GlobalState:
    return GlobalState(update.sites, update.head)


@pytest.mark.parametrize("name", FLOWER)
@pytest.mark.parametrize("rule", ["fedavg-factors", "ravan"])
def test_three_rounds_as_flowers_own_strategy(name: str, rule: str) -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
    case = Case("lora", "kaiming") if rule == "fedavg-factors" else Case("ravan", "random", (("unit", "svd"),))
    case = Case("full", "zero") if rule == "ravan" else case
    adapters = adapters_of(case)
    aggregator = AGGREGATORS.get("mean" if rule == "ravan" else rule)(adapters, "examples")
    state = GlobalState([draw_state(adapter, 70 + index) for index, adapter in enumerate(adapters)], draw(HEAD, 1))
    strategy = FLOWER[name][0](min_train_nodes=1, min_available_nodes=1, **FLOWER[name][1])
    theirs = record_of(state)
    for number in (1, 2, 3):
        updates = [
            make_update(adapters, 10 * number + client, [adapter.cap for adapter in adapters], examples=3 + client)
            for client in range(4)
        ]
        strategy.current_arrays = theirs if name == "fedavgm" else {key: array.numpy() for key, array in theirs.items()}
        replies = [
            Message(
                RecordDict(
                    {"arrays": record_of(flat_update(u, adapters)), "metrics": MetricRecord({"num-examples": u.examples})}
                ),
                reply_to=Message(RecordDict({"config": ConfigRecord()}), dst_node_id=1 + u.client, message_type="train"),
            )
            for u in updates
        ]
        found, _ = strategy.aggregate_train(number, replies)
        assert found is not None
        theirs = found
        merged, _ = aggregator.aggregate(updates, state, number)
        state = server_step(OURS[name], adapters, state, merged, updates, number)
        for key, tensor in state.flat().items():
            assert np.allclose(tensor.numpy(), theirs[key].numpy(), rtol=1e-12, atol=1e-14), (number, key)


@pytest.mark.parametrize("name", FLOWER)
def test_what_nobody_sent_neither_moves_nor_remembers(name: str) -> None:
    adapters = adapters_of(Case("rolora", "kaiming"))
    rule = AGGREGATORS.get("mean")(adapters)
    state = GlobalState([draw_state(adapter, 70 + index) for index, adapter in enumerate(adapters)], draw(HEAD, 1))
    for number in (1, 2, 3, 4):
        updates = [make_update(rule.at(number), 10 * number + client, [2, 0], 3) for client in range(2)]
        merged, _ = rule.aggregate(updates, state, number)
        after = server_step(OURS[name], rule.at(number), state, merged, updates, number)
        still, moves = ("A", "B") if number % 2 else ("B", "A")
        assert torch.equal(after.sites[0][still], state.sites[0][still])
        assert not torch.equal(after.sites[0][moves], state.sites[0][moves])
        assert all(torch.equal(after.sites[1][key], state.sites[1][key]) for key in "AB")
        assert torch.equal(after.sites[0]["A"][2], state.sites[0]["A"][2])  # beyond the rank
        for key in after.memory.keys() & state.memory.keys():
            same = torch.equal(after.memory[key], state.memory[key])
            assert same == (key.endswith(f"0/{still}") or "/1/" in key)
        state = after


def test_none_takes_the_aggregate_as_it_is() -> None:
    adapters = adapters_of(Case("lora", "kaiming"))
    rule = AGGREGATORS.get("fedavg-factors")(adapters)
    state = GlobalState([draw_state(adapter, 1) for adapter in adapters], draw(HEAD, 1))
    updates = [make_update(adapters, 1, [3, 3])]
    merged, _ = rule.aggregate(updates, state, 1)
    assert server_step(ServerConfig(), adapters, state, merged, updates, 1) is merged
