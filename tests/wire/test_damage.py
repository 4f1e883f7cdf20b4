"""Whatever is wrong with a message, it is refused with the right reason, before its contents cost memory."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedlora.errors import PayloadError
from fedlora.wire import TensorSpec, decode, encode, tag_of

REASONS = {"truncated", "checksum", "schema", "shape", "stale", "non-finite"}
SPEC = {"0/H": TensorSpec((2, 3)), "0/heads": TensorSpec((2,), index=True)}


def message(tag: int = 5) -> bytes:
    return encode({"0/H": torch.arange(6.0).view(2, 3), "0/heads": torch.tensor([3, 1])}, "fp32", tag)


def reason_of(data: bytes, spec: dict[str, TensorSpec] | None = SPEC, tag: int | None = 5, dtype: str = "fp32") -> str:
    with pytest.raises(PayloadError) as caught:
        decode(data, dtype, expect=spec, tag=tag)  # type: ignore[arg-type]
    assert str(caught.value) == f"{caught.value.reason}: {caught.value.detail}"
    return caught.value.reason


def sealed(head: bytes) -> bytes:
    """Return a message with a checksum that fits, as somebody who means harm would send it."""
    return head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head))


def forged(entries: list[tuple[str, int, tuple[int, ...]]], body: bytes, announced: int | None = None) -> bytes:
    schema = b""
    for key, code, shape in entries:
        name = key.encode()
        schema += struct.pack(f"<B{len(name)}sBB{len(shape)}I", len(name), name, code, len(shape), *shape)
    size = len(body) if announced is None else announced
    return sealed(b"FLR1" + struct.pack("<IHIQ", 5, len(entries), len(schema), size) + schema + body)


def test_the_undamaged_message_is_accepted() -> None:
    assert torch.equal(decode(message(), "fp32", SPEC, 5)["0/H"], torch.arange(6.0).view(2, 3))
    assert decode(forged([("0/H", 1, (2, 3))], bytes(24)), "fp32", {"0/H": TensorSpec((2, 3))}, 5).keys() == {"0/H"}


def test_every_flipped_bit_is_noticed() -> None:
    good = message()
    found = set()
    for position in range(len(good)):
        for bit in range(8):
            damaged = bytearray(good)
            damaged[position] ^= 1 << bit
            found.add(reason_of(bytes(damaged)))
    assert found == {"truncated", "checksum", "schema"}


def test_every_truncation_is_noticed_and_so_is_what_trails() -> None:
    good = message()
    assert {reason_of(good[:length]) for length in range(len(good))} == {"truncated"}
    assert reason_of(good + b"\0") == "truncated"
    assert reason_of(good + good) == "truncated"


def test_a_tensor_missing_extra_or_renamed() -> None:
    tensors = {"0/H": torch.zeros(2, 3), "0/heads": torch.tensor([3, 1])}
    assert reason_of(encode({"0/H": tensors["0/H"]}, "fp32", 5)) == "schema"
    assert reason_of(encode({**tensors, "1/H": tensors["0/H"]}, "fp32", 5)) == "schema"
    assert reason_of(encode({"0/h": tensors["0/H"], "0/heads": tensors["0/heads"]}, "fp32", 5)) == "schema"
    assert reason_of(encode({}, "fp32", 5)) == "schema"


@pytest.mark.parametrize("shape", [(3, 2), (2, 4), (6,), (2, 3, 1), (1, 3), ()])
def test_a_tensor_of_another_shape(shape: tuple[int, ...]) -> None:
    assert reason_of(encode({"0/H": torch.zeros(shape), "0/heads": torch.tensor([3, 1])}, "fp32", 5)) == "shape"


def test_numbers_for_indices_and_indices_for_numbers() -> None:
    assert reason_of(encode({"0/H": torch.zeros(2, 3), "0/heads": torch.zeros(2)}, "fp32", 5)) == "schema"
    assert (
        reason_of(encode({"0/H": torch.zeros(2, 3, dtype=torch.int64), "0/heads": torch.tensor([3, 1])}, "fp32", 5)) == "schema"
    )


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "int8"])
def test_another_number_format_than_agreed_on(dtype: str) -> None:
    assert reason_of(message(), dtype=dtype) == "schema"
    assert reason_of(encode({"0/H": torch.zeros(2, 3)}, dtype, 5)) == "schema"  # type: ignore[arg-type]


def test_a_message_of_another_round_is_stale() -> None:
    assert reason_of(message(4)) == reason_of(message(6)) == "stale"
    assert tag_of(message(4)) == 4
    assert decode(message(4), "fp32", SPEC).keys() == SPEC.keys()


def test_a_stale_message_is_told_from_a_damaged_one() -> None:
    damaged = bytearray(message())
    damaged[4] ^= 1  # the tag itself
    assert reason_of(bytes(damaged)) == "checksum"


@pytest.mark.parametrize(
    ("shape", "announced"),
    [((2**30, 2**30), 2**62), ((2**30, 2**28), 2**60), ((2**31, 2**31, 4), 2**60), ((2**20,), 2**22)],
)
def test_a_header_that_announces_too_much_takes_no_memory(shape: tuple[int, ...], announced: int) -> None:
    data = forged([("0/H", 1, shape)], bytes(24), announced)
    tracemalloc.start()
    assert reason_of(data) == "truncated"
    assert reason_of(forged([("0/H", 1, shape)], bytes(24))) == "schema"
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(0, *[2**32 - 1] * 3), (*[2**32 - 1] * 3, 0), (1,) * 65, (0,) * 255], ids=len)
def test_sizes_that_add_up_but_no_array_can_have(code: int, shape: tuple[int, ...]) -> None:
    """The sizes of an empty tensor, or its number of dimensions, are not bounded by the length of the message."""
    dtype = {1: "fp32", 2: "fp16", 3: "bf16", 4: "int8", 5: "fp32"}[code]
    body = b"" if 0 in shape else bytes({1: 4, 2: 2, 3: 2, 4: 5, 5: 2}[code])
    assert reason_of(forged([("x", code, shape)], body), spec=None, dtype=dtype) == "schema"


def test_a_schema_that_contradicts_itself() -> None:
    body = bytes(24)
    assert reason_of(forged([("0/H", 1, (2, 3)), ("0/H", 1, (2, 3))], body), spec=None) == "schema"  # named twice
    assert reason_of(forged([("0/H", 77, (2, 3))], body)) == "schema"  # no such format
    assert reason_of(forged([("0/H", 1, (2, 2))], body)) == "schema"  # does not fill the body
    good = bytearray(forged([("0/H", 1, (2, 3))], body)[:-8])
    good[8] = 2  # two entries announced, one there
    assert reason_of(sealed(bytes(good))) == "schema"
    good[8], good[22] = 1, 250  # a key longer than the schema
    assert reason_of(sealed(bytes(good))) == "schema"
    good[22], good[23] = 3, 0xFF  # not UTF-8
    assert reason_of(sealed(bytes(good))) == "schema"
    assert reason_of(sealed(b"FLR2" + bytes(forged([], b"")[4:-8]))) == "schema"


@given(noise=st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    assert reason_of(noise) in REASONS
    assert reason_of(sealed(b"FLR1" + noise)) in REASONS


@given(entries=st.integers(0, 3), schema=st.binary(max_size=40), body=st.binary(max_size=40))
def test_noise_behind_a_sound_header_is_refused_or_harmless(entries: int, schema: bytes, body: bytes) -> None:
    data = sealed(b"FLR1" + struct.pack("<IHIQ", 5, entries, len(schema), len(body)) + schema + body)
    try:
        tensors: dict[str, Tensor] = decode(data, "fp32", tag=5)
    except PayloadError as error:
        assert error.reason in REASONS
    else:  # what passes is finite and adds up
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
        assert len(tensors) == entries
