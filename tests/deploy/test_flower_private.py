"""What a SuperLink of ours answers to arrays that come twice, over Flower's own store of arrays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest, PushObjectResponse
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.object_store import ObjectStoreFactory

from fedlora.deploy.flower_private import taking_twice

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
