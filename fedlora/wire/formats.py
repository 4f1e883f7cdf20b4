"""Number formats on the wire.

Each format turns one float tensor into bytes and back. `int8` quantises each row (the last dimension) symmetrically with a
float32 scale of its own, max|row| / 127; the scales travel before the numbers and are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LARGEST_INDEX = 2**16 - 1

Buffer = NDArray[np.uint8]
"""Raw bytes as a flat numpy array."""


@dataclass(frozen=True)
class Format:
    """One number format.

    Attributes:
        code: Its number in the schema.
        size: Shape -> encoded bytes.
        pack: Tensor on the CPU -> byte arrays, in the order in which they are sent.
        unpack: (bytes, shape) -> float32 tensor (int64 for `index`).
    """

    code: int
    size: Callable[[tuple[int, ...]], int]
    pack: Callable[[Tensor], list[Buffer]]
    unpack: Callable[[Buffer, tuple[int, ...]], Tensor]


def rows(shape: tuple[int, ...]) -> int:
    """Return how many rows a tensor of `shape` has for quantisation (a vector is one row)."""
    return math.prod(shape[:-1]) if math.prod(shape) else 0


def _bytes(array: NDArray[np.generic]) -> Buffer:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _plain(code: int, dtype: torch.dtype, width: int) -> Format:
    """Return a format that is one fixed-width number per element; bf16 is moved as int16 since numpy lacks it."""
    carrier = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.int16}[dtype]

    def pack(tensor: Tensor) -> list[Buffer]:
        cast = tensor.to(dtype).contiguous()
        return [_bytes((cast.view(torch.int16) if dtype == torch.bfloat16 else cast).numpy())]

    def unpack(data: Buffer, shape: tuple[int, ...]) -> Tensor:
        tensor = torch.from_numpy(data.view(carrier).reshape(shape).copy())
        return (tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor).float()

    return Format(code, lambda shape: width * math.prod(shape), pack, unpack)


def _pack_int8(tensor: Tensor) -> list[Buffer]:
    table = tensor.float().reshape(rows(tuple(tensor.shape)) or 1, -1)
    scale = table.abs().amax(dim=1, keepdim=True) / 127 if table.numel() else table.new_zeros(0)
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    numbers = (table / safe).round().clamp(-127, 127).to(torch.int8)
    return [_bytes(scale.numpy()), _bytes(numbers.numpy())]


def _unpack_int8(data: Buffer, shape: tuple[int, ...]) -> Tensor:
    count = rows(shape)
    scale = torch.from_numpy(data[: 4 * count].view(np.float32).copy()).reshape(count, 1)
    numbers = torch.from_numpy(data[4 * count :].view(np.int8).copy()).reshape(count, -1 if count else 0)
    return (numbers.float() * scale).reshape(shape)


def _pack_index(tensor: Tensor) -> list[Buffer]:
    if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) <= _LARGEST_INDEX:
        raise ValueError(f"indices reach from {int(tensor.min())} to {int(tensor.max())}; they travel as 0 to {_LARGEST_INDEX}")
    return [_bytes(tensor.numpy().astype(np.uint16))]


def _unpack_index(data: Buffer, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(data.view(np.uint16).reshape(shape).astype(np.int64))


FORMATS: dict[str, Format] = {
    "fp32": _plain(1, torch.float32, 4),
    "fp16": _plain(2, torch.float16, 2),
    "bf16": _plain(3, torch.bfloat16, 2),
    "int8": Format(4, lambda shape: math.prod(shape) + 4 * rows(shape), _pack_int8, _unpack_int8),
    # Which heads or components a tensor stands for: 0..65535, never rounded.
    "index": Format(5, lambda shape: 2 * math.prod(shape), _pack_index, _unpack_index),
}
NAMES: dict[int, str] = {item.code: name for name, item in FORMATS.items()}
