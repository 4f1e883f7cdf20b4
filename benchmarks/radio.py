"""What one step of a radio link costs: fading, and from SNR to goodput, beside Sionna's link adaptation.

    python benchmarks/radio.py                        about a minute, one thread
    python benchmarks/radio.py --profile clarke       where a step's time goes

A step gives every link its gain for one block of time and looks its goodput up (CQI, block errors and HARQ at once). Sionna, if
installed (extra `radio-oracle`), does the part after the fading at 10,000 users; it computes the error rates of all schemes for
any block size, where fedlora has a table for one. Its BLER tables are those of PDSCH. Then come whole rounds (world_clock.py).
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

os.environ |= {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}

import numpy as np
from measure import machine, save, span, table, timed
from world_clock import rounds

from fedlora.streams import fast_stream, stream
from fedlora_envs.radio.fading import MODELS, Fading, make_fading
from fedlora_envs.radio.goodput import LinkAdaptation, goodput_table
from fedlora_envs.radio.rates import make_rate_model
from fedlora_envs.radio.transfer import MAX_BLOCKS, Transfer, transfer_s

Work = Callable[[], Any]
DOPPLER_HZ = 9.73  # 3 km/h at 3.5 GHz
COHERENCE_S = 0.043
STEP_S = 0.002  # also within the Markov chain's range
SIZES = (10_000, 1_000_000)
SIONNA_USERS = 10_000
RICIAN_K = 7.9  # 9 dB
TARGET_NS = 20.0  # of `clarke` with goodput at 10,000 links


def mean_snr(links: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return linear mean SNRs spread over all CQIs."""
    return (10 ** (stream(0, "benchmark.snr", links).normal(10, 8, links) / 10)).astype(np.float32)


def step(model: str, links: int, k_factor: float = 0.0) -> Work:
    """Return one step of fading and goodput over `links`."""
    rng = fast_stream(0, "benchmark.fading", links)
    fading = make_fading(model, links, rng, doppler_hz=DOPPLER_HZ, step_s=STEP_S, k_factor=k_factor)
    mean, snr, found = mean_snr(links), np.empty(links, np.float32), np.empty((links, 2), np.float32)
    lookup = goodput_table(LinkAdaptation()).lookup

    def work() -> None:
        np.multiply(mean, fading.step(), out=snr)
        lookup(snr, found)

    return work


def after_fading(links: int) -> dict[str, Work]:
    """Return ways from the SNR of `links` to a scheme and its errors."""
    snr, found = mean_snr(links), np.empty((links, 2), np.float32)
    lookup = goodput_table(LinkAdaptation()).lookup
    ways: dict[str, Work] = {"fedlora, SNR to goodput": lambda: lookup(snr, found)}
    if links == SIONNA_USERS and find_spec("sionna"):
        import torch
        from sionna.sys import InnerLoopLinkAdaptation, PHYAbstraction

        torch.set_num_threads(1)
        abstraction = PHYAbstraction(device="cpu")
        inner = InnerLoopLinkAdaptation(abstraction, device="cpu")
        options = {
            "sinr_eff": torch.from_numpy(snr),
            "num_allocated_re": torch.full((links,), 500, dtype=torch.int32),
            "mcs_table_index": 1,
            "mcs_category": 1,
        }
        chosen = inner(**options)
        ways["Sionna, InnerLoopLinkAdaptation (SNR to MCS)"] = lambda: inner(**options)
        ways["Sionna, PHYAbstraction (MCS to block errors)"] = lambda: abstraction(chosen, **options)
    return ways


def contenders(links: int) -> dict[str, Work]:
    """Return everything to time at this number of links."""
    steps = {f"{model}, step to goodput": step(model, links) for model in MODELS}
    rician = {f"{model}, Rician, step to goodput": step(model, links, RICIAN_K) for model in MODELS if model != "markov"}
    return {**steps, **rician, **after_fading(links)}


def again(work: Work, count: int) -> None:
    """Do `work` so many times."""
    for _ in range(count):
        work()


def nanoseconds(works: dict[str, Work], links: int, repeats: int) -> dict[str, list[float]]:
    """Return ns per link and call, a value per repetition; contenders take turns, so that a busy machine hits them alike."""
    calls = {name: max(1, round(0.03 / timed(work)[0])) for name, work in works.items()}  # this call warms up, too
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            seconds = timed(partial(again, work, calls[name]))[0]
            found[name].append(1e9 * seconds / calls[name] / links)
    return found


def slotted(links: int, repeats: int) -> tuple[list[float], float]:
    """Return (seconds of a slotted transfer over `links`, a value per repetition; blocks that its links were under way)."""
    rate, mean = make_rate_model("cqi"), mean_snr(links).astype(np.float64)
    seconds, found = [], list[Transfer]()

    def work(fading: Fading) -> None:
        found.append(transfer_s(8e6, 5e6, mean, rate, fading, "slotted"))

    for repeat in range(repeats + 1):
        rng = fast_stream(0, "benchmark.transfer", repeat)
        fading = make_fading("clarke", links, rng, doppler_hz=DOPPLER_HZ, step_s=COHERENCE_S)
        seconds.append(timed(partial(work, fading))[0])
    return seconds[1:], float(np.minimum(np.ceil(found[-1].seconds / COHERENCE_S), MAX_BLOCKS).sum())


def profile(model: str) -> None:
    """Print where a step of `model` over 10,000 links spends its time."""
    work, profiler = step(model, SIZES[0]), cProfile.Profile()
    work()
    profiler.enable()
    for _ in range(2000):
        work()
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(12)


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    parser.add_argument("--repeats", type=int, default=7, help="measured repetitions after one that warms up (default 7)")
    parser.add_argument("--profile", choices=MODELS, help="print a profile of one step instead")
    options = parser.parse_args()
    if options.profile:
        profile(options.profile)
        return
    print(machine() + f", numpy {np.__version__}\n", flush=True)
    rows, results = [], list[dict[str, Any]]()
    medians: dict[tuple[str, int], float] = {}
    for links in SIZES:
        for name, values in nanoseconds(contenders(links), links, options.repeats).items():
            medians[name, links] = median(values)
            reference = medians.get(("fedlora, SNR to goodput", links), 0.0)
            ratio = f"{medians[name, links] / reference:,.0f}" if name.startswith("Sionna") else "-"
            rows.append([name, f"{links:,}", span(values, 1), ratio])
            results.append({"contender": name, "links": links, "ns": values})
    print("Medians (smallest-largest); the last column is against fedlora's SNR to goodput.\n")
    print(table(["", "links", "ns a link and step", "times"], rows))
    clarke = medians["clarke, step to goodput", SIZES[0]]
    print(f"\nClarke with goodput at {SIZES[0]:,} links: {clarke:.1f} ns, aim below {TARGET_NS:.0f} ns")
    seconds, blocks = slotted(SIZES[0], options.repeats)
    whole, each = span([1000 * one for one in seconds], 0), span([1e9 * one / blocks for one in seconds], 0)
    print(f"Slotted transfer over {SIZES[0]:,} links: {whole} ms, {each} ns a link and block ({blocks / SIZES[0]:.0f} each)")
    transfer = {"links": SIZES[0], "wall": seconds, "link_blocks": blocks}
    ratios = {
        name: value / medians["fedlora, SNR to goodput", links]
        for (name, links), value in medians.items()
        if name.startswith("Sionna")
    }
    print("\nRounds (see world_clock.py):\n")
    clock = rounds(options.repeats)
    save(options.out, {"rows": results, "slotted": transfer, "times_slower_than_fedlora": ratios, "rounds": clock})


if __name__ == "__main__":
    main()
