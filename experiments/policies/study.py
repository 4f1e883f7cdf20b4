"""Learned rank policies against rules and against their own controls, on channels that nobody was trained or tuned on.

    python experiments/policies/study.py train      # five seeds of every method in every world; what is there is not repeated
    python experiments/policies/study.py compare    # test channels, and worlds that are unlike those of the training
    python experiments/policies/study.py report     # the tables of README.md, from results.json

Trainings lie in runs/policies-study and go on where a stopped study was. `compare` writes results.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.common import lean
from fedlora.files import write_json
from fedlora.runs.environment import environment
from fedlora.runs.progress import size
from fedlora_policies.compare import CompareConfig, Comparison, PolicyEntry, compare, read_compare
from fedlora_policies.compare_report import tables
from fedlora_policies.training import Quiet, Training, open_training, parse_train

HERE = Path(__file__).parent
RUNS = Path("runs/policies-study")
SEEDS = 5


@dataclass(frozen=True)
class Method:
    """How a policy is trained: its name, iterations, options of the learner, and which policy is kept."""

    policy: str
    iterations: dict[str, int]
    learner: dict[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    keep: str = "best"


_PLUS = {"published": 15, "markov+budget": 20, "markov+delay": 80, "umi-indoor": 10}
METHODS = {
    "airllm-plus": Method("airllm-plus", _PLUS),
    "ppo": Method("ppo", dict.fromkeys(_PLUS, 50)),
    "airllm": Method("airllm", dict.fromkeys(_PLUS, 40), {"episodes": 16}),
    "airllm-plus, shuffled": Method("airllm-plus", _PLUS, {"shuffle": True}, keep="last"),
    "airllm-plus, no teachers, shuffled": Method(
        "airllm-plus", _PLUS, {"lessons": 0, "shuffle": True}, ("markov+delay",), keep="last"
    ),
    "airllm-plus, gamma 0": Method("airllm-plus", _PLUS, {"gamma": 0.0}, ("markov+delay",)),
    "airllm-plus, no teachers": Method("airllm-plus", _PLUS, {"lessons": 0}, ("markov+delay",)),
}
# By world, chosen on validation channels with seeds 0 and 1. Many lessons are worth their time, but not where CSI is old: there
# the teachers mislead, and there is a way to go. In the cell the channels of an iteration are fewer, because each holds five
# clients; what fading makes late is not priced.
TUNED: dict[str, dict[str, Any]] = {
    "published": {"lessons": 1024, "imitations": 3000},
    "markov+budget": {"lessons": 1024, "imitations": 3000},
    "markov+delay": {"share_std": 0.1, "total_std": 0.15, "lr": 2e-4},
    "umi-indoor": {"channels": 16, "copies": 6, "price_lr": 0.0, "lessons": 512, "imitations": 2000},
}

# Worlds unlike those of the training, by the world whose policies play in them.
MARKOV = {"channel": "markov", "evaluate": "sent", "loss": "heldout", "fresh": True}
UNLIKE: dict[str, dict[str, dict[str, Any]]] = {
    "markov+budget": {
        "SNR 5 dB lower": {**MARKOV, "min_rank": 0, "budget_s": 5.0, "levels_db": [-10.0, -5.0, 0.0, 5.0, 10.0]},
        "SNR 5 dB higher": {**MARKOV, "min_rank": 0, "budget_s": 5.0, "levels_db": [0.0, 5.0, 10.0, 15.0, 20.0]},
        "5 times as fast": {**MARKOV, "min_rank": 0, "budget_s": 5.0, "move": 1.0},
        "half the budget": {**MARKOV, "min_rank": 0, "budget_s": 2.5},
    },
    "markov+delay": {
        "SNR 5 dB lower": {**MARKOV, "csi_delay": 2, "levels_db": [-10.0, -5.0, 0.0, 5.0, 10.0]},
        "SNR 5 dB higher": {**MARKOV, "csi_delay": 2, "levels_db": [0.0, 5.0, 10.0, 15.0, 20.0]},
        "5 times as fast": {**MARKOV, "csi_delay": 2, "move": 1.0},
    },
    "umi-indoor": {
        "SNR 5 dB lower": {"world_options": {"uplink": {"power_dbm": 18.0}}},
        "SNR 5 dB higher": {"world_options": {"uplink": {"power_dbm": 28.0}}},
        "10 times as fast": {"world_options": {"cell": {"speed_kmh": 30.0}}},
        "uma-macro": {"world": "uma-macro"},
        "inh-office": {"world": "inh-office"},
    },
}


def grounds() -> dict[str, CompareConfig]:
    """Return the comparison that each world belongs to, by world."""
    single, cell = read_compare(None, []), read_compare(HERE / "federated.toml", [])
    return {**dict.fromkeys(single.worlds, single), **dict.fromkeys(cell.worlds, cell)}


def folder(label: str, world: str, seed: int) -> Path:
    """Return where a training lies."""
    return RUNS / name(label) / world / str(seed)


def name(label: str) -> str:
    """Return a method's label as the name of a folder."""
    return label.replace(", ", "-").replace(" ", "_")


def jobs(only: list[str] | None, seeds: int) -> Iterator[tuple[str, str, int]]:
    """Return all trainings, those of the first seeds first."""
    for seed in range(seeds):
        for label, method in METHODS.items():
            for world in method.only or method.iterations:
                if only is None or label in only:
                    yield label, world, seed


def train(console: Console, only: list[str] | None, seeds: int, part: int, parts: int) -> None:
    """Train what is not trained yet."""
    where = grounds()
    for number, (label, world, seed) in enumerate(jobs(only, seeds)):
        path, method, ground = folder(label, world, seed), METHODS[label], where[world]
        if number % parts != part or (path / "done").exists():
            continue
        learner = {**(TUNED.get(world, {}) if method.policy == "airllm-plus" else {}), **method.learner}
        options = {**ground.options, **ground.worlds[world]}
        tree = {"policy": method.policy, "env": ground.env, "options": options, "learner": learner}
        tree |= {"seed": seed, "keep": method.keep}
        fresh = not (path / "checkpoint.pt").exists()
        if fresh and path.exists():  # stopped before its first checkpoint
            for file in path.rglob("*"):
                if file.is_file():
                    file.unlink()
        training = Training(path, parse_train(tree | {"iterations": method.iterations[world]})) if fresh else open_training(path)
        rows = training.run(Quiet(), resume=not fresh)
        (path / "done").touch()
        seconds = sum(row.get("seconds", 0.0) for row in rows)
        console.print(f"{label}, {world}, seed {seed}: {training.best[1]:.4g} on validation, {seconds:.0f} s", highlight=False)


def entries(world: str) -> dict[str, PolicyEntry]:
    """Return the learned policies that are trained in a world, with a run for each seed."""
    found = {}
    for label, method in METHODS.items():
        files = [folder(label, world, seed) / "policy.safetensors" for seed in range(SEEDS)]
        runs = [{"file": str(file)} for file in files if (file.parent / "done").exists()]
        if runs:
            found[label] = PolicyEntry(name=method.policy, runs=runs)
    return found


def measure(console: Console) -> None:
    """Compare everything, print it and write it down."""
    out: dict[str, Any] = {"environment": environment(), "seeds": {}, "seconds": {}, "worlds": {}, "unlike": {}}
    for world, ground in grounds().items():
        learnt = entries(world)
        out["seeds"][world] = {label: len(entry.runs) for label, entry in learnt.items()}
        out["seconds"][world] = {label: seconds_of(label, world) for label in learnt}
        one = ground.model_copy(update={"worlds": {world: ground.worlds[world]}, "policies": {**ground.policies, **learnt}})
        out["worlds"] |= shown(compare(one), console)
        if UNLIKE.get(world):
            own = {label: entry for label, entry in learnt.items() if label in ("airllm-plus", "ppo", "airllm")}
            away = ground.model_copy(update={"worlds": UNLIKE[world], "policies": {**ground.policies, **own}})
            out["unlike"][world] = shown(compare(away), console)
    # The scores of single episodes can be had again by the same command.
    write_json(HERE / "results.json", lean(out, drop=("scores",)))


def seconds_of(label: str, world: str) -> float:
    """Return the mean seconds that the iterations of a training took."""
    rows = [open_training(path.parent).rows() for path in sorted((RUNS / name(label) / world).glob("*/done"))]
    return sum(row.get("seconds", 0.0) for own in rows for row in own) / len(rows)


def shown(found: Comparison, console: Console) -> dict[str, Any]:
    """Print a comparison; return its worlds as plain data."""
    for item in tables(found):
        console.print(item)
    worlds: dict[str, Any] = found.plain()["worlds"]
    return worlds


def report() -> None:
    """Print the tables of README.md."""
    out = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    for world, rows in out["worlds"].items():
        print(f"### {world}\n\n| policy | seeds | return | less greedy | normalised | feasible | sent | mean rank |")
        print("| :-- | --: | --: | --: | --: | --: | --: | --: |")
        for row in rows:
            seeds = out["seeds"][world].get(row["policy"], "")
            cells = [row["policy"], str(seeds), f"{row['score']['value']:.3f}", around(row["difference"], 3)]
            cells += [around(row["normalised"], 3), f"{100 * row['feasible']:.1f} %", size(row["bytes"]["value"])]
            cells += [f"{row['mean_rank']:.2f}"]
            print(f"| {' | '.join(cells)} |")
        print()
    print("### Unlike the training\n")
    print("| trained in | played in | greedy, re-tuned | airllm-plus | less greedy | normalised | feasible |")
    print("| :-- | :-- | --: | --: | --: | --: | --: |")
    for world, others in out["unlike"].items():
        for other, rows in others.items():
            of = {row["policy"]: row for row in rows}
            plus, greedy = of["airllm-plus"], of["greedy"]
            cells = [world, other, f"{greedy['score']['value']:.3f}", f"{plus['score']['value']:.3f}"]
            cells += [around(plus["difference"], 3), around(plus["normalised"], 2), f"{100 * plus['feasible']:.1f} %"]
            print(f"| {' | '.join(cells)} |")


def around(interval: dict[str, float] | None, digits: int) -> str:
    """Return a value with its interval."""
    if interval is None:
        return "-"
    return f"{interval['value']:.{digits}f} ({interval['low']:.{digits}f} to {interval['high']:.{digits}f})"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "compare", "report"))
    parser.add_argument("--only", action="append", help="method to train; may be given several times")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="train this many of the seeds")
    parser.add_argument("--part", type=int, default=0, help="with --parts n: this share of the trainings, from 0")
    parser.add_argument("--parts", type=int, default=1)
    given = parser.parse_args()
    console = Console(soft_wrap=True, width=160)
    if given.what == "train":
        train(console, given.only, given.seeds, given.part, given.parts)
    elif given.what == "compare":
        measure(console)
    else:
        report()


if __name__ == "__main__":
    main()
