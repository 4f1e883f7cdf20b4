"""A TCP relay on loopback that counts what goes through it: the bytes of TLS records, both ways."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

_CHUNK = 1 << 16


@dataclass
class Relay:
    """Passes connections on to a port of loopback.

    Attributes:
        target: The port that it passes connections on to.
        port: The port that it listens at.
        up: Bytes to the target so far.
        down: Bytes from the target so far.
    """

    target: int
    port: int = 0
    up: int = 0
    down: int = 0
    _listener: socket.socket = field(default_factory=socket.socket)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Listen at a free port."""
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """Listen no more; open connections end with their ends."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                inward, _ = self._listener.accept()
                outward = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # stopped, or the target is gone
                return
            threading.Thread(target=self._pump, args=(inward, outward, "up"), daemon=True).start()
            threading.Thread(target=self._pump, args=(outward, inward, "down"), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK):
                sink.sendall(chunk)
                with self._lock:
                    setattr(self, way, getattr(self, way) + len(chunk))
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def counting_relay(target: int) -> Iterator[Relay]:
    """A relay to `target` that runs as long as the block."""
    relay = Relay(target)
    relay.start()
    try:
        yield relay
    finally:
        relay.stop()
