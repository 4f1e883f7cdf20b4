"""What a client costs beside its training: messages, encoding, checks and aggregation, with training replaced by nothing.

    python benchmarks/overhead.py                     about two minutes
    python benchmarks/overhead.py --profile 16MB      where the time goes

Payloads of 16 KB and 16 MB go down and up (LoRA and task head in float32). Flower's bare Ray simulation, whose clients send
back what they got, stands beside it.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
}

import torch
from contenders import FedloraRound, Round
from flower_ray import FedAvgRound, idle_app, in_simulation
from flwr.serverapp import Grid
from measure import Timings, compared, machine, save, span, table, timed

from fedlora.config import TrainingConfig, parse_config
from fedlora.federation import client
from fedlora.federation.workbench import Workbench, build
from fedlora.training.backbone import Backbone
from fedlora.training.batches import Prepared
from fedlora.training.local import Job, Outcome, Penalty

# Name -> (sites, rank): float32 numbers of all factors and the head make up the size.
PAYLOADS = {"16KB": (["layer.0.attention.self.query"], 2), "16MB": (["re:.*layer.*(query|key|value|dense)"], 96)}
CLIENTS = 8
OURS, RAY = "fedlora, broadcast", "Flower+Ray, bare"


def train_nothing(
    backbone: Backbone, prepared: Prepared, jobs: Sequence[Job], config: TrainingConfig, size: int, penalty: Penalty | None = None
) -> list[Outcome]:
    """Stand in for `train_in_chunks`: every client ends where it started."""
    outcomes = []
    for job in jobs:
        selections = [adapter.select(rank) for adapter, rank in zip(backbone.adapters, job.ranks, strict=True)]
        outcomes.append(Outcome(job.client, job.start.sites, job.start.head, selections, 1, len(job.indices), 1, 0.0, 0.0, ""))
    return outcomes


def make_bench(payload: str, downlink: str = "broadcast") -> Workbench:
    """Return a run whose messages have the size of `payload`."""
    targets, rank = PAYLOADS[payload]
    return build(
        parse_config(
            {
                "clients": CLIENTS,
                "clients_per_round": CLIENTS,
                "rounds": 1000,
                "data": {"name": "trec-6", "partition": "iid", "max_test_examples": 10},
                "adapter": {"method": "lora", "rank": rank, "targets": targets},
                "aggregator": {"method": "fedavg-factors"},
                "wire": {"downlink": downlink},
                "evaluation": {"clients": False},
                "device": "cpu",
            }
        )
    )


def repeat(work: Round, rounds: int, with_children: bool = False) -> Timings:
    """Time `rounds` rounds after one that warms up."""
    timings = Timings()
    for number in range(1, rounds + 2):
        timings.add(*timed(partial(work, number), with_children), warm=number > 1)
    return timings


def ours(payload: str, downlink: str, rounds: int) -> tuple[Timings, int]:
    """Return (timings of fedlora's round without training, bytes of a client's payload)."""
    bench = make_bench(payload, downlink)
    bytes_up = 4 * bench.backbone.layout.size
    return repeat(FedloraRound(bench), rounds), bytes_up


def flowers(payload: str, rounds: int) -> Timings:
    """Return the timings of Flower's FedAvg in its Ray simulation on arrays of the same size, in 48 pieces."""
    size = {"16KB": 2**14, "16MB": 2**24}[payload] // 4 // 48
    state = {f"layer{index}": torch.ones(size) for index in range(48)}
    found: list[Timings] = []

    def body(grid: Grid) -> None:
        found.append(repeat(FedAvgRound(grid, state), rounds, with_children=True))

    in_simulation(idle_app(), CLIENTS, os.cpu_count() or 1, 1, body)
    return found[0]


def profile(payload: str) -> None:
    """Print where fedlora's round spends its time."""
    work = FedloraRound(make_bench(payload))
    work(1)
    profiler = cProfile.Profile()
    profiler.enable()
    for number in range(2, 7):
        work(number)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(18)


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    parser.add_argument("--rounds", type=int, default=10, help="measured rounds (default 10)")
    parser.add_argument("--profile", choices=list(PAYLOADS), help="print a profile of fedlora's round instead")
    parser.add_argument("--no-ray", action="store_true", help="leave Flower's Ray simulation out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    client.__dict__["train_in_chunks"] = train_nothing
    if options.profile:
        profile(options.profile)
        return
    print(machine() + "\n", flush=True)
    rows, results, beside = [], list[dict[str, Any]](), list[dict[str, Any]]()
    for payload in PAYLOADS:
        found = {f"fedlora, {downlink}": ours(payload, downlink, options.rounds)[0] for downlink in ("broadcast", "sliced")}
        if not options.no_ray:
            found[RAY] = flowers(payload, options.rounds)
            broadcast, bare = ([CLIENTS / seconds for seconds in found[name].wall] for name in (OURS, RAY))
            beside.append(compared(RAY, f"{payload} to a client and back, no training", "clients/s", broadcast, bare, None, None))
        for name, timings in found.items():
            wall, cpu = ([1000 * seconds / CLIENTS for seconds in values] for values in (timings.wall, timings.cpu))
            rows.append([name, payload, span(wall), span(cpu)])
            results.append({"contender": name, "payload": payload, "clients": CLIENTS, **vars(timings)})
    print(f"{CLIENTS} clients a round; medians (smallest-largest) per client.\n")
    print(table(["", "payload each way", "wall ms", "CPU ms"], rows))
    save(options.out, {"rows": results}, beside, {RAY: "it was not asked for"} if options.no_ray else {})


if __name__ == "__main__":
    main()
