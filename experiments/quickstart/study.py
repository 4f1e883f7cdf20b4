"""The quickstart beside what it should be judged against: the untouched model, clients alone, central training.

    python experiments/quickstart/study.py

1. Learning rates are swept for the federation, for central training and for clients alone, on examples that no one trains on
   (each client's held-out part) under a seed of its own; the server's test set plays no part in the choice.
2. For every seed the three are run with their own best rate and measured on the server's test set.

Runs lie in runs/quickstart-study and are not repeated when they are there: a stopped study goes on where it was.
Writes results.json beside this file and prints the table of README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.common import interval
from fedlora.cli.common import quickstart
from fedlora.config import RunConfig, load_config
from fedlora.federation.workbench import Workbench, build
from fedlora.files import write_json
from fedlora.runs.environment import environment
from fedlora.runs.folder import RunFolder, holds_run
from fedlora.runs.simulate import simulate
from fedlora.training.evaluation import evaluate
from fedlora.training.local import Job, Start, train_clients

HERE = Path(__file__).parent
RUNS = Path("runs/quickstart-study")
RATES = (5e-3, 1e-2, 2e-2)
SWEEP_SEED = 1000
ALONE = 3
"""Clients that are trained alone per seed; their mean is reported."""


def settings(kind: str, lr: float, seed: int) -> RunConfig:
    """Return the run of one contender.

    Central training is a federation of one client that holds everything and takes as many local steps a round as all clients
    of a federated round together.
    """
    base = load_config(quickstart())
    overrides = [f"seed={seed}", f"training.lr={lr}", "evaluation.every=5", "output.tensorboard=false"]
    if kind == "central":
        steps = (base.training.steps or 1) * base.clients_per_round
        overrides += ["clients=1", "clients_per_round=1", "data.partition=iid", f"training.steps={steps}"]
    return load_config(quickstart(), overrides)


def run(kind: str, lr: float, seed: int) -> dict[str, Any]:
    """Return the outcome of one run: validation and test accuracy, loss, bytes, seconds; from disk where it is there."""
    folder = RUNS / f"{kind}-lr{lr:g}-seed{seed}"
    done = folder / "outcome.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    outcome = alone(folder, lr, seed) if kind == "alone" else whole(folder, kind, lr, seed)
    write_json(done, outcome)
    print(
        f"{kind} lr {lr:g} seed {seed}: validation {outcome['validation_accuracy']:.4f}, test {outcome['test_accuracy']:.4f}",
        flush=True,
    )
    return outcome


def whole(folder: Path, kind: str, lr: float, seed: int) -> dict[str, Any]:
    """Run a federation (or central training as a federation of one)."""
    config = settings(kind, lr, seed)
    rows = simulate(config, folder, resume=holds_run(folder)).rounds
    checkpoint = RunFolder.open(folder).latest()
    assert checkpoint is not None
    bench = build(config)
    start = bench.start(checkpoint.state.adapter, config.rounds + 1)
    return {
        "validation_accuracy": validate(bench, start),
        "test_accuracy": rows[-1]["test_accuracy"],
        "untouched_accuracy": rows[0]["test_accuracy"],
        "uplink_bytes": sum(row["uplink_bytes"] for row in rows),
        "downlink_bytes": sum(row["downlink_bytes"] for row in rows),
        "seconds": sum(row["wall_time_s"] for row in rows),
        "accuracy_by_round": [row["test_accuracy"] for row in rows],
    }


def alone(folder: Path, lr: float, seed: int) -> dict[str, Any]:
    """Train some clients of the federation each on its own data only, as many steps as a client in every round would take."""
    config = settings("federated", lr, seed)
    bench = build(config)
    training = config.training.model_copy(update={"steps": (config.training.steps or 1) * config.rounds})
    start = bench.start(bench.aggregator.initial(bench.backbone.initial_head()), 1)
    caps = [adapter.cap for adapter in bench.adapters]
    chosen = np.random.default_rng(seed).choice(config.clients, ALONE, replace=False)
    jobs = [Job(int(client), 1, 1, caps, bench.parts[client], start) for client in sorted(chosen)]
    outcomes = train_clients(bench.backbone, bench.train, jobs, training)
    ends = [Start(outcome.sites, start.merges, outcome.head) for outcome in outcomes]
    scores = [
        evaluate(bench.backbone, bench.test, bench.test_indices(), end, config.evaluation.batch_size).summary() for end in ends
    ]
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "validation_accuracy": float(np.mean([validate(bench, end) for end in ends])),
        "test_accuracy": float(np.mean([accuracy for accuracy, _ in scores])),
        "by_client": {str(job.client): accuracy for job, (accuracy, _) in zip(jobs, scores, strict=True)},
    }


def validate(bench: Workbench, start: Start) -> float:
    """Return the accuracy on all clients' held-out parts together."""
    held = np.concatenate(bench.held)
    return evaluate(bench.backbone, bench.train, held, start, bench.config.evaluation.batch_size).summary()[0]


def main() -> None:
    """Sweep, run, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--alone-seeds", type=int, nargs="+", help="seeds for clients alone; default: those of --seeds")
    arguments = parser.parse_args()
    kinds = ("federated", "central", "alone")
    sweep = {kind: {rate: run(kind, rate, SWEEP_SEED)["validation_accuracy"] for rate in arguments.rates} for kind in kinds}
    best = {kind: max(rates, key=lambda rate: rates[rate]) for kind, rates in sweep.items()}
    seeds = dict.fromkeys(kinds, arguments.seeds) | {"alone": arguments.alone_seeds or arguments.seeds}
    outcomes = {kind: {seed: run(kind, best[kind], seed) for seed in seeds[kind]} for kind in kinds}
    test = {kind: interval([outcome["test_accuracy"] for outcome in seeds.values()]) for kind, seeds in outcomes.items()}
    test["untouched"] = interval([outcome["untouched_accuracy"] for outcome in outcomes["federated"].values()])
    result = {
        "environment": environment(),
        "sweep_validation_accuracy": {
            kind: {f"{rate:g}": value for rate, value in rates.items()} for kind, rates in sweep.items()
        },
        "chosen_lr": best,
        "test_accuracy": test,
        "outcomes": outcomes,
    }
    write_json(HERE / "results.json", result)
    print("| | lr | test accuracy, mean ± 95 % half width |\n|---|---|---|")
    for kind in ("untouched", "alone", "federated", "central"):
        half = test[kind]["half_width_95"]
        spread = "one seed" if half is None else f"± {half:.4f}"
        print(f"| {kind} | {best.get(kind, '')} | {test[kind]['mean']:.4f} {spread} |")


if __name__ == "__main__":
    main()
