"""What a SuperLink of ours does otherwise: arrays that come twice, over Flower's own store of them, and nodes that come again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest, PushObjectResponse
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.servicer.fleet import fleet_handlers

from fedlora.deploy.flower_private import taking_twice, tell_activations
from fedlora.deploy.lives import LIVES, SUPERLINK, Lives, lives

CONTENT = ConfigRecord({"a": 1}).deflate()


@pytest.fixture
def state() -> Any:
    """A SuperLink's state, as far as the handler looks at it: a store that knows of one array."""
    store = ObjectStoreFactory().store()
    store.preregister(1, ObjectTree(object_id=get_object_id(CONTENT), children=[]))
    return SimpleNamespace(object_store=store)


def _request(content: bytes = CONTENT) -> PushObjectRequest:
    return PushObjectRequest(run_id=1, object_id=get_object_id(CONTENT), object_content=content)


def _stored() -> PushObjectResponse:
    return PushObjectResponse(stored=True)


def _taken_once(request: PushObjectRequest, state: Any) -> PushObjectResponse:
    """Flower's rule: an array that is not waited for is refused."""
    if state.object_store.get(request.object_id) != b"":
        return PushObjectResponse(stored=False)
    state.object_store.put(request.object_id, request.object_content)
    return _stored()


def test_an_array_that_comes_again_was_stored(state: Any) -> None:
    assert _taken_once(_request(), state).stored
    assert not _taken_once(_request(), state).stored
    assert taking_twice(_taken_once, _stored)(_request(), state).stored


def test_another_content_under_its_name_was_not(state: Any) -> None:
    take = taking_twice(_taken_once, _stored)
    assert take(_request(), state).stored
    assert not take(_request(b"other"), state).stored


def test_what_fails_after_it_was_stored_is_no_failure(state: Any) -> None:
    def stores_and_fails(request: PushObjectRequest, state: Any) -> PushObjectResponse:
        _taken_once(request, state)
        raise OSError("database is locked")

    assert taking_twice(stores_and_fails, _stored)(request=_request(), state=state).stored


def test_what_fails_before_is(state: Any) -> None:
    def fails(request: PushObjectRequest, state: Any) -> PushObjectResponse:
        raise OSError("database is locked")

    with pytest.raises(OSError, match="database is locked"):
        taking_twice(fails, _stored)(_request(), state)
    assert state.object_store.get(_request().object_id) == b""


def test_each_node_that_is_let_in_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Flower's own handler; one that is refused is not."""
    monkeypatch.setattr(fleet_handlers, "activate_node", fleet_handlers.activate_node)  # put back at the end
    told: list[int] = []
    assert tell_activations(told.append) == []
    keys = {b"key": 7}
    state: Any = SimpleNamespace(get_node_id_by_public_key=keys.get, activate_node=lambda node, interval: True)
    request = ActivateNodeRequest(public_key=b"key", heartbeat_interval=30.0)
    assert fleet_handlers.activate_node(request=request, state=state).node_id == 7 and told == [7]
    with pytest.raises(FlowerError):
        fleet_handlers.activate_node(request=ActivateNodeRequest(public_key=b"other", heartbeat_interval=30.0), state=state)
    assert told == [7]


def test_a_life_ends_with_the_node_and_with_the_superlink(tmp_path: Path) -> None:
    (tmp_path / SUPERLINK).write_text("1")
    nodes = [7, 8]
    seen = [lives(tmp_path, nodes)]
    count = Lives(tmp_path / LIVES)
    count.begin(7)
    seen.append(lives(tmp_path, nodes))
    assert seen[1][0] != seen[0][0] and seen[1][1] == seen[0][1]
    Lives(tmp_path / LIVES).begin(8)  # another SuperLink counts on
    seen.append(lives(tmp_path, nodes))
    assert seen[2][0] == seen[1][0] and seen[2][1] != seen[1][1]
    (tmp_path / SUPERLINK).write_text("2")
    assert set(lives(tmp_path, nodes)).isdisjoint(seen[2])


@pytest.mark.parametrize("content", ["", "[]", '{"7": null}', "{"])
def test_a_count_that_cannot_be_read_begins_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / LIVES).write_text(content)
    before = lives(tmp_path, [7])
    Lives(tmp_path / LIVES).begin(7)
    assert lives(tmp_path, [7]) != before


def test_a_count_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    Lives(tmp_path / "gone" / LIVES).begin(7)
    assert lives(tmp_path / "gone", [7]) == [" 0"]
