"""Who takes part: nodes are asked which client they are, before the first round and whenever one comes later."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedlora.errors import FedLoRAError, PayloadError
from fedlora.federation.client import TEXT_METRICS

_GROUP = "roll"


class Roster(dict[int, tuple[int, int]]):
    """Client number -> (node id, training examples), as the nodes introduced themselves.

    Attributes:
        text: What clients said of their texts, by client number: entropy, surprisal and share of split words, all in 0..1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.text: dict[int, tuple[float, ...]] = {}

    def enter(self, client: int, node: int, metrics: MetricRecord) -> None:
        """Let a node stand for a client from now on."""
        self[client] = (node, int(metrics["num-examples"]))  # type: ignore[arg-type]
        self.text.pop(client, None)
        if text := _text(metrics):
            self.text[client] = text


def call_roll(grid: Grid, wanted: int, timeout: float = 600.0, labels: Sequence[str] = ()) -> Roster:
    """Ask all nodes who they are; return client number -> (node id, training examples), and what they say of their texts.

    Waits until `wanted` nodes are online or `timeout` seconds have passed.

    Args:
        grid: Where the nodes are.
        wanted: Clients that the run has; each node has a number below it.
        timeout: Real seconds.
        labels: Names of the run's labels, which nodes with data of their own are told.

    Raises:
        FedLoRAError: Nobody answered, or nobody could, or two nodes say that they are the same client.
    """
    deadline = time.monotonic() + timeout
    nodes = sorted(grid.get_node_ids())
    while len(nodes) < wanted and time.monotonic() < deadline:
        time.sleep(0.2)
        nodes = sorted(grid.get_node_ids())
    roster = Roster()
    reasons = [_silence(len(nodes), timeout)]
    for reply in grid.send_and_receive(_questions(nodes, labels), timeout=timeout):
        try:
            client, metrics = _introduced(reply, wanted)
        except PayloadError as error:
            reasons.append(error.detail)
            continue
        if client in roster:
            raise FedLoRAError(
                f"two nodes say that they are client {client} ({roster[client][0]} and {reply.metadata.src_node_id}): "
                "give each node a number of its own (`fedlora node --client N`)"
            )
        roster.enter(client, reply.metadata.src_node_id, metrics)
    if not roster:
        raise FedLoRAError(f"no client takes part: {reasons[-1]}")
    return roster


class Latecomers:
    """Nodes that come online after the roll was called: they are asked who they are, and take part once they have said it.

    Nobody waits for them: a question that goes out between two rounds is answered while the next one runs. A node may take the
    place of another whose number it has if that one is no longer online.

    Args:
        grid: Where the nodes are.
        roster: The run's roster, which grows.
        clients: Client numbers that there are.
        labels: Names of the run's labels.
        say: Who is told.
    """

    def __init__(self, grid: Grid, roster: Roster, clients: int, labels: Sequence[str], say: Callable[[str], None]) -> None:
        self.grid, self.roster, self.clients, self.labels, self.say = grid, roster, clients, labels, say
        self._asked: dict[str, int] = {}
        self._refused: set[int] = set()

    def look(self) -> list[int]:
        """Take in those who have answered and ask those who are new; return the clients that take part from now on."""
        online = set(self.grid.get_node_ids())
        self._refused &= online
        come = []
        for reply in self.grid.pull_messages(list(self._asked)) if self._asked else []:
            node = self._asked.pop(reply.metadata.reply_to_message_id, None)
            if node is None or node not in online:  # it has left again, and is asked anew when it comes back
                continue
            try:
                client, metrics = _introduced(reply, self.clients)
                if client in self.roster and self.roster[client][0] in online:
                    raise PayloadError("schema", f"it says that it is client {client}, and so does another node that is online")
            except PayloadError as error:
                self._refused.add(node)
                self.say(f"node {node} cannot take part: {error.detail}")
                continue
            self.roster.enter(client, node, metrics)
            come.append(client)
        waiting = set(self._asked.values())
        new = sorted(online - {node for node, _ in self.roster.values()} - waiting - self._refused)
        names = self.grid.push_messages(_questions(new, self.labels)) if new else []
        self._asked |= dict(zip(names, new, strict=True))
        return sorted(come)


def reason_of(reply: Message) -> str:
    """Return the last line of the error that a reply carries: libraries put whole tracebacks there."""
    lines = (reply.error.reason or "").strip().splitlines()
    return lines[-1].strip() if lines else "no reason given"


def _questions(nodes: Sequence[int], labels: Sequence[str]) -> list[Message]:
    told = RecordDict({"config": ConfigRecord({"labels": list(labels)})} if labels else {})
    return [Message(told, dst_node_id=node, message_type=MessageType.QUERY, group_id=_GROUP) for node in nodes]


def _introduced(reply: Message, clients: int) -> tuple[int, MetricRecord]:
    """Return the client number that a node says it has, and all it said (PayloadError where that cannot be)."""
    if reply.has_error():
        raise PayloadError("failed", reason_of(reply))
    metrics = reply.content.metric_records.get("metrics") or MetricRecord()
    client, examples = metrics.get("client"), metrics.get("num-examples")
    if not isinstance(client, int) or not 0 <= client < clients:
        raise PayloadError("schema", f"a node says that it is client {client}; there are {clients}, counted from 0")
    if not isinstance(examples, int) or examples < 1:
        raise PayloadError("schema", f"client {client} says that it has {examples} examples; to take part it needs at least 1")
    return client, metrics


def _silence(asked: int, timeout: float) -> str:
    """Return what to look at where nobody answered."""
    if not asked:
        return (
            f"no node came online within {timeout:g} s. Start nodes with `fedlora node`; on a device that cannot join, "
            "`fedlora doctor --edge` says why"
        )
    return (
        f"of {asked} nodes that are online none answered within {timeout:g} s. A node that still loads its model needs more time "
        "(deployment.start_timeout_s); trainer.log in its --state folder says what else is wrong"
    )


def _text(metrics: MetricRecord) -> tuple[float, ...] | None:
    """Return what a client says of its texts, brought inside 0..1, or None where it does not say it in finite numbers."""
    values = [metrics.get(name) for name in TEXT_METRICS]
    numbers = [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return tuple(min(max(number, 0.0), 1.0) for number in numbers) if len(numbers) == len(TEXT_METRICS) else None
