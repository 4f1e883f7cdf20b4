"""Steps of `fedlora/RemoteFineTuning-v0` on the real model: many episodes side by side against one after the other.

    python benchmarks/policies_live.py                  about 3 minutes on one core

Both take the same steps of the same episodes (MiniLM-L6 on TREC, 5 mini-batches of 16 and 64 held-out examples a step, as
minilm-trec was recorded) in turns, so that other work on the machine hits both; ratios are of the same turn.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine, save, span, table, timed

from fedlora_envs.rank_env import Step
from fedlora_envs.remote import RemoteConfig, RemoteFineTuning
from fedlora_envs.tasks.live_options import LiveOptions, make_live

EPISODES = 16
RANK = 4
# Every message fits, so that every step trains.
WORLD = RemoteConfig(levels_db=[15.0], loss="heldout", fresh=True)


def begun(episodes: int, first: int, options: LiveOptions) -> RemoteFineTuning:
    """Return an environment at the start of episodes with the seeds `first`, `first + 1`, ...; they share one model."""
    core = RemoteFineTuning(make_live(options, episodes), WORLD)
    core.reset(np.ones(episodes, np.bool_), np.arange(first, first + episodes, dtype=np.uint64))
    return core


def live_speed(repeats: int, episodes: int = EPISODES, options: LiveOptions | None = None) -> dict[str, Any]:
    """Time live steps, print the table, and return what was measured.

    Args:
        repeats: Measured steps of all episodes after one that warms up, at most 14.
        episodes: E.
        options: What is fine-tuned.
    """
    options = options or LiveOptions()
    together = begun(episodes, 0, options)
    alone = [begun(1, episode, options) for episode in range(episodes)]
    found: dict[str, list[float]] = {"at once": [], "one at a time": []}
    apart = 0.0
    for turn in range(repeats + 1):
        steps: list[Step] = []
        wall = {"at once": timed(partial(_step, [together], steps))[0], "one at a time": timed(partial(_step, alone, steps))[0]}
        losses = np.concatenate([step.info["loss"] for step in steps])
        apart = max(apart, float(np.abs(losses[:episodes] - losses[episodes:]).max()))
        if turn:
            for name, seconds in wall.items():
                found[name].append(episodes / seconds)
    ratios = [many / one for many, one in zip(*found.values(), strict=True)]
    rows = [[f"{episodes} {name}", span(values), span(ratios) if name == "at once" else "1"] for name, values in found.items()]
    print(table(["live episodes", "env-steps/s", "times"], rows))
    print(f"\nLargest difference between their held-out losses: {apart:.1e}")
    return {"episodes": episodes, "steps_per_s": found, "times_faster": ratios, "largest_difference": apart}


def _step(cores: list[RemoteFineTuning], steps: list[Step]) -> None:
    for core in cores:
        steps.append(core.step(np.full((core.episodes, len(core.sites)), RANK)))


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    parser.add_argument("--repeats", type=int, default=3, help="measured steps after one that warms up (default 3)")
    options = parser.parse_args()
    print(machine() + "\n", flush=True)
    save(options.out, live_speed(options.repeats))


if __name__ == "__main__":
    main()
