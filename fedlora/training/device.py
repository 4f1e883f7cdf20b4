"""Where and in which precision a run computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from fedlora.config import Precision
from fedlora.errors import ConfigError


@dataclass(frozen=True)
class Placement:
    """Device and precision ("fp32" or "bf16") of a run."""

    device: torch.device
    precision: str

    @property
    def emulated(self) -> bool:
        """Whether bf16 was asked for where no hardware has it: results hold, but it is slower than fp32."""
        return self.precision == "bf16" and not has_fast_bf16(self.device)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context that a forward pass runs in."""
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def place(device: str, precision: Precision) -> Placement:
    """Resolve `device` ("auto" takes CUDA, MPS or CPU, in this order) and `precision`.

    Raises:
        ConfigError: The device does not exist here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device = '{device}' is not a device. Use auto, cpu, cuda, cuda:N or mps") from None
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(found.type, False):
        raise ConfigError(f"device = '{device}' is not available on this machine. Use auto or cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device = '{device}': this machine has {torch.cuda.device_count()} CUDA device(s)")
    return Placement(found, ("bf16" if has_fast_bf16(found) else "fp32") if precision == "auto" else precision)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether bf16 matrix products run on units of their own (CUDA since Ampere, AMX on CPUs)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()
