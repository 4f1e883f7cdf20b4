"""Aggregation rules. Importing this package registers fedlora's own; see `base` for the contract."""

from fedlora.aggregation import fair, fedex, hetlora, mean, robust, stack, svd  # noqa: F401  (registration)
from fedlora.aggregation.base import AGGREGATORS, Aggregator, CoverageMean, GlobalState, Update, in_order

__all__ = ["AGGREGATORS", "Aggregator", "CoverageMean", "GlobalState", "Update", "in_order"]
