"""WindowedGrid: the Grid of Flower's simulation engine, with few messages under way at once."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from fedlora.errors import FedLoRAError, TrainingError
from fedlora.federation.forwarding_grid import ForwardingGrid

_WIDEST = 256
# How Ray's errors begin when the process that trained a client is gone, as Flower puts them into a reply.
_LOST = re.compile(r"(ActorDiedError|RayActorError|ActorUnavailableError|OutOfMemoryError|WorkerCrashedError|NodeDiedError)")


class WindowedGrid(ForwardingGrid):
    """Sends the messages of a round one window after the other.

    Flower's link state looks through every stored message once per node, over and over, until it is answered. A thousand
    messages to a thousand nodes keep a core busy that way for as long as they wait; a few at a time cost next to nothing. The
    window doubles while clients answer faster than they are asked.

    A process of Ray's that died stays in Flower's pool and would fail all messages that follow, so the run ends there.

    Args:
        inner: Flower's grid.
        window: Messages that are under way at first, at least one per client that trains at a time.
        stopped: Set when the engine has ended: nobody will answer then.
        poll_s: Seconds between looks at what has arrived.
    """

    def __init__(self, inner: Grid, window: int, stopped: threading.Event, poll_s: float = 0.02) -> None:
        super().__init__(inner)
        self.window, self.stopped, self.poll_s = window, stopped, poll_s

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes of the wrapped grid."""
        self._heed()
        return self.inner.get_node_ids()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, each once.

        Raises:
            FedLoRAError: The engine has ended, or a process that trains clients died.
        """
        self._heed()
        replies = list(self.inner.pull_messages(message_ids))
        for reply in replies:
            if reply.has_error() and (lost := _LOST.search((reply.error.reason or "").partition("\n")[0])):
                raise TrainingError(
                    f"a process of Ray's that trains clients died ({lost[1]}), most often for lack of memory: with a larger "
                    "ray.client_cpus fewer of them run at a time. Go on from the last round with --resume"
                )
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages window by window and return the replies that came within `timeout` seconds (errors: `pull_messages`)."""
        waiting, under_way, window = deque(messages), set[str](), self.window
        replies: list[Message] = []
        ends = time.monotonic() + timeout if timeout is not None else float("inf")
        while (waiting or under_way) and time.monotonic() < ends:
            room = min(window - len(under_way), len(waiting))
            if room > 0:
                under_way |= set(self.push_messages([waiting.popleft() for _ in range(room)]))
            arrived = list(self.pull_messages(under_way))
            replies += arrived
            under_way -= {reply.metadata.reply_to_message_id for reply in arrived}
            if 2 * len(arrived) >= window:
                window = min(2 * window, _WIDEST)
            if under_way:
                time.sleep(self.poll_s)
        return replies

    def _heed(self) -> None:
        # Flower's server thread would wait an hour for replies that nobody sends.
        if self.stopped.is_set():
            raise FedLoRAError("the run was stopped")
