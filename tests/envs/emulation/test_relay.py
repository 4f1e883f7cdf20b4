"""Namespaces and the relay between them: real packets at real rates."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulated import names, needs_namespaces
from fedlora.errors import FedLoRAError
from fedlora_envs.emulation import namespaces
from fedlora_envs.emulation.namespaces import SERVER_ADDRESS, Namespaces, node_address, obstacle, remove_stale
from fedlora_envs.emulation.pipe import Channel, Impairment
from fedlora_envs.emulation.processes import started_at
from fedlora_envs.emulation.relay import Plan
from fedlora_envs.emulation.relay_process import Relay, read_log

CLOSE = 0.1
LOADED = 5.0
"""How much longer things may take on the wall clock where the machine has other things to do; airtime knows no such slack."""


RECEIVER = """
import socket, sys, time
server = socket.create_server(("0.0.0.0", 5000))
print("up", flush=True)
while True:
    connection, _ = server.accept()
    received = connection.recv(1 << 16)
    first, total = time.monotonic(), len(received)
    while data := connection.recv(1 << 16):
        total += len(data)
    print(total, time.monotonic() - first, flush=True)
"""
SENDER = """
import socket, sys, time
began = time.monotonic()
connection = socket.create_connection((sys.argv[1], 5000))
print(time.monotonic() - began)
connection.sendall(bytes(int(sys.argv[2])))
"""
ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 5001))
print("up", flush=True)
while True:
    data, sender = server.recvfrom(2000)
    server.sendto(data, sender)
"""
PINGS = """
import socket, sys, time
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
link.settimeout(1.0)
for number in range(int(sys.argv[2])):
    began = time.monotonic()
    link.sendto(b"x", (sys.argv[1], 5001))
    try:
        link.recv(10)
        print(time.monotonic() - began)
    except TimeoutError:
        print("lost")
"""


class Lab:
    """Two nodes and a server behind a relay."""

    def __init__(self, folder: Path, rate: float, impairment: Impairment) -> None:
        self.spaces, self.log = Namespaces(2), folder / "relay.jsonl"
        self.plan = Plan(self.spaces.server_device, self.spaces.devices(), impairment, Channel([(0, rate)]), 1, str(self.log))
        self.helpers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Lab:
        self.spaces.__enter__()
        self.relay = Relay(self.plan)
        self.spaces.connect()
        return self

    def __exit__(self, *_: object) -> None:
        for helper in self.helpers:
            helper.kill()
            helper.wait()
        self.relay.stop()
        self.spaces.remove()

    def listen(self, space: str, program: str) -> subprocess.Popen[str]:
        helper = subprocess.Popen(self.spaces.inside(space, [sys.executable, "-c", program]), stdout=subprocess.PIPE, text=True)
        self.helpers.append(helper)
        assert helper.stdout and helper.stdout.readline() == "up\n"
        return helper

    def run(self, space: str, program: str, *arguments: str) -> list[str]:
        command = self.spaces.inside(space, [sys.executable, "-c", program, *arguments])
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()

    def busy_s(self, way: str, node: int = 0) -> float:
        return sum(row["busy_s"] for row in read_log(self.log) if row.get("way") == way and row["node"] == node)

    def bytes(self, way: str, node: int = 0) -> float:
        return sum(row["bytes"] for row in read_log(self.log) if row.get("way") == way and row["node"] == node)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path, 4e6, Impairment(delay_s=0.02)) as lab:
        yield lab


@needs_namespaces
def test_a_transfer_takes_its_bytes_over_the_rate_each_way(plain: Lab) -> None:
    for source, target, address in ((plain.spaces.nodes[0], plain.spaces.server, SERVER_ADDRESS),
                                    (plain.spaces.server, plain.spaces.nodes[1], node_address(1))):  # fmt: skip
        receiver = plain.listen(target, RECEIVER)
        connect_s = float(plain.run(source, SENDER, address, "500000")[0])
        assert receiver.stdout
        total, seconds = receiver.stdout.readline().split()
        assert int(total) == 500_000
        assert 8 * 500_000 / 4e6 < float(seconds) < LOADED * 8 * 500_000 / 4e6
        assert 0.04 <= connect_s < LOADED * 0.04
    plain.relay.stop()
    # On the air are the payload, headers of 52 bytes in 1,500 and a few packets to begin and end with.
    for way, node in (("up", 0), ("down", 1)):
        assert plain.bytes(way, node) == pytest.approx(500_000 * 1.036, rel=0.02)
        assert plain.busy_s(way, node) == pytest.approx(8 * plain.bytes(way, node) / 4e6, rel=1e-3)
        other = "down" if way == "up" else "up"
        assert plain.bytes(other, node) < 0.06 * 500_000


@needs_namespaces
def test_rounds_change_rates_and_outages_end_when_they_are_over(plain: Lab) -> None:
    receiver = plain.listen(plain.spaces.server, RECEIVER)
    slow = Channel([(0, 1e6)], [(0.2, 1.2)])
    plain.relay.change(7, {0: {"up": slow, "down": slow}})
    began = time.monotonic()
    plain.run(plain.spaces.nodes[0], SENDER, SERVER_ADDRESS, "100000")
    assert receiver.stdout
    receiver.stdout.readline()
    # 0.83 s of airtime and a second of outage; TCP may need some time to find that the link is up again.
    assert 1.8 < time.monotonic() - began < LOADED * 2
    fast = Channel([(0, 1e7)])
    plain.relay.change(8, {0: {"up": fast, "down": fast}})
    began = time.monotonic()
    plain.run(plain.spaces.nodes[0], SENDER, SERVER_ADDRESS, "100000")
    receiver.stdout.readline()
    assert time.monotonic() - began < LOADED * 0.5
    plain.relay.stop()
    busy = {
        number: sum(row["busy_s"] for row in read_log(plain.log) if row.get("way") == "up" and row["round"] == number)
        for number in (7, 8)
    }
    assert busy[7] == pytest.approx(8 * 103_600 / 1e6, rel=CLOSE)
    assert busy[8] == pytest.approx(8 * 103_600 / 1e7, rel=CLOSE)


@needs_namespaces
def test_delay_jitter_and_loss_are_what_was_asked_for(tmp_path: Path) -> None:
    with Lab(tmp_path, 1e8, Impairment(delay_s=0.02, jitter_s=0.005, loss=0.1)) as lab:
        lab.listen(lab.spaces.server, ECHO)
        answers = lab.run(lab.spaces.nodes[0], PINGS, SERVER_ADDRESS, "40")
        times = sorted(float(answer) for answer in answers if answer != "lost")
        assert times[0] >= 0.03
        assert times[len(times) // 2] < LOADED * 0.04
        assert times[-1] - times[0] > 0.004
        lost = answers.count("lost")
        lab.relay.stop()
        logged = sum(row["lost"] for row in read_log(lab.log) if "way" in row)
        assert lost == logged
        assert 1 <= lost <= 18  # 7.6 expected of 40 that pass twice


@needs_namespaces
def test_nodes_see_the_server_alone_and_nothing_else(plain: Lab) -> None:
    found = subprocess.run(
        ["ip", "-n", plain.spaces.nodes[0], "-4", "route"], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert [line.split()[0] for line in found if line] == [SERVER_ADDRESS]
    with pytest.raises(subprocess.CalledProcessError):
        plain.run(plain.spaces.nodes[0], SENDER, node_address(1), "1")


@needs_namespaces
def test_a_killed_emulation_leaves_nothing_once_the_next_one_has_begun(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        "from fedlora_envs.emulation.namespaces import Namespaces\n"
        "with Namespaces(1) as spaces:\n"
        "    subprocess.Popen(spaces.inside(spaces.server, ['sleep', '600']))\n"
        "    print(spaces.server, flush=True)\n"
        "    time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    name = owner.stdout.readline().strip()
    deadline = time.monotonic() + 10
    while not (pids := _inside(name)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert name not in remove_stale(), "the owner lives"
    owner.kill()
    owner.wait()
    assert name in remove_stale()
    assert name not in names()
    assert [started_at(pid) for pid in pids] == [None]


@needs_namespaces
def test_namespaces_go_when_the_emulation_is_told_to_end(tmp_path: Path) -> None:
    program = (
        "import time\n"
        "from fedlora_envs.emulation.namespaces import Namespaces\n"
        "from fedlora_envs.emulation.run import stopped_in_order\n"
        "with stopped_in_order(), Namespaces(2) as spaces:\n"
        "    print(spaces.server, flush=True)\n"
        "    time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert owner.stdout
    name = owner.stdout.readline().strip()
    assert name in names()
    owner.send_signal(signal.SIGTERM)
    owner.wait(30)
    assert name.rpartition("-")[0] not in " ".join(names())


@needs_namespaces
def test_a_relay_whose_owner_is_gone_ends_and_says_so_to_its_user(plain: Lab) -> None:
    plain.relay.process.kill()
    plain.relay.process.wait()
    with pytest.raises(FedLoRAError, match="the relay has ended"):
        plain.relay.change(1, {})


def test_without_root_or_ip_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces.sys, "platform", "darwin")  # type: ignore[attr-defined]
    assert "Run it on Linux" in str(obstacle())
    monkeypatch.setattr(namespaces.sys, "platform", "linux")  # type: ignore[attr-defined]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "sudo" in str(obstacle())
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "")
    assert "apt-get install iproute2" in str(obstacle())
    with pytest.raises(FedLoRAError, match="iproute2"):
        Namespaces(1)


def test_addresses_are_distinct_and_none_is_the_servers() -> None:
    addresses = [node_address(place) for place in range(namespaces.LARGEST)]
    assert len({*addresses, SERVER_ADDRESS}) == namespaces.LARGEST + 1
    for address in addresses:
        socket.inet_aton(address)


def _inside(name: str) -> list[int]:
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in found.split()]
