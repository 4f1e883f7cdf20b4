"""The client's side of a round: what it does with a message that is damaged, and what it reports."""

from __future__ import annotations

import math

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message

from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.client import reply_spec
from fedlora.federation.roll import call_roll
from fedlora.federation.strategy import RoundStrategy
from fedlora.federation.workbench import Workbench, build
from fedlora.wire import encoded_size, from_record, record_size, to_record
from tiny_run import Ground, fresh_state


def _begin(bench: Workbench) -> tuple[BatchedGrid, RoundStrategy, list[Message]]:
    grid = BatchedGrid(bench)
    strategy = RoundStrategy(bench, call_roll(grid, bench.config.clients), fresh_state(bench))
    return grid, strategy, list(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid))


def _damage(message: Message) -> None:
    data = from_record(message.content.array_records["arrays"])
    message.content["arrays"] = to_record(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])


def test_a_damaged_message_is_answered_with_the_reason_and_disturbs_nobody(ground: Ground) -> None:
    grid, strategy, messages = _begin(build(ground.config()))
    _damage(messages[1])
    replies = list(grid.send_and_receive(messages))
    assert [reply.has_error() for reply in replies].count(True) == 1
    strategy.aggregate_train(1, replies)
    status = [row["status"] for row in strategy.record.clients]
    assert status[1].startswith("failed: checksum: ") and status.count("ok") == 3


def test_when_every_message_is_damaged_every_client_says_so(ground: Ground) -> None:
    grid, strategy, messages = _begin(build(ground.config()))
    for message in messages:
        _damage(message)
    strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert [row["status"].partition(": the ")[0] for row in strategy.record.clients] == ["failed: checksum"] * 4


def test_a_message_of_another_round_is_refused(ground: Ground) -> None:
    grid, strategy, messages = _begin(build(ground.config()))
    strategy.aggregate_train(1, grid.send_and_receive(messages))
    late = list(strategy.configure_train(2, ArrayRecord(), ConfigRecord(), grid))
    for message in late:
        message.content["arrays"] = messages[0].content.array_records["arrays"]
    assert all("stale" in reply.error.reason for reply in grid.send_and_receive(late))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize(
    "changes",
    [("adapter.unit=heads",), ("adapter.unit=block",), ("adapter.unit=svd",), ("adapter.method=triplet",)],
    ids=["heads", "block", "svd", "triplet"],
)
def test_bytes_are_known_before_anything_is_trained(ground: Ground, dtype: str, changes: tuple[str, ...]) -> None:
    bench = build(ground.config(f"wire.dtype={dtype}", "policy.name=random", *changes))
    grid, _, messages = _begin(bench)
    for message, reply in zip(messages, grid.send_and_receive(messages), strict=True):
        ranks = list(message.content.config_records["config"]["ranks"])  # type: ignore[arg-type]
        assert record_size(reply.content.array_records["arrays"]) == encoded_size(reply_spec(bench, ranks), dtype)  # type: ignore[arg-type]


def test_what_a_reply_reports(ground: Ground) -> None:
    bench = build(ground.config())
    grid, _, messages = _begin(bench)
    for reply in grid.send_and_receive(messages):
        metrics = reply.content.metric_records["metrics"]
        client = reply.metadata.src_node_id - 1
        assert metrics["client"] == client and metrics["steps"] == 3
        assert metrics["num-examples"] == len(bench.parts[client]) and metrics["held-examples"] == len(bench.held[client])
        assert 0 <= metrics["held-accuracy"] <= 1 and math.isfinite(metrics["train-loss"]) and metrics["tokens"] > 3  # type: ignore[operator,arg-type]


def test_clients_that_do_not_measure_report_no_accuracy(ground: Ground) -> None:
    grid, _, messages = _begin(build(ground.config("evaluation.clients=false")))
    for reply in grid.send_and_receive(messages):
        assert not [key for key in reply.content.metric_records["metrics"] if key.startswith("held")]
