"""What learned policies read from an observation: numbers without units, about the client and about each of its sites.

Nothing here depends on how many sites there are or how large their caps, so that what was learnt on one model says something
about another; and nothing is read but the observation, so that a policy sees in an environment what it sees in a run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora.federation.policy import Observation, PolicySetup
from fedlora_policies.known import Floats, budget_of, costs_of, gains_of

CLIENT_FEATURES = (
    "snr", "fits, decades", "fits", "outage", "csi age", "round", "rounds left", "allowance left", "allowance use",
    "has allowance", "previous rank", "base", "sites", "entropy", "surprisal", "split words",
)  # fmt: skip
SITE_FEATURES = ("worth", "worth of best", "concentration", "bytes", "previous rank", "depth", "role", "cap")


@dataclass(frozen=True)
class Features:
    """Features of n decisions.

    Attributes:
        client: About the client and the round, `[n, len(CLIENT_FEATURES)]`.
        sites: About its sites, `[n, L, len(SITE_FEATURES)]`.
    """

    client: NDArray[np.float32]
    sites: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.client)

    def take(self, rows: NDArray[np.intp]) -> Features:
        """Return some of the decisions."""
        return Features(self.client[rows], self.sites[rows])

    def flat(self) -> NDArray[np.float32]:
        """Return them as one vector per decision, `[n, D]`."""
        return np.concatenate([self.client, self.sites.reshape(len(self.client), -1)], axis=1)


class Reader:
    """Reads features.

    Args:
        setup: What the policy knows for the whole run; names of sites tell where in the model they are.
        policy: Name of the policy, for errors.
    """

    def __init__(self, setup: PolicySetup, policy: str) -> None:
        self.policy = policy
        self._depth, self._role = places(setup.sites, len(setup.caps))
        self._cap = setup.caps / max(int(setup.caps.max()), 1)

    def __call__(self, seen: Observation) -> Features:
        """Return the features of an observation's clients (ConfigError where it lacks costs or gains)."""
        return Features(self._client(seen).astype(np.float32), self._sites(seen).astype(np.float32))

    def _client(self, seen: Observation) -> Floats:
        costs, count = costs_of(seen, self.policy), len(seen.clients)
        fits = budget_of(seen) / costs.full
        nothing, links = np.zeros(count), seen.links
        snr_db = nothing if links is None else np.nan_to_num(links.uplink_snr_db, neginf=-40.0, posinf=60.0)
        allowance = None if links is None else links.allowance
        rounds_left = seen.rounds - seen.round + 1
        use = nothing if allowance is None else np.minimum(allowance.per_byte * costs.full, 1e6) * rounds_left
        text = np.zeros((count, 3)) if seen.text is None else seen.text
        columns = [
            np.clip(snr_db / 20.0, -2.0, 3.0),
            np.clip(np.log10(np.maximum(fits, 1e-3)), -3.0, 1.0),
            np.minimum(fits, 1.0),
            nothing if links is None else links.outage,
            nothing if links is None else np.clip(links.age_rounds / 4.0, -0.25, 2.0),
            nothing + seen.round / max(seen.rounds, 1),
            nothing + np.log10(max(rounds_left, 1)),
            nothing + 1.0 if allowance is None else allowance.left,
            np.clip(np.log10(np.maximum(use, 1e-3)), -3.0, 3.0),
            nothing + (allowance is not None),
            (seen.previous / seen.caps).mean(axis=1),
            nothing + costs.base / costs.full,
            nothing + np.log10(len(seen.caps)),
            *text.T,
        ]
        return np.column_stack(columns)

    def _sites(self, seen: Observation) -> Floats:
        costs, gains = costs_of(seen, self.policy), gains_of(seen, self.policy)
        worth = gains.sum(axis=2)
        mean, best = worth.mean(axis=1, keepdims=True), worth.max(axis=1, keepdims=True)
        levels, first = costs.levels, np.maximum(costs.levels // 4, 1)
        head = np.where(np.arange(gains.shape[2]) < first[:, None], gains, 0.0).sum(axis=2)
        size = costs.table[:, -1].astype(np.float64)
        shape = worth.shape
        columns = [
            np.clip(np.log10(np.maximum(_ratio(worth, mean), 1e-3)), -3.0, 2.0),
            _ratio(worth, best),
            _ratio(head, worth) * (levels > 0),
            np.broadcast_to(np.log2(np.maximum(size, 1.0) / max(float(size.mean()), 1.0)), shape),
            seen.previous / seen.caps,
            np.broadcast_to(self._depth, shape),
            np.broadcast_to(self._role, shape),
            np.broadcast_to(self._cap, shape),
        ]
        return np.stack(columns, axis=2)


def places(names: tuple[str, ...], count: int) -> tuple[Floats, Floats]:
    """Return where sites are, `[L]` each in 0..1: how deep their block, and which of its block's sites they are.

    A block is what agrees in the first number of the name ("encoder.layer.3.attention.self.query": 3); a name without one counts
    to the block before it, or to the first. Where no name has one, sites are taken to be evenly spread over the depth.
    """
    numbers = [int(match.group()) if (match := re.search(r"\d+", name)) else None for name in names]
    first = next((number for number in numbers if number is not None), None)
    if len(names) != count or first is None:
        return np.linspace(0.0, 1.0, count) if count > 1 else np.zeros(count), np.zeros(count)
    blocks = np.array([first := number if number is not None else first for number in numbers])
    order = np.array([int((blocks[:index] == block).sum()) for index, block in enumerate(blocks)])
    inside = np.array([int((blocks == block).sum()) for block in blocks])
    span = max(int(np.ptp(blocks)), 1)
    return (blocks - blocks.min()) / span, order / np.maximum(inside - 1, 1)


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros(np.broadcast_shapes(part.shape, whole.shape)), where=whole > 0)
