"""Adapters with a client axis. Importing this package registers fedlora's own; see `base` for the contract."""

from fedlora.adapters import lora, ravan, triplet  # noqa: F401  (registration)
from fedlora.adapters.base import ADAPTERS, Adapter, Selection, Tensors

__all__ = ["ADAPTERS", "Adapter", "Selection", "Tensors"]
