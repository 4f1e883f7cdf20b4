"""What a round of a real deployment costs beside its training: seconds and bytes, Flower's defaults beside fedlora's nodes.

    python benchmarks/deployment.py                   about half an hour on two idle cores

SuperLink, SuperNodes, TLS and node keys are real, all on this machine; every node's connections go through a relay that counts.
Two apps: an echo (Flower's FedAvg, 0.6 MB each way in 48 arrays or in one; nothing is trained), and a fedlora run with a tiny
model (one local step), whose messages are one packed array. Bytes are those of TCP payloads: what HTTP, TLS and asking for work
add is in them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from measure import machine, save, span, table

from edge_links import EdgeLink, edge_link, free_port, join, nodes
from edge_nodes import wait_for
from fedlora.deploy.client_app import TRAINER_SOCKET
from fedlora.quiet_env import calm
from relays import Relay, relay
from tiny import tiny_text_model
from tiny_run import Ground, write_rows

_HERE = Path(__file__).parent
_NUMBERS = 150_000
_TASK_POLL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"


@dataclass(frozen=True)
class Case:
    """One way to run rounds.

    Attributes:
        name: Shown.
        ours: `fedlora node` rather than `flower-supernode`, and fedlora's grid rather than Flower's.
        app: "echo" or "fedlora".
        arrays: Arrays of a message of the echo.
        poll_s: Seconds between two looks of a node for work; None: as it comes.
    """

    name: str
    ours: bool
    app: str = "echo"
    arrays: int = 1
    poll_s: float | None = None


CASES = [
    Case("echo, Flower's defaults, 48 arrays", False, arrays=48),
    Case("echo, Flower's defaults, one array", False),
    Case("echo, fedlora node and grid, 48 arrays", True, arrays=48),
    Case("echo, fedlora node and grid, one array", True),
    Case("echo, the same, --poll-s 0.1", True, poll_s=0.1),
    Case("fedlora run, stock SuperNodes", False, "fedlora"),
    Case("fedlora run, fedlora node", True, "fedlora"),
    Case("fedlora run, the same, --poll-s 0.1", True, "fedlora", poll_s=0.1),
]


@contextlib.contextmanager
def stock_nodes(link: EdgeLink, through: Relay, keys: list[Path], folder: Path) -> Iterator[None]:
    """SuperNodes as Flower starts them, until the end of the block."""
    started = []
    environment = {key: value for key, value in link.environment.items() if key not in (_TASK_POLL, TRAINER_SOCKET)}
    try:
        for number, key in enumerate(keys):
            command = ["flower-supernode", "--superlink", f"127.0.0.1:{through.port}", "--root-certificates", str(link.ca)]
            command += ["--auth-supernode-private-key", str(key), "--node-config", f"partition-id={number}"]
            command += ["--port", str(free_port())]
            with (folder / f"stock-{number}.log").open("wb") as log:
                process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            started.append(process)
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)


@contextlib.contextmanager
def our_nodes(link: EdgeLink, through: Relay, keys: list[Path], folder: Path, poll_s: float | None) -> Iterator[None]:
    """`fedlora node` for each key, until the end of the block."""
    more = [] if poll_s is None else ["--poll-s", str(poll_s)]
    wanted = [join(link, key, number, *more) for number, key in enumerate(keys)]
    there = [[f"127.0.0.1:{through.port}" if part == link.address else part for part in command] for command in wanted]
    with nodes(folder, *there) as started:
        for node in started:
            node.wait_online(120)
        yield


class Rounds:
    """Notes when rounds of a fedlora run end: at each, a line is added to its metrics."""

    def __init__(self, metrics: Path) -> None:
        self.metrics, self.times = metrics, list[float]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            lines = self.metrics.read_text().count("\n") if self.metrics.exists() else 0
            self.times += [time.perf_counter()] * (lines - len(self.times))

    def seconds(self) -> list[float]:
        """End, and return seconds from each round's end to the next one's."""
        self._stop.set()
        self._thread.join()
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


def echo(link: EdgeLink, case: Case, count: int, rounds: int, folder: Path) -> list[float]:
    """Run the echo; return seconds of each round."""
    report = folder / "report.json"
    settings = f"rounds={rounds} nodes={count} arrays={case.arrays} numbers={_NUMBERS} polling={str(case.ours).lower()}"
    link.flwr("run", str(_HERE / "echo_app"), "lab", "-c", f'{settings} report="{report}"')
    wait_for(report.exists, 900)
    found: list[float] = json.loads(report.read_text())
    return found


def fedlora_run(link: EdgeLink, count: int, rounds: int, folder: Path, ground: Ground) -> tuple[list[float], int]:
    """Run fedlora; return (seconds of each round, bytes of its payloads in all of them)."""
    changes = [f"clients={count}", f"clients_per_round={count}", f"rounds={rounds}", "engine=deployment", "training.steps=1"]
    changes += ["output.tensorboard=false", f"evaluation.every={rounds}", "evaluation.clients=false", "data.partition=iid"]
    watch = Rounds(folder / "run" / "metrics.jsonl")
    done = (folder / "run" / "adapter" / "fedlora.json").exists
    ended = link.run(ground.config(*changes), folder / "run", 900, done=done)
    seconds = watch.seconds()
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    if ended != "finished:completed" or [row["clients_selected"] for row in rows[1:]] != [count] * rounds:
        raise RuntimeError(f"the run ended as {ended}: {rows}")
    return seconds, sum(row["uplink_bytes"] + row["downlink_bytes"] for row in rows[1:])


def measure(case: Case, count: int, rounds: int, ground: Ground) -> dict[str, Any]:
    """Run one case with a deployment of its own."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        link = stack.enter_context(edge_link(folder / "link"))
        counting = stack.enter_context(relay(link.port))
        keys = [link.new_key(f"node-{number}") for number in range(count)]
        there = our_nodes(link, counting, keys, folder, case.poll_s) if case.ours else stock_nodes(link, counting, keys, folder)
        stack.enter_context(there)
        wait_for(lambda: len(link.online()) == count, 120)
        before = counting.carried
        payload = 2 * count * rounds * 4 * _NUMBERS
        if case.app == "echo":
            seconds = echo(link, case, count, rounds, folder)
        else:
            seconds, payload = fedlora_run(link, count, rounds, folder, ground)
        wire = counting.carried - before
    warm = seconds[1:]
    return {
        "case": asdict(case), "nodes": count, "rounds": rounds, "seconds": warm, "first": seconds[0],
        "payload_bytes": payload / rounds / count, "wire_bytes": wire / rounds / count, "load": os.getloadavg()[0],
    }  # fmt: skip


def kept(out: Path | None, again: str, counts: list[int]) -> list[dict[str, Any]]:
    """Return the rows of an earlier call that are not measured again."""
    if out is None or not out.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    return [row for row in rows if again not in row["case"]["name"] or row["nodes"] not in counts]


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 8], help="SuperNodes (default 2 8)")
    parser.add_argument("--rounds", type=int, default=6, help="rounds; the first warms up (default 6)")
    parser.add_argument("--cases", default="", help="only cases whose name holds this; what `--out` has of the others is kept")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends with the blocks that started it
    calm()
    print(machine() + "\n", flush=True)
    results = kept(options.out, options.cases, options.nodes)
    with tempfile.TemporaryDirectory() as name:
        tiny_text_model(Path(name) / "model")
        write_rows(Path(name) / "data.csv")
        for count in options.nodes:
            for case in CASES:
                if options.cases in case.name:
                    results.append(measure(case, count, options.rounds, Ground(Path(name))))
                    save(options.out, {"rows": results})
                    print(
                        f"{count} nodes, {case.name}: {statistics.median(results[-1]['seconds']):.2f} s",
                        file=sys.stderr,
                        flush=True,
                    )
    rows = []
    order = [case.name for case in CASES]
    for found in sorted(results, key=lambda row: (row["nodes"], order.index(row["case"]["name"]))):
        kilobytes = [f"{found[key] / 1000:.0f}" for key in ("payload_bytes", "wire_bytes")]
        rows.append([found["case"]["name"], str(found["nodes"]), span(found["seconds"]), *kilobytes])
    print(table(["", "nodes", "seconds a round", "payload, kB a node and round", "on the wire, kB"], rows))


if __name__ == "__main__":
    main()
