"""A network of its own around a command, whose way out leads nowhere and is watched: every packet that would leave is counted.

`python airlock.py REPORT COMMAND...` has to be started by `unshare --net --mount` as root. Loopback works; the default routes,
IPv4 and IPv6, lead into a TUN device that is read and never answered. Names are looked up by DNS at an address behind it, so that
a look-up is a packet too. REPORT is written as JSON: the command's exit code, and each packet's protocol, address and port.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_RESOLVER = "198.51.100.53"
_PORTS = {6: "tcp", 17: "udp"}


@dataclass(frozen=True)
class Report:
    """How a command behaved: its exit code, what it printed, and the packets that would have left ("udp 198.51.100.53:53")."""

    code: int
    printed: str
    packets: list[str]


def missing() -> str | None:
    """Return why no command can be locked in here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux, for a network namespace"
    if tools := [name for name in ("unshare", "ip") if shutil.which(name) is None]:
        return f"needs {' and '.join(tools)} (util-linux, iproute2)"
    if not Path("/dev/net/tun").exists():
        return "needs TUN devices (/dev/net/tun)"
    if subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False).returncode:
        return "needs the right to make network namespaces"
    return None


def run_inside(command: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float = 400.0) -> Report:
    """Run a command in a network of its own, with just this environment, and return what it did."""
    with tempfile.TemporaryDirectory() as scratch:
        report, printed = Path(scratch) / "report.json", Path(scratch) / "printed"
        locked = ["unshare", "--net", "--mount", sys.executable, __file__, str(report), *command]
        with printed.open("wb") as out:
            subprocess.run(locked, cwd=folder, env=environment, stdout=out, stderr=out, timeout=seconds, check=False)
        assert report.exists(), printed.read_text()
        told = json.loads(report.read_text())
        return Report(told["code"], printed.read_text(), told["packets"])


def _lock() -> int:
    """Make the way out; return the TUN device's file."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"out", _IFF_TUN | _IFF_NO_PI))
    for step in (
        "link set lo up",
        "addr add 192.0.2.2/24 dev out",
        "-6 addr add fd00::2/64 dev out nodad",
        "link set out up",
        "route add default dev out",
        "-6 route add default dev out",
    ):
        subprocess.run(["ip", *step.split()], check=True)
    # Names by DNS alone: no local stub, no daemon reached through a socket in the file system, could carry the question outside.
    with tempfile.TemporaryDirectory() as folder:
        for path, text in (("resolv.conf", f"nameserver {_RESOLVER}\n"), ("nsswitch.conf", "hosts: files dns\n")):
            own, system = Path(folder) / path, Path("/etc") / path
            own.write_text(text)
            if system.exists():
                subprocess.run(["mount", "--bind", str(own), str(system.resolve())], check=True)
    return device


def _read(device: int, packets: list[str]) -> None:
    while True:
        packet = os.read(device, 65536)
        if described := _describe(packet):
            packets.append(described)


def _describe(packet: bytes) -> str | None:
    """Return protocol, address and port of a packet; None for what the kernel itself says when a device comes up (IPv6)."""
    if packet[0] >> 4 == 4:
        header, protocol, target = 4 * (packet[0] & 15), packet[9], packet[16:20]
    else:
        header, protocol, target = 40, packet[6], packet[24:40]
        if protocol in (0, 58):  # hop-by-hop options of multicast reports, ICMPv6
            return None
    port = f":{int.from_bytes(packet[header + 2 : header + 4])}" if protocol in _PORTS else ""
    return f"{_PORTS.get(protocol, protocol)} {ipaddress.ip_address(target)}{port}"


def main(report: str, *command: str) -> None:
    """Lock the way out, run the command, write the report."""
    packets: list[str] = []
    threading.Thread(target=_read, args=(_lock(), packets), daemon=True).start()
    code = subprocess.run(command, check=False).returncode
    time.sleep(0.5)
    Path(report).write_text(json.dumps({"code": code, "packets": packets}))


if __name__ == "__main__":
    main(*sys.argv[1:])
