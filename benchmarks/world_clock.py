"""What timing one federated round costs: the closed form, the event form, and one process per client for comparison.

    python benchmarks/world_clock.py                  about half a minute

Clients download, compute and upload under a deadline; some drop out. All forms time the same round.
"""

from __future__ import annotations

import argparse
import runpy
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine, save, span, table, timed
from numpy.typing import NDArray

from fedlora.streams import stream
from fedlora_envs.clock import RoundPlan, Status, closed_form, event_round
from fedlora_envs.medium import FixedRates, PowerLimitedSharing, ProcessorSharing

Floats = NDArray[np.float64]
PROCESSES = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "client_processes.py"))["client_processes"]
BAND_HZ = 100e6


def round_of(clients: int) -> tuple[Floats, RoundPlan]:
    """Return uplink rates in bit/s and a round in which about nine of ten replies come through at these rates."""
    rng = stream(0, "benchmark.clock", clients)
    rates = rng.lognormal(np.log(2e6), 1, clients)
    compute_s = rng.lognormal(np.log(20), 1, clients)
    plan = RoundPlan(rng.uniform(1, 5, clients), compute_s, rng.uniform(1e6, 3e7, clients), rng.exponential(1000, clients), 400)
    return rates, plan


def contenders(clients: int) -> dict[str, Callable[[], Any]]:
    """Return what there is to time at this number of clients."""
    rates, plan = round_of(clients)
    found: dict[str, Callable[[], Any]] = {"closed form, fixed rates": lambda: closed_form(rates, plan)}
    if clients <= 10_000:
        # At a tenth of the band that all would need at once, transfers pile up and are under way together for long.
        alone = rates * clients / 10
        found |= {
            "event form, fixed rates": lambda: event_round(FixedRates(rates), plan),
            "event form, processor sharing": lambda: event_round(ProcessorSharing(alone), plan),
            "one process per client, fixed rates": lambda: PROCESSES(rates.tolist(), plan),
        }
    if clients <= 1_000:
        a_hz = np.full(clients, BAND_HZ)
        found["event form, power-limited sharing"] = lambda: event_round(PowerLimitedSharing(a_hz, BAND_HZ), plan)
    return found


def peak_bytes(clients: int) -> float:
    """Return the most bytes per client that the closed form holds at a time, its inputs left out."""
    rates, plan = round_of(clients)
    tracemalloc.start()
    closed_form(rates, plan)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / clients


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    parser.add_argument("--repeats", type=int, default=5, help="measured repetitions after one that warms up (default 5)")
    options = parser.parse_args()
    print(machine() + "\n", flush=True)
    save(options.out, rounds(options.repeats))


def rounds(repeats: int) -> dict[str, Any]:
    """Time all forms of a round, print the table, and return what was measured."""
    rows, results = [], list[dict[str, Any]]()
    for clients in (1_000, 10_000, 100_000, 1_000_000):
        for name, work in contenders(clients).items():
            first, *seconds = (timed(work)[0] for _ in range(repeats + 1))
            rows.append(
                [name, f"{clients:,}", span([1000 * one for one in seconds]), span([1e9 / clients * one for one in seconds], 0)]
            )
            results.append({"contender": name, "clients": clients, "first": first, "wall": seconds})
    print(table(["", "clients", "ms a round", "ns a client"], rows))
    memory = {clients: peak_bytes(clients) for clients in (100_000, 1_000_000)}
    print("\nClosed form, bytes a client: " + ", ".join(f"{size:.0f} at {clients:,}" for clients, size in memory.items()))
    counts = closed_form(*round_of(1_000_000)).counts
    print("Ends of a million clients: " + ", ".join(f"{counts[way]:,} {way.name}" for way in Status))
    return {"rows": results, "bytes_per_client": memory, "ends": {way.name: counts[way] for way in Status}}


if __name__ == "__main__":
    main()
