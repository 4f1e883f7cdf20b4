"""`fedlora node` against a real SuperLink: the ways to fail to join, and a run with faults in it."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge_links import EdgeLink, NodeProcess, edge_link, free_port, join, nodes, timed_wait
from edge_nodes import wait_for
from fedlora.deploy.certificates import write_authority, write_node_key
from fedlora.deploy.superlink_process import ANNOUNCEMENT_BYTES, FLEET_BYTES, OTHER_BYTES
from tiny_run import Ground

# The bound of a way to fail: generous, since machines that run the suite are shared; a node that retries for ever exceeds any.
BOUND_S = 90.0


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeLink]:
    """A SuperLink with TLS and node keys."""
    with edge_link(tmp_path_factory.mktemp("link")) as running:
        yield running


def _refused(node: NodeProcess, code: int) -> str:
    """Return the one sentence with which a node ends."""
    found, seconds = timed_wait(node, BOUND_S)
    print(f"ended with {found} after {seconds:.1f} s: {node.errors}")
    assert found == code and len(node.errors) == 1 and node.errors[0].startswith("error: "), (found, node.printed, node.errors)
    _nothing_left(node)
    return node.errors[0].removeprefix("error: ")


def _nothing_left(node: NodeProcess) -> None:
    """Check that nothing of this node still runs: each of its processes names its state folder or socket, or is a child."""
    state = str(node.folder / "state")

    def running() -> list[str]:
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            own = (process.info["environ"] or {}).get("FLWR_HOME", "").startswith(state)
            if own or any(state in part for part in process.info["cmdline"] or []):
                found.append(" ".join(process.info["cmdline"] or []))
        return found

    wait_for(lambda: running() == [], 20)


def test_no_key(link: EdgeLink, tmp_path: Path) -> None:
    with nodes(tmp_path, join(link, None)) as (node,):
        assert _refused(node, 8) == f"{link.address} lets in registered keys only. Give this node's key with --key"


def test_an_unknown_key(link: EdgeLink, tmp_path: Path) -> None:
    key = link.new_key("unknown", register=False)
    with nodes(tmp_path, join(link, key)) as (node,):
        assert _refused(node, 8).startswith(
            f"{link.address} does not let in the key {key}: it is not registered there, was revoked"
        )


def test_another_authority(link: EdgeLink, tmp_path: Path) -> None:
    write_authority(tmp_path / "ca.crt", tmp_path / "ca.key", "another")
    write_node_key(tmp_path / "key", tmp_path / "key.pub", "key")
    own = ["--ca", str(tmp_path / "ca.crt"), "--key", str(tmp_path / "key"), "--client", "0"]
    with nodes(tmp_path, ["--superlink", link.address, *own]) as (node,):
        assert f"the certificate of {link.address} was not signed by {tmp_path / 'ca.crt'}" in _refused(node, 8)


def test_plain_text_to_a_server_that_speaks_tls(link: EdgeLink, tmp_path: Path) -> None:
    with nodes(tmp_path, ["--superlink", link.address, "--insecure-plain-text", "--client", "0"]) as (node,):
        assert _refused(node, 8).startswith(f"{link.address} speaks TLS, this node plain text")


def test_nobody_there(tmp_path: Path) -> None:
    with nodes(tmp_path, ["--superlink", f"127.0.0.1:{free_port()}", "--client", "0", "--max-retries", "1"]) as (node,):
        assert "cannot be reached: Connection refused" in _refused(node, 9)
        assert "trying again in 1 s" in node.printed


@pytest.mark.parametrize(
    ("path", "bytes_sent", "status"),
    [
        ("/v1/fleet/push-object", FLEET_BYTES + 1, 413),
        ("/v1/fleet/push-messages", ANNOUNCEMENT_BYTES + 1, 413),
        ("/v1/control/start-run", OTHER_BYTES + 1, 413),
        ("/v1/fleet/push-object", None, 411),
        ("/v1/fleet/push-object", 1000, 400),
    ],
)
def test_requests_are_bounded_before_they_are_read(link: EdgeLink, path: str, bytes_sent: int | None, status: int) -> None:
    """By whoever reaches the port: no key is needed to send a request. The last is refused for what it is, not for its size."""
    with socket.create_connection(("127.0.0.1", link.port), timeout=30) as plain:
        connection = ssl.create_default_context(cafile=str(link.ca)).wrap_socket(plain, server_hostname="localhost")
        size = "transfer-encoding: chunked" if bytes_sent is None else f"content-length: {bytes_sent}"
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/protobuf\r\n{size}\r\n\r\n"
        connection.sendall(head.encode())
        if status == 400:
            connection.sendall(b"\xff" * 1000)
        answer = connection.recv(1000).split(b"\r\n")[0].decode()
    assert answer.split()[1] == str(status), answer


@pytest.mark.slow
def test_the_same_key_twice_and_a_key_that_is_revoked(link: EdgeLink, tmp_path: Path) -> None:
    key = link.new_key("twice")
    with nodes(tmp_path, join(link, key)) as (first,):
        first.wait_online()
        with nodes(tmp_path / "second", join(link, key)) as (second,):
            assert "or another node is online with it. Each node needs a key of its own" in _refused(second, 8)
        assert len(link.online()) == 1
        (node_id,) = link.online()
        link.flwr("supernode", "unregister", str(node_id), "lab")
        assert _refused(first, 8).startswith(f"{link.address} no longer accepts this node: its key was revoked")
    with nodes(tmp_path / "again", join(link, key)) as (again,):
        assert "it is not registered there, was revoked" in _refused(again, 8)


@pytest.mark.slow
def test_told_to_stop_it_leaves_in_order_and_may_come_back_at_once(link: EdgeLink, tmp_path: Path) -> None:
    key = link.new_key("leaves")
    ids = []
    with nodes(tmp_path, join(link, key)) as (node,):
        for _ in range(2):
            if ids:
                node.start()
            before = len(ids)
            wait_for(lambda: node.printed.count("online at") > before)  # noqa: B023
            ids += link.online()
            assert node.stop() == 0 and node.errors == []
            _nothing_left(node)
            assert link.online() == []
    assert len(ids) == 2 and ids[0] == ids[1]


def _rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "clients.jsonl").read_text().splitlines()]


def _child(node: NodeProcess, module: str) -> psutil.Process:
    assert node.process is not None
    (found,) = [child for child in psutil.Process(node.process.pid).children() if module in child.cmdline()]
    return found


@pytest.mark.slow
def test_a_run_over_nodes_one_of_which_loses_its_trainer(link: EdgeLink, ground: Ground, tmp_path: Path) -> None:
    """Two nodes; the trainer of one is stopped when a round is under way, then killed over the message of that round."""
    config = ground.config("clients=2", "clients_per_round=2", "rounds=4", "engine=deployment", "adapter.unit=svd")
    keys = [link.new_key(f"works-{number}") for number in (0, 1)]
    with nodes(tmp_path, *[join(link, key, number, "--poll-s", "0.1") for number, key in enumerate(keys)]) as (first, second):
        first.wait_online()
        second.wait_online()

        ended: list[str] = []
        running = threading.Thread(target=lambda: ended.append(link.run(config, tmp_path / "run", 300)))
        running.start()
        wait_for(lambda: "round 1:" in first.printed, 200)
        trainer = _child(first, "fedlora.deploy.trainer")
        trainer.suspend()
        wait_for(lambda: "round 2:" in second.printed, 60)
        time.sleep(4)  # the client process connects, and waits
        trainer.kill()
        running.join(300)
        assert ended == ["finished:completed"]
        assert "the trainer was ended by signal 9; starting another" in first.printed
        assert first.printed.count("loaded ") == 2 and second.printed.count("loaded ") == 1
    rows = {(row["round"], row["client"]): row["status"] for row in _rows(tmp_path / "run")}
    assert (
        rows.pop((2, 0)) == "failed: the node's trainer stopped while it worked on this message; the next message finds a new one"
    )
    assert set(rows.values()) == {"ok"} and len(rows) == 7


@pytest.mark.slow
def test_a_supernode_that_is_killed_comes_back_as_the_same_node(link: EdgeLink, tmp_path: Path) -> None:
    """The server counts the old one as online for a minute and refuses its key that long; the node waits it out."""
    key = link.new_key("killed")
    with nodes(tmp_path, join(link, key)) as (node,):
        node.wait_online()
        before = link.online()
        supernode = _child(node, "fedlora.deploy.supernode")
        os.killpg(supernode.pid, signal.SIGKILL)
        wait_for(lambda: node.printed.count("online at") == 2, 150)
        assert "the SuperNode was ended by signal 9; starting another" in node.printed
        assert "the server still counts this node as online from before" in node.printed
        assert link.online() == before
        # The whole node killed, nothing of it stays; started anew it waits as well.
        assert node.process is not None
        node.process.kill()
        node.process.wait()
        _nothing_left(node)
        node.start()
        wait_for(lambda: node.printed.count("online at") == 3, 150)
        assert link.online() == before


def test_every_private_name_is_there_in_the_installed_flower() -> None:
    """Where this fails, Flower has moved something: rounds would take seconds longer, and nobody would notice."""
    code = (
        "from fedlora.deploy.flower_private import hasten_supernode, keep_trying, launch_clients_by, sleep_in_superexec_by\n"
        "from fedlora.deploy.flower_private import bear_with_database\n"
        "from flwr.supercore.superexec import run_superexec\n"
        "import flwr.supernode.start_client_internal as loop, time, httpx\n"
        "import flwr.supernode.fleet_http_connection as fleet\n"
        "from flwr.supercore.superexec.executor import subprocess_executor\n"
        "missing, launched = hasten_supernode(0.1) + keep_trying() + bear_with_database(), []\n"
        "began = time.monotonic(); loop.time.sleep(3); loop.time.sleep(0.5); slept = time.monotonic() - began\n"
        "looks, began = 0, time.monotonic()\n"
        "while time.monotonic() < began + 3: loop.time.sleep(0.5); looks += 1\n"
        "hooked = launch_clients_by('flwr-clientapp', launched.append)\n"
        "subprocess_executor.subprocess.Popen(['flwr-clientapp', '--token', 'x'])\n"
        "other = subprocess_executor.subprocess.Popen(['true']).wait()\n"
        "dozed = []; slower = sleep_in_superexec_by(dozed.append); run_superexec.time.sleep(1.0)\n"
        "print(missing, hooked, launched, other, 0.14 < slept < 2, looks < 40, slower, dozed)\n"
        "gives_up = fleet.make_simple_http_retry_invoker().should_giveup\n"
        "def status(code):\n"
        "    request = httpx.Request('POST', 'https://link')\n"
        "    return httpx.HTTPStatusError('', request=request, response=httpx.Response(code, request=request))\n"
        "print(gives_up(httpx.ConnectError('[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred')), gives_up(status(500)),\n"
        "      gives_up(httpx.ConnectError('[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed')), \n"
        "      gives_up(status(404)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[0] == "[] True [['flwr-clientapp', '--token', 'x']] 0 True True True [1.0]"
    assert done.stdout.splitlines()[-1] == "False False True True"
