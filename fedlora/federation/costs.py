"""Bytes of a client's reply by rank, from the codec itself: a message's length is a sum over its entries."""

from __future__ import annotations

import numpy as np

from fedlora.federation.client import reply_spec
from fedlora.federation.workbench import Workbench
from fedlora.ranks import Costs
from fedlora.wire import encoded_size


def costs_of(bench: Workbench, round_number: int = 1) -> Costs:
    """Return what rank vectors cost on the uplink in a round, to the byte: number format, schema, checksum, task head included.

    `costs.bytes(ranks)` is `encoded_size(reply_spec(bench, ranks, round_number))` for all legal ranks. The steps of a site need
    not be even: the first level that sends anything also pays for the schema, a block of Ravan grows by 2 k + 1 numbers, and a
    truncated SVD that has become as large as its head is sent whole, from where further ranks cost nothing more.
    """
    dtype, adapters = bench.config.wire.dtype, bench.adapters_at(round_number)
    base = encoded_size(reply_spec(bench, [0] * len(adapters), round_number), dtype)
    caps = np.array([adapter.cap for adapter in adapters], np.int64)
    units = np.array([adapter.unit for adapter in adapters], np.int64)
    table = np.zeros((len(adapters), int((caps // units).max()) + 1), np.int64)
    empty = encoded_size({}, dtype)
    for index, adapter in enumerate(adapters):
        levels = adapter.cap // adapter.unit
        for level in range(1, levels + 1):
            own = {f"{index}/{name}": item for name, item in adapter.spec(level * adapter.unit).items()}
            table[index, level] = encoded_size(own, dtype) - empty
        table[index, levels + 1 :] = table[index, levels]
    return Costs(base, table, units, caps)
