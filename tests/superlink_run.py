"""One round on Flower's own processes, on loopback: `python superlink_run.py CONFIG.json`, in an empty folder.

A SuperLink, two SuperNodes and `flwr run`, plain text, in the environment that fedlora gives the processes it starts. Exits 0
where the run completed and both clients' updates counted.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from fedlora.quiet_env import calm

APP = """
import json
import os

from flwr.serverapp import ServerApp

from fedlora.config import parse_config
from fedlora.federation.client import make_client_app

config = parse_config(json.loads(os.environ["RUN_JSON"]))
client = make_client_app(config)
server = ServerApp()


@server.main()
def main(grid, context):
    import numpy as np

    from fedlora.federation.roll import call_roll
    from fedlora.federation.strategy import RoundStrategy, ServerState
    from fedlora.federation.workbench import build

    bench = build(config)
    previous = np.zeros((config.clients, len(bench.adapters)), np.int64)
    state = ServerState(0, bench.aggregator.initial(bench.backbone.initial_head()), previous)
    strategy = RoundStrategy(bench, call_roll(grid, config.clients), state)
    strategy.start(grid, strategy.broadcast(), num_rounds=1)
    with open(os.environ["RUN_DONE"], "w") as file:
        json.dump([row["status"] for row in strategy.record.clients], file)
"""
PROJECT = """
[project]
name = "one-round"
version = "1.0.0"
dependencies = []
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[tool.flwr.app]
publisher = "fedlora"
[tool.flwr.app.components]
serverapp = "one_round:server"
clientapp = "one_round:client"
[tool.flwr.app.config]
"""


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


def main(config: str) -> int:
    """Start, run, stop."""
    here, done = Path.cwd(), Path.cwd() / "done.json"
    (here / "app").mkdir()
    (here / "app" / "pyproject.toml").write_text(PROJECT)
    (here / "app" / "one_round.py").write_text(APP)
    link, *nodes = _free_ports(3)
    (here / "home").mkdir()
    (here / "home" / "config.toml").write_text(f'[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n')
    environment = {**os.environ, "FLWR_HOME": str(here / "home"), "RUN_JSON": Path(config).read_text(), "RUN_DONE": str(done)}
    calm(environment)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["PATH"] = programs

    def program(name: str, *arguments: str) -> list[str]:
        return [shutil.which(name, path=programs) or name, *arguments]

    link_at = f"127.0.0.1:{link}"
    started = [
        subprocess.Popen(program("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(link)), env=environment)
    ]
    try:
        _wait_for(link)
        for number, port in enumerate(nodes):
            own = ("--host", "127.0.0.1", "--port", str(port), "--node-config", f"partition-id={number} num-partitions=2")
            node = program("flower-supernode", "--insecure", "--superlink", link_at, *own)
            started.append(subprocess.Popen(node, env=environment))
        subprocess.run(program("flwr", "run", "app", "here", "--stream"), env=environment, check=True, timeout=300)
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(60)
    statuses = json.loads(done.read_text()) if done.exists() else None
    print("statuses:", statuses)
    return 0 if statuses == ["ok", "ok"] else 1


def _wait_for(port: int, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
