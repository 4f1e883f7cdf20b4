"""Who chooses the rank vectors: the interface, what a policy sees, and the policy that sends everything."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedlora.adapters import Adapter
from fedlora.errors import ConfigError
from fedlora.registry import Registry

Ranks = NDArray[np.int64]


@dataclass(frozen=True)
class Observation:
    """What a policy sees before a round; arrays over the clients drawn for it.

    Attributes:
        round: The round about to be trained, from 1.
        rounds: Rounds of the run.
        clients: Client numbers, `[clients]`.
        examples: Training examples each holds, `[clients]`.
        caps: Largest rank per site, `[sites]`.
        units: Step between legal ranks per site, `[sites]`.
        previous: Ranks each had when it last took part (0: never), `[clients, sites]`.
    """

    round: int
    rounds: int
    clients: NDArray[np.int64]
    examples: NDArray[np.int64]
    caps: Ranks
    units: Ranks
    previous: Ranks


@dataclass(frozen=True)
class PolicySetup:
    """What a policy knows for the whole run: seed, number of clients, caps and units per site."""

    seed: int
    clients: int
    caps: Ranks
    units: Ranks


class Policy(Protocol):
    """Maps observations to rank vectors. Draws only from streams keyed by round, so that a resumed run repeats itself."""

    def choose(self, observation: Observation) -> Ranks:
        """Return the rank of every drawn client at every site, `[clients, sites]`; the strategy rounds it to legal ranks."""
        ...


class FullPolicy:
    """Every client trains and sends the whole adapter."""

    summary = "every client at the cap, every round"

    def __init__(self, setup: PolicySetup) -> None:
        self.caps = setup.caps

    def choose(self, observation: Observation) -> Ranks:
        """Return the caps for everybody."""
        return np.tile(self.caps, (len(observation.clients), 1))


POLICIES: Registry[type[Policy]] = Registry("policy", "fedlora.policies")
POLICIES.add("full", FullPolicy, FullPolicy.summary)


def make_policy(name: str, options: dict[str, Any], setup: PolicySetup) -> Policy:
    """Return the policy called `name` with its `policy.options`.

    Raises:
        ConfigError: Unknown policy, or options it does not take.
    """
    factory: Any = POLICIES.get(name)
    signature = inspect.signature(factory)
    try:
        signature.bind(setup, **options)
    except TypeError as error:
        known = ", ".join(list(signature.parameters)[1:]) or "none"
        raise ConfigError(f"policy.options do not fit policy.name = '{name}': {error}. Its options: {known}") from None
    try:
        policy: Policy = factory(setup, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"policy.options = {options} cannot work with policy.name = '{name}': {error}") from None
    return policy


def legal(ranks: Ranks, adapters: Sequence[Adapter]) -> Ranks:
    """Return ranks `[clients, sites]` brought inside 0..cap and rounded down to each site's unit."""
    units = np.array([adapter.unit for adapter in adapters])
    bounded: Ranks = np.clip(ranks, 0, [adapter.cap for adapter in adapters]) // units * units
    return bounded
