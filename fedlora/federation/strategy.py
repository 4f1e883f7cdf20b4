"""The round, as one Flower strategy: choose clients and ranks, send, validate, aggregate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedlora.adapters import Tensors
from fedlora.aggregation import GlobalState, Update
from fedlora.aggregation.server import server_step
from fedlora.errors import AggregationError, ConfigError, PayloadError
from fedlora.federation.budgets import budget_bytes
from fedlora.federation.client import TEXT_METRICS, reply_spec
from fedlora.federation.costs import costs_of
from fedlora.federation.gains import level_gains
from fedlora.federation.policy import (
    Floats,
    LearningPolicy,
    Links,
    Observation,
    Policy,
    PolicySetup,
    Ranks,
    legal,
    make_policy,
    objection_to_policy,
    steady_ranks,
)
from fedlora.federation.roll import Roster, reason_of
from fedlora.federation.workbench import Workbench
from fedlora.federation.world import CLIENT_DROPPED, CLIENT_LATE, World
from fedlora.streams import stream
from fedlora.wire import all_finite, decode, encode, encoded_size, from_record, record_size, survives, to_record

# What a client says of its own training; it goes into the logs and steers nothing.
_REPORTED = ("train-loss", "steps", "tokens", "seconds", "held-accuracy", "held-loss", "held-examples")


UNLIMITED = np.int64(2**31)
"""Limit of a client that has pruned nothing."""


@dataclass
class ServerState:
    """All that crosses a round on the server's side; a checkpoint is this and nothing else.

    Attributes:
        round: Rounds done.
        adapter: The global state.
        previous: Ranks of each client when it last took part, `[clients, sites]`.
        limits: Ranks that clients pruned themselves to, and are not asked for more, `[clients, sites]`.
        holders: Which clients hold the bases that each is sent once, `[clients]`.
    """

    round: int
    adapter: GlobalState
    previous: Ranks
    limits: Ranks = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    holders: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def __post_init__(self) -> None:
        if self.limits.shape != self.previous.shape:
            self.limits = np.full(self.previous.shape, UNLIMITED)
        if len(self.holders) != len(self.previous):
            self.holders = np.zeros(len(self.previous), np.bool_)


@dataclass
class RoundRecord:
    """What one round gave: totals, and one row per client that was asked.

    Attributes:
        round: Its number.
        clients: A row per client that was asked, by client.
        coverage: Share of the adapter's entries that at least one client sent.
        void: Why the round moved nothing although sound replies came; empty where it did, and where none came.
    """

    round: int
    clients: list[dict[str, Any]] = field(default_factory=list)
    coverage: float = 0.0
    void: str = ""

    def done(self) -> list[dict[str, Any]]:
        """Return the rows of the clients whose updates count."""
        return [row for row in self.clients if row["status"] == "ok"]


class RoundStrategy(Strategy):
    """The federated round of fedlora, the same for every engine.

    Flower's own loop (`Strategy.start`) drives it. A resumed run starts that loop anew for the rounds that are left, so rounds
    are counted from `state.round`.

    Args:
        bench: Model, adapters, aggregator and configuration.
        roster: Client number -> (node id, training examples); what a `Roster` knows of texts goes to the policy.
        state: Where the run stands.
        world: The radio world behind the grid, or None.
    """

    def __init__(
        self, bench: Workbench, roster: dict[int, tuple[int, int]], state: ServerState, world: World | None = None
    ) -> None:
        self.bench, self.roster, self.state, self.world = bench, roster, state, world
        self.offset = state.round
        self.policy, setup = policy_of(bench)
        self.caps, self.units = setup.caps, setup.units
        # What is sent may take turns from round to round.
        self._costs = [costs_of(bench, number) for number in range(1, max(a.period for a in bench.adapters) + 1)]
        self.text = roster.text if isinstance(roster, Roster) else {}
        self.record = RoundRecord(state.round)
        self._rows: dict[int, dict[str, Any]] = {}
        self._choice: tuple[Observation, Ranks] | None = None

    def summary(self) -> None:
        """Flower asks for a log of the settings; the run folder has them all."""

    def broadcast(self, bases: bool = False) -> ArrayRecord:
        """Return the global state as the message of the next round, with the bases for clients that do not hold them yet."""
        adapter = self.state.adapter
        tensors = adapter.flat() | (adapter.flat_bases() if bases else {})
        return to_record(encode(tensors, self.bench.config.wire.dtype, tag=self.state.round + 1))

    # -- down --------------------------------------------------------------------------------------------------------

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Draw clients, let the policy choose their ranks, and return one message each."""
        number = server_round + self.offset
        self.record, self._rows = RoundRecord(number), {}
        chosen = self.draw(number)
        ranks = self.ranks(number, chosen)
        fresh = bool(self.state.adapter.bases) & ~self.state.holders[chosen]
        shared: dict[bool, ArrayRecord] = {}
        if self.bench.config.wire.downlink == "broadcast":
            shared = {bases: self.broadcast(bases) for bases in np.unique(fresh).tolist()}
        messages = []
        for client, own, bases in zip(chosen.tolist(), ranks, fresh.tolist(), strict=True):
            record = shared[bases] if shared else self._slice(client, own, number, bases)
            node = self.roster[client][0]
            content = RecordDict({"arrays": record, "config": ConfigRecord({"round": number, "ranks": own.tolist()})})
            messages.append(Message(content, dst_node_id=node, message_type=MessageType.TRAIN, group_id=str(number)))
            self._rows[node] = {
                "round": number,
                "client": client,
                "status": "no reply",
                "ranks": own.tolist(),
                "mean_rank": float(own.mean()),
                "downlink_bytes": record_size(record),
                "uplink_bytes": 0,
            }
            self.state.previous[client] = own
        return messages

    def draw(self, number: int) -> NDArray[np.int64]:
        """Return the clients of a round, in order, drawn uniformly without replacement from those that are there."""
        there = np.array(sorted(self.roster), np.int64)
        count = min(self.bench.config.clients_per_round, len(there))
        return np.sort(stream(self.bench.config.seed, "clients", number).choice(there, count, replace=False))

    def ranks(self, number: int, chosen: NDArray[np.int64]) -> Ranks:
        """Return the legal ranks that the policy gives the chosen clients, `[clients, sites]`."""
        links = self.world.observe(number, chosen) if self.world else None
        # Worth of components costs a pass over the adapter; policies that do not look at it say so.
        looks = not getattr(self.policy, "blind", False)
        gains = level_gains(self.bench.adapters, self.state.adapter.sites) if looks else None
        silent = (0.0,) * len(TEXT_METRICS)
        observation = Observation(
            round=number,
            rounds=self.bench.config.rounds,
            clients=chosen,
            examples=np.array([self.roster[int(client)][1] for client in chosen], np.int64),
            caps=self.caps,
            units=self.units,
            previous=self.state.previous[chosen],
            links=links,
            costs=self._costs[(number - 1) % len(self._costs)],
            budget_bytes=self._budget(links, chosen),
            gains=None if gains is None else np.broadcast_to(gains, (len(chosen), *gains.shape)),
            text=np.array([self.text.get(client, silent) for client in chosen.tolist()]),
        )
        asked, shape = np.asarray(self.policy.choose(observation)), (len(chosen), len(self.caps))
        if asked.shape != shape or asked.dtype.kind not in "iu":
            raise ConfigError(
                f"policy.name = '{self.bench.config.policy.name}' chose ranks of type {asked.dtype}, shape {list(asked.shape)}; "
                f"a policy returns whole numbers of shape {list(shape)}, [clients, sites]"
            )
        ranks = legal(np.minimum(asked, self.state.limits[chosen]), self.bench.adapters)
        _refuse(self.bench, self.bench.aggregator.objection_to(ranks))
        self._choice = observation, ranks
        return ranks

    def _budget(self, links: Links | None, chosen: NDArray[np.int64]) -> Floats:
        """Return the bytes that each client can send before the deadline, as far as the estimates go, `[clients]`.

        A broadcast takes as long as its slowest listener; a slice of the adapter is as large as the reply that it asks for.
        """
        if links is None:
            return np.full(len(chosen), np.inf)
        if self.bench.config.wire.downlink == "broadcast":
            bases = not self.state.holders[chosen].all()
            down_bits = 8.0 * encoded_size(self.state.adapter.spec(bases), self.bench.config.wire.dtype)
            return budget_bytes(links, down_bits)
        return budget_bytes(links)

    def _slice(self, client: int, ranks: Ranks, number: int, bases: bool) -> ArrayRecord:
        """Return the part of the adapter that one client gets when wire.downlink = "sliced"."""
        rng = stream(self.bench.config.seed, "head choice", number, client)
        sliced = []
        for adapter, site, rank in zip(self.bench.adapters, self.state.adapter.sites, ranks, strict=True):
            sliced.append(adapter.slice(site, adapter.select(int(rank), adapter.head_scores(site, None, rng))))
        part = GlobalState(sliced, self.state.adapter.head, self.state.adapter.bases)
        tensors = part.flat() | (part.flat_bases() if bases else {})
        return to_record(encode(tensors, self.bench.config.wire.dtype, tag=number))

    # -- up ----------------------------------------------------------------------------------------------------------

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Validate replies, aggregate what is sound, and move the global state on.

        A reply that is wrong is named, counted and left out. Where none is sound, or no finite state comes of those that are,
        the round is void: the state stays as it is.
        """
        number = server_round + self.offset
        self._charge()
        updates = [update for reply in replies if (update := self._accept(number, reply)) is not None]
        if updates:
            try:
                self.state.adapter, self.record.coverage = self._moved(updates, number)
            except AggregationError as error:
                self.record.void = str(error)
                for row in self._rows.values():
                    row["status"] = "rejected: the round is void" if row["status"] == "ok" else row["status"]
            else:
                self._prune(updates)
        self.state.round = number
        self.record.clients = sorted(self._rows.values(), key=lambda row: int(row["client"]))
        self._tell_policy()
        return self.broadcast(), None

    def _moved(self, updates: list[Update], number: int) -> tuple[GlobalState, float]:
        """Return (the state after these updates, coverage); the state of before is not touched.

        Raises:
            AggregationError: The rule cannot make anything of them, or what it made are not all finite numbers, as they are and
                as the next message carries them. Every later round would fail with such a state.
        """
        bench, old = self.bench, self.state.adapter
        merged, coverage = bench.aggregator.aggregate(updates, old, number)
        state = server_step(bench.config.server, bench.adapters_at(number), old, merged, updates, number)
        tensors = state.flat() | state.flat_bases()
        if not all(survives(tensor, bench.config.wire.dtype) for tensor in tensors.values()) or not all(
            all_finite(tensor) for tensor in state.memory.values()
        ):
            largest, client = max((_largest(update), update.client) for update in updates)
            raise AggregationError(
                f"the aggregate is not finite; the largest number, {largest:.3g} in size, came from client {client}"
            )
        return state, float(np.mean(coverage))

    def _prune(self, updates: list[Update]) -> None:
        """Ask clients that dropped their tails for no more than they kept.

        For good, so only where a client was asked for all of its own rank: a rank that was low for a round says nothing of what
        the rest of it is worth.
        """
        asked = {row["client"]: np.array(row["ranks"]) for row in self._rows.values()}
        steady = steady_ranks(self.policy, self.bench.config.clients, len(self.caps))
        for update in updates if self.bench.aggregator.prunes else ():
            ranks, limits = asked[update.client], self.state.limits[update.client]
            own = self.caps if steady is None else steady[update.client]
            whole = legal(np.minimum(own, limits)[None], self.bench.adapters)[0]
            self.state.limits[update.client] = np.where((update.ranks < ranks) & (ranks >= whole), update.ranks, limits)

    def _tell_policy(self) -> None:
        """Let a policy that learns know whose updates counted."""
        if isinstance(self.policy, LearningPolicy) and self._choice is not None:
            observation, ranks = self._choice
            done = {row["client"] for row in self.record.done()}
            self.policy.feedback(observation, ranks, np.isin(observation.clients, sorted(done)))

    def _charge(self) -> None:
        """Note in the clients' rows what the world charged them, for what did not come back too."""
        for client, costs in (self.world.client_rows() if self.world else {}).items():
            node = self.roster[client][0]
            if node in self._rows:
                self._rows[node] |= costs

    def _accept(self, number: int, reply: Message) -> Update | None:
        """Return the reply as an update, or None after noting in the client's row why it does not count."""
        row = self._rows.get(reply.metadata.src_node_id)
        if row is None or row["status"] != "no reply":
            return None  # not asked this round, or answering twice
        if reply.has_error():
            lost = reply.error.code in (CLIENT_DROPPED, CLIENT_LATE)
            row["status"] = reason_of(reply) if lost else f"failed: {reason_of(reply)}"
            self.state.holders[row["client"]] = False  # whatever it held may be gone with what failed
            return None
        try:
            metrics = reply.content.metric_records["metrics"]
            data = from_record(reply.content.array_records["arrays"])
            row["uplink_bytes"] = len(data)
            ranks = self._settled(row["ranks"], metrics)
            tensors = decode(data, self.bench.config.wire.dtype, reply_spec(self.bench, ranks, number), tag=number)
            update = self._update(row["client"], ranks, tensors, number)
        except PayloadError as error:
            row["status"] = f"rejected: {error}"
            return None
        except KeyError as error:
            row["status"] = f"rejected: schema: the reply has no record {error}"
            return None
        row |= {"status": "ok", "examples": update.examples, **_reported(metrics)}
        self.state.holders[update.client] = True
        if ranks != row["ranks"]:
            row["ranks_kept"] = ranks
        return update

    def _settled(self, asked: list[int], metrics: MetricRecord) -> list[int]:
        """Return the ranks that a reply was sent at: those asked for, or lower ones where the rule lets clients prune.

        Raises:
            PayloadError: Ranks that no client may settle at.
        """
        if not self.bench.aggregator.prunes:
            return asked
        own = metrics.get("ranks")
        sound = isinstance(own, list) and len(own) == len(asked) and all(isinstance(rank, int) for rank in own)
        if not sound or not all(min(1, most) <= rank <= most for rank, most in zip(cast(list[int], own), asked, strict=True)):
            raise PayloadError("schema", f"the reply was sent at ranks {own}, asked for were {asked}")
        return list(cast(list[int], own))

    def _update(self, client: int, ranks: list[int], tensors: Tensors, number: int) -> Update:
        """Return the validated update; the number of examples is the roster's, not what a reply claims.

        Placing each site once here surfaces indices out of range before the reply counts as sound.
        """
        state = GlobalState.from_flat(tensors, len(self.bench.adapters))
        for adapter, site, rank in zip(self.bench.adapters_at(number), state.sites, ranks, strict=True):
            adapter.selection_of(site, rank)
        return Update(client, self.roster[client][1], ranks, state.sites, state.head)

    # -- evaluation at clients travels with training (see client.py), so Flower's own evaluation step is empty ---------

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Ask nobody: clients measure the received adapter before they train it."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing: there are no evaluation replies."""
        return None


def policy_of(bench: Workbench) -> tuple[Policy, PolicySetup]:
    """Return the run's policy, and what it was told.

    Raises:
        ConfigError: Its options do not fit, or it may choose ranks that the aggregator cannot take together.
    """
    config = bench.config
    caps = np.array([adapter.cap for adapter in bench.adapters], np.int64)
    units = np.array([adapter.unit for adapter in bench.adapters], np.int64)
    names = tuple(adapter.site.name for adapter in bench.adapters)
    setup = PolicySetup(config.seed, config.clients, caps, units, costs_of(bench), names)
    policy = make_policy(config.policy.name, config.policy.options, setup)
    _refuse(bench, objection_to_policy(policy, bench.aggregator, config.clients, config.clients_per_round))
    return policy, setup


def _refuse(bench: Workbench, reason: str) -> None:
    """Raise a ConfigError where there is a reason why the policy does not fit the aggregator."""
    if reason:
        raise ConfigError(
            f"policy.name = '{bench.config.policy.name}' does not fit aggregator.method = '{bench.aggregator.name}': {reason}. "
            "Use policy.name = 'full', or another rule"
        )


def _largest(update: Update) -> float:
    """Return the absolute value of the largest number that a client sent."""
    tensors = [tensor for part in [*update.sites, update.head] for tensor in part.values() if tensor.is_floating_point()]
    return max((float(tensor.abs().max()) for tensor in tensors if tensor.numel()), default=0.0)


def _reported(metrics: MetricRecord) -> dict[str, float]:
    """Return what a client says of its own training, for the log; what is not one finite number is left out."""
    numbers = {key: value for key in _REPORTED if isinstance(value := metrics.get(key), int | float)}
    return {key.replace("-", "_"): value for key, value in numbers.items() if isinstance(value, int) or math.isfinite(value)}
