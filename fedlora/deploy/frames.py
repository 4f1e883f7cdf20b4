"""Frames between a node's processes: one JSON header and one block of bytes, both bounded before memory is taken.

Layout (little-endian): magic "FLF1" | header bytes u32 | payload bytes u64 | header, a JSON object | payload. Nothing in a frame
is ever executed or unpickled, so that whoever reaches the socket can at most be misunderstood.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedlora.errors import PayloadError

MOST_HEADER = 2**20
"""Longest header, bytes: settings, ranks and metrics are a few thousand."""

_MAGIC = b"FLF1"
_LEAD = struct.Struct("<4sIQ")
_PIECE = 2**20


@dataclass(frozen=True)
class Frame:
    """One message between processes: a JSON object and bytes."""

    header: dict[str, Any]
    payload: bytes = b""


def send(connection: socket.socket, header: dict[str, Any], payload: bytes = b"") -> None:
    """Send one frame (OSError where the other side is gone)."""
    text = json.dumps(header).encode()
    if len(text) > MOST_HEADER:
        raise PayloadError("oversized", f"a header of {len(text)} bytes is more than the {MOST_HEADER} allowed")
    connection.sendall(_LEAD.pack(_MAGIC, len(text), len(payload)) + text)
    if payload:  # without one, the other side may have answered and gone by now
        connection.sendall(payload)


def receive(connection: socket.socket, most_payload: int | Callable[[dict[str, Any]], int]) -> Frame:
    """Return the next frame.

    Args:
        connection: A connected stream socket.
        most_payload: Largest payload to accept, bytes; or what tells it from the header.

    Raises:
        PayloadError: With reason "truncated" (the other side closed before the end), "oversized" or "schema".
        OSError: The connection broke, or its timeout passed.
    """
    magic, header_bytes, payload_bytes = _LEAD.unpack(_exactly(connection, _LEAD.size))
    if magic != _MAGIC:
        raise PayloadError("schema", f"the frame starts with {magic!r}, not with {_MAGIC!r}")
    if header_bytes > MOST_HEADER:
        raise PayloadError(
            "oversized", f"the frame announces a header of {header_bytes} bytes; at most {MOST_HEADER} are accepted"
        )
    try:
        header = json.loads(_exactly(connection, header_bytes))
    except (ValueError, RecursionError):
        raise PayloadError("schema", "the frame's header is not JSON") from None
    if not isinstance(header, dict):
        raise PayloadError("schema", f"the frame's header is a {type(header).__name__}, expected an object")
    most = most_payload if isinstance(most_payload, int) else most_payload(header)
    if payload_bytes > most:
        raise PayloadError("oversized", f"the frame announces {payload_bytes} bytes; at most {most} are accepted")
    return Frame(header, _exactly(connection, payload_bytes))


def _exactly(connection: socket.socket, count: int) -> bytes:
    """Return `count` bytes; memory grows with what came, not with what was announced."""
    found = bytearray()
    while len(found) < count:
        piece = connection.recv(min(_PIECE, count - len(found)))
        if not piece:
            raise PayloadError("truncated", f"the connection ended after {len(found)} of {count} bytes")
        found += piece
    return bytes(found)
