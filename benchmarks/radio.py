"""What one step of a radio link costs: fading, and from SNR to goodput, beside Sionna's link adaptation.

    python benchmarks/radio.py                        about a minute, one thread
    python benchmarks/radio.py --profile clarke       where a step's time goes

A step gives every link its gain for one block of time and looks its goodput up (CQI, block errors and HARQ at once). Sionna, if
installed (extra `radio-oracle`), does the part after the fading at 10,000 users; it computes the error rates of all schemes for
any block size, where fedlora has a table for one. Its BLER tables are those of PDSCH. What both make of the same SNRs is
compared: without fedlora's implementation margin, goodputs differ by its 15 schemes to Sionna's 29. Then come whole rounds
(world_clock.py).
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

os.environ |= {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}

import numpy as np
from measure import compared, machine, save, span, table, timed
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
RESOURCE_ELEMENTS = 500  # of each of Sionna's users
RICIAN_K = 7.9  # 9 dB
TARGET_NS = 20.0  # of `clarke` with goodput at 10,000 links
LOOKUP = "fedlora, SNR to goodput"
SCHEME = "Sionna, InnerLoopLinkAdaptation (SNR to MCS)"
ERRORS = "Sionna, PHYAbstraction (MCS to block errors)"
COMPARED_DB = range(0, 25, 5)  # below, Sionna has no table for the lowest schemes; above, both send the highest
TOLERANCE = 0.15  # of a mean goodput: a scheme is up to 25 % above the one below it


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
    ways: dict[str, Work] = {LOOKUP: lambda: lookup(snr, found)}
    if links == SIONNA_USERS and find_spec("sionna"):
        ways |= sionnas(snr)
    return ways


def sionnas(snr: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> dict[str, Work]:
    """Return both steps of Sionna's link adaptation for users of these SNRs, on one thread."""
    import torch
    from sionna.sys import InnerLoopLinkAdaptation, PHYAbstraction

    torch.set_num_threads(1)
    abstraction = PHYAbstraction(device="cpu")
    inner = InnerLoopLinkAdaptation(abstraction, device="cpu")
    options = {
        "sinr_eff": torch.from_numpy(snr),
        "num_allocated_re": torch.full((len(snr),), RESOURCE_ELEMENTS, dtype=torch.int32),
        "mcs_table_index": 1,
        "mcs_category": 1,
    }
    chosen = inner(**options)
    return {SCHEME: lambda: inner(**options), ERRORS: lambda: abstraction(chosen, **options)}


def goodput_differences() -> dict[str, Any]:
    """Return the mean goodput in bit/s/Hz of fedlora (without margin, one attempt) and of Sionna, per 5 dB of SNR.

    Raises:
        RuntimeError: They are further apart than their schemes explain.
    """
    snr = mean_snr(SIONNA_USERS)
    ours = np.empty((len(snr), 2), np.float32)
    goodput_table(replace(LinkAdaptation(), margin_db=0.0)).lookup(snr, ours)
    theirs = sionnas(snr)[ERRORS]()[0].numpy() / RESOURCE_ELEMENTS
    snr_db, rows = 10 * np.log10(snr), list[dict[str, float]]()
    for low in COMPARED_DB:
        chosen = (snr_db >= low) & (snr_db < low + COMPARED_DB.step)
        rows.append({"snr_db": low, "fedlora": float(ours[chosen, 0].mean()), "sionna": float(theirs[chosen].mean())})
    worst = max(abs(row["fedlora"] / row["sionna"] - 1) for row in rows)
    if worst > TOLERANCE:
        raise RuntimeError(f"fedlora and Sionna do not agree on goodput: they differ by {worst:.0%}; {rows}")
    return {"goodput": worst, "rows": rows}


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
    parser.add_argument("--short", action="store_true", help="10,000 links alone, and no rounds")
    parser.add_argument("--profile", choices=MODELS, help="print a profile of one step instead")
    options = parser.parse_args()
    if options.profile:
        profile(options.profile)
        return
    print(machine() + f", numpy {np.__version__}\n", flush=True)
    rows, results = [], list[dict[str, Any]]()
    found: dict[tuple[str, int], list[float]] = {}
    for links in SIZES[:1] if options.short else SIZES:
        for name, values in nanoseconds(contenders(links), links, options.repeats).items():
            found[name, links] = values
            sionna_s = name.startswith("Sionna")
            ratio = f"{median(values) / median(found[LOOKUP, links]):,.0f}" if sionna_s else "-"
            rows.append([name, f"{links:,}", span(values, 1), ratio])
            results.append({"contender": name, "links": links, "ns": values})
    print("Medians (smallest-largest); the last column is against fedlora's SNR to goodput.\n")
    print(table(["", "links", "ns a link and step", "times"], rows))
    clarke = median(found["clarke, step to goodput", SIZES[0]])
    print(f"\nClarke with goodput at {SIZES[0]:,} links: {clarke:.1f} ns, aim below {TARGET_NS:.0f} ns")
    content: dict[str, Any] = {"rows": results}
    beside, left_out = list[dict[str, Any]](), dict[str, str]()
    if (SCHEME, SIONNA_USERS) in found:
        check = content["goodput"] = goodput_differences()
        ours = found[LOOKUP, SIONNA_USERS]
        theirs = [sum(pair) for pair in zip(found[SCHEME, SIONNA_USERS], found[ERRORS, SIONNA_USERS], strict=True)]
        left, right = ([1e9 / value for value in values] for values in (ours, theirs))
        beside.append(compared("Sionna", f"SNR to goodput of {SIONNA_USERS:,} links", "links/s", left, right, None, check))
        print(f"On the same SNRs, 0 to 25 dB, mean goodputs per 5 dB differ from Sionna's by at most {check['goodput']:.0%}.")
    else:
        left_out["Sionna"] = "sionna-no-rt is not installed (extra radio-oracle)"
    if not options.short:
        content["slotted"] = slotted_transfer(options.repeats)
        print("\nRounds (see world_clock.py):\n")
        content["rounds"] = rounds(options.repeats)
    save(options.out, content, beside, left_out)


def slotted_transfer(repeats: int) -> dict[str, Any]:
    """Time a slotted transfer, print it, and return what was measured."""
    seconds, blocks = slotted(SIZES[0], repeats)
    whole, each = span([1000 * one for one in seconds], 0), span([1e9 * one / blocks for one in seconds], 0)
    print(f"Slotted transfer over {SIZES[0]:,} links: {whole} ms, {each} ns a link and block ({blocks / SIZES[0]:.0f} each)")
    return {"links": SIZES[0], "wall": seconds, "link_blocks": blocks}


if __name__ == "__main__":
    main()
