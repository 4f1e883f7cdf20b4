"""Faults, one function each: put it into a run over three nodes, and return what was said of it and when all was well again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from deployments import wait_until
from faulty_runs import FaultyRun

ALL = (0, 1, 2)


@dataclass(frozen=True)
class Told:
    """What one fault gave.

    Attributes:
        status: What clients.jsonl says of the client in the round that was hit; empty where no round was.
        line: What the server or the node printed.
        noticed_s: Seconds until it was printed.
        whole_s: Seconds until a round was done in which all nodes' updates count again.
    """

    status: str
    line: str
    noticed_s: float
    whole_s: float


def client_app_killed(run: FaultyRun) -> Told:
    """Flower's process for one message gets SIGKILL while it waits for the trainer."""
    with run.in_the_middle(0) as number:
        began = time.monotonic()
        run.messages(0)[-1].kill()
    line, noticed = run.told.wait(r"^ +(node-0|client 0): ", began)
    return Told(run.status(number, 0), line, noticed, run.whole(began, ALL))


def trainer_killed(run: FaultyRun) -> Told:
    """The trainer gets SIGKILL over a message."""
    with run.in_the_middle(0) as number:
        began = time.monotonic()
        run.trainer(0).kill()
    line, noticed = run.told.wait(r"^ +(node-0|client 0): ", began)
    return Told(run.status(number, 0), line, noticed, run.whole(began, ALL))


def node_disk_full(run: FaultyRun) -> Told:
    """The trainer may write nothing any more, as on a disk that is full; three seconds after the server said so it may again."""
    trainer = run.trainer(0)
    before, first = trainer.rlimit(psutil.RLIMIT_FSIZE), run.round
    began = time.monotonic()
    trainer.rlimit(psutil.RLIMIT_FSIZE, (0, before[1]))
    line, noticed = run.told.wait(r"^ +(node-0|client 0): .*cannot write", began)
    status = run.failure(first, 0)
    time.sleep(3.0)
    room = time.monotonic()
    trainer.rlimit(psutil.RLIMIT_FSIZE, before)
    return Told(status, line, noticed, run.whole(room, ALL))


def link_down(run: FaultyRun, seconds: float = 20.0) -> Told:
    """A node's link is down in the middle of a round, and comes back."""
    with run.in_the_middle(1) as number:
        began = time.monotonic()
        run.relays[1].down()
    time.sleep(seconds)
    back = time.monotonic()
    run.relays[1].up()
    status = run.status(number, 1)
    whole = run.whole(back, ALL) if status != "ok" else time.monotonic() - back
    said = [(line, moment - began) for moment, line in run.said[1].seen if moment > began and "does not answer" in line]
    line, noticed = said[0] if said else ("", float("nan"))
    return Told(status, line, noticed, whole)


def server_out_of_reach(run: FaultyRun, seconds: float = 75.0) -> Told:
    """Every connection of a node breaks in the middle of TLS's greeting, where Flower's SuperNode gives up."""
    with run.in_the_middle(1) as number:
        began = time.monotonic()
        run.relays[1].broken = True
        run.relays[1].cut()
    line, noticed = run.said[1].wait("trying until it does", began)
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    back = time.monotonic()
    run.relays[1].broken = False
    return Told(run.status(number, 1), line, noticed, run.whole(back, ALL))


def supernode_killed(run: FaultyRun) -> Told:
    """A node's SuperNode gets SIGKILL in the middle of a round; the node starts another."""
    with run.in_the_middle(1) as number:
        began = time.monotonic()
        os.killpg(run.child(1, "fedlora.deploy.supernode").pid, signal.SIGKILL)
    return _outcome(run, number, 1, began)


def node_killed(run: FaultyRun) -> Told:
    """A node and its trainer get SIGKILL in the middle of a round, and the node is started again ten seconds later."""
    trainer = run.trainer(2)
    with run.in_the_middle(2) as number:
        began = time.monotonic()
        run.nodes[2].process.kill()
        run.nodes[2].process.wait()
        trainer.kill()  # it must not reply in its last half second
    time.sleep(10.0)
    run.start_node(2)
    return _outcome(run, number, 2, began)


def superlink_killed(run: FaultyRun) -> Told:
    """The SuperLink gets SIGKILL in the middle of a round."""
    with run.in_the_middle(1) as number:
        began = time.monotonic()
        run.lab.server_process("superlink_process").kill()
        line, noticed = run.told.wait("Flower's superlink died", began)
    return Told(run.status(number, 1), line, noticed, run.whole(began, ALL))


def server_app_killed(run: FaultyRun) -> Told:
    """The server app gets SIGKILL; `serve --resume` is called as soon as `serve` has ended."""
    began = time.monotonic()
    os.kill(run.lab.status.pid, signal.SIGKILL)
    assert run.server.wait(120) == 1
    noticed, line = time.monotonic() - began, run.server.error
    return Told("", line, noticed, _resumed(run, began))


def server_disk_full(run: FaultyRun) -> Told:
    """The server app has no room for its next checkpoint; `serve --resume` is called when there is room."""
    began = time.monotonic()
    run.fill_server_disk()
    assert run.server.wait(120) == 5
    noticed, line = time.monotonic() - began, run.server.error
    return Told("", line, noticed, _resumed(run, time.monotonic()))


def server_killed(run: FaultyRun) -> Told:
    """`serve` itself gets SIGKILL, and is called again with --resume; what it left behind is stopped first."""
    began = time.monotonic()
    run.server.signal(signal.SIGKILL)
    run.server.wait(10)
    return Told("", "", float("nan"), _resumed(run, began))


def clock_set(run: FaultyRun, clock: Path) -> Told:
    """The clock of node 2 jumps an hour ahead; the node ends, and is started again when its clock is right."""
    began = time.monotonic()
    clock.write_text("+3600\n")
    assert run.nodes[2].wait(120) == 9
    noticed, line = time.monotonic() - began, run.nodes[2].error
    clock.write_text("+0\n")
    right = time.monotonic()
    number = run.round
    run.start_node(2)
    whole = run.whole(right, ALL)
    return Told(run.status(number, 2), line, noticed, whole)


FAULTS: dict[str, Callable[[FaultyRun], Told]] = {
    "client app killed": client_app_killed,
    "trainer killed": trainer_killed,
    "disk full on a node": node_disk_full,
    "link down for 20 s": link_down,
    "server out of a node's reach for 75 s": server_out_of_reach,
    "SuperNode killed": supernode_killed,
    "node killed, started again after 10 s": node_killed,
    "SuperLink killed": superlink_killed,
    "server app killed, resumed": server_app_killed,
    "disk full on the server, resumed": server_disk_full,
    "`serve` killed, resumed": server_killed,
}


def _outcome(run: FaultyRun, number: int, client: int, began: float) -> Told:
    """Wait for the end of a round in which a client failed, or was soon enough back to reply after all."""
    status = run.status(number, client)
    line, noticed = "", time.monotonic() - began
    if status != "ok":
        line, noticed = run.told.wait(rf"^ +(node-{client}|client {client}): ", began)
    return Told(status, line, noticed, run.whole(began, ALL))


def _resumed(run: FaultyRun, since: float) -> float:
    done = len(run.rows())
    run.serve("--resume", "run")
    wait_until(lambda: run.lab.status.first >= 0 and len(run.rows()) >= done, 120, "the run that goes on")
    return run.whole(since, ALL)
