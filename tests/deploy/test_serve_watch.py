"""What a server app tells of a round, and what `fedlora serve` shows of it: who is missing, and whom the round waits for."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from flwr.app import Error, Message, MessageType, RecordDict
from rich.console import Console

from fedlora.config import RunConfig
from fedlora.deploy.flower_private import message_for
from fedlora.deploy.server_app import Telling
from fedlora.deploy.status import Status, StatusFile
from fedlora.deploy.watch import LiveWatcher

NAMES = {10 + number: f"node-{number}" for number in range(8)}


def _shown(status: Status) -> str:
    out = io.StringIO()
    console = Console(file=out, width=120)
    watcher = LiveWatcher(console)
    watcher.begin(RunConfig(rounds=9, clients=8), NAMES, "host:1")
    watcher.status(status)
    console.print(watcher.live.get_renderable())
    watcher.end()
    return out.getvalue()


def _status(**changes: object) -> Status:
    return Status(**{"phase": "running", "round": 3, "nodes": list(NAMES), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "waiting", "shown"),
    [
        (0, [], "3 of 9\n"),
        (3, [10, 11, 12], "3 of 9, 0 of 3 replies\n"),
        (3, [11], "3 of 9, 2 of 3 replies, waiting for node-1\n"),
        (8, [*range(11, 18)], "3 of 9, 1 of 8 replies, waiting for node-1, node-2, node-3, node-4, node-5 ...\n"),
        (2, [99], "3 of 9, 1 of 2 replies, waiting for node 99\n"),
    ],
)
def test_whom_the_round_waits_for_is_named(asked: int, waiting: list[int], shown: str) -> None:
    text = _shown(_status(asked=asked, replies=asked - len(waiting), waiting=waiting))
    assert shown in "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def test_who_is_missing_is_named() -> None:
    assert "7 of 8 online, missing: node-2" in _shown(_status(nodes=[node for node in NAMES if node != 12]))


def test_a_server_app_tells_whose_reply_is_there(tmp_path: Path) -> None:
    file = StatusFile(tmp_path / "status.json")
    file.create()
    telling = Telling(file.path)
    sent = [message_for(RecordDict({}), MessageType.TRAIN, 1, node, "1") for node in (10, 11, 12)]
    telling.asked([10, 11, 12])
    telling.replied(Message(RecordDict({}), reply_to=sent[1]))
    told = file.read()
    assert told and (told.asked, told.replies, told.waiting) == (3, 1, [10, 12])
    telling.replied(Message(Error(1, "out of memory"), reply_to=sent[0]))
    told = file.read()
    assert told and (told.replies, told.waiting, told.last_error) == (2, [12], "node 10: out of memory")


def test_thousands_of_nodes_fit_into_the_status(tmp_path: Path) -> None:
    file = StatusFile(tmp_path / "status.json")
    file.create()
    nodes = [2**64 - 1 - node for node in range(5000)]
    file.write(_status(nodes=nodes, asked=5000, waiting=nodes, said=["a" * 80] * 30, last_error="x" * 5000, error="y" * 5000))
    told = file.read()
    assert told and told.asked == 5000 and told.nodes == nodes[:300] and told.waiting == nodes[:100] and told.error == "y" * 1000
