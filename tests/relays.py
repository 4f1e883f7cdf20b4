"""A TCP relay on loopback that counts what it carries, and whose link can go down: what was sent waits, and nobody is told."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator


class Relay:
    """Forwards connections to a port of loopback.

    Args:
        port: Where to.

    Attributes:
        carried: Bytes so far, to that port and back.
        broken: New connections break.
        budget: Bytes that may still go up before the link goes down in the middle of them; None: any number.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        self.broken = False
        self.carried = 0
        self._count = threading.Lock()
        self.budget: int | None = None
        self._up = threading.Event()
        self._up.set()
        self._ended = False
        threading.Thread(target=self._accept, daemon=True).start()

    def down(self) -> None:
        """Let nothing through any more, as a link that is out: connections stay, bytes wait where they are."""
        self._up.clear()

    def up(self) -> None:
        """Let everything through again."""
        self._up.set()

    def cut(self) -> None:
        """Break every open connection, and while `broken` is set every new one, in the middle of its greeting."""
        for pair in self.pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Stop."""
        self._ended = True
        self.up()
        self.listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._ended:
                near, _ = self.listener.accept()
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        self._up.wait()
        if self.broken:
            near.recv(65536)  # all of the greeting: what is left unread would reset the connection
            near.close()
            return
        try:
            far = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            near.close()
            return
        self.pairs.append((near, far))
        other = {near: far, far: near}
        with near, far, contextlib.suppress(OSError):
            while not self._ended:
                ready = select.select([near, far], [], [], 0.2)[0]
                self._up.wait()
                for end in ready:
                    data = end.recv(65536)
                    if not data:
                        return
                    if end is near:
                        data = self._within_budget(data)
                    other[end].sendall(data)
                    with self._count:
                        self.carried += len(data)

    def _within_budget(self, data: bytes) -> bytes:
        """Return as much of what a node sends as may still pass; with the last of it the link goes down."""
        if self.budget is None:
            return data
        passing, self.budget = data[: self.budget], self.budget - len(data)
        if self.budget <= 0:
            self.budget = None
            self.down()
        return passing


@contextlib.contextmanager
def relay(port: int) -> Iterator[Relay]:
    """A relay that ends with the block."""
    made = Relay(port)
    try:
        yield made
    finally:
        made.end()
