"""Who takes part: nodes that say impossible things, nodes that come late, and nobody at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict

from fedlora.errors import FedLoRAError
from fedlora.federation.roll import Latecomers, Roster, call_roll
from grids import BareGrid


class _Nodes(BareGrid):
    """Nodes that answer at once, by what they say of themselves; an Error is sent as one, None is silence."""

    def __init__(self, says: dict[int, Any]) -> None:
        self.says, self.online = says, sorted(says)
        self.asked: list[int] = []
        self._waiting: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        return list(self.online)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            names.append(f"message {len(self.asked)}")
            message.metadata.__dict__["_message_id"] = names[-1]
            self.asked.append(message.metadata.dst_node_id)
            self._waiting[names[-1]] = message
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = []
        for name in message_ids:
            said = self.says[self._waiting[name].metadata.dst_node_id] if name in self._waiting else None
            if said is not None:
                message = self._waiting.pop(name)
                content = said if isinstance(said, Error) else RecordDict({"metrics": MetricRecord(said)})
                found.append(Message(content, reply_to=message))
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))


@pytest.fixture(autouse=True)
def _in_a_run() -> None:
    """Messages are made inside a run."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def _is(client: int, examples: int = 10) -> dict[str, Any]:
    return {"client": client, "num-examples": examples}


def _late(grid: _Nodes, roster: Roster, clients: int = 3) -> tuple[Latecomers, list[str]]:
    said: list[str] = []
    return Latecomers(grid, roster, clients, [], said.append), said


@pytest.mark.parametrize(
    "said",
    [_is(3), _is(-1), {"client": 0.5, "num-examples": 3}, {"client": 1}, {"num-examples": 3}, _is(1, -4), _is(1, 0), Error(1)],
)
def test_a_node_that_cannot_be_is_left_out(said: Any) -> None:
    assert call_roll(_Nodes({7: said, 8: _is(2, 5)}), 3, timeout=0.1) == {2: (8, 5)}


def test_why_nobody_takes_part() -> None:
    with pytest.raises(
        FedLoRAError, match=r"no client takes part: no node came online within 0\.1 s\. Start nodes with .*doctor --edge"
    ):
        call_roll(_Nodes({}), 2, timeout=0.1)
    with pytest.raises(
        FedLoRAError, match=r"of 1 nodes that are online none answered within 0\.1 s.*start_timeout_s.*trainer\.log"
    ):
        call_roll(_Nodes({5: None}), 2, timeout=0.1)
    with pytest.raises(FedLoRAError, match=r"no client takes part: the disk is gone$"):
        call_roll(_Nodes({5: Error(1, "the disk is gone")}), 2, timeout=0.1)


def test_a_node_without_examples_is_told_why_it_cannot_take_part() -> None:
    with pytest.raises(FedLoRAError, match=r"client 1 says that it has 0 examples; to take part it needs at least 1$"):
        call_roll(_Nodes({5: _is(1, 0)}), 2, timeout=0.1)


def test_a_node_that_comes_late_is_asked_once_and_taken_in() -> None:
    grid = _Nodes({1: _is(0)})
    roster = call_roll(grid, 1)
    late, said = _late(grid, roster)
    assert late.look() == [] and grid.asked == [1]
    grid.says[2], grid.online = None, [1, 2]
    assert late.look() == [] and late.look() == [] and grid.asked == [1, 2]  # it loads its model
    grid.says[2] = _is(2, 33) | {"text-entropy": 0.5, "text-surprisal": 2.0, "text-split": 0.25}
    assert late.look() == [2] and late.look() == []
    assert roster == {0: (1, 10), 2: (2, 33)} and roster.text == {2: (0.5, 1.0, 0.25)} and grid.asked == [1, 2] and said == []


def test_a_number_is_taken_over_only_from_a_node_that_is_gone() -> None:
    grid = _Nodes({1: _is(0), 2: _is(1)})
    roster = call_roll(grid, 2)
    late, said = _late(grid, roster)
    grid.says[3], grid.online = _is(1, 44), [1, 2, 3]
    assert [late.look(), late.look(), late.look()] == [[], [], []]
    assert roster[1] == (2, 10) and grid.asked == [1, 2, 3]
    assert said == ["node 3 cannot take part: it says that it is client 1, and so does another node that is online"]
    grid.online = [1]
    late.look()
    grid.online = [1, 3]
    assert [late.look(), late.look()] == [[], [1]] and roster[1] == (3, 44)


def test_a_late_node_that_says_nonsense_stays_out_and_one_that_left_again_is_asked_anew() -> None:
    grid = _Nodes({1: _is(0)})
    roster = call_roll(grid, 1)
    late, said = _late(grid, roster)
    grid.says |= {2: _is(9), 3: Error(1, "Traceback\n  RuntimeError: broken\n"), 4: _is(1)}
    grid.online = [1, 2, 3, 4]
    late.look()
    grid.online = [1, 2, 3]
    assert late.look() == []
    assert said == [
        "node 2 cannot take part: a node says that it is client 9; there are 3, counted from 0",
        "node 3 cannot take part: RuntimeError: broken",
    ]
    grid.online = [1, 2, 3, 4]
    assert [late.look(), late.look()] == [[], [1]] and grid.asked == [1, 2, 3, 4, 4]
