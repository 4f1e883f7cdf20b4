"""Adapters with a client axis. Importing this package registers fedlora's own; see `base` for the contract."""

from fedlora.adapters import fedsa, fedsb, ffa, full, lora, ravan, rolora, triplet  # noqa: F401  (registration)
from fedlora.adapters.base import ADAPTERS, Adapter, Selection, Tensors

__all__ = ["ADAPTERS", "Adapter", "Selection", "Tensors"]
