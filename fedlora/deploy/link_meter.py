"""What a node measures of itself: goodput each way as its SuperNode sees it, battery, and the radio's level.

The SuperNode process notes each finished exchange with the server in a small JSON file; the trainer reads it and puts it into the
metrics of the next reply. Nothing is measured on purpose: a transfer is timed because it happens.

Goodput is that of the largest exchange of a transfer, less what an exchange takes that carries next to nothing (the way to the
server and back, handshakes, the server's own time): at tens of kilobytes and milliseconds that is most of it. What is still less
than a few kilobytes tells of the way only, and gives no goodput.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

_DOWN, _UP = "/pull-object", "/push-object"
# What begins a new transfer: a look for messages, the announcement of a reply.
_BEGINS = {"/pull-messages": "down", "/push-messages": "up"}
# Bodies below the first carry next to nothing; only those from the second on tell a rate.
_EMPTY_BYTES, _TELLING_BYTES = 1500, 8000
# Latency is subtracted down to this share of an exchange: what is left of a shorter one is noise.
_LEAST_SHARE = 0.2


@dataclass
class _Transfer:
    """Exchanges that belong together: from the first one's start to the last one's end, overlapping ones counted once."""

    began: float
    ended: float
    bytes: int
    largest: int = 0
    largest_s: float = 0.0


@dataclass
class LinkMeter:
    """Notes what goes over the link, and how the server answered, in `path`.

    Attributes:
        path: The file, replaced at every change; readers see the old one or the new one.
        on_message: Called before each part of a message is fetched: there is work for a client app.
    """

    path: Path
    on_message: Callable[[], None] = lambda: None
    _transfers: dict[str, _Transfer] = field(default_factory=dict)
    _fresh: set[str] = field(default_factory=lambda: {"down", "up"})
    _empty_s: deque[float] = field(default_factory=lambda: deque(maxlen=15))
    _notes: dict[str, Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def watch(self) -> None:
        """Meter every exchange of this process from now on (all of httpx's clients go through one public method)."""
        send = httpx.Client.send

        def metered(client: httpx.Client, request: httpx.Request, **named: Any) -> httpx.Response:
            began, clock = time.monotonic(), time.time()
            if request.url.path.endswith(_DOWN):
                self.on_message()
            try:
                response = send(client, request, **named)
            except httpx.HTTPError as error:
                self.failed(request.url.path, str(error))
                raise
            sent = int(request.headers.get("content-length", 0))
            self.exchanged(request.url.path, sent, response.num_bytes_downloaded, began, time.monotonic())
            self.heard(request.url.path, response, clock)
            return response

        httpx.Client.send = metered  # type: ignore[method-assign,assignment]

    def exchanged(self, path: str, sent: int, received: int, began: float, ended: float) -> None:
        """Count one finished exchange: the bodies' bytes, from its start to its end (seconds of one clock)."""
        with self._lock:
            if self._notes.pop("error", None):
                self._write()
            for ending, way in _BEGINS.items():
                if path.endswith(ending):
                    self._fresh.add(way)
            if max(sent, received) < _EMPTY_BYTES:
                self._empty_s.append(ended - began)
            for ending, way, size in ((_DOWN, "down", received), (_UP, "up", sent)):
                if path.endswith(ending):
                    self._count(way, size, began, ended)

    def _count(self, way: str, size: int, began: float, ended: float) -> None:
        transfer = self._transfers.get(way)
        if transfer is None or way in self._fresh:
            self._transfers[way] = _Transfer(began, ended, size)
            self._fresh.discard(way)
        else:
            transfer.began, transfer.ended = min(transfer.began, began), max(transfer.ended, ended)
            transfer.bytes += size
        if size > self._transfers[way].largest:
            self._transfers[way].largest, self._transfers[way].largest_s = size, ended - began
        self._write()

    def heard(self, path: str, response: httpx.Response, asked: float) -> None:
        """Note what the server says of this node: that it is in, or why it is refused; it was asked at `asked` by this clock."""
        notes: dict[str, Any] = {}
        if path.endswith("/activate-node") and response.is_success:
            notes = {"activated": True, "refused": None}
        elif response.status_code >= 400:
            body: dict[str, Any] = {}
            with contextlib.suppress(ValueError, httpx.StreamError):
                body = response.json()
            code = body.get("code") if isinstance(body, dict) else None
            notes = {
                "refused": {
                    "path": path,
                    "status": response.status_code,
                    "code": code,
                    "skew_s": clock_skew(response.headers.get("date"), asked),
                }
            }
        if notes:
            with self._lock:
                self._notes |= notes
                self._write()

    def failed(self, path: str, error: str) -> None:
        """Note that an exchange did not come about, and since when none has."""
        with self._lock:
            since = self._notes.get("error", {}).get("since", time.monotonic())
            self._notes["error"] = {"path": path, "text": error[:300], "since": since}
            self._write()

    def _write(self) -> None:
        empty_s = statistics.median(self._empty_s) if self._empty_s else 0.0
        found = {
            way: {"seconds": max(item.ended - item.began, 1e-6), "bps": goodput(item.largest, item.largest_s, empty_s)}
            for way, item in self._transfers.items()
        }
        # Metering must never stop the node: a full disk costs the measurement, not the round.
        with contextlib.suppress(OSError):
            temporary = self.path.with_suffix(".new")
            temporary.write_text(json.dumps({**found, **self._notes}))
            os.replace(temporary, self.path)


def goodput(size: int, seconds: float, empty_s: float) -> float | None:
    """Return the goodput of one exchange, bit/s; None where it carried too little to tell.

    Args:
        size: Bytes of its body.
        seconds: From its start to its end.
        empty_s: What an exchange takes that carries next to nothing.
    """
    if size < _TELLING_BYTES or not seconds > 0:
        return None
    return 8 * size / max(seconds - empty_s, _LEAST_SHARE * seconds)


def clock_skew(date: str | None, asked: float) -> float | None:
    """Return how far this device's clock is ahead of the server's at the least, seconds; None where it tells no time.

    The server wrote its date at some moment between the question and now, which may be long on a busy machine.

    Args:
        date: The header of its answer.
        asked: This device's clock when it asked.
    """
    try:
        server = parsedate_to_datetime(date or "").timestamp()
    except (ValueError, TypeError):
        return None
    return max(asked - server - 1.0, 0.0) + min(time.time() - server, 0.0)  # a date is of whole seconds


def read_notes(path: Path) -> dict[str, Any]:
    """Return what the meter last wrote; empty where there is nothing, or nothing readable."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    return {}


def link_metrics(path: Path) -> dict[str, float]:
    """Return goodput (bit/s) and duration (s) of the last finished transfers each way; what is not known is left out."""
    metrics: dict[str, float] = {}
    notes = read_notes(path)
    for way in ("up", "down"):
        with contextlib.suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
            if 0 < (seconds := float(notes[way]["seconds"])) < math.inf:
                metrics[f"{way}-seconds"] = seconds
            if 0 < (rate := float(notes[way]["bps"])) < math.inf:
                metrics[f"{way}-bps"] = rate
    return metrics


def device_metrics(root: Path = Path("/")) -> dict[str, float]:
    """Return battery charge (0..1) and radio level (dBm) where the operating system tells them.

    Args:
        root: Where `sys` and `proc` are.
    """
    metrics: dict[str, float] = {}
    charges = []
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        with contextlib.suppress(OSError, ValueError):
            if (supply / "type").read_text().strip() == "Battery":
                charges.append(float((supply / "capacity").read_text()) / 100)
    if charges and 0 <= min(charges) <= 1:
        metrics["battery"] = min(charges)
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = (root / "proc/net/wireless").read_text().splitlines()[2:]
        levels = [float(line.split()[3].rstrip(".")) for line in lines]
        # Some drivers give a quality of 0..100 in this place; a level in dBm is negative. -256 means unknown.
        levels = [level for level in levels if -200 < level < 0]
        if levels:
            metrics["rssi-dbm"] = max(levels)
    return metrics
