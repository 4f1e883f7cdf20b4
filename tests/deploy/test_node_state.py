"""What a client keeps on its node's disk: by run and round, whole or not at all."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, RecordDict

from fedlora.deploy.node_state import KEPT_ROUNDS, NodeState, only_user
from fedlora.errors import RunFolderError


def _state(text: str) -> RecordDict:
    return RecordDict({"residual": ArrayRecord({"payload": Array("uint8", (len(text),), "fedlora.packed", text.encode())})})


def _text(state: RecordDict) -> str | None:
    return state.array_records["residual"]["payload"].data.decode() if "residual" in state else None


def test_a_round_starts_from_the_newest_state_before_it(tmp_path: Path) -> None:
    states = NodeState(tmp_path)
    assert _text(states.load("run", 0, 1)) is None
    for number in (1, 4):
        states.save("run", 0, number, _state(f"after {number}"))
    again = NodeState(tmp_path)
    assert [_text(again.load("run", 0, number)) for number in (1, 2, 3, 4, 5, 9)] == [
        None, "after 1", "after 1", "after 1", "after 4", "after 4",
    ]  # fmt: skip


def test_runs_and_clients_do_not_see_each_other(tmp_path: Path) -> None:
    states = NodeState(tmp_path)
    states.save("run", 0, 1, _state("mine"))
    assert _text(states.load("run", 1, 2)) is None and _text(states.load("other", 0, 2)) is None


def test_going_back_drops_what_came_later(tmp_path: Path) -> None:
    """A round that is done again begins another future: in it, this client may not take part in the rounds it once did."""
    states = NodeState(tmp_path)
    for number in (1, 2, 3):
        states.save("run", 0, number, _state(f"old {number}"))
    states.save("run", 0, 2, _state("new 2"))
    assert _text(states.load("run", 0, 2)) == "old 1" and _text(states.load("run", 0, 9)) == "new 2"


def test_only_the_newest_are_kept_and_an_earlier_one_is_not_made_up(tmp_path: Path) -> None:
    states = NodeState(tmp_path)
    for number in range(1, KEPT_ROUNDS + 4):
        states.save("run", 0, number, _state(str(number)))
    assert len(list(tmp_path.rglob("*.state"))) == KEPT_ROUNDS
    assert _text(states.load("run", 0, 5)) == "4"
    with pytest.raises(RunFolderError, match=r"no longer holds what this client had before round 3"):
        states.load("run", 0, 3)
    assert _text(states.load("run", 0, 1)) is None


def test_clients_without_state_leave_no_files(tmp_path: Path) -> None:
    NodeState(tmp_path).save("run", 0, 1, RecordDict({}))
    assert list(tmp_path.rglob("*.state")) == []


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_state_is_named_not_used(tmp_path: Path, damage: str) -> None:
    states = NodeState(tmp_path)
    states.save("run", 0, 1, _state("precious"))
    (path,) = tmp_path.rglob("*.state")
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-1], "flip": data[:-1] + bytes([data[-1] ^ 1]), "empty": b""}[damage])
    with pytest.raises(RunFolderError, match=r"round-000001\.state cannot be read: .* delete it"):
        states.load("run", 0, 2)


def test_whatever_a_server_calls_its_run_the_node_stays_in_its_folder(tmp_path: Path) -> None:
    states = NodeState(tmp_path / "node")
    for run in ("../../away", "/etc/run", "a" * 5000, "run\0name"):
        states.save(run, 0, 1, _state("here"))
        states.remember(run, "labels", ["a"])
        assert _text(states.load(run, 0, 2)) == "here" and states.recall(run, "labels") == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["node"]


def _try(folder: Path, found: multiprocessing.Queue[str]) -> None:
    try:
        with only_user(folder):
            found.put("got it")
    except RunFolderError as error:
        found.put(str(error))


def test_a_folder_belongs_to_one_node(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    found: multiprocessing.Queue[str] = context.Queue()
    for expected in ("another node is at work", "got it"):
        with only_user(tmp_path / ("taken" if expected != "got it" else "other")):
            child = context.Process(target=_try, args=(tmp_path / "taken", found))
            child.start()
            assert expected in found.get(timeout=20)
            child.join()
