"""The shipped policy in real federated runs behind a radio, against the fixed rank that is best on validation runs.

    python experiments/live/federated.py

The quickstart (MiniLM-L6 on TREC, 20 clients with skewed labels, Ravan; the step size falls linearly) in the world umi-indoor,
with a deadline of 10 s and an uplink of 5 MHz that has a tenth of the time: a full adapter takes five seconds and more. Who is
drawn, their data, devices and channels are the same for all; only the ranks differ. Runs lie in runs/live-federated and are not
repeated when they are there. Writes federated.json beside this file and prints the tables of README.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.common import first_reached, spread
from fedlora.cli.common import quickstart
from fedlora.config import load_config
from fedlora.files import write_json
from fedlora.runs.environment import environment
from fedlora.runs.folder import RunFolder, holds_run
from fedlora.runs.progress import size
from fedlora.runs.simulate import simulate
from fedlora_policies.statistics import rank_correlation

HERE = Path(__file__).parent
RUNS = Path("runs/live-federated")
SEEDS = (0, 1, 2)
VALIDATION = (100,)  # seeds that the fixed rank is chosen on
WORLD = [
    "world.name=umi-indoor", "world.options.deadline_s=10", "world.options.uplink.bandwidth_hz=5e6",
    "world.options.uplink.tdd_share=0.1", "training.schedule=linear", "output.tensorboard=false",
]  # fmt: skip
FIXED = (32, 64, 96, 128)
LEARNT = "airllm-plus"


def rounds_of(policy: str, seed: int) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl of one run; it is run, or gone on with, where it is not done."""
    folder = where(policy, seed)
    choice = ["policy.name=fixed", f"policy.options.rank={policy}"] if policy.isdigit() else [f"policy.name={policy}"]
    config = load_config(quickstart(), [f"seed={seed}", *WORLD, *choice])
    there = holds_run(folder)
    if there and len(rows := RunFolder.open(folder).rows()) > config.rounds:
        return rows
    simulate(config, folder, resume=there)
    return RunFolder.open(folder).rows()


def where(policy: str, seed: int) -> Path:
    """Return the folder of a run."""
    return RUNS / f"{policy}-seed{seed}"


def ranks_by_snr(policy: str, seed: int) -> tuple[list[float], list[float]]:
    """Return mean ranks and SNRs of all decisions of a run."""
    folder = where(policy, seed)
    rows = [json.loads(line) for line in (folder / "clients.jsonl").read_text(encoding="utf-8").splitlines()]
    known = [row for row in rows if row.get("snr_db") is not None]
    return [row["mean_rank"] for row in known], [row["snr_db"] for row in known]


def outcome(rows: list[dict[str, Any]], target: float) -> dict[str, Any]:
    """Return a run in a few numbers: at the end, and when it first was as accurate as `target`."""
    sent = np.cumsum([row["uplink_bytes"] for row in rows])
    accuracy = np.array([row["test_accuracy"] for row in rows])
    first = first_reached(accuracy.tolist(), target)
    return {
        "accuracy": float(accuracy[-1]), "best": float(accuracy.max()), "loss": float(rows[-1]["test_loss"]),
        "uplink_bytes": int(sent[-1]), "virtual_s": float(rows[-1]["virtual_time_s"]),
        "late": int(sum(row.get("clients_late", 0) for row in rows)),
        "at_target": None if first is None else {
            "round": int(rows[first]["round"]), "uplink_bytes": int(sent[first]),
            "virtual_s": float(rows[first]["virtual_time_s"]),
        },
    }  # fmt: skip


def best_fixed() -> tuple[str, dict[str, float]]:
    """Return the fixed rank with the highest mean accuracy over the rounds of the validation runs, and what all of them have."""
    found = {}
    for rank in FIXED:
        runs = [rounds_of(f"{rank}", seed) for seed in VALIDATION]
        found[f"{rank}"] = float(np.mean([row["test_accuracy"] for rows in runs for row in rows[1:]]))
    return max(found, key=lambda rank: found[rank]), found


def main() -> None:
    """Run what is not there, print and write."""
    fixed, chosen_on = best_fixed()
    print("| fixed rank | accuracy, mean of all validation rounds |\n| --: | --: |")
    print("\n".join(f"| {rank} | {score:.3f} |" for rank, score in chosen_on.items()) + "\n")
    found: dict[str, Any] = {"environment": environment(), "validation": chosen_on, "fixed": fixed, "target": {}, "runs": {}}
    for seed in SEEDS:
        rows = {policy: rounds_of(policy, seed) for policy in (fixed, LEARNT)}
        # What both of them reach, so that nobody is judged by what they never were.
        target = min(max(row["test_accuracy"] for row in own) for own in rows.values())
        found["target"][seed] = target
        for policy, own in rows.items():
            one = outcome(own, target)
            ranks, snr_db = ranks_by_snr(policy, seed)
            one["snr_correlation"] = rank_correlation(np.array(ranks), np.array(snr_db))
            found["runs"].setdefault(policy, {})[seed] = one
    found["saved"] = {key: saved(found["runs"], fixed, key) for key in ("uplink_bytes", "virtual_s")}
    show(found)
    write_json(HERE / "federated.json", found)


def saved(runs: dict[str, Any], fixed: str, key: str) -> dict[str, float]:
    """Return what the policy needs to equal accuracy over what the fixed rank does: geometric mean, 95 % by Student's t."""
    ratios = [np.log(runs[LEARNT][seed]["at_target"][key] / runs[fixed][seed]["at_target"][key]) for seed in SEEDS]
    mean, half = spread(ratios)
    assert half is not None  # there are three seeds
    return {"ratio": float(np.exp(mean)), "low": float(np.exp(mean - half)), "high": float(np.exp(mean + half))}


def show(found: dict[str, Any]) -> None:
    """Print the table of README.md."""
    print("| policy | seed | accuracy | sent | virtual time | late | to accuracy | sent | virtual time | rank by SNR |")
    print("| :-- | --: | --: | --: | --: | --: | --: | --: | --: | --: |")
    for policy, runs in found["runs"].items():
        for seed, one in runs.items():
            at, spearman = one["at_target"], one["snr_correlation"]
            cells = [
                policy, f"{seed}", f"{one['accuracy']:.3f}", size(one["uplink_bytes"]), f"{one['virtual_s']:.1f} s",
                f"{one['late']}", f"{found['target'][seed]:.3f}", size(at["uplink_bytes"]), f"{at['virtual_s']:.1f} s",
                "-" if spearman is None else f"{spearman:.2f}",
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |")
    for key, item in found["saved"].items():
        print(f"{key} to equal accuracy, policy / fixed: {item['ratio']:.2f} ({item['low']:.2f} to {item['high']:.2f})")


if __name__ == "__main__":
    main()
