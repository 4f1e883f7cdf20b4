"""Speed of fedlora's BatchedGrid against stock peft one by one, Flower's Ray simulation, pfl-research, and central training.

    python benchmarks/engine.py --short               about two minutes
    python benchmarks/engine.py --out results.json    all cases, about twelve minutes on two idle cores

Contenders take turns round by round, so that a busy moment of the machine hits them all; a ratio compares rounds of the same
turn. Every contender trains the same examples per client and step, from the same start, with the same optimiser; after the first
round their losses and global adapters are compared, and a difference beyond rounding ends the benchmark.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

# Before torch, flwr and ray are imported: threads as each contender sets them, no telemetry, no look-ups.
os.environ.pop("OMP_NUM_THREADS", None)
os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
}

import torch
from contenders import (
    Case,
    Federation,
    FedloraRound,
    PeftRound,
    PeftTrainer,
    Round,
    agreement,
    central_round,
    central_tokens,
    peft_state,
    real_tokens,
)
from flower_ray import FedAvgRound, in_simulation, peft_app
from flwr.serverapp import Grid
from measure import Timings, compared, machine, save, span, spread, table, timed
from torch import Tensor

from fedlora.federation.workbench import build
from fedlora.training.device import has_fast_bf16

OURS = "fedlora"
CENTRAL = "central, one adapter (fedlora)"
PEFT = "peft"
RAY = "Flower+Ray+peft"
PFL = "pfl-research+peft"
BATCHES = {True: "fedlora's batches", False: "shuffled batches"}
OURS_WITH = {True: OURS, False: f"{OURS}, {BATCHES[False]}"}
# What losses may differ by, and numbers of the adapter, as a share of the largest move: Adam turns a gradient of rounding errors
# into a step of full size, and in bf16 there are many.
TOLERANCE = {"fp32": (1e-4, 0.05), "bf16": (0.05, 2.0)}


def cases(short: bool, clients: list[int], precisions: list[str], steps: int = 5) -> list[Case]:
    """Return what is measured; more clients take fewer steps, so that rounds stay short, and `short` takes `steps`."""
    found = []
    first = clients[0]
    for precision in precisions:
        for count in clients:
            own = steps if short else 8 if count <= 8 else 4
            found.append(Case(f"TREC, K = {count}", "trec-6", count, own, precision=precision))
        if not short:
            found += [
                Case(f"64 tokens, K = {first}", "20newsgroups", first, 1, precision=precision),
                Case(f"TREC, Ravan, K = {first}", "trec-6", first, 8, method="ravan", precision=precision),
                Case(f"TREC, K = {first}, 1 thread", "trec-6", first, 4, precision=precision, threads=1),
            ]
    return found


def run_case(case: Case, rounds: int, actor_cores: int | None, pfl: bool = True) -> dict[str, Any]:
    """Measure one case; `actor_cores` None leaves Flower's simulation out, `pfl` false pfl-research."""
    torch.set_num_threads(case.threads)
    bench = build(case.config())
    contenders: dict[str, Round] = {
        OURS_WITH[True]: FedloraRound(bench),
        OURS_WITH[False]: FedloraRound(bench, bucketing=False),
        "fedlora, chunks of one client": FedloraRound(bench, chunk=1),
        CENTRAL: central_round(bench),
    }
    result: dict[str, Any] = {"case": vars(case), "clients_at_once": bench.chunk, "actor_cores": actor_cores}
    timings: dict[str, Timings] = {}
    start = dict[str, Tensor]()
    if case.method == "lora":
        trainer = PeftTrainer(bench.config)
        start = peft_state(bench, bench.aggregator.initial(bench.backbone.initial_head()))
        for bucketing, batches in BATCHES.items():
            contenders[f"{PEFT}, {batches}"] = PeftRound(trainer, start, bucketing=bucketing)
        if pfl:
            from pfl_rounds import PflRound

            for bucketing, batches in BATCHES.items():
                contenders[f"{PFL}, {batches}"] = PflRound(trainer, start, bucketing=bucketing)
        if actor_cores:

            def body(grid: Grid) -> None:
                # A round's work happens in the actors; this process only sends.
                for bucketing, batches in BATCHES.items():
                    contenders[f"{RAY}, {batches}"] = FedAvgRound(grid, start, bucketing=bucketing)
                timings.update(take_turns(contenders, rounds, result, start))

            in_simulation(peft_app(bench.config), case.clients, case.threads, min(actor_cores, case.threads), body)
    if not timings:
        timings = take_turns(contenders, rounds, result, start)
    result["tokens_per_round"] = [real_tokens(bench, number + 2) for number in range(rounds)]
    result["central_tokens_per_round"] = [central_tokens(bench, number + 2) for number in range(rounds)]
    result["contenders"] = {name: vars(timing) for name, timing in timings.items()}
    return result


def take_turns(contenders: dict[str, Round], rounds: int, result: dict[str, Any], start: dict[str, Tensor]) -> dict[str, Timings]:
    """Let each contender work round 1 to warm up, then `rounds` more, one contender after the other in every round.

    How far the contenders are apart after round 1 goes into `result`.
    """
    timings = {name: Timings() for name in contenders}
    for number in range(1, rounds + 2):
        for name, work in contenders.items():
            timings[name].add(*timed(partial(work, number), with_children=name.startswith(RAY)), warm=number > 1)
        if number == 1:
            precision = result["case"]["precision"]
            found = {name: checked(name, contenders, start, precision) for name in contenders}
            result["agreement"] = {name: differences for name, differences in found.items() if differences}
        print(f"  round {number - 1} of {rounds}" if number > 1 else "  warmed up", file=sys.stderr, flush=True)
    return timings


def checked(name: str, contenders: dict[str, Round], start: dict[str, Tensor], precision: str) -> dict[str, float] | None:
    """Return how far one contender is from fedlora on the same batches (see `agreement`); None for fedlora itself.

    Raises:
        RuntimeError: They differ by more than rounding.
    """
    if name.startswith((OURS, CENTRAL)):
        return None
    reference = contenders[OURS_WITH[name.endswith(BATCHES[True])]]
    found = agreement(cast(Federation, reference), cast(Federation, contenders[name]), start)
    loss, share = TOLERANCE[precision]
    if not (found["loss"] <= loss and found["parameter"] <= share * found["moved"]):
        raise RuntimeError(f"{name} did not do the work of fedlora: after one round they differ by {found}")
    return found


def ratios(result: dict[str, Any], name: str) -> list[float]:
    """Return how many times as many real tokens per second fedlora trains as a contender, a value per round."""
    return [left / right for left, right in zip(rates(result, OURS), rates(result, name), strict=True)]


def rates(result: dict[str, Any], name: str) -> list[float]:
    """Return real tokens per second of a contender, a value per round."""
    tokens = result["central_tokens_per_round" if name == CENTRAL else "tokens_per_round"]
    return [count / seconds for count, seconds in zip(tokens, result["contenders"][name]["wall"], strict=True)]


def steps_per_second(result: dict[str, Any], name: str) -> list[float]:
    """Return client-steps per second of a contender, a value per round."""
    work = result["case"]["clients"] * result["case"]["steps"]
    return [work / seconds for seconds in result["contenders"][name]["wall"]]


def comparisons(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what one case says of fedlora beside the others, as the summary lists it."""
    title = f"{result['case']['title']}, {result['case']['precision']}"
    return [
        compared(
            name,
            title,
            "client-steps/s",
            steps_per_second(result, OURS),
            steps_per_second(result, name),
            ratios(result, name),
            result["agreement"].get(name),
        )
        for name in result["contenders"]
        if name == CENTRAL or not name.startswith(OURS)
    ]


def report(result: dict[str, Any]) -> str:
    """Return one case as Markdown."""
    case, found = result["case"], result["contenders"]

    work = case["clients"] * case["steps"]
    rows = []
    for name, timing in found.items():
        steps, tokens = steps_per_second(result, name), f"{spread(rates(result, name))[0]:.0f}"
        cpu = [1000 * seconds / work for seconds in timing["cpu"]]
        rows.append([name, span(steps, 1), tokens, span(ratios(result, name)), span(cpu, 0), f"{timing['first']:.1f}"])
    lines = [
        f"### {case['title']}, {case['method']}, {case['precision']}, {case['threads']} thread{'s' * (case['threads'] > 1)}",
        f"{case['clients']} clients x {case['steps']} steps x {case['batch']} examples a round, {result['clients_at_once']} "
        "clients stacked; medians (smallest-largest).",
        "",
        table(
            ["", "client-steps/s", "real tokens/s", "fedlora is x times as fast", "CPU ms a client-step", "first round s"], rows
        ),
    ]
    if result["agreement"]:
        worst = {key: max(found[key] for found in result["agreement"].values()) for key in ("loss", "parameter", "moved")}
        lines += [
            "",
            f"After one round of {case['steps']} steps on the same batches, losses of clients differ from fedlora's by at most "
            f"{worst['loss']:.1e}, numbers of the global adapter by {worst['parameter']:.1e} (they moved {worst['moved']:.1e}).",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one case, two rounds")
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    parser.add_argument("--clients", type=int, nargs="+", help="K (default 8 and 32; --short: 8)")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, help="measured rounds (default 3; --short: 2)")
    parser.add_argument("--steps", type=int, default=5, help="local steps of a round with --short (default 5)")
    parser.add_argument(
        "--actor-cores", type=int, default=1, help="cores of each Ray actor (default 1: an actor a core; Flower's: 2)"
    )
    parser.add_argument("--no-ray", action="store_true", help="leave Flower's Ray simulation out")
    parser.add_argument("--no-pfl", action="store_true", help="leave pfl-research out")
    options = parser.parse_args()
    left_out = dict[str, str]()
    pfl = not options.no_pfl
    if pfl and not find_spec("pfl"):
        pfl, left_out[PFL] = False, "pfl is not installed (benchmarks/README.md)"
    precisions = list(options.precision)
    if "bf16" in precisions and not has_fast_bf16(torch.device("cpu")):
        left_out["bf16"] = "this CPU has no matrix unit for it (AMX) and emulates it, 10 to 90 times slower than fp32"
        precisions.remove("bf16")
    print("".join(f"{what} is left out: {why}.\n" for what, why in left_out.items()))
    print(machine() + "\n", flush=True)
    results: list[dict[str, Any]] = []
    for case in cases(options.short, options.clients or ([8] if options.short else [8, 32]), precisions, options.steps):
        print(case.title, file=sys.stderr, flush=True)
        results.append(
            run_case(case, options.rounds or (2 if options.short else 3), None if options.no_ray else options.actor_cores, pfl)
        )
        print(report(results[-1]), flush=True)
        save(options.out, {"cases": results}, [row for result in results for row in comparisons(result)], left_out)


if __name__ == "__main__":
    main()
