"""A reply that is wrong is named in its client's row, counted and left out; the others decide the round alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor

from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.roll import call_roll
from fedlora.federation.strategy import RoundRecord, RoundStrategy, ServerState
from fedlora.federation.workbench import Workbench, build
from fedlora.wire import decode, encode, from_record, to_record
from tiny_run import Ground, fresh_state

Tensors = dict[str, Tensor]


@dataclass
class Reply:
    """What a sound client sent in round 1: the encoded update and its metrics."""

    data: bytes
    metrics: dict[str, float | int]


@dataclass
class Round:
    """Round 1 of a run, its sound replies recorded once, so that any number of spoilt ones can be fed to a strategy."""

    bench: Workbench
    grid: BatchedGrid
    roster: dict[int, tuple[int, int]]
    replies: dict[int, Reply]

    def begin(self) -> tuple[RoundStrategy, dict[int, Message]]:
        """Return a strategy that waits for replies, and its messages by client."""
        strategy = RoundStrategy(self.bench, self.roster, fresh_state(self.bench))
        messages = {}
        for message in strategy.configure_train(1, ArrayRecord(), ConfigRecord(), self.grid):
            messages[message.metadata.dst_node_id - 1] = _named(message)
        return strategy, messages

    def sound(self, client: int, message: Message) -> Message:
        """Return the client's own reply."""
        reply = self.replies[client]
        return answer(message, reply.data, reply.metrics)

    def play(self, bad: Sequence[int], spoil: Callable[[Message, Reply], list[Message]]) -> tuple[ServerState, RoundRecord]:
        """Feed a strategy the replies of round 1, those of the clients `bad` spoilt."""
        strategy, messages = self.begin()
        replies: list[Message] = []
        for client, message in messages.items():
            replies += spoil(message, self.replies[client]) if client in bad else [self.sound(client, message)]
        strategy.aggregate_train(1, replies)
        return strategy.state, strategy.record

    @property
    def clients(self) -> list[int]:
        """The clients of the round."""
        return list(self.replies)


def answer(message: Message, data: bytes | ArrayRecord, metrics: dict[str, float | int]) -> Message:
    """Return a reply with this update."""
    record = data if isinstance(data, ArrayRecord) else to_record(data)
    return Message(RecordDict({"arrays": record, "metrics": MetricRecord(metrics)}), reply_to=message)  # type: ignore[arg-type]


def _named(message: Message) -> Message:
    """Give a message the id that a grid gives it on its way: without one it cannot be replied to."""
    message.metadata.__dict__["_message_id"] = f"to {message.metadata.dst_node_id}"
    return message


def _record(ground: Ground, *changes: str) -> Round:
    bench = build(ground.config(*changes))
    grid = BatchedGrid(bench)
    roster = call_roll(grid, bench.config.clients)
    strategy = RoundStrategy(bench, roster, fresh_state(bench))
    replies = {}
    for reply in grid.send_and_receive(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid)):
        metrics = dict(reply.content.metric_records["metrics"])
        data = from_record(reply.content.array_records["arrays"])
        replies[reply.metadata.src_node_id - 1] = Reply(data, metrics)  # type: ignore[arg-type]
    return Round(bench, grid, roster, replies)


@pytest.fixture(scope="module")
def ravan(ground: Ground) -> Round:
    """Two of four heads per client and site."""
    return _record(ground, "policy.name=fixed", "policy.options.rank=8")


@pytest.fixture(scope="module")
def lora(ground: Ground) -> Round:
    """LoRA, averaged by numbers of examples."""
    return _record(ground, "adapter.method=lora", "policy.name=random", "data.alpha=0.5")


def _edit(change: Callable[[Tensors], Tensors | None], **options: int | str) -> Callable[[Message, Reply], list[Message]]:
    """Return a spoiler that changes the tensors and encodes them again, checksum and all."""

    def spoil(message: Message, reply: Reply) -> list[Message]:
        tensors = decode(reply.data, "fp32")
        changed = change(tensors)
        data = encode(tensors if changed is None else changed, options.get("dtype", "fp32"), tag=options.get("tag", 1))  # type: ignore[arg-type]
        return [answer(message, data, reply.metrics)]

    return spoil


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Message, Reply], list[Message]]:
    return lambda message, reply: [answer(message, change(reply.data), reply.metrics)]


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def _set(tensors: Tensors, name: str, value: float) -> None:
    tensors[name].view(-1)[0] = value


def _heads(*heads: int) -> Callable[[Message, Reply], list[Message]]:
    def change(tensors: Tensors) -> None:
        tensors["1/heads"] = torch.tensor(heads)

    return _edit(change)


def _arrays(message: Message, reply: Reply) -> list[Message]:
    """What a stock Flower client would send."""
    return [answer(message, ArrayRecord([np.zeros((2, 2), np.float32)]), reply.metrics)]


def _without(name: str) -> Callable[[Message, Reply], list[Message]]:
    def spoil(message: Message, reply: Reply) -> list[Message]:
        (sound,) = [answer(message, reply.data, reply.metrics)]
        del sound.content[name]
        return [sound]

    return spoil


def _typed(message: Message, reply: Reply) -> list[Message]:
    record = ArrayRecord()
    record["payload"] = Array(dtype="uint8", shape=(len(reply.data),), stype="numpy.ndarray", data=reply.data)
    return [answer(message, record, reply.metrics)]


BAD: dict[str, tuple[Callable[[Message, Reply], list[Message]], str]] = {
    "flipped-body": (_bytes(lambda data: _flip(data, len(data) // 2)), "rejected: checksum"),
    "flipped-checksum": (_bytes(lambda data: _flip(data, len(data) - 1)), "rejected: checksum"),
    "flipped-magic": (_bytes(lambda data: _flip(data, 0)), "rejected: schema"),
    "flipped-schema": (_bytes(lambda data: _flip(data, 30)), "rejected: "),
    "cut-short": (_bytes(lambda data: data[:-7]), "rejected: truncated"),
    "too-long": (_bytes(lambda data: data + b"\0"), "rejected: truncated"),
    "empty": (_bytes(lambda data: b""), "rejected: truncated"),
    "shape": (_edit(lambda t: {**t, "0/H": t["0/H"][:, :3]}), "rejected: shape: tensor '0/H' has shape [2, 3, 4]"),
    "larger": (_edit(lambda t: {**t, "head/classifier.bias": torch.zeros(4)}), "rejected: shape"),
    "missing": (
        _edit(lambda t: {key: value for key, value in t.items() if key != "2/H"}),
        "rejected: schema: missing tensors ['2/H']",
    ),
    "extra": (_edit(lambda t: {**t, "9/H": torch.zeros(2)}), "rejected: schema"),
    "nan": (_edit(lambda t: _set(t, "0/H", float("nan"))), "rejected: non-finite: tensor '0/H'"),
    "infinite": (_edit(lambda t: _set(t, "head/classifier.weight", float("-inf"))), "rejected: non-finite"),
    "stale": (_edit(lambda t: t, tag=0), "rejected: stale: the message belongs to round 0"),
    "of-the-future": (_edit(lambda t: t, tag=2), "rejected: stale"),
    "other-dtype": (_edit(lambda t: t, dtype="bf16"), "rejected: schema"),
    "head-out-of-range": (
        _heads(0, 4),
        "rejected: schema: site 'bert.encoder.layer.0.attention.self.value' names heads [0, 4] of 4",
    ),
    "head-far-out-of-range": (_heads(65535, 0), "rejected: schema"),
    "head-repeated": (_heads(2, 2), "rejected: schema"),
    "heads-as-numbers": (_edit(lambda t: {**t, "1/heads": torch.zeros(2)}), "rejected: schema"),
    "plain-arrays": (_arrays, "rejected: schema: the record holds ['0']"),
    "wrong-stype": (_typed, "rejected: schema"),
    "no-arrays": (_without("arrays"), "rejected: schema: the reply has no record 'arrays'"),
    "no-metrics": (_without("metrics"), "rejected: schema: the reply has no record 'metrics'"),
    "error": (
        lambda m, r: [Message(Error(100, "non-finite loss at local step 2"), reply_to=m)],
        "failed: non-finite loss at local step 2",
    ),
    "error-with-traceback": (
        lambda m, r: [Message(Error(0, "Traceback\n  line 3\nOSError: gone\n"), reply_to=m)],
        "failed: OSError: gone",
    ),
    "error-without-reason": (lambda m, r: [Message(Error(0), reply_to=m)], "failed: no reason given"),
    "error-with-blank-reason": (lambda m, r: [Message(Error(0, " \n"), reply_to=m)], "failed: no reason given"),
    "silence": (lambda m, r: [], "no reply"),
}


def _equal(left: ServerState, right: ServerState) -> bool:
    ours, theirs = left.adapter.flat(), right.adapter.flat()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("spoil", "status"), BAD.values(), ids=BAD.keys())
def test_a_bad_reply_is_named_and_left_out(ravan: Round, spoil: Callable[[Message, Reply], list[Message]], status: str) -> None:
    bad = ravan.clients[1]
    state, record = ravan.play([bad], spoil)
    without, _ = ravan.play([bad], lambda message, reply: [])
    everybody, _ = ravan.play([], spoil)
    assert _equal(state, without) and not _equal(state, everybody)
    rows = {row["client"]: row for row in record.clients}
    assert rows[bad]["status"].startswith(status) and "\n" not in rows[bad]["status"]
    assert [row["status"] for row in record.done()] == ["ok"] * 3
    assert "train_loss" not in rows[bad]


@pytest.mark.parametrize(("spoil", "status"), BAD.values(), ids=BAD.keys())
def test_a_round_without_a_sound_reply_changes_nothing(
    ravan: Round, spoil: Callable[[Message, Reply], list[Message]], status: str
) -> None:
    state, record = ravan.play(ravan.clients, spoil)
    assert _equal(state, fresh_state(ravan.bench)) and state.round == 1
    assert all(row["status"].startswith(status) for row in record.clients) and record.coverage == 0.0


def test_bytes_of_a_rejected_reply_count(ravan: Round) -> None:
    bad = ravan.clients[0]
    _, record = ravan.play([bad], _bytes(lambda data: data[:100]))
    assert {row["client"]: row["uplink_bytes"] for row in record.clients}[bad] == 100


def test_of_two_replies_the_first_counts(ravan: Round) -> None:
    twice = ravan.clients[2]

    def double(message: Message, reply: Reply) -> list[Message]:
        other = _edit(lambda tensors: {key: value if key.endswith("heads") else value + 1 for key, value in tensors.items()})
        return [answer(message, reply.data, reply.metrics), *other(message, reply)]

    state, record = ravan.play([twice], double)
    once, _ = ravan.play([], double)
    assert _equal(state, once) and [row["status"] for row in record.clients] == ["ok"] * 4


def test_a_second_reply_does_not_mend_the_first(ravan: Round) -> None:
    bad = ravan.clients[2]
    state, record = ravan.play([bad], lambda m, r: [answer(m, r.data[:-1], r.metrics), answer(m, r.data, r.metrics)])
    without, _ = ravan.play([bad], lambda message, reply: [])
    assert _equal(state, without)
    assert {row["client"]: row["status"] for row in record.clients}[bad].startswith("rejected: truncated")


def test_a_reply_of_somebody_who_was_not_asked_is_ignored(ravan: Round) -> None:
    (stranger, *_) = set(ravan.roster) - set(ravan.clients)
    strategy, messages = ravan.begin()
    uninvited = _named(Message(RecordDict(), dst_node_id=stranger + 1, message_type=MessageType.TRAIN, group_id="1"))
    some = ravan.replies[ravan.clients[0]]
    strategy.aggregate_train(
        1, [answer(uninvited, some.data, some.metrics), *(ravan.sound(client, message) for client, message in messages.items())]
    )
    everybody, _ = ravan.play([], lambda message, reply: [])
    assert _equal(strategy.state, everybody)
    assert [row["client"] for row in strategy.record.clients] == ravan.clients


@pytest.mark.parametrize("claim", [10**9, 0, -5, 1e30, float("nan")])
def test_examples_that_a_client_claims_have_no_weight(lora: Round, claim: float) -> None:
    bad = lora.clients[0]
    state, record = lora.play([bad], lambda m, r: [answer(m, r.data, {**r.metrics, "num-examples": claim})])
    honest, _ = lora.play([], lambda message, reply: [])
    assert _equal(state, honest)
    assert len({lora.roster[client][1] for client in lora.clients}) > 1  # they do not weigh the same
    assert {row["client"]: row["examples"] for row in record.clients}[bad] == lora.roster[bad][1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, 2.0]])
def test_what_a_client_says_of_itself_is_logged_only_where_it_is_a_number(lora: Round, value: float | list[float]) -> None:
    bad = lora.clients[0]
    state, record = lora.play([bad], lambda m, r: [answer(m, r.data, {**r.metrics, "train-loss": value, "held-loss": value})])  # type: ignore[dict-item]
    honest, _ = lora.play([], lambda message, reply: [])
    rows = {row["client"]: row for row in record.clients}
    assert _equal(state, honest) and rows[bad]["status"] == "ok"
    assert "train_loss" not in rows[bad] and "held_loss" not in rows[bad] and rows[bad]["steps"] == 3


def test_the_order_of_replies_does_not_matter(lora: Round) -> None:
    strategy, messages = lora.begin()
    strategy.aggregate_train(1, [lora.sound(client, message) for client, message in reversed(messages.items())])
    assert _equal(strategy.state, lora.play([], lambda message, reply: [])[0])
