"""Aggregation rules. Importing this package registers fedlora's own; see `base` for the contract."""

from fedlora.aggregation import mean, stack  # noqa: F401  (registration)
from fedlora.aggregation.base import AGGREGATORS, Aggregator, CoverageMean, GlobalState, Update

__all__ = ["AGGREGATORS", "Aggregator", "CoverageMean", "GlobalState", "Update"]
