"""A payload survives the link: exactly or within its format's bound, and in exactly the bytes that were predicted."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedlora.config import WireDtype
from fedlora.errors import PayloadError
from fedlora.wire import TensorSpec, decode, encode, encoded_size, tag_of
from fedlora.wire.formats import FORMATS

DTYPES: tuple[WireDtype, ...] = ("fp32", "bf16", "fp16", "int8")
# Relative rounding error of a normal number: half a unit in the last of 8, 11 significant bits.
_ROUNDING = {"fp32": 0.0, "int8": 0.0, "bf16": 2**-8, "fp16": 2**-11}
_SMALLEST_HALF = 2**-25  # half the smallest fp16 number above zero

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def bound(tensor: Tensor, dtype: str) -> Tensor:
    """Return how far a decoded number may be off, per element."""
    if dtype == "int8" and tensor.numel():  # half a step of the row's scale; the last factor is float32's own rounding
        step = tensor.abs().amax(dim=-1, keepdim=True) / 127 if tensor.dim() else tensor.abs() / 127
        return (0.5 * step * (1 + 1e-4)).expand_as(tensor)
    floor = _SMALLEST_HALF if dtype == "fp16" else 0.0
    return (tensor.abs() * _ROUNDING[dtype]).clamp_min(floor)


def spec_of(tensors: dict[str, Tensor]) -> dict[str, TensorSpec]:
    return {key: TensorSpec(tuple(t.shape), not t.is_floating_point()) for key, t in tensors.items()}


@st.composite
def payloads(draw: st.DrawFn) -> dict[str, Tensor]:
    """Draw a payload: up to five tensors of 0 to 3 dimensions, some of size 0, some of indices, on any scale."""
    keys = draw(st.lists(st.text(max_size=12), max_size=5, unique=True))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    payload: dict[str, Tensor] = {}
    for key in keys:
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        if draw(st.booleans()):
            payload[key] = torch.randint(0, 65536, shape, generator=generator)
        else:
            payload[key] = torch.randn(shape, generator=generator) * draw(st.sampled_from([0.0, 1e-4, 1.0, 1e4]))
    return payload


@every_dtype
@given(payload=payloads(), tag=st.integers(0, 2**32 - 1))
def test_any_payload_arrives_in_the_bytes_predicted(dtype: WireDtype, payload: dict[str, Tensor], tag: int) -> None:
    spec = spec_of(payload)
    data = encode(payload, dtype, tag)
    assert len(data) == encoded_size(spec, dtype)
    assert tag_of(data) == tag
    arrived = decode(data, dtype, expect=spec, tag=tag)
    assert arrived.keys() == payload.keys() and decode(data, dtype).keys() == payload.keys()
    for key, tensor in payload.items():
        assert arrived[key].shape == tensor.shape
        if spec[key].index:
            assert arrived[key].dtype == torch.int64 and torch.equal(arrived[key], tensor)
        else:
            assert arrived[key].dtype == torch.float32
            assert bool(((arrived[key] - tensor).abs() <= bound(tensor, dtype)).all())


@every_dtype
def test_a_second_trip_changes_nothing_more(dtype: WireDtype) -> None:
    tensors = {"x": torch.randn(7, 33)}
    once = decode(encode(tensors, dtype), dtype)
    assert torch.allclose(decode(encode(once, dtype), dtype)["x"], once["x"], rtol=1e-6 if dtype == "int8" else 0, atol=0)
    assert torch.equal(once["x"], tensors["x"]) == (dtype == "fp32")


@every_dtype
def test_messages_are_what_they_were(dtype: WireDtype) -> None:
    """Two encodings of the same payload are the same bytes, wherever its tensors lie in memory."""
    table = torch.randn(6, 8)
    assert encode({"x": table.T}, dtype) == encode({"x": table.T.contiguous()}, dtype)
    assert encode({"x": table[::2]}, dtype) == encode({"x": table[::2].clone()}, dtype)
    assert encode({"x": table.double()}, dtype) == encode({"x": table}, dtype)
    assert encode({"x": table.clone().requires_grad_()}, dtype) == encode({"x": table}, dtype)


def test_the_layout_is_the_one_documented() -> None:
    data = encode({"k": torch.tensor([[1.0, 2.0]]), "i": torch.tensor([7])}, "fp32", tag=9)
    schema = b"\x01k\x01\x02" + struct.pack("<II", 1, 2) + b"\x01i\x05\x01" + struct.pack("<I", 1)
    body = struct.pack("<ff", 1.0, 2.0) + struct.pack("<H", 7)
    header = b"FLR1" + struct.pack("<IHIQ", 9, 2, len(schema), len(body))
    assert data[:-8] == header + schema + body
    assert len(data) == 22 + len(schema) + len(body) + 8


def test_bytes_of_a_number() -> None:
    empty = encoded_size({"x": TensorSpec((0, 8))}, "fp32")
    for dtype, body in {"fp32": 4 * 24, "bf16": 2 * 24, "fp16": 2 * 24, "int8": 24 + 4 * 3}.items():
        assert encoded_size({"x": TensorSpec((3, 8))}, dtype) - empty == body
        assert encoded_size({"x": TensorSpec((3, 8), index=True)}, dtype) - empty == 2 * 24


def test_int8_quantises_each_row_by_itself() -> None:
    rows = torch.tensor([[1e-6, -5e-7], [1e6, 3e5], [0.0, 0.0]])
    arrived = decode(encode({"x": rows}, "int8"), "int8")["x"]
    assert torch.allclose(arrived, rows, rtol=0.01, atol=0)
    assert not arrived[2].any()


@every_dtype
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(dtype: WireDtype, value: float) -> None:
    tensor = torch.randn(4, 5)
    tensor[2, 3] = value
    with pytest.raises(PayloadError, match="tensor 'x' holds") as caught:
        decode(encode({"fine": torch.randn(2), "x": tensor}, dtype), dtype)
    assert caught.value.reason == "non-finite"


def test_what_half_precision_cannot_hold_is_refused_rather_than_clipped() -> None:
    with pytest.raises(PayloadError) as caught:
        decode(encode({"x": torch.tensor([1e6])}, "fp16"), "fp16")
    assert caught.value.reason == "non-finite"


@pytest.mark.parametrize("index", [-1, 65536])
def test_indices_that_do_not_fit_are_not_wrapped_around(index: int) -> None:
    with pytest.raises(ValueError, match="they travel as 0 to 65535"):
        encode({"i": torch.tensor([0, index])}, "fp32")


def test_every_format_has_a_number_of_its_own() -> None:
    assert len({item.code for item in FORMATS.values()}) == len(FORMATS)
    assert set(FORMATS) == {*DTYPES, "index"}


def test_an_empty_payload_is_a_message_too() -> None:
    data = encode({}, "fp32", tag=2)
    assert len(data) == encoded_size({}, "fp32") == 30
    assert decode(data, "fp32", expect={}, tag=2) == {}


def test_a_scalar_costs_one_number() -> None:
    for dtype in DTYPES:
        data = encode({"x": torch.tensor(2.0)}, dtype)
        arrived = decode(data, dtype, expect={"x": TensorSpec(())})["x"]
        assert arrived.shape == () and math.isclose(float(arrived), 2.0, rel_tol=1e-6)
