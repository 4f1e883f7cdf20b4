"""Observations for tests of policies: three sites, as many clients as wanted, everything told."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedlora.federation.policy import Links, Observation, PolicySetup
from fedlora.ranks import Costs

CAPS, UNITS = np.array([4, 4, 8]), np.array([1, 1, 2])
# Sizes by level: 100, 200 and 50 bytes a level, and 40 that always travel.
COSTS = Costs(40, np.array([[0, 100, 200, 300, 400], [0, 200, 400, 600, 800], [0, 50, 100, 150, 200]]), UNITS, CAPS)
GAINS = np.array([[8.0, 4.0, 2.0, 1.0], [9.0, 6.0, 3.0, 0.0], [1.0, 0.9, 0.8, 0.7]])
SETUP = PolicySetup(seed=3, clients=20, caps=CAPS, units=UNITS, costs=COSTS)


def links(snr_db: list[float], rate_bps: float = 8000.0) -> Links:
    count, values = len(snr_db), np.array(snr_db, np.float64)
    rates, nothing = np.full(count, rate_bps), np.full(count, np.inf)
    return Links(values, rates, rates, np.zeros(count, np.int64), values < -20, nothing, nothing, 1.0)


def look(round_number: int = 1, clients: tuple[int, ...] = (0, 5, 19), **fields: Any) -> Observation:
    """Return what three clients show; `fields` replace or take away (None) parts of it."""
    count = len(clients)
    told: dict[str, Any] = {
        "links": links([0.0] * count), "costs": COSTS, "budget_bytes": np.full(count, np.inf),
        "gains": np.tile(GAINS, (count, 1, 1)), "text": np.zeros((count, 3)),
    }  # fmt: skip
    return Observation(
        round=round_number,
        rounds=10,
        clients=np.array(clients),
        examples=np.full(count, 10),
        caps=CAPS,
        units=UNITS,
        previous=np.zeros((count, 3), np.int64),
        **(told | fields),
    )
