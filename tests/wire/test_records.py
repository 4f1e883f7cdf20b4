"""A message rides in a Flower record unchanged, and nothing else passes for one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedlora.errors import PayloadError
from fedlora.wire import decode, encode, from_record, record_size, to_record


def test_a_message_comes_back_as_it_went_in() -> None:
    data = encode({"x": torch.randn(3, 4)}, "bf16", tag=1)
    record = to_record(data)
    assert from_record(record) == data and record_size(record) == len(data)
    assert decode(from_record(record), "bf16", tag=1)["x"].shape == (3, 4)


def test_flowers_own_framing_leaves_it_as_it_is() -> None:
    """Through the serialisation that every engine but the batched one uses."""
    from flwr.app import RecordDict
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

    data = encode({"x": torch.randn(3, 4)}, "int8", tag=1)
    back = recorddict_from_proto(recorddict_to_proto(RecordDict({"arrays": to_record(data)})))
    assert from_record(back.array_records["arrays"]) == data


def test_other_records_are_refused() -> None:
    packed = to_record(b"data")["payload"]
    records = {
        "empty": ArrayRecord(),
        "model": ArrayRecord({"weight": torch.zeros(2)}),
        "plain array": ArrayRecord(),
        "two": ArrayRecord(),
        "renamed": ArrayRecord(),
    }
    records["plain array"]["payload"] = Array(np.zeros(3))
    records["two"]["payload"], records["two"]["more"] = packed, packed
    records["renamed"]["message"] = packed
    for name, record in records.items():
        with pytest.raises(PayloadError, match="expected one packed array 'payload'") as caught:
            from_record(record)
        assert caught.value.reason == "schema", name
        with pytest.raises(PayloadError):
            record_size(record)
