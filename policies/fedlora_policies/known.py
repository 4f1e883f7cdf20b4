"""What policies read from an observation, with one clear error where it is not there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora.federation.policy import Links, Observation
from fedlora.ranks import Costs

Floats = NDArray[np.float64]


def costs_of(observation: Observation, policy: str) -> Costs:
    """Return the bytes by rank (ConfigError where the caller gives none)."""
    if observation.costs is None:
        raise ConfigError(f"policy.name = '{policy}' needs to know what ranks cost in bytes, and was not told: use 'fixed'")
    return observation.costs


def budget_of(observation: Observation, backoff: float = 1.0) -> Floats:
    """Return a share of the bytes that each client can send by the estimate, `[clients]`; inf where nothing limits them."""
    known = observation.budget_bytes
    return np.full(len(observation.clients), np.inf) if known is None else backoff * np.asarray(known, np.float64)


def gains_of(observation: Observation, policy: str) -> Floats:
    """Return the worth of levels (ConfigError where the caller gives none)."""
    if observation.gains is None:
        raise ConfigError(
            f"policy.name = '{policy}' needs to know what ranks are worth, and was not told: use 'largest-feasible'"
        )
    return observation.gains


def links_of(observation: Observation, policy: str, what: str) -> Links:
    """Return what is known of the links (ConfigError where no radio is simulated)."""
    if observation.links is None:
        raise ConfigError(f"policy.name = '{policy}' goes by {what}, and no radio is simulated: set world.name")
    return observation.links


def relative(gains: Floats, costs: Costs) -> Floats:
    """Return gains in units of the mean worth of a byte of the full adapter, `[rows, sites, levels]`.

    A level worth 1 per byte is then as good as the adapter on average, whatever gains are measured in.
    """
    total = gains.sum(axis=(1, 2), keepdims=True)
    return np.asarray(gains * np.divide(costs.full - costs.base, total, out=np.zeros_like(total), where=total > 0))


def number(option: str, value: object, low: float, high: float = np.inf, above: bool = False) -> float:
    """Return a numeric option inside low..high (`above`: not low itself); ConfigError for anything else."""
    fine = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and value != np.inf
    if not fine or (above and value == low):
        bounds = f"{'above' if above else 'of at least'} {low:g}" + (f" and at most {high:g}" if high < np.inf else "")
        raise ConfigError(f"policy.options.{option} = {value!r}: give a number {bounds}")
    return float(value)  # type: ignore[arg-type]
