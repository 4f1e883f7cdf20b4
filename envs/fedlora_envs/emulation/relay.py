"""The relay: one process that carries packets between the server's TUN device and those of the nodes, at the radio's pace.

It is started by `relay_process.Relay` and speaks JSON, a line each, over its standard input and output: first what to make,
then a line per change of channels. It ends when its input does, so that it never outlives who started it. Only the standard
library is used on the way of a packet.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import select
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any, TextIO

from fedlora_envs.emulation.pipe import Channel, Impairment, Pipe

UP, DOWN = "up", "down"
DIRECTIONS = (UP, DOWN)

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_LARGEST = 65536
_BURST = 64  # packets read from one device before the others get their turn
_FLUSH_S = 1.0


def open_tun(name: str) -> int:
    """Make a TUN device in this process's network namespace and return its descriptor; it goes when that is closed.

    Raises:
        OSError: No right to, no /dev/net/tun, or a name that is taken.
    """
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@dataclass
class Plan:
    """What the relay is told at its start.

    Attributes:
        server: Name of the server's device.
        nodes: Names of the nodes' devices, with the IPv4 address of each.
        impairment: The same for all links and both directions.
        channel: The rate until the first change.
        seed: Of loss and jitter.
        log: File for the log (JSON lines).
    """

    server: str
    nodes: list[tuple[str, str]]
    impairment: Impairment
    channel: Channel
    seed: int
    log: str

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**vars(self), "impairment": vars(self.impairment), "channel": self.channel.to_json()}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Plan:
        """Return what `to_json` described."""
        told = {"impairment": Impairment(**tree["impairment"]), "channel": Channel.from_json(tree["channel"])}
        nodes = [(name, address) for name, address in tree["nodes"]]
        return cls(**{**tree, **told, "nodes": nodes})


class Forwarder:
    """The event loop over all devices.

    Args:
        plan: What to make.
        commands: Where changes come from; the loop ends when it does.
        answers: Where they are acknowledged.
    """

    def __init__(self, plan: Plan, commands: TextIO, answers: TextIO) -> None:
        self.plan, self._commands, self._answers = plan, commands.fileno(), answers
        self._server = open_tun(plan.server)
        self._nodes = [open_tun(name) for name, _ in plan.nodes]
        self._by_address = {bytes(map(int, address.split("."))): place for place, (_, address) in enumerate(plan.nodes)}
        now = time.monotonic()
        self._pipes = {
            way: [Pipe(plan.impairment, plan.channel, f"{plan.seed}/{way}/{place}", now) for place in range(len(self._nodes))]
            for way in DIRECTIONS
        }
        # Each pipe with where its packets leave.
        self._ends = [(pipe, self._server) for pipe in self._pipes[UP]]
        self._ends += list(zip(self._pipes[DOWN], self._nodes, strict=True))
        self._round, self._unread, self._late_s, self._refused = 0, b"", 0.0, 0
        self._log = open(plan.log, "w", buffering=1, encoding="utf-8")  # noqa: SIM115 (closed with the process)

    def run(self) -> None:
        """Carry packets until the input ends."""
        devices = [self._server, *self._nodes, self._commands]
        flush_at = time.monotonic() + _FLUSH_S
        while True:
            now = time.monotonic()
            wake = flush_at
            for pipe, device in self._ends:
                for packet in pipe.due(now):
                    self._write(device, packet)
                at = pipe.next_event()
                wake = min(wake, at)
            if now >= flush_at:
                self._flush(now - _FLUSH_S)
                flush_at = now + _FLUSH_S
            # select, not epoll: it alone sleeps for microseconds and not for whole milliseconds.
            ready, _, _ = select.select(devices, [], [], max(0.0, wake - time.monotonic()))
            late_s = time.monotonic() - wake
            if not ready and late_s > self._late_s:
                self._late_s = late_s
            for device in ready:
                if device == self._commands:
                    if not self._obey():
                        self._close_books(time.monotonic())
                        return
                elif device == self._server:
                    self._from_server()
                else:
                    self._from_node(device)

    def _from_server(self) -> None:
        now, pipes, places = time.monotonic(), self._pipes[DOWN], self._by_address
        for _ in range(_BURST):
            try:
                packet = os.read(self._server, _LARGEST)
            except OSError:  # nothing more to read, or the device is down
                return
            place = places.get(packet[16:20])
            # IPv4 alone: what the kernel says of itself over IPv6 is no traffic of the run.
            if place is not None and packet[0] >> 4 == 4:
                pipes[place].push(now, packet)

    def _from_node(self, device: int) -> None:
        now, pipe = time.monotonic(), self._pipes[UP][self._nodes.index(device)]
        for _ in range(_BURST):
            try:
                packet = os.read(device, _LARGEST)
            except OSError:
                return
            if packet[0] >> 4 == 4:
                pipe.push(now, packet)

    def _write(self, device: int, packet: bytes) -> None:
        try:
            os.write(device, packet)
        except OSError:  # the device is down, or its queue is full: a packet lost
            self._refused += 1

    def _obey(self) -> bool:
        """Read commands; return False at the end of the input."""
        data = os.read(self._commands, _LARGEST)
        if not data:
            return False
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._change(json.loads(line))
        return True

    def _change(self, command: dict[str, Any]) -> None:
        """Set the channels of a round: {"round": n, "nodes": {"0": {"up": channel, "down": channel}, ...}}."""
        now = time.monotonic()
        self._close_books(now)
        self._round = int(command["round"])
        for place, channels in command["nodes"].items():
            for way, channel in channels.items():
                self._pipes[way][int(place)].set_channel(now, Channel.from_json(channel))
        self._say({"round": self._round, "t": round(now, 6), "time": round(time.time(), 6)})
        print(json.dumps({"round": self._round, "t": now}), file=self._answers, flush=True)

    def _close_books(self, now: float) -> None:
        """Account for all that happened until now in the round that is under way."""
        for pipe, _ in self._ends:
            pipe.settle(now)
        self._flush(math.inf)

    def _flush(self, before: float) -> None:
        """Write the log's rows that end before a time."""
        for way, pipes in self._pipes.items():
            for place, pipe in enumerate(pipes):
                for row in pipe.bins.take(before):
                    self._say({"round": self._round, "node": place, "way": way, **row})
        if before == math.inf:
            self._say({"round": self._round, "late_s": round(self._late_s, 6), "refused": self._refused})
            self._late_s, self._refused = 0.0, 0

    def _say(self, row: dict[str, Any]) -> None:
        self._log.write(json.dumps(row) + "\n")


def main() -> None:
    """Be the relay."""
    plan = Plan.from_json(json.loads(sys.stdin.readline()))
    try:
        forwarder = Forwarder(plan, sys.stdin, sys.stdout)
    except OSError as error:
        print(json.dumps({"error": f"a TUN device cannot be made: {error.strerror or error}"}), flush=True)
        return
    print(json.dumps({"ready": os.getpid()}), flush=True)
    forwarder.run()


if __name__ == "__main__":
    main()
