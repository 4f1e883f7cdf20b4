"""Frames between a node's processes: what goes in comes out, and what is malformed is refused before memory is taken."""

from __future__ import annotations

import socket
import struct
import threading
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora.deploy.frames import MOST_HEADER, Frame, receive, send
from fedlora.errors import PayloadError

_LEAD = struct.Struct("<4sIQ")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of one connection; nothing may wait for ever."""
    left, right = socket.socketpair()
    left.settimeout(10)
    right.settimeout(10)
    with left, right:
        yield left, right


def _raw(data: bytes, most: int = 10_000) -> Frame:
    """Receive what arrives as these bytes, after which the sender closes."""
    left, right = socket.socketpair()
    with left, right:
        right.settimeout(10)
        writer = threading.Thread(target=lambda: (left.sendall(data), left.shutdown(socket.SHUT_WR)))
        writer.start()
        try:
            return receive(right, most)
        finally:
            right.close()
            writer.join()


def _frame(header: bytes, payload: bytes = b"") -> bytes:
    return _LEAD.pack(b"FLF1", len(header), len(payload)) + header + payload


@given(
    header=st.dictionaries(st.text(max_size=8), st.recursive(st.integers() | st.text() | st.booleans(), st.lists, max_leaves=5)),
    payload=st.binary(max_size=300),
)
def test_what_goes_in_comes_out(header: dict[str, object], payload: bytes) -> None:
    left, right = socket.socketpair()
    with left, right:
        send(left, header, payload)
        assert receive(right, 300) == Frame(header, payload)


def test_several_frames_follow_each_other(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    for number in range(3):
        send(left, {"n": number}, bytes([number]) * number)
    assert [receive(right, 10) for _ in range(3)] == [Frame({"n": n}, bytes([n]) * n) for n in range(3)]


def test_a_payload_of_the_largest_size_passes_and_one_byte_more_does_not(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    send(left, {}, b"x" * 1000)
    assert len(receive(right, 1000).payload) == 1000
    send(left, {}, b"x" * 1001)
    with pytest.raises(PayloadError, match=r"^oversized: the frame announces 1001 bytes; at most 1000 are accepted$"):
        receive(right, 1000)


def test_the_limit_may_be_told_by_the_header(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    send(left, {"most": 5}, b"123456")
    with pytest.raises(PayloadError, match="6 bytes; at most 5"):
        receive(right, lambda header: int(header["most"]))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (_LEAD.pack(b"FLF1", 2, 0), "truncated"),
        (_LEAD.pack(b"FLF1", 2, 9) + b"{}1234", "truncated"),
        (_LEAD.pack(b"\x80\x04\x95.", 2, 0) + b"{}", "schema"),
        (_frame(b"[1]"), "schema"),
        (_frame(b"\xff\xfe"), "schema"),
        (_frame(b"{'a': 1}"), "schema"),
        (_frame(b"[" * 200_000), "schema"),
        (_LEAD.pack(b"FLF1", MOST_HEADER + 1, 0) + b"{}", "oversized"),
        (_LEAD.pack(b"FLF1", 2, 2**63) + b"{}", "oversized"),
    ],
    ids=["nothing", "no-header", "part", "magic", "list", "not-utf8", "not-json", "deep", "long-header", "long-payload"],
)
def test_malformed_frames_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(PayloadError) as error:
        _raw(data)
    assert error.value.reason == reason


@pytest.mark.parametrize("lead", [(MOST_HEADER + 1, 0), (2, 2**40), (2, 4_000_000_000)], ids=["header", "payload", "within"])
def test_announced_sizes_take_no_memory(lead: tuple[int, int]) -> None:
    """Memory grows with what came, not with what was announced, even where the announcement is within the limit."""
    data = _LEAD.pack(b"FLF1", *lead) + b"{}"
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError):
            _raw(data, most=4_000_000_000)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def test_a_header_that_is_too_long_is_not_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(PayloadError, match="oversized"):
        send(pair[0], {"text": "x" * MOST_HEADER})
