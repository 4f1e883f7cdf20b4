"""Network namespaces of an emulation: one for the server and one per node, joined by the relay's TUN devices.

        server 198.18.0.1 -- TUN -- relay --+-- TUN -- node 0  198.18.1.1
                                            +-- TUN -- node 1  198.18.1.2
                                            ...

Nothing else is reachable from inside, and nothing of it is seen outside. The addresses are those that RFC 2544 keeps for
measurements; any number of emulations may use them side by side, since each has namespaces of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fedlora.errors import FedLoRAError
from fedlora_envs.emulation.processes import end_all, owner_is_gone, owner_name

SERVER_ADDRESS = "198.18.0.1"
MTU = 1500
LARGEST = 1000
"""Most nodes: the relay waits on one descriptor each, and select takes 1,024."""

_NAME = re.compile(r"fedlora-(\d+-\d+)-(server|node\d+)")


def node_address(place: int) -> str:
    """Return the IPv4 address of a node, by its number from 0."""
    return f"198.18.{1 + place // 250}.{1 + place % 250}"


def obstacle() -> str | None:
    """Return why this process cannot make network namespaces and what to do, or None where it can try."""
    if not sys.platform.startswith("linux"):
        return f"emulation uses Linux network namespaces; this is {sys.platform}. Run it on Linux"
    if os.geteuid() != 0:
        return "emulation makes network namespaces, which only root may: run the command with sudo"
    if shutil.which("ip") is None:
        return "emulation needs the command ip: install iproute2 (apt-get install iproute2)"
    if not Path("/dev/net/tun").exists():
        return "emulation needs the kernel's TUN device /dev/net/tun: load it (modprobe tun), or give it to the container"
    return None


def check_possible() -> None:
    """Refuse where `obstacle` has one (FedLoRAError)."""
    if reason := obstacle():
        raise FedLoRAError(reason)


class Namespaces:
    """The namespaces of one emulation; a context manager that makes them and always removes them.

    Their names carry the process that owns them, so that those of a killed one are recognised, and removed by the next.

    Args:
        nodes: How many nodes.

    Attributes:
        server: Name of the server's namespace.
        nodes: Names of the nodes' namespaces.

    Raises:
        FedLoRAError: The kernel or the rights of this process do not allow it.
    """

    def __init__(self, nodes: int) -> None:
        check_possible()
        if not 1 <= nodes <= LARGEST:
            raise FedLoRAError(f"an emulation has 1 to {LARGEST} nodes, {nodes} were asked for: lower the number of clients")
        owner, prefix = os.getpid(), f"fedlora-{owner_name()}"
        self.server, self.nodes = f"{prefix}-server", [f"{prefix}-node{place}" for place in range(nodes)]
        # Names of devices have 15 characters; they are unique while they are still outside their namespaces.
        self.server_device = f"fl{owner:x}s"
        self.node_devices = [f"fl{owner:x}n{place}" for place in range(nodes)]
        self._made: list[str] = []

    def __enter__(self) -> Self:
        remove_stale()
        try:
            for name in [self.server, *self.nodes]:
                _ip("netns", "add", name)
                self._made.append(name)
                _ip("-n", name, "link", "set", "lo", "up")
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()

    def devices(self) -> list[tuple[str, str]]:
        """Return (device, address) of each node, as the relay wants to know them."""
        return [(device, node_address(place)) for place, device in enumerate(self.node_devices)]

    def connect(self) -> None:
        """Put the relay's devices, which it has made in the meantime, into the namespaces; give them addresses and routes."""
        self._settle(self.server, self.server_device, SERVER_ADDRESS)
        for place, (name, device) in enumerate(zip(self.nodes, self.node_devices, strict=True)):
            address = node_address(place)
            self._settle(name, device, address)
            _ip("-n", name, "route", "add", SERVER_ADDRESS, "dev", device, "src", address)
        _ip("-n", self.server, "route", "add", "198.18.0.0/15", "dev", self.server_device, "src", SERVER_ADDRESS)

    def _settle(self, name: str, device: str, address: str) -> None:
        _ip("link", "set", device, "netns", name)
        _ip("-n", name, "address", "add", f"{address}/32", "dev", device)
        _ip("-n", name, "link", "set", device, "mtu", str(MTU), "txqueuelen", "5000", "up")

    def inside(self, name: str, command: Sequence[str]) -> list[str]:
        """Return the command that runs `command` inside a namespace."""
        return ["ip", "netns", "exec", name, *command]

    def remove(self) -> None:
        """Remove the namespaces, and end what still runs in them."""
        while self._made:
            _remove(self._made.pop())


def remove_stale() -> list[str]:
    """Remove the namespaces of emulations whose process is gone, with what still runs in them; return their names."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    stale = []
    for line in listed.splitlines():
        name = line.split()[0] if line.split() else ""
        if (found := _NAME.fullmatch(name)) and owner_is_gone(found[1]):
            stale.append(name)
            _remove(name)
    return stale


def _remove(name: str) -> None:
    pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
    # Whoever runs in there was started by the emulation: nobody else knows the namespace.
    end_all([int(pid) for pid in pids.split() if int(pid) != os.getpid()])
    with contextlib.suppress(FedLoRAError):  # another emulation may have removed the same stale one
        _ip("netns", "delete", name)


def _ip(*arguments: str) -> None:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        said = result.stderr.strip().splitlines()
        raise FedLoRAError(
            f"`ip {' '.join(arguments)}` failed: {said[0] if said else f'exit code {result.returncode}'}. Emulation needs root "
            "with the right to make network namespaces (in a container: --privileged, or CAP_SYS_ADMIN and CAP_NET_ADMIN)"
        )
