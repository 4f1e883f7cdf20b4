"""Who chooses the rank vectors: the interface, what a policy sees, and the policy that sends everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedlora.adapters import Adapter
from fedlora.aggregation import Aggregator
from fedlora.errors import ConfigError
from fedlora.ranks import Costs
from fedlora.registry import Registry, construct

Ranks = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Allowance:
    """A budget that has to last for the whole run (airtime, a battery), as each client has it, `[clients]`.

    Attributes:
        left: Share of it that is left, 0..1.
        per_byte: Share of what is left that a byte of the uplink takes at the estimated rate; inf where nothing gets through.
    """

    left: Floats
    per_byte: Floats


@dataclass(frozen=True)
class Links:
    """What the server knows of the clients drawn for a round before it sends anything; arrays over these clients, `[clients]`.

    Attributes:
        uplink_snr_db: Last estimate of the mean SNR of the uplink.
        uplink_bps: Rate that estimate allows if the round's clients share the band evenly.
        downlink_bps: Rate that the estimate of the downlink allows.
        age_rounds: Rounds since the estimate was true; 0 where it is of this round, -1 before the first one.
        outage: Whether nothing would get through at the estimate.
        compute_bps: Speed of the device, floating-point operations per second.
        energy_left_j: Energy left in the battery; infinite on mains.
        deadline_s: Deadline of the round, the same for all; infinite where there is none.
        compute_s: How long the round's local training is expected to take; None where the world was not told the work.
        allowance: What is left of a budget over the whole run; None where there is none.
    """

    uplink_snr_db: Floats
    uplink_bps: Floats
    downlink_bps: Floats
    age_rounds: NDArray[np.int64]
    outage: NDArray[np.bool_]
    compute_bps: Floats
    energy_left_j: Floats
    deadline_s: float
    compute_s: Floats | None = None
    allowance: Allowance | None = None


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
        links: What is known of the clients' radio links; None where no world is simulated.
        costs: Bytes of what a client sends, by rank.
        budget_bytes: Bytes that fit before the deadline at the estimated rate, `[clients]`; inf where nothing limits them.
        gains: What each level of each site is worth on top of the one before, as far as the server can tell,
            `[clients, sites, levels]`, >= 0.
        text: Token entropy, unigram surprisal and share of split words of each client's data, `[clients, 3]`, all in 0..1.
    """

    round: int
    rounds: int
    clients: NDArray[np.int64]
    examples: NDArray[np.int64]
    caps: Ranks
    units: Ranks
    previous: Ranks
    links: Links | None = None
    costs: Costs | None = None
    budget_bytes: Floats | None = None
    gains: Floats | None = None
    text: Floats | None = None


@dataclass(frozen=True)
class PolicySetup:
    """What a policy knows for the whole run.

    Attributes:
        seed: Root of its randomness.
        clients: Clients of the run.
        caps: Largest rank per site, `[sites]`.
        units: Step between legal ranks, `[sites]`.
        costs: Bytes by rank.
        sites: Names of the sites, in canonical order; empty where nobody told.
    """

    seed: int
    clients: int
    caps: Ranks
    units: Ranks
    costs: Costs | None = None
    sites: tuple[str, ...] = ()


class Policy(Protocol):
    """Maps observations to rank vectors. Draws only from streams keyed by round, so that a resumed run repeats itself.

    What it may say of itself beside that, as attributes of the class or of the instance:

    * `blind = True`: it never looks at `Observation.gains`; they are not worked out then.
    * `steady_ranks`: the ranks that each client gets in every round, `[clients of the run, sites]`; None, or no such attribute,
      where they change from round to round. HetLoRA takes them for the client's own rank.
    * `mixes_ranks = False`: they change, but all clients of a round get the same ones.

    Of a policy that says nothing it is taken that clients of a round may get different ranks: rules that cannot mix them refuse
    it before the run.
    """

    def choose(self, observation: Observation) -> Ranks:
        """Return the rank of every drawn client at every site, `[clients, sites]`; the strategy rounds it to legal ranks."""
        ...


@runtime_checkable
class StatefulPolicy(Protocol):
    """What a policy adds that remembers anything from round to round: a checkpoint holds it, a resumed run goes on from it."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that it remembers; booleans, whole and real numbers."""
        ...

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned; never called with an empty dictionary."""
        ...


@runtime_checkable
class LearningPolicy(Protocol):
    """What a policy adds that wants to know how its choice went."""

    def feedback(self, observation: Observation, ranks: Ranks, done: NDArray[np.bool_]) -> None:
        """Hear, at the end of a round, the legal ranks asked for `[clients, sites]` and whose updates counted `[clients]`."""
        ...


class FullPolicy:
    """Every client trains and sends the whole adapter."""

    summary = "every client at the cap, every round"
    blind = True

    def __init__(self, setup: PolicySetup) -> None:
        self.caps = setup.caps
        self.steady_ranks = np.broadcast_to(setup.caps, (setup.clients, len(setup.caps)))

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
    return construct("policy.name", name, cast(Callable[..., Policy], POLICIES.get(name)), setup, options=options)


def legal(ranks: Ranks, adapters: Sequence[Adapter]) -> Ranks:
    """Return ranks `[clients, sites]` brought inside 0..cap and rounded down to each site's unit."""
    units = np.array([adapter.unit for adapter in adapters])
    bounded: Ranks = np.clip(ranks, 0, [adapter.cap for adapter in adapters]) // units * units
    return bounded


def steady_ranks(policy: Policy, clients: int, sites: int) -> Ranks | None:
    """Return the ranks that each client gets in every round, `[clients, sites]`, where the policy says so (see `Policy`).

    Raises:
        ConfigError: It says something of another shape or type.
    """
    steady = getattr(policy, "steady_ranks", None)
    if steady is None:
        return None
    ranks = np.asarray(steady)
    if ranks.shape != (clients, sites) or ranks.dtype.kind not in "iu":
        raise ConfigError(
            f"the policy's steady_ranks are of type {ranks.dtype}, shape {list(ranks.shape)}; they are whole numbers of shape "
            f"{[clients, sites]}, [clients, sites]"
        )
    return ranks


def objection_to_policy(policy: Policy, aggregator: Aggregator, clients: int, together: int) -> str:
    """Return why the ranks that a policy says it may give (see `Policy`) cannot be aggregated together, or nothing.

    Args:
        policy: The policy.
        aggregator: The rule.
        clients: Clients of the run.
        together: Clients of a round.
    """
    adapters = aggregator.adapters
    steady = steady_ranks(policy, clients, len(adapters))
    if steady is not None:
        ranks = legal(steady, adapters)
        least = int(ranks.sum(axis=1).argmin())
        other = int((ranks != ranks[least]).any(axis=1).argmax())  # somebody where all are equal
        return aggregator.objection_to(ranks[[least, other]][:together])
    if aggregator.mixed_ranks or not getattr(policy, "mixes_ranks", True):
        return ""  # as far as can be told: the strategy looks again at what a round brings
    caps = np.array([adapter.cap for adapter in adapters], np.int64)
    return aggregator.objection_to(np.stack([np.zeros_like(caps), caps])[:together])
