"""Speed of rank environments and of the policies that learn in them.

    python benchmarks/policies.py                  about 2 minutes on one core
    python benchmarks/policies.py --live           also steps of the real model (see policies_live.py): 3 minutes more

Environments are stepped with random legal actions through Gymnasium's own interface, observations included. Contenders take
turns, and ratios are of the same turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from measure import machine, save, span, table, timed

import fedlora_envs.gym_envs  # noqa: F401 - registers the environments
from fedlora.streams import stream
from fedlora_envs.tasks.base import opt_1_3b
from fedlora_policies.airllm.diffusion import Codec, DiffusionConfig, Refiner
from fedlora_policies.features import CLIENT_FEATURES, SITE_FEATURES, Features
from fedlora_policies.plus.chain import ChainConfig
from fedlora_policies.plus.network import NetworkConfig
from fedlora_policies.plus.policy import Brain

SWITCHES = {
    "channel": "markov",
    "csi_delay": 2,
    "evaluate": "sent",
    "loss": "heldout",
    "fresh": True,
    "budget_s": 5.0,
    "min_rank": 0,
}
ENVIRONMENTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "one link, as published": ("fedlora/RemoteFineTuning-v0", {"bandwidths_hz": [1.043e6]}, 1024),
    "one link, all switches": ("fedlora/RemoteFineTuning-v0", {"bandwidths_hz": [1.043e6], **SWITCHES}, 1024),
    "five clients of a cell": ("fedlora/FederatedRankAllocation-v0", {}, 256),
}


def steps_per_second(repeats: int, steps: int = 60) -> list[dict[str, Any]]:
    """Step native vectors and single environments in turns; print env-steps per second, and how many times as many vectors do."""
    results, rows = [], []
    for label, (name, options, count) in ENVIRONMENTS.items():
        vector = gymnasium.make_vec(name, count, vectorization_mode="vector_entry_point", **options)
        single = gymnasium.make(name, **options)
        vector.reset(seed=0)
        single.reset(seed=0)
        rng = stream(0, "benchmark.actions")
        levels = np.asarray(vector.single_action_space.nvec)  # type: ignore[attr-defined]
        actions = (rng.random((steps, count, len(levels))) * levels).astype(np.int64)
        many, one = [], []
        for turn in range(repeats + 1):
            seconds = timed(partial(_step_vector, vector, actions))[0], timed(partial(_step_single, single, actions[:, 0]))[0]
            if turn:
                many.append(steps * count / seconds[0])
                one.append(steps / seconds[1])
        ratios = [left / right for left, right in zip(many, one, strict=True)]
        rows.append([label, f"{count:,}", span(many, 0), span(one, 0), span(ratios, 0)])
        results.append({"environment": label, "members": count, "vector": many, "single": one, "times": ratios})
    print(table(["recorded task", "members", "env-steps/s, vector", "one environment", "times"], rows) + "\n")
    return results


def _step_vector(env: Any, actions: Any) -> None:
    for action in actions:
        env.step(action)


def _step_single(env: Any, actions: Any) -> None:
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()


def decisions_per_second(repeats: int) -> list[dict[str, Any]]:
    """Sample rank vectors; print decisions per second of both refiners, for 144 sites (OPT-1.3B)."""
    results, rows = [], []
    sites = len(opt_1_3b(8))
    for steps in (5, 50):
        for batch in (1, 256):
            airllm, plus = _airllm(sites, steps, batch), _plus(sites, steps, batch)
            walls: dict[str, list[float]] = {"airllm": [], "airllm-plus": []}
            for turn in range(repeats + 1):
                for name, work in (("airllm", airllm), ("airllm-plus", plus)):
                    seconds = timed(work)[0]
                    if turn:
                        walls[name].append(batch / seconds)
            rows.append([f"{steps} steps, batch {batch}", *(span(values, 1) for values in walls.values())])
            results.append({"steps": steps, "batch": batch, "sites": sites, **walls})
    print(table(["DDIM", "airllm, decisions/s", "airllm-plus, decisions/s"], rows) + "\n")
    return results


def _airllm(sites: int, steps: int, batch: int) -> Callable[[], Any]:
    refiner = Refiner(sites, Codec(1, np.full(sites, 8)), DiffusionConfig(sample_steps=steps), 0)
    coarse = np.zeros((batch, refiner.config.condition), np.float32)
    return lambda: refiner.refine(coarse)


def _plus(sites: int, steps: int, batch: int) -> Callable[[], Any]:
    brain = Brain(NetworkConfig(), ChainConfig(sample_steps=steps))
    shape = (batch, sites, len(SITE_FEATURES))
    features = Features(np.zeros((batch, len(CLIENT_FEATURES)), np.float32), np.zeros(shape, np.float32))
    return lambda: brain.requests(features)


def training_seconds(out: Path) -> dict[str, Any]:
    """Train airllm-plus by the shipped file, as `fedlora train-policy` does; print how long it took."""
    from fedlora_policies.training import Quiet, Training, read_train

    training = Training(out, read_train(None, []))

    def train() -> None:
        training.run(Quiet())

    seconds = timed(train)[0]
    print(f"`fedlora train-policy` without a file: {seconds:.0f} s, validation return {training.best[1]:.4g}")
    return {"seconds": seconds, "validation_return": training.best[1], "iterations": training.config.iterations}


def main() -> None:
    """Parse arguments, measure, print."""
    import tempfile

    from policies_live import live_speed

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    parser.add_argument("--repeats", type=int, default=5, help="measured repetitions after one that warms up (default 5)")
    parser.add_argument("--live", action="store_true", help="also measure steps of the real model")
    options = parser.parse_args()
    print(machine() + f"; {torch.get_num_threads()} threads\n", flush=True)
    found: dict[str, Any] = {"steps": steps_per_second(options.repeats), "decisions": decisions_per_second(options.repeats)}
    with tempfile.TemporaryDirectory() as folder:
        found["training"] = training_seconds(Path(folder) / "policy")
    if options.live:
        found["live"] = live_speed(3)
    save(options.out, found)


if __name__ == "__main__":
    main()
