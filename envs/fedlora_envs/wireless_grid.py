"""WirelessGrid: any Flower Grid behind a simulated radio, on a virtual clock.

What the wrapped grid carries is carried as ever; the encoded bytes that went through are then charged to the world, and replies
that a client could not have delivered (it dropped out, or the deadline had passed) become error replies. So every Flower strategy
works over it unchanged, and whatever stands behind the wrapped grid (this process, Ray, real nodes) does too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from flwr.app import Error, Message, MessageType
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora.federation.forwarding_grid import ForwardingGrid
from fedlora.federation.world import CLIENT_DROPPED, CLIENT_LATE
from fedlora_envs.outcome import Fate, Outcome

CHARGED = (MessageType.TRAIN, MessageType.EVALUATE)
_UNSENT = "unsent-"
Work = Callable[[Message], float]
"""Returns how many operations (or CPU cycles) a reply took its client."""


class Charging(Protocol):
    """What the grid asks of a world (`fedlora_envs.world.RadioWorld` says what each does)."""

    outcome: Outcome

    def begin(self, clients: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.bool_]: ...

    def play(self, clients: NDArray[np.int64], work: NDArray[np.float64], sizes: NDArray[np.int64]) -> Outcome: ...

    def work(self, reply: Message) -> float: ...


@dataclass
class _Exchange:
    """The charged messages of one call of `push_messages`, until all replies are there."""

    sent: dict[str, Message]
    lost: list[Message]
    replies: dict[str, Message] = field(default_factory=dict)

    def complete(self) -> bool:
        return len(self.replies) == len(self.sent)


class WirelessGrid(ForwardingGrid):
    """A grid whose messages cost airtime, computing time and energy.

    Messages to train or evaluate are charged, one batch of them being one round of the world; questions ("query") are free.
    A client that is lost answers with an error of code 101 (dropped) or 102 (late) whose reason says what happened.

    Args:
        inner: The grid that carries the messages.
        world: The radio world.
        clients: Node id -> client number, which may grow; default: nodes in ascending order are clients 0, 1, ...
        work: What a reply took its client; default: by its metrics `tokens`, else `num-examples` (see `RadioWorld.work`).

    Raises:
        ConfigError: A node beyond the number of clients that the world holds.
    """

    def __init__(self, inner: Grid, world: Charging, clients: Mapping[int, int] | None = None, work: Work | None = None) -> None:
        super().__init__(inner)
        self.world = world
        self._clients = clients
        self._work = work or world.work
        self._open: list[_Exchange] = []
        self._ready: dict[str, Message] = {}
        self._unsent = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages to the clients that can be reached; return an id for each, in order."""
        batch = list(messages)
        exchange, free = self._begin(batch)
        passing = [*exchange.sent.values(), *free]
        for message, key in zip(passing, self.inner.push_messages(passing), strict=True):
            message.metadata.__dict__["_message_id"] = key
        exchange.sent = {message.metadata.message_id: message for message in exchange.sent.values()}
        if exchange.sent or exchange.lost:
            self._open.append(exchange)
        return [message.metadata.message_id for message in batch]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, each once; those of a round come together, when all of them are there."""
        wanted = list(message_ids)
        for exchange in list(self._open):
            missing = [key for key in exchange.sent if key not in exchange.replies]
            for reply in self.inner.pull_messages(missing) if missing else []:
                exchange.replies[reply.metadata.reply_to_message_id] = reply
            if exchange.complete():
                self._open.remove(exchange)
                self._ready |= {reply.metadata.reply_to_message_id: reply for reply in self._settle(exchange)}
        charged = {key for exchange in self._open for key in exchange.sent}
        found = [self._ready.pop(key) for key in wanted if key in self._ready]
        answered = {reply.metadata.reply_to_message_id for reply in found}
        # What was never sent the wrapped grid does not know: Flower's own would answer with an error of its own.
        free = [key for key in wanted if key not in charged | answered and not key.startswith(_UNSENT)]
        return found + (list(self.inner.pull_messages(free)) if free else [])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages, wait for the replies (`timeout` is in real seconds), charge them and return all of them."""
        exchange, free = self._begin(list(messages))
        passing = [*exchange.sent.values(), *free]
        replies = list(self.inner.send_and_receive(passing, timeout=timeout)) if passing else []
        exchange.sent = {message.metadata.message_id: message for message in exchange.sent.values()}
        exchange.replies = {
            reply.metadata.reply_to_message_id: reply for reply in replies if reply.metadata.reply_to_message_id in exchange.sent
        }
        others = [reply for reply in replies if reply.metadata.reply_to_message_id not in exchange.sent]
        return (self._settle(exchange) if exchange.sent or exchange.lost else []) + others

    def _begin(self, batch: list[Message]) -> tuple[_Exchange, list[Message]]:
        """Start a round of the world with the charged messages; return them by place, and the free ones."""
        charged = [message for message in batch if message.metadata.message_type in CHARGED]
        free = [message for message in batch if message.metadata.message_type not in CHARGED]
        if not charged:
            return _Exchange({}, []), free
        if self._open:
            raise ConfigError("a round is under way over this WirelessGrid: pull all its replies before the next messages go out")
        clients = np.array([self._client(message.metadata.dst_node_id) for message in charged], np.int64)
        reached = self.world.begin(clients, np.array([payload_bytes(message) for message in charged], np.int64))
        sent = {str(place): message for place, message in enumerate(charged) if reached[place]}
        lost = [message for message, there in zip(charged, reached, strict=True) if not there]
        for message in lost:
            self._unsent += 1
            message.metadata.__dict__["_message_id"] = f"{_UNSENT}{self._unsent}"
        return _Exchange(sent, lost), free

    def _settle(self, exchange: _Exchange) -> list[Message]:
        """Charge a round; return its replies, those of lost clients as errors."""
        there = [reply for reply in exchange.replies.values() if not reply.has_error()]
        failed = [reply for reply in exchange.replies.values() if reply.has_error()]
        numbers = [self._client(reply.metadata.src_node_id) for reply in there]
        outcome = self.world.play(
            np.array(numbers, np.int64),
            np.array([self._work(reply) for reply in there], np.float64),
            np.array([payload_bytes(reply) for reply in there], np.int64),
        )
        sent = {message.metadata.dst_node_id: message for message in [*exchange.sent.values(), *exchange.lost]}
        settled: list[Message] = failed
        for reply, client in zip(there, numbers, strict=True):
            settled.append(reply if outcome.fate_of(client) is Fate.DONE else self._error(sent[reply.metadata.src_node_id]))
        return settled + [self._error(message) for message in exchange.lost]

    def _error(self, message: Message) -> Message:
        client = self._client(message.metadata.dst_node_id)
        outcome = self.world.outcome
        code = CLIENT_LATE if outcome.fate_of(client) is Fate.LATE else CLIENT_DROPPED
        return Message(Error(code, outcome.reason_of(client)), reply_to=message)

    def _client(self, node: int) -> int:
        if self._clients is None:
            self._clients = {key: number for number, key in enumerate(sorted(self.inner.get_node_ids()))}
        if node not in self._clients:
            raise ConfigError(f"node {node} is none of the {len(self._clients)} nodes that this WirelessGrid was made for")
        return self._clients[node]


def payload_bytes(message: Message) -> int:
    """Return the bytes on the air of a message: the encoded arrays, or what else it holds where it has no arrays."""
    arrays = sum(len(array.data) for record in message.content.array_records.values() for array in record.values())
    metrics = sum(record.count_bytes() for record in message.content.metric_records.values())
    config = sum(record.count_bytes() for record in message.content.config_records.values())
    return arrays or max(1, metrics + config)
