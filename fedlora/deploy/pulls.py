"""Pulling replies without waiting for those that do not come whole.

A reply is announced before its arrays are there, and Flower's pull waits for them: up to three minutes where the node that sends
them is gone, with every other reply waiting behind it. Here pulls run in threads, and where one is held up the next one starts
beside it. A SuperLink gives out every reply once and then forgets its message, so that a pull beside another may be told that
there is no such message while its reply is in the other's hands: of pulls that overlap, that answer is not believed.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable

from flwr.app import Message
from flwr.common.constant import ErrorCode

_HELD_S = 1.0


class Pulls:
    """Pulls of one set of messages.

    Args:
        pull: Returns the replies that are there to messages with these ids; may take its time.
        most: Most pulls at a time.
        every_s: Seconds from one pull to the next.
    """

    def __init__(self, pull: Callable[[list[str]], list[Message]], most: int, every_s: float) -> None:
        self.pull, self.most, self.every_s = pull, most, every_s
        self._threads: list[threading.Thread] = []
        self._found: queue.SimpleQueue[list[Message] | BaseException] = queue.SimpleQueue()
        self._began, self._count = -math.inf, 0

    def look(self, names: list[str], seconds: float) -> list[Message]:
        """Return replies as soon as a pull brings any, or ends; nothing after `seconds`. Raises what a pull raises."""
        age = time.monotonic() - self._began
        held = bool(self._threads) and self._threads[-1].is_alive()
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        due = age >= (_HELD_S if held else self.every_s) and self._found.empty()
        if names and due and len(self._threads) < self.most:
            self._start(names)
        try:
            found = self._found.get(timeout=seconds)
        except queue.Empty:
            return []
        if isinstance(found, BaseException):
            raise found
        return found

    def _start(self, names: list[str]) -> None:
        self._began = time.monotonic()
        self._count += 1
        # A daemon: one that is held up must not hold up the end of the process.
        self._threads.append(threading.Thread(target=self._run, args=(names, self._count, not self._threads), daemon=True))
        self._threads[-1].start()

    def _run(self, names: list[str], number: int, alone: bool) -> None:
        try:
            found = self.pull(names)
            if not alone or self._count > number:
                found = [
                    reply for reply in found if not (reply.has_error() and reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE)
                ]
            self._found.put(found)
        except BaseException as error:  # it belongs to whoever looks
            self._found.put(error)
