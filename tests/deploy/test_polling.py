"""PollingGrid: order, deadlines, late and foreign replies, broken connections, and replies that are too large."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

import httpx
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode

from fedlora.config import DeploymentConfig
from fedlora.deploy.flower_private import message_for
from fedlora.deploy.polling import PollingGrid
from fedlora.errors import FedLoRAError
from fedlora.federation.client import CLIENT_FAILED
from grids import BareGrid

_QUICK = DeploymentConfig(poll_s=0.01, round_timeout_s=0.3, max_payload_mb=0.001)


class _Link(BareGrid):
    """A SuperLink as its grid shows it: replies become ready at given times, and calls may break.

    Args:
        ready: Seconds after sending at which each message's reply is there; None: never.
        breaks: How many of the next calls break.
        size: Bytes of each reply's array.
    """

    def __init__(self, ready: list[float | None], breaks: int = 0, size: int = 10) -> None:
        self.ready, self.breaks, self.size = ready, breaks, size
        self.sent: dict[str, tuple[Message, float]] = {}
        self.error: Error | None = None
        self.online: list[int] | None = None
        self.trouble = 0
        self.given: set[str] = set()
        self.never_whole, self.held = "", threading.Event()

    def _maybe_break(self) -> None:
        if self.breaks:
            self.breaks -= 1
            if self.trouble:
                response = httpx.Response(self.trouble, request=httpx.Request("POST", "https://link"))
                raise httpx.HTTPStatusError("trouble", request=response.request, response=response)
            raise httpx.ReadError("[SSL] the other side is gone")

    def get_node_ids(self) -> Iterable[int]:
        self._maybe_break()
        return self.online if self.online is not None else range(len(self.ready), 0, -1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._maybe_break()
        for place, message in enumerate(messages):
            if message.metadata.message_id == "":  # Flower makes it of what the message says: a second push has the same
                message.metadata.__dict__["_message_id"] = f"message {len(self.sent)}"
            name = message.metadata.message_id
            wait = self.ready[place]
            self.sent.setdefault(name, (message, float("inf") if wait is None else time.monotonic() + wait))
        return list(self.sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._maybe_break()
        due = [name for name in message_ids if self.sent[name][1] <= time.monotonic() and name not in self.given]
        # Flower forgets a message whose reply it has given out whole.
        gone = [name for name in message_ids if name in self.given and name != self.never_whole]
        self.given |= set(due)
        if self.never_whole in due:
            self.held.wait(30)
        lost = [Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "not found"), reply_to=self.sent[name][0]) for name in gone]
        return lost + [self._reply(self.sent[name][0]) for name in sorted(due, reverse=True)]

    def _reply(self, message: Message) -> Message:
        if self.error:
            return Message(self.error, reply_to=message)
        array = Array(dtype="uint8", shape=(self.size,), stype="numpy.ndarray", data=bytes(self.size))
        return Message(RecordDict({"arrays": ArrayRecord({"packed": array})}), reply_to=message)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise AssertionError("the point is not to use this one")


def _messages(count: int) -> list[Message]:
    return [message_for(RecordDict({}), MessageType.TRAIN, 1, node + 1, "1") for node in range(count)]


def _nodes(replies: Iterable[Message]) -> list[int]:
    return [reply.metadata.src_node_id for reply in replies]


def test_replies_come_in_the_order_of_their_messages() -> None:
    link = _Link([0.1, 0.0, 0.05])
    assert _nodes(PollingGrid(link, _QUICK).send_and_receive(_messages(3))) == [1, 2, 3]


def test_the_round_ends_with_the_last_reply() -> None:
    began = time.monotonic()
    PollingGrid(_Link([0.0, 0.05]), _QUICK.model_copy(update={"round_timeout_s": 60.0})).send_and_receive(_messages(2))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("timeout", [None, 3600.0, 0.2])
def test_the_round_ends_by_its_deadline_without_those_who_are_missing(timeout: float | None) -> None:
    began = time.monotonic()
    replies = PollingGrid(_Link([None, 0.0, 30.0]), _QUICK).send_and_receive(_messages(3), timeout=timeout)
    assert _nodes(replies) == [2]
    assert min(timeout or 0.3, 0.3) - 0.05 < time.monotonic() - began < 5


def test_a_reply_that_does_not_come_whole_holds_nobody_up() -> None:
    """Message 0 is announced first; its pull is stuck until long after the deadline."""
    link = _Link([0.0, 1.5, 2.0])
    link.never_whole = "message 0"
    began = time.monotonic()
    replies = PollingGrid(link, _QUICK.model_copy(update={"round_timeout_s": 4.0})).send_and_receive(_messages(3))
    assert _nodes(replies) == [2, 3] and 3.9 < time.monotonic() - began < 10
    link.held.set()


def test_what_another_pull_has_in_its_hands_is_not_lost() -> None:
    """Message 1 is pulled together with message 0, which takes three seconds; meanwhile others are told that it is not there."""
    link = _Link([0.0, 0.0, 0.0])
    link.never_whole = "message 0"
    threading.Timer(3.0, link.held.set).start()
    replies = list(PollingGrid(link, _QUICK.model_copy(update={"round_timeout_s": 60.0})).send_and_receive(_messages(3)))
    assert _nodes(replies) == [1, 2, 3] and not any(reply.has_error() for reply in replies)


def test_a_message_that_the_superlink_does_not_know_is_an_error() -> None:
    link = _Link([None])
    link.given = {"message 0"}
    (reply,) = PollingGrid(link, _QUICK).send_and_receive(_messages(1))
    assert reply.error.reason == "not found"


def test_a_reply_that_comes_after_the_deadline_is_in_no_later_round() -> None:
    link = _Link([None])
    grid = PollingGrid(link, _QUICK)
    first, second = _messages(1), _messages(1)
    assert list(grid.send_and_receive(first)) == []
    link.sent["message 0"] = (first[0], 0.0)  # it is there now
    link.ready = [0.0]
    replies = list(grid.send_and_receive(second))
    assert [reply.metadata.reply_to_message_id for reply in replies] == ["message 1"]


@pytest.mark.parametrize("later", [["two", "two"], ["one", "two"]], ids=["new-superlink", "new-node"])
def test_a_new_life_is_sent_what_the_old_one_lost(later: list[str]) -> None:
    """Message 1 is lost with the first life; its copy is answered, and stands in its place."""
    lives = iter([["one", "one"], ["one", "one"]])
    link = _Link([0.0, None])
    settings = _QUICK.model_copy(update={"round_timeout_s": 60.0})
    sent = _messages(2)
    grid = PollingGrid(link, settings, lives=lambda nodes: next(lives, later), send_again_s=0.05)
    pushed: list[list[Message]] = []
    push = link.push_messages

    def watched(messages: Iterable[Message]) -> Iterable[str]:
        pushed.append(list(messages))
        found = push(pushed[-1])
        link.ready = [0.0]
        return found

    link.push_messages = watched  # type: ignore[method-assign]
    replies = list(grid.send_and_receive(sent))
    assert _nodes(replies) == [1, 2]
    assert [len(batch) for batch in pushed] == [2, 1] and pushed[1][0] is not sent[1]
    assert pushed[1][0].content is sent[1].content
    assert pushed[1][0].metadata.group_id == sent[1].metadata.group_id


def test_a_node_that_stays_away_is_not_waited_for_and_one_that_is_soon_back_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither says that it goes: Flower knows of the replies that they had begun to send."""
    monkeypatch.setattr("fedlora.deploy.polling._LOOK_AT_NODES_S", 0.2)
    link = _Link([None, 2.0])
    looks = iter([[1, 2], [1, 2], [1], [1, 2]])
    link.get_node_ids = lambda: next(looks, [2])  # type: ignore[method-assign]
    began = time.monotonic()
    replies = list(PollingGrid(link, _QUICK.model_copy(update={"round_timeout_s": 60.0})).send_and_receive(_messages(2)))
    assert _nodes(replies) == [1, 2] and time.monotonic() - began < 10
    assert replies[0].error.reason == "the node is offline" and replies[1].has_content()


@pytest.mark.parametrize("breaks", [1, 2, 3])
def test_connections_that_break_are_waited_out(breaks: int) -> None:
    settings = _QUICK.model_copy(update={"round_timeout_s": 60.0})
    link = _Link([0.0, 0.0], breaks)
    assert _nodes(PollingGrid(link, settings).send_and_receive(_messages(2))) == [1, 2]
    link.breaks = breaks
    assert list(PollingGrid(link, settings).get_node_ids()) == [1, 2]


@pytest.mark.parametrize("breaks", [1, 2, 3])
def test_a_superlink_in_trouble_of_its_own_is_waited_out(breaks: int) -> None:
    settings = _QUICK.model_copy(update={"round_timeout_s": 60.0})
    link = _Link([0.0, 0.0], breaks)
    link.trouble = 500
    assert _nodes(PollingGrid(link, settings).send_and_receive(_messages(2))) == [1, 2]


def test_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlora.deploy.polling._TROUBLE_S", 1.0)
    link = _Link([0.0], 1000)
    link.trouble = 503
    with pytest.raises(FedLoRAError, match=r"answered with errors \(503\) for 1 s.*superlink\.log.*is that disk full\?"):
        PollingGrid(link, _QUICK).get_node_ids()


def test_what_is_refused_is_not_tried_again() -> None:
    link = _Link([0.0], 1000)
    link.trouble = 403
    with pytest.raises(httpx.HTTPStatusError):
        PollingGrid(link, _QUICK).get_node_ids()


def test_a_node_that_is_offline_is_not_sent_anything() -> None:
    link = _Link([0.0, 0.0])
    link.online = [2]
    replies = list(PollingGrid(link, _QUICK).send_and_receive(_messages(2)))
    assert _nodes(replies) == [1, 2] and replies[0].error.reason == "the node is offline" and replies[1].has_content()
    assert [message.metadata.dst_node_id for message, _ in link.sent.values()] == [2]


def test_where_nobody_is_online_the_round_waits_for_one() -> None:
    settings = _QUICK.model_copy(update={"round_timeout_s": 60.0})
    link = _Link([0.0, 0.0])
    link.online = []
    threading.Timer(1.0, lambda: setattr(link, "online", [1])).start()
    began = time.monotonic()
    replies = list(PollingGrid(link, settings).send_and_receive(_messages(2)))
    assert [reply.has_error() for reply in replies] == [False, True] and 1.0 < time.monotonic() - began < 10
    link.online = []
    began = time.monotonic()
    replies = list(PollingGrid(link, _QUICK).send_and_receive(_messages(2)))
    assert [reply.has_error() for reply in replies] == [True, True] and 0.2 < time.monotonic() - began < 5


def test_what_nobody_fetched_by_the_deadline_is_not_delivered_later() -> None:
    link = _Link([None])
    list(PollingGrid(link, _QUICK).send_and_receive(_messages(1)))
    ((message, _),) = link.sent.values()
    assert 0.3 < message.metadata.ttl < 20


def test_who_is_asked_who_he_is_may_take_longer_than_a_round() -> None:
    link = _Link([0.6])
    question = message_for(RecordDict({}), MessageType.QUERY, 1, 1, "roll")
    assert _nodes(PollingGrid(link, _QUICK).send_and_receive([question], timeout=60.0)) == [1]


def test_a_reply_that_is_too_large_is_an_error() -> None:
    (reply,) = PollingGrid(_Link([0.0], size=1001), _QUICK).send_and_receive(_messages(1))
    assert reply.has_error() and reply.error.code == CLIENT_FAILED and reply.metadata.src_node_id == 1
    assert (reply.error.reason or "").startswith("oversized: ")
    (reply,) = PollingGrid(_Link([0.0], size=1000), _QUICK).send_and_receive(_messages(1))
    assert reply.has_content()


def test_errors_pass_as_they_are() -> None:
    link = _Link([0.0])
    link.error = Error(7, "out of memory")
    (reply,) = PollingGrid(link, _QUICK).send_and_receive(_messages(1))
    assert (reply.error.code, reply.error.reason) == (7, "out of memory")


def test_nobody_is_asked() -> None:
    began = time.monotonic()
    assert list(PollingGrid(_Link([]), _QUICK).send_and_receive([])) == []
    assert time.monotonic() - began < 0.2


def test_the_listener_hears_it_all() -> None:
    heard: list[object] = []

    class _Listener:
        def online(self, nodes: list[int]) -> None:
            heard.append(nodes)

        def asked(self, nodes: list[int]) -> None:
            heard.append(f"asked {nodes}")

        def replied(self, reply: Message) -> None:
            heard.append(f"reply of {reply.metadata.src_node_id}")

    grid = PollingGrid(_Link([0.0, 0.0]), _QUICK, _Listener())
    grid.get_node_ids()
    grid.send_and_receive(_messages(2))
    assert heard[:3] == [[1, 2], "asked [1, 2]", [1, 2]] and sorted(map(str, heard[3:])) == ["reply of 1", "reply of 2"]
