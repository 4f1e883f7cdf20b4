"""Carry an encoded message in a Flower ArrayRecord.

One message is one packed array: Flower moves each array of a record as objects of its own, over requests of its own, so that
a record of 49 tensors costs seconds where one of a single array costs a fraction.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord

from fedlora.errors import PayloadError

_KEY = "payload"
_STYPE = "fedlora.packed"


def to_record(data: bytes) -> ArrayRecord:
    """Wrap an encoded message."""
    record = ArrayRecord()
    record[_KEY] = Array(dtype="uint8", shape=(len(data),), stype=_STYPE, data=data)
    return record


def from_record(record: ArrayRecord) -> bytes:
    """Return the encoded message of a record.

    Raises:
        PayloadError: The record is not one packed message.
    """
    if list(record.keys()) != [_KEY] or record[_KEY].stype != _STYPE:
        raise PayloadError("schema", f"the record holds {list(record.keys())[:3]}, expected one packed array '{_KEY}'")
    return record[_KEY].data


def record_size(record: ArrayRecord) -> int:
    """Return the bytes on the air of a record: the length of the encoded message (Flower's own framing is not counted)."""
    return len(from_record(record))
