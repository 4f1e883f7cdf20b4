"""The shipped policy in real federated runs behind a radio, against every fixed rank.

    python experiments/live/federated.py

The quickstart (MiniLM-L6 on TREC, 20 clients with skewed labels, Ravan) in the world umi-indoor with a deadline of 10 s. Who is
drawn, their data, devices and channels are the same for all; only the ranks differ. Runs lie in runs/live-federated and are not
repeated when they are there. Writes federated.json beside this file and prints the table of README.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedlora.cli.common import quickstart
from fedlora.config import load_config
from fedlora.files import write_json
from fedlora.runs.environment import environment
from fedlora.runs.folder import RunFolder, holds_run
from fedlora.runs.progress import size
from fedlora.runs.simulate import simulate

HERE = Path(__file__).parent
RUNS = Path("runs/live-federated")
SEEDS = (0,)
POLICIES: dict[str, list[str]] = {
    "full": ["policy.name=full"],
    "rank 64": ["policy.name=fixed", "policy.options.rank=64"],
    "rank 32": ["policy.name=fixed", "policy.options.rank=32"],
    "airllm-plus": ["policy.name=airllm-plus"],
}


def rounds_of(policy: str, seed: int) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl of one run; it is run, or gone on with, where it is not done."""
    folder = RUNS / f"{policy.replace(' ', '-')}-seed{seed}"
    overrides = [f"seed={seed}", "world.name=umi-indoor", "world.options.deadline_s=10", "output.tensorboard=false"]
    config = load_config(quickstart(), [*overrides, *POLICIES[policy]])
    there = holds_run(folder)
    if there and len(rows := RunFolder.open(folder).rows()) > config.rounds:
        return rows
    simulate(config, folder, resume=there)
    return RunFolder.open(folder).rows()


def ranks_by_snr(policy: str, seed: int) -> tuple[list[float], list[float]]:
    """Return mean ranks and SNRs of all decisions of a run."""
    folder = RUNS / f"{policy.replace(' ', '-')}-seed{seed}"
    rows = [json.loads(line) for line in (folder / "clients.jsonl").read_text(encoding="utf-8").splitlines()]
    known = [row for row in rows if row.get("snr_db") is not None]
    return [row["mean_rank"] for row in known], [row["snr_db"] for row in known]


def outcome(rows: list[dict[str, Any]], target: float) -> dict[str, Any]:
    """Return a run in a few numbers: at the end, and when it first was as accurate as `target`."""
    sent = np.cumsum([row["uplink_bytes"] for row in rows])
    accuracy = np.array([row["test_accuracy"] for row in rows])
    reached = np.flatnonzero(accuracy >= target)
    first = int(reached[0]) if len(reached) else None
    return {
        "accuracy": float(accuracy[-1]), "best": float(accuracy.max()), "loss": float(rows[-1]["test_loss"]),
        "uplink_bytes": int(sent[-1]), "virtual_s": float(rows[-1]["virtual_time_s"]),
        "late": int(sum(row.get("clients_late", 0) for row in rows)),
        "at_target": None if first is None else {
            "round": int(rows[first]["round"]), "uplink_bytes": int(sent[first]),
            "virtual_s": float(rows[first]["virtual_time_s"]),
        },
    }  # fmt: skip


def main() -> None:
    """Run what is not there, print and write."""
    from fedlora_policies.statistics import rank_correlation

    found: dict[str, Any] = {"environment": environment(), "target": {}, "runs": {}}
    for seed in SEEDS:
        rows = {policy: rounds_of(policy, seed) for policy in POLICIES}
        # What every one of them reaches, so that nobody is judged by what they never were.
        target = min(max(row["test_accuracy"] for row in own) for own in rows.values())
        found["target"][seed] = target
        for policy, own in rows.items():
            one = outcome(own, target)
            ranks, snr_db = ranks_by_snr(policy, seed)
            one["snr_correlation"] = rank_correlation(np.array(ranks), np.array(snr_db))
            found["runs"].setdefault(policy, {})[seed] = one
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
    write_json(HERE / "federated.json", found)


if __name__ == "__main__":
    main()
