"""Encode a payload into one self-describing message and back.

Layout (little-endian)::

    magic "FLR1" | tag u32 | entries u16 | schema bytes u32 | body bytes u64
    per entry: key length u8 | key | format u8 | dimensions u8 | size of each u32
    body: the tensors in schema order
    xxh3-64 of all that precedes, u64

The tag is the round that the message belongs to, so that a stale or replayed reply is told from a fresh one. The checksum
finds damage, not malice; links that need authenticity use TLS. A message is judged by its header before any memory is taken
for its contents.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import xxhash
from torch import Tensor

from fedlora.config import WireDtype
from fedlora.errors import PayloadError
from fedlora.wire.formats import FORMATS, NAMES, Buffer, Format

_MAGIC = b"FLR1"
_HEADER = struct.Struct("<4sIHIQ")
_DIGEST = struct.Struct("<Q")
# The sizes of an empty tensor add nothing to the body, so its length does not bound them: these do.
_MOST_DIMENSIONS = 8
_MOST_NUMBERS = 2**40


@dataclass(frozen=True)
class TensorSpec:
    """What the receiver expects of one tensor: its shape, and whether it holds indices instead of numbers."""

    shape: tuple[int, ...]
    index: bool = False


def encoded_size(spec: Mapping[str, TensorSpec], dtype: WireDtype) -> int:
    """Return the exact length in bytes of the message that a payload of this schema becomes."""
    body = sum(_format(item, dtype).size(item.shape) for item in spec.values())
    return _HEADER.size + len(_schema(spec.items(), dtype)) + body + _DIGEST.size


def encode(tensors: Mapping[str, Tensor], dtype: WireDtype, tag: int = 0) -> bytes:
    """Return the encoded message.

    Args:
        tensors: Float tensors (any device), sent as `dtype`; integer tensors are indices in 0..65535 and sent exactly.
        dtype: Number format.
        tag: Round number, 0..2^32-1.
    """
    spec = {key: TensorSpec(tuple(tensor.shape), not tensor.is_floating_point()) for key, tensor in tensors.items()}
    schema = _schema(spec.items(), dtype)
    parts: list[Buffer] = []
    for key, tensor in tensors.items():
        parts += _format(spec[key], dtype).pack(tensor.detach().cpu())
    header = _HEADER.pack(_MAGIC, tag, len(spec), len(schema), sum(part.nbytes for part in parts))
    digest = xxhash.xxh3_64()
    chunks = [header, schema, *(cast(bytes, part.data) for part in parts)]  # numpy's memoryview takes part as bytes do
    for chunk in chunks:
        digest.update(chunk)
    return b"".join([*chunks, _DIGEST.pack(digest.intdigest())])


def decode(
    data: bytes, dtype: WireDtype, expect: Mapping[str, TensorSpec] | None = None, tag: int | None = None
) -> dict[str, Tensor]:
    """Return the tensors of a message (float32, indices int64), on the CPU.

    Args:
        data: The message as received.
        dtype: The number format agreed on; another one is a wrong schema.
        expect: Keys and shapes that must be there, no more and no fewer; None accepts what the message declares.
        tag: Round that the message must belong to; None accepts any.

    Raises:
        PayloadError: With reason "truncated", "checksum", "schema", "shape", "stale" or "non-finite".
    """
    spec, found, body = _read_schema(data)
    if _DIGEST.unpack_from(data, len(data) - _DIGEST.size)[0] != xxhash.xxh3_64_intdigest(memoryview(data)[: -_DIGEST.size]):
        raise PayloadError("checksum", f"the checksum of a message of {len(data)} bytes does not fit its contents")
    if tag is not None and found != tag:
        raise PayloadError("stale", f"the message belongs to round {found}, expected round {tag}")
    _check_schema(spec, dtype, expect)
    return _read_body(spec, np.frombuffer(data, np.uint8), body)


def tag_of(data: bytes) -> int:
    """Return the round number in the header of a message."""
    return _read_schema(data)[1]


def _format(spec: TensorSpec, dtype: WireDtype) -> Format:
    return FORMATS["index" if spec.index else dtype]


def _schema(items: Iterable[tuple[str, TensorSpec]], dtype: WireDtype) -> bytes:
    out = bytearray()
    for key, spec in items:
        name = key.encode()
        out += struct.pack(
            f"<B{len(name)}sBB{len(spec.shape)}I", len(name), name, _format(spec, dtype).code, len(spec.shape), *spec.shape
        )
    return bytes(out)


def _read_schema(data: bytes) -> tuple[dict[str, tuple[str, tuple[int, ...]]], int, int]:
    """Return ({key: (format, shape)}, tag, offset of the body); every length is checked against the data's own."""
    if len(data) < _HEADER.size + _DIGEST.size:
        raise PayloadError("truncated", f"{len(data)} bytes are too few for a message")
    magic, tag, entries, schema_bytes, body_bytes = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise PayloadError("schema", f"the message starts with {magic!r}, not with {_MAGIC!r}")
    whole = _HEADER.size + schema_bytes + body_bytes + _DIGEST.size
    if whole != len(data):
        raise PayloadError("truncated", f"the message has {len(data)} bytes, its header announces {whole}")
    spec: dict[str, tuple[str, tuple[int, ...]]] = {}
    at, end = _HEADER.size, _HEADER.size + schema_bytes
    try:
        for _ in range(entries):
            length = data[at]
            key = data[at + 1 : at + 1 + length].decode()
            code, dimensions = struct.unpack_from("<BB", data, at + 1 + length)
            at += 3 + length
            shape = struct.unpack_from(f"<{dimensions}I", data, at)
            at += 4 * dimensions
            if dimensions > _MOST_DIMENSIONS or math.prod(size or 1 for size in shape) > _MOST_NUMBERS:
                raise PayloadError("schema", f"tensor '{key}' announces a shape of {dimensions} dimensions that no payload has")
            spec[key] = (NAMES[code], shape)
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise PayloadError("schema", f"the schema cannot be read ({error!r})") from None
    if at != end or len(spec) != entries:
        raise PayloadError("schema", "the schema does not fill its announced length, or names a tensor twice")
    if sum(FORMATS[name].size(shape) for name, shape in spec.values()) != body_bytes:
        raise PayloadError("schema", "the schema does not add up to the announced body")
    return spec, tag, end


def _check_schema(
    spec: dict[str, tuple[str, tuple[int, ...]]], dtype: WireDtype, expect: Mapping[str, TensorSpec] | None
) -> None:
    for key, (name, _) in spec.items():
        if name not in (dtype, "index"):
            raise PayloadError("schema", f"tensor '{key}' came as {name}, expected {dtype}")
    if expect is None:
        return
    if spec.keys() != expect.keys():
        missing, extra = sorted(expect.keys() - spec.keys()), sorted(spec.keys() - expect.keys())
        raise PayloadError("schema", f"missing tensors {missing[:3]}, unexpected tensors {extra[:3]}")
    for key, (name, shape) in spec.items():
        if (name == "index") != expect[key].index:
            raise PayloadError("schema", f"tensor '{key}' came as {name}")
        if shape != expect[key].shape:
            raise PayloadError("shape", f"tensor '{key}' has shape {list(shape)}, expected {list(expect[key].shape)}")


def _read_body(spec: dict[str, tuple[str, tuple[int, ...]]], data: Buffer, at: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for key, (name, shape) in spec.items():
        size = FORMATS[name].size(shape)
        tensor = FORMATS[name].unpack(data[at : at + size], shape)
        at += size
        if tensor.is_floating_point() and not all_finite(tensor):
            raise PayloadError(
                "non-finite", f"tensor '{key}' holds {int((~torch.isfinite(tensor)).sum())} NaN or infinite numbers"
            )
        tensors[key] = tensor
    return tensors


def all_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity."""
    # A NaN or infinity always shows in the sum, which is 15 times as fast. A sum that overflows by itself needs the closer look.
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())


def survives(tensor: Tensor, dtype: WireDtype) -> bool:
    """Return whether a tensor is finite, and still is when it is sent as `dtype` (fp16 ends at 65,504)."""
    narrow = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(dtype, torch.float32)
    return all_finite(tensor.to(narrow) if tensor.is_floating_point() else tensor)
