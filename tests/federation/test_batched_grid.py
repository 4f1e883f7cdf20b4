"""BatchedGrid gives what the same messages give when clients answer them one after the other."""

from __future__ import annotations

import logging

import pytest
import torch
from flwr.app import Context, Message, MessageType, RecordDict
from torch import Tensor

from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.client import make_client_app
from fedlora.federation.roll import call_roll
from fedlora.federation.strategy import RoundStrategy
from fedlora.federation.workbench import build
from fedlora.wire import decode, from_record
from tiny_run import Ground, OneByOneGrid, fresh_state, play

logging.getLogger("flwr").setLevel(logging.ERROR)

RANDOM = ("policy.name=random",)
TIERS = ("policy.name=tiers", "policy.options.fractions=[0.25,0.5,1.0]")
EPOCHS = ("training.epochs=0.8", "data.alpha=0.5")
LORA = ("adapter.method=lora",)
TRIPLET = ("adapter.method=triplet",)
SLICED = ("wire.downlink=sliced",)

CASES = {
    "ravan": (),
    "ravan-random": RANDOM,
    "ravan-weight": (*RANDOM, "adapter.score=weight"),
    "ravan-gradient": (*RANDOM, "adapter.score=gradient"),
    "ravan-gradient-epochs": (*RANDOM, *EPOCHS, "adapter.score=gradient"),
    "ravan-block": (*RANDOM, "adapter.unit=block"),
    "ravan-svd": (*RANDOM, "adapter.unit=svd", "rounds=3"),
    "ravan-gram-schmidt-tiers": (*TIERS, "adapter.init=gram-schmidt"),
    "ravan-sliced": (*RANDOM, *SLICED, "adapter.score=weight"),
    "ravan-block-sliced": (*TIERS, *SLICED, "adapter.unit=block"),
    "ravan-epochs": EPOCHS,
    "lora": (*LORA, *EPOCHS),
    "lora-tiers": (*LORA, *TIERS),
    "lora-stack": (*LORA, *RANDOM, "aggregator.method=stack", "rounds=4"),
    "lora-stack-epochs": (*LORA, *EPOCHS, "aggregator.method=stack"),
    "lora-sliced": (*LORA, *RANDOM, *SLICED),
    "triplet": (*TRIPLET, *RANDOM),
    "triplet-stack": (*TRIPLET, *TIERS, "aggregator.method=stack"),
    "triplet-sliced": (*TRIPLET, *RANDOM, *SLICED, *EPOCHS),
    "sgd-schedule": ("training.optimizer=sgd", "training.schedule=cosine", "training.warmup=0.3", *EPOCHS, *RANDOM),
    "adam-decay": ("training.optimizer=adam", "training.weight_decay=0.1", "training.clip=0.05", *RANDOM),
    "uneven-rows": ("training.length_bucketing=false", "training.batch_size=24", *RANDOM),
}


def _far(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left if left[name].numel())


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_batched_equals_one_by_one(ground: Ground, changes: tuple[str, ...]) -> None:
    bench = build(ground.config(*changes))
    bench.chunk = 4
    start = fresh_state(bench).adapter.flat()
    batched, records = play(bench, BatchedGrid(bench))
    alone, others = play(bench, OneByOneGrid(bench))
    assert _far(batched, alone) < 1e-5
    if bench.config.aggregator.method != "stack":  # whose state grows
        assert _far(batched, start) > 1e-3
    for record, other in zip(records, others, strict=True):
        assert [row["status"] for row in record.clients] == ["ok"] * 4
        for row, same in zip(record.clients, other.clients, strict=True):
            exact = ("client", "ranks", "steps", "tokens", "uplink_bytes", "downlink_bytes", "examples", "held_examples")
            assert {key: row[key] for key in exact} == {key: same[key] for key in exact}
            assert row["train_loss"] == pytest.approx(same["train_loss"], abs=1e-5)
            assert row["held_loss"] == pytest.approx(same["held_loss"], abs=1e-5)
    if EPOCHS[0] in changes:
        assert len({row["steps"] for record in records for row in record.clients}) > 1
    if "policy.name=random" in changes:
        assert len({tuple(row["ranks"]) for record in records for row in record.clients}) > 4


@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("changes", [(*RANDOM, *EPOCHS), (*LORA, *EPOCHS, "aggregator.method=stack")], ids=["ravan", "stack"])
def test_the_chunk_size_changes_nothing(ground: Ground, changes: tuple[str, ...], chunk: int) -> None:
    bench = build(ground.config(*changes))
    bench.chunk = 4
    together, _ = play(bench, BatchedGrid(bench))
    bench.chunk = chunk
    assert _far(together, play(bench, BatchedGrid(bench))[0]) < 1e-5


@pytest.mark.parametrize(("dtype", "quantum"), [("bf16", 2**-8), ("fp16", 2**-11), ("int8", 1 / 127)])
@pytest.mark.parametrize("changes", [RANDOM, (*LORA, *TIERS), (*TRIPLET, *SLICED)], ids=["ravan", "lora", "triplet-sliced"])
def test_lossy_wires_differ_by_rounding_only(ground: Ground, changes: tuple[str, ...], dtype: str, quantum: float) -> None:
    """Rounding turns a difference of 1e-8 into one quantum, now and then; everything else has to agree as in fp32."""
    bench = build(ground.config(*changes, f"wire.dtype={dtype}"))
    batched, _ = play(bench, BatchedGrid(bench))
    alone, _ = play(bench, OneByOneGrid(bench))
    largest = max(float(tensor.abs().max()) for tensor in batched.values())
    assert _far(batched, alone) <= 2 * quantum * largest
    differ = torch.cat([((batched[name] - alone[name]).abs() > 1e-5).flatten() for name in batched])
    assert differ.float().mean() < 0.1


@pytest.mark.parametrize("changes", [RANDOM, (*LORA, *TIERS), (*RANDOM, "adapter.unit=svd")], ids=["ravan", "lora", "svd"])
def test_batched_repeats_itself_bit_by_bit(ground: Ground, changes: tuple[str, ...]) -> None:
    bench, other = build(ground.config(*changes)), build(ground.config(*changes))
    first, _ = play(bench, BatchedGrid(bench))
    again, _ = play(bench, BatchedGrid(bench))
    elsewhere, _ = play(other, BatchedGrid(other))
    assert all(torch.equal(first[name], again[name]) and torch.equal(first[name], elsewhere[name]) for name in first)


def test_rank_zero_everywhere_trains_the_head_only(ground: Ground) -> None:
    bench = build(ground.config("policy.name=fixed", "policy.options.rank=0"))
    start = fresh_state(bench).adapter.flat()
    end, records = play(bench, BatchedGrid(bench))
    for name in start:
        assert torch.equal(start[name], end[name]) != name.startswith("head/"), name
    assert all(row["mean_rank"] == 0 and row["status"] == "ok" for record in records for row in record.clients)
    assert [record.coverage for record in records] == [0.0, 0.0]


def test_flowers_client_app_answers_as_the_grid_does(ground: Ground) -> None:
    """The app that Ray and real nodes run, on messages of the same strategy."""
    config = ground.config(*RANDOM)
    bench = build(config)
    grid = BatchedGrid(bench)
    strategy = RoundStrategy(bench, call_roll(grid, config.clients), fresh_state(bench))
    arrays = strategy.broadcast()
    messages = list(strategy.configure_train(1, arrays, None, grid))  # type: ignore[arg-type]
    together = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages)}
    app = make_client_app(config)
    for message in messages:
        node = message.metadata.dst_node_id
        context = Context(1, node, {"partition-id": node - 1, "num-partitions": config.clients}, RecordDict(), {})
        alone = app(message, context)
        ours, theirs = (from_record(reply.content.array_records["arrays"]) for reply in (together[node], alone))
        assert _far(decode(ours, "fp32"), decode(theirs, "fp32")) < 1e-5
        assert alone.content.metric_records["metrics"]["steps"] == together[node].content.metric_records["metrics"]["steps"]
        query = Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY)
        assert app(query, context).content.metric_records["metrics"]["client"] == node - 1


def test_every_node_is_there_and_replies_come_once(ground: Ground) -> None:
    bench = build(ground.config())
    grid = BatchedGrid(bench)
    assert list(grid.get_node_ids()) == [1, 2, 3, 4, 5, 6]
    message = grid.create_message(RecordDict(), MessageType.QUERY, 3, "roll")
    (name,) = grid.push_messages([message])
    (reply,) = grid.pull_messages([name])
    assert reply.metadata.src_node_id == 3 and reply.content.metric_records["metrics"]["client"] == 2
    assert list(grid.pull_messages([name])) == []
    assert list(grid.send_and_receive([])) == []
