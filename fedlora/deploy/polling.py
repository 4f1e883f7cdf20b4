"""PollingGrid: a Grid over real nodes that looks for replies often, ends rounds by their deadline, and outlives a SuperLink."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import httpx
from flwr.app import Error, Message, MessageType
from flwr.serverapp import Grid

from fedlora.config import DeploymentConfig
from fedlora.deploy.pulls import Pulls
from fedlora.errors import FedLoRAError
from fedlora.federation.client import CLIENT_FAILED
from fedlora.federation.forwarding_grid import ForwardingGrid

_Result = TypeVar("_Result")

_LOOK_AT_NODES_S = 2.0
# After a SuperLink was started again, nodes are back within 8 s, with the replies that they have.
_SEND_AGAIN_S = 12.0
_BREATH_S = 0.5
# Of replies that are no round's: how long a look waits for them, and how many may be held up.
_PATIENCE_S, _MOST_OTHERS = 1.0, 8
_TROUBLE, _TROUBLE_S = 500, 60.0
# A message that nobody fetched by the end of its round is not delivered any more; this is how much the clocks may differ.
_GRACE_S = 10.0


class Listener(Protocol):
    """Who is told what the grid sees."""

    def online(self, nodes: list[int]) -> None:
        """These nodes are online."""

    def asked(self, nodes: list[int]) -> None:
        """A message goes out to each of these nodes."""

    def replied(self, reply: Message) -> None:
        """A reply came in."""


class PollingGrid(ForwardingGrid):
    """A Grid over another that talks to a SuperLink.

    Flower's own looks for replies every three seconds, and lets an error of the connection end the run. This one looks every
    `poll_s`, waits out connections that are down, returns replies in the order of their messages (so that sums come out the same
    whoever was faster), and never waits longer than `round_timeout_s`. A reply that comes later is never looked at.

    A SuperLink that dies takes with it what was on its way: a message that a node had begun to fetch is marked as delivered and
    never comes again. So does a node that dies. Where either was started anew during a round, messages without a reply are
    therefore sent once more after a while; whichever reply is first counts. A node that stays away is not waited for.

    Args:
        grid: The grid that talks to the SuperLink.
        settings: The run's `deployment` section.
        listener: Who is told what happens, or None.
        lives: Returns what tells one life of each node's connection from the next, of the SuperLink's and the node's own.
        send_again_s: Seconds after a new life at which messages are sent once more.
    """

    def __init__(
        self,
        grid: Grid,
        settings: DeploymentConfig,
        listener: Listener | None = None,
        lives: Callable[[list[int]], list[str]] = lambda nodes: [""] * len(nodes),
        send_again_s: float = _SEND_AGAIN_S,
    ) -> None:
        super().__init__(grid)
        self.settings, self.listener = settings, listener
        self.lives, self.send_again_s = lives, send_again_s
        self._others = Pulls(self._pull, _MOST_OTHERS, 0.0)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are online."""
        nodes = sorted(self._insist(lambda: list(self.inner.get_node_ids())))
        if self.listener:
            self.listener.online(nodes)
        return nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return the ids by which their replies are pulled.

        An id is made of what its message says, so sending a message again is sending it once.
        """
        batch = list(messages)
        if not batch:
            return []
        self._insist(lambda: self.inner.push_messages(batch))
        return [message.metadata.message_id for message in batch]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, each once; one that does not come whole is among those of a later call."""
        return self._others.look(list(message_ids), _PATIENCE_S)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies that came in time, in the order of the messages."""
        sent = list(messages)
        if not sent:
            return []
        # The round's deadline is for training; who is asked who he is may have to load his model first.
        longest = self.settings.round_timeout_s if sent[0].metadata.message_type == MessageType.TRAIN else math.inf
        limit = min(longest, self.settings.round_timeout_s if timeout is None else timeout)
        deadline = time.monotonic() + limit
        nodes = [message.metadata.dst_node_id for message in sent]
        if self.listener:
            self.listener.asked(nodes)
        for message in sent:
            message.metadata.ttl = limit + _GRACE_S
        online = self._wait_for_any(set(nodes), deadline)
        reached = [place for place, message in enumerate(sent) if message.metadata.dst_node_id in online]
        renewed, gone = _Renewed(self.lives, nodes, self.send_again_s), _Gone(set(nodes), self._online_now)
        places = dict(zip(self.push_messages(sent[place] for place in reached), reached, strict=True))
        replies = {place: self._offline(message) for place, message in enumerate(sent) if place not in reached}
        pulls = Pulls(self._pull, len(sent) + 1, self.settings.poll_s)
        while len(replies) < len(sent) and (left := deadline - time.monotonic()) > 0:
            away = gone.nodes()
            lost = [place for place, node in enumerate(nodes) if node in away and place not in replies]
            replies |= {place: self._offline(sent[place]) for place in lost}
            waiting = [name for name, place in places.items() if place not in replies]
            for reply in pulls.look(waiting, min(self.settings.poll_s, left)):
                place = places.get(reply.metadata.reply_to_message_id)
                if place is not None and place not in replies:
                    replies[place] = self._bounded(reply, sent[place])
                    if self.listener:
                        self.listener.replied(replies[place])
            if missing := [place for place in renewed.due() if place not in replies]:
                places |= zip(self.push_messages([_copy(sent[place]) for place in missing]), missing, strict=True)
        return [replies[place] for place in sorted(replies)]

    def _wait_for_any(self, nodes: set[int], deadline: float) -> set[int]:
        """Return which of these nodes are online, waiting for one: a server that was cut off must not run through its rounds."""
        while not (online := nodes & set(self.get_node_ids())) and time.monotonic() < deadline:
            time.sleep(min(_LOOK_AT_NODES_S, max(0.0, deadline - time.monotonic())))
        return online

    def _online_now(self) -> set[int] | None:
        """Return which nodes are online, and tell the listener; None where the connection breaks."""
        try:
            nodes = sorted(self.inner.get_node_ids())
        except httpx.HTTPError:
            return None
        if self.listener:
            self.listener.online(nodes)
        return set(nodes)

    def _pull(self, waiting: list[str]) -> list[Message]:
        """Return what is there now; a connection that breaks is nothing there."""
        try:
            return list(self.inner.pull_messages(waiting))
        except httpx.HTTPError as error:
            _raise_unless_passing(error)
            return []

    def _offline(self, message: Message) -> Message:
        """Return the reply of a node that is not there: what is not sent does not lie in wait for it."""
        reply = Message(Error(CLIENT_FAILED, "the node is offline"), reply_to=message)
        if self.listener:
            self.listener.replied(reply)
        return reply

    def _bounded(self, reply: Message, message: Message) -> Message:
        """Return the reply, or an error in its place where it is larger than the run allows or did not come whole."""
        if reply.has_error():
            if reply.metadata.src_node_id == message.metadata.dst_node_id:
                return reply
            return Message(reply.error, reply_to=message)  # Flower names the server as the sender of what it could not fetch
        size = sum(len(array.data) for record in reply.content.array_records.values() for array in record.values())
        limit = self.settings.max_payload_mb
        if size <= limit * 1e6:
            return reply
        reason = f"oversized: the reply has {size / 1e6:.1f} MB, deployment.max_payload_mb = {limit:g}"
        return Message(Error(CLIENT_FAILED, reason), reply_to=message)

    def _insist(self, action: Callable[[], _Result]) -> _Result:
        """Do what must be done, however often the connection breaks (a SuperLink that is killed takes open ones with it).

        Raises:
            FedLoRAError: The SuperLink is there and has failed to do it for a while.
        """
        since: float | None = None
        while True:
            try:
                return action()
            except httpx.HTTPError as error:
                _raise_unless_passing(error)
                now = time.monotonic()
                if not isinstance(error, httpx.HTTPStatusError):
                    since = None
                elif since is None:
                    since = now
                elif now - since > _TROUBLE_S:
                    raise FedLoRAError(
                        f"the SuperLink has answered with errors ({error.response.status_code}) for {_TROUBLE_S:g} s. Its log "
                        "says why: superlink.log, in state/logs of the deployment; is that disk full?"
                    ) from error
                time.sleep(_BREATH_S)


class _Gone:
    """Looks now and then which nodes are online, and says who was not at two looks in a row.

    Flower says so itself, at once, of a node that owes a reply; unless it had begun to send it, when nothing more is heard of it.

    Args:
        nodes: Those that matter.
        look: Returns the nodes that are online, None where that is not to be learnt just now.
    """

    def __init__(self, nodes: set[int], look: Callable[[], set[int] | None]) -> None:
        self.among, self.look = nodes, look
        self._looked = time.monotonic()
        self._before: set[int] = set()

    def nodes(self) -> set[int]:
        """Return the nodes that are gone; none where it is not yet time to look."""
        if time.monotonic() - self._looked < _LOOK_AT_NODES_S:
            return set()
        self._looked = time.monotonic()
        online = self.look()
        away = set() if online is None else self.among - online
        gone, self._before = away & self._before, away
        return gone


class _Renewed:
    """Says once of each node that began a new life, a while after it did.

    Args:
        lives: Returns what tells one life of each node's connection from the next.
        nodes: The nodes.
        after_s: Seconds to wait: until then a node that is back may have found by itself what waits for it.
    """

    def __init__(self, lives: Callable[[list[int]], list[str]], nodes: list[int], after_s: float) -> None:
        self.lives, self.nodes, self.after_s = lives, nodes, after_s
        self._known = lives(nodes)
        self._due: dict[int, float] = {}

    def due(self) -> list[int]:
        """Return the places of nodes whose time has come."""
        found, now = self.lives(self.nodes), time.monotonic()
        pairs = enumerate(zip(self._known, found, strict=True))
        self._due |= {place: now + self.after_s for place, (old, new) in pairs if old != new}
        self._known = found
        ready = [place for place, moment in self._due.items() if moment <= now]
        self._due = {place: moment for place, moment in self._due.items() if moment > now}
        return ready


def _raise_unless_passing(error: httpx.HTTPError) -> None:
    """Raise what will not pass by itself: all but connections that break and a SuperLink in trouble of its own (5xx)."""
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else _TROUBLE
    if status < _TROUBLE or not isinstance(error, httpx.HTTPStatusError | httpx.TransportError):
        raise error


def _copy(message: Message) -> Message:
    """Return a message that says the same and is another."""
    data = message.metadata
    return Message(
        message.content, dst_node_id=data.dst_node_id, message_type=data.message_type, group_id=data.group_id, ttl=data.ttl
    )
