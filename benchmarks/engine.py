"""Speed of fedlora's BatchedGrid against stock peft one by one, Flower's Ray simulation with peft, and central training.

    python benchmarks/engine.py --short               about two minutes
    python benchmarks/engine.py --out results.json    all cases, about twelve minutes on two idle cores

Contenders take turns round by round, so that a busy moment of the machine hits them all; a ratio compares rounds of the same
turn. Every contender trains the same examples per client and step, from the same start, with the same optimiser.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

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
    PeftTrainer,
    Round,
    agreement,
    central_round,
    central_tokens,
    fedlora_round,
    peft_round,
    peft_state,
    real_tokens,
)
from flower_ray import fedavg_round, in_simulation, peft_app
from flwr.serverapp import Grid
from measure import Timings, machine, save, span, spread, table, timed

from fedlora.federation.workbench import build
from fedlora.training.device import has_fast_bf16

OURS = "fedlora"
CENTRAL = "central, one adapter (fedlora)"
RAY = "Flower+Ray+peft"


def cases(short: bool, clients: list[int], precisions: list[str]) -> list[Case]:
    """Return what is measured; more clients take fewer steps, so that rounds stay short."""
    found = []
    first = clients[0]
    for precision in precisions:
        for count in clients:
            steps = 5 if short else 8 if count <= 8 else 4
            found.append(Case(f"TREC, K = {count}", "trec-6", count, steps, precision=precision))
        if not short:
            found += [
                Case(f"64 tokens, K = {first}", "20newsgroups", first, 1, precision=precision),
                Case(f"TREC, Ravan, K = {first}", "trec-6", first, 8, method="ravan", precision=precision),
                Case(f"TREC, K = {first}, 1 thread", "trec-6", first, 4, precision=precision, threads=1),
            ]
    return found


def run_case(case: Case, rounds: int, actor_cores: int | None) -> dict[str, Any]:
    """Measure one case; `actor_cores` None leaves Flower's simulation out."""
    torch.set_num_threads(case.threads)
    bench = build(case.config())
    contenders: dict[str, Round] = {
        OURS: fedlora_round(bench),
        "fedlora, shuffled batches": fedlora_round(bench, bucketing=False),
        "fedlora, chunks of one client": fedlora_round(bench, chunk=1),
        CENTRAL: central_round(bench),
    }
    result: dict[str, Any] = {"case": vars(case), "clients_at_once": bench.chunk, "actor_cores": actor_cores}
    timings: dict[str, Timings] = {}
    if case.method == "lora":
        trainer = PeftTrainer(case.config())
        result["agreement_with_peft"] = agreement(bench, trainer)
        state = peft_state(bench, bench.aggregator.initial(bench.backbone.initial_head()))
        contenders["peft, fedlora's batches"] = peft_round(trainer, state, bucketing=True)
        contenders["peft, shuffled batches"] = peft_round(trainer, state, bucketing=False)
        if actor_cores:

            def body(grid: Grid) -> None:
                # A round's work happens in the actors; this process only sends.
                contenders[f"{RAY}, fedlora's batches"] = fedavg_round(grid, state, bucketing=True)
                contenders[f"{RAY}, shuffled batches"] = fedavg_round(grid, state)
                timings.update(take_turns(contenders, rounds))

            in_simulation(peft_app(case.config()), case.clients, case.threads, min(actor_cores, case.threads), body)
    if not timings:
        timings = take_turns(contenders, rounds)
    result["tokens_per_round"] = [real_tokens(bench, number + 2) for number in range(rounds)]
    result["central_tokens_per_round"] = [central_tokens(bench, number + 2) for number in range(rounds)]
    result["contenders"] = {name: vars(timing) for name, timing in timings.items()}
    return result


def take_turns(contenders: dict[str, Round], rounds: int) -> dict[str, Timings]:
    """Let each contender work round 1 to warm up, then `rounds` more, one contender after the other in every round."""
    timings = {name: Timings() for name in contenders}
    for number in range(1, rounds + 2):
        for name, work in contenders.items():
            timings[name].add(*timed(partial(work, number), with_children=name.startswith(RAY)), warm=number > 1)
        print(f"  round {number - 1} of {rounds}" if number > 1 else "  warmed up", file=sys.stderr, flush=True)
    return timings


def report(result: dict[str, Any]) -> str:
    """Return one case as Markdown."""
    case, found = result["case"], result["contenders"]

    def rates(name: str) -> list[float]:
        tokens = result["central_tokens_per_round" if name == CENTRAL else "tokens_per_round"]
        return [count / seconds for count, seconds in zip(tokens, found[name]["wall"], strict=True)]

    work = case["clients"] * case["steps"]
    rows = []
    for name, timing in found.items():
        ratios = [ours / theirs for ours, theirs in zip(rates(OURS), rates(name), strict=True)]
        steps = [work / seconds for seconds in timing["wall"]]
        cpu = [1000 * seconds / work for seconds in timing["cpu"]]
        rows.append([name, span(steps, 1), f"{spread(rates(name))[0]:.0f}", span(ratios), span(cpu, 0), f"{timing['first']:.1f}"])
    lines = [
        f"### {case['title']}, {case['method']}, {case['precision']}, {case['threads']} thread{'s' * (case['threads'] > 1)}",
        f"{case['clients']} clients x {case['steps']} steps x {case['batch']} examples a round, {result['clients_at_once']} "
        "clients stacked; medians (smallest-largest).",
        "",
        table(
            ["", "client-steps/s", "real tokens/s", "fedlora is x times as fast", "CPU ms a client-step", "first round s"], rows
        ),
    ]
    check = result.get("agreement_with_peft")
    if check:
        lines += [
            "",
            f"Same batches, {check['steps']} steps: losses of fedlora and peft differ by at most {check['loss']:.1e}, "
            f"trained numbers by {check['parameter']:.1e} (they moved by {check['moved']:.1e}).",
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
    parser.add_argument(
        "--actor-cores", type=int, default=1, help="cores of each Ray actor (default 1: an actor a core; Flower's: 2)"
    )
    parser.add_argument("--no-ray", action="store_true", help="leave Flower's Ray simulation out")
    options = parser.parse_args()
    precisions = list(options.precision)
    if "bf16" in precisions and not has_fast_bf16(torch.device("cpu")):
        print("bf16 is left out: this CPU has no matrix unit for it (AMX) and emulates it, 10 to 90 times slower than fp32.\n")
        precisions.remove("bf16")
    print(machine() + "\n", flush=True)
    results: list[dict[str, Any]] = []
    for case in cases(options.short, options.clients or ([8] if options.short else [8, 32]), precisions):
        print(case.title, file=sys.stderr, flush=True)
        results.append(
            run_case(case, options.rounds or (2 if options.short else 3), None if options.no_ray else options.actor_cores)
        )
        print(report(results[-1]), flush=True)
        save(options.out, {"cases": results})


if __name__ == "__main__":
    main()
