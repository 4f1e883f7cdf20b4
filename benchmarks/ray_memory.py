"""Memory of Flower's simulation engine: its processes, and what each client that trains at a time adds.

    python benchmarks/ray_memory.py                   about three minutes on two idle cores; Linux

Each point is a run of fedlora of its own, engine = "ray", with that many actors; memory is read after the last round. RSS counts
pages that processes share in each of them, PSS (proportional set size) shares them out, so that PSS adds up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from contenders import Case
from measure import machine, save, table

from fedlora.config import RayConfig, RunConfig
from fedlora.quiet_env import calm
from fedlora.runs.progress import Quiet
from fedlora.runs.simulate import simulate

MIB = 2**20


class Probe(Quiet):
    """Reads the memory of this process and its children after each round; the last reading stays."""

    def __init__(self) -> None:
        self.driver: dict[str, int] = {}
        self.actors: list[dict[str, int]] = []
        self.services: list[dict[str, int]] = []

    def round(self, row: dict[str, Any], clients: list[dict[str, Any]]) -> None:
        """Take a reading."""
        this = psutil.Process()
        self.driver, self.actors, self.services = _memory(this), [], []
        for child in this.children(recursive=True):
            try:
                kind = self.actors if "ClientAppActor" in " ".join(child.cmdline()) else self.services
                kind.append(_memory(child))
            except (psutil.Error, OSError):  # it ended meanwhile
                continue


def _memory(process: psutil.Process) -> dict[str, int]:
    full = process.memory_full_info()
    return {"rss": full.rss, "pss": full.pss, "uss": full.uss}


def point(actors: int, data: str) -> dict[str, Any]:
    """Run three rounds with that many actors in this process; return bytes."""
    case: RunConfig = Case("", data, 2 * actors, steps=2, method="ravan", threads=1).config()
    size = RayConfig(num_cpus=actors, object_store_mb=200)
    config = case.model_copy(update={"engine": "ray", "rounds": 3, "ray": size})
    probe = Probe()
    with tempfile.TemporaryDirectory() as folder:
        simulate(config, Path(folder) / "run", progress=probe)
    assert len(probe.actors) == actors, len(probe.actors)
    return {"actors": actors, "driver": probe.driver, "of_actors": probe.actors, "services": probe.services}


def main() -> None:
    """Parse arguments, start a process per point, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--data", default="trec-6", help="default trec-6")
    parser.add_argument("--point", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    calm()
    if options.point:
        print(json.dumps(point(options.actors[0], options.data)))
        return
    print(machine() + "\n", flush=True)
    found: list[dict[str, Any]] = []
    for actors in options.actors:
        command = [sys.executable, __file__, "--point", "--actors", str(actors), "--data", options.data]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:
            sys.exit(f"{actors} actors failed:\n{answer.stderr}")
        found.append(json.loads(answer.stdout.splitlines()[-1]))
    rows = []
    for own in found:
        each = [sum(actor[kind] for actor in own["of_actors"]) / own["actors"] for kind in ("rss", "pss", "uss")]
        services = sum(service["pss"] for service in own["services"])
        total = own["driver"]["pss"] + services + sum(actor["pss"] for actor in own["of_actors"])
        cells = [*each, own["driver"]["pss"], services, total]
        rows.append([str(own["actors"]), *(f"{value / MIB:.0f}" for value in cells)])
    head = ["actors", "RSS of one, MiB", "PSS of one", "USS of one", "driver, PSS", "Ray itself, PSS", "all, PSS"]
    print(table(head, rows))
    totals = [(own["actors"], float(row[-1])) for own, row in zip(found, rows, strict=True)]
    for (fewer, less), (more, much) in pairwise(totals):
        print(f"from {fewer} to {more} actors: {(much - less) / (more - fewer):.0f} MiB each")
    save(options.out, {"settings": vars(options) | {"out": None}, "points": found})


if __name__ == "__main__":
    main()
