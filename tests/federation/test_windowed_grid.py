"""Few messages under way at once, all answered; an engine that has ended, or lost a process, ends the round."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

import pytest
from flwr.app import Error, Message, MessageType, RecordDict

from fedlora.errors import FedLoRAError, TrainingError
from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.roll import call_roll
from fedlora.federation.windowed_grid import WindowedGrid
from fedlora.federation.workbench import Workbench, build
from tiny_run import Ground, play

CLIENTS = 40


class _Counted(BatchedGrid):
    """Notes how many messages were under way after each push; answers at most `pace` of them at each look."""

    def __init__(self, bench: Workbench, pace: int = 1000) -> None:
        super().__init__(bench)
        self.pace, self.under_way, self.pushed = pace, 0, list[int]()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        self.under_way += len(batch)
        self.pushed.append(self.under_way)
        return super().push_messages(batch)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(list(message_ids)[: self.pace]))
        self.under_way -= len(replies)
        return replies


class _Silent(_Counted):
    """Never answers."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return []


class _Failing(_Counted):
    """Answers everything with one error."""

    reason = ""

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self.asked: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        keys = list(super().push_messages(batch))
        self.asked |= dict(zip(keys, batch, strict=True))
        return keys

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [Message(Error(0, self.reason), reply_to=self.asked[key]) for key in message_ids]


def _questions(grid: BatchedGrid) -> list[Message]:
    return [Message(RecordDict({}), node, MessageType.QUERY, group_id="roll") for node in grid.get_node_ids()]


@pytest.fixture(scope="module")
def bench(ground: Ground) -> Workbench:
    return build(ground.config(f"clients={CLIENTS}", "data.partition=iid"))


def test_the_window_holds_while_clients_are_slow(bench: Workbench) -> None:
    inner = _Counted(bench, pace=1)
    replies = list(WindowedGrid(inner, 4, threading.Event(), poll_s=0).send_and_receive(_questions(inner)))
    assert len({reply.metadata.src_node_id for reply in replies}) == CLIENTS
    assert max(inner.pushed) == 4


def test_it_opens_while_clients_are_fast(bench: Workbench) -> None:
    inner = _Counted(bench)
    assert len(call_roll(WindowedGrid(inner, 2, threading.Event(), poll_s=0), CLIENTS)) == CLIENTS
    assert inner.pushed == [2, 4, 8, 16, 10]


def test_rounds_are_the_same_through_it(ground: Ground) -> None:
    bench = build(ground.config("policy.name=random"))
    plain, _ = play(bench, BatchedGrid(bench))
    windowed, records = play(bench, WindowedGrid(BatchedGrid(bench), 1, threading.Event(), poll_s=0))  # type: ignore[arg-type]
    assert all(len(record.done()) == 4 for record in records)
    assert max(float((plain[name] - windowed[name]).abs().max()) for name in plain) < 1e-6


def test_it_waits_no_longer_than_asked(bench: Workbench) -> None:
    inner = _Silent(bench)
    started = time.monotonic()
    assert list(WindowedGrid(inner, 4, threading.Event()).send_and_receive(_questions(inner), timeout=0.3)) == []
    assert 0.3 <= time.monotonic() - started < 5
    assert inner.pushed == [4]


def test_an_engine_that_ended_is_not_waited_for(bench: Workbench) -> None:
    inner, stopped = _Silent(bench), threading.Event()
    threading.Timer(0.2, stopped.set).start()
    with pytest.raises(FedLoRAError, match=r"^the run was stopped$"):
        WindowedGrid(inner, 4, stopped).send_and_receive(_questions(inner))


def test_a_dead_process_of_rays_ends_the_run(bench: Workbench) -> None:
    inner = _Failing(bench)
    grid = WindowedGrid(inner, 4, threading.Event())
    inner.reason = "<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly before finishing this task.\n...'>"
    with pytest.raises(
        TrainingError, match=r"^a process of Ray's that trains clients died \(ActorDiedError\), .* with --resume$"
    ):
        grid.send_and_receive(_questions(inner))


def test_a_client_that_fails_does_not(bench: Workbench) -> None:
    inner = _Failing(bench)
    inner.reason = "<class 'flwr.clientapp.client_app.ClientAppException'>:<'no such file\nActorDiedError'>"
    assert len(list(WindowedGrid(inner, 4, threading.Event()).send_and_receive(_questions(inner)))) == CLIENTS
