"""The environments by name, for Gymnasium.

Importing this module registers the environments (Gymnasium 1.0 dropped plugins by entry point):

    import gymnasium, fedlora_envs.gym_envs
    env = gymnasium.make("fedlora/RemoteFineTuning-v0", csi_delay=1)
    vector = gymnasium.make_vec("fedlora/RemoteFineTuning-v0", num_envs=1024, csi_delay=1)

or, in one go, `gymnasium.make("fedlora_envs.gym_envs:fedlora/RemoteFineTuning-v0")`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import gymnasium

from fedlora.config import parse_section
from fedlora.errors import ConfigError
from fedlora_envs.gym_covers import RankAllocationEnv, RankAllocationVectorEnv
from fedlora_envs.remote import RemoteConfig, RemoteFineTuning
from fedlora_envs.tasks.base import Task

TaskSource = Task | Callable[[int], Task] | str | Path


def make_task(
    source: TaskSource, episodes: int, live: Mapping[str, Any] | None = None, order: Literal["index", "importance"] = "index"
) -> Task:
    """Return a task of `episodes` fine-tunings: the one given, one that the function given makes, or one by name.

    Args:
        source: A task, a function from a number of episodes to a task, "live", or a response model by name or file.
        episodes: E.
        live: Options of the live task (see `fedlora_envs.tasks.live_options.LiveOptions`).
        order: How the live task orders components.

    Raises:
        ConfigError: A task of another number of episodes, no such recording, or options that do not fit.
    """
    if source == "live":
        from fedlora_envs.tasks.live_options import LiveOptions, make_live

        return make_live(parse_section(LiveOptions, live or {}, "live."), episodes, order)
    if live:
        raise ConfigError("live = {...} has options of the live task: set task = 'live' as well, or leave them out")
    if isinstance(source, str | Path):
        from fedlora_envs.tasks.recorded import load_recorded

        return load_recorded(source, episodes)
    task: Task = source(episodes) if callable(source) else source
    if task.episodes != episodes:
        raise ConfigError(f"the task has {task.episodes} episodes and the environment {episodes}: make them equal")
    return task


def _remote(task: TaskSource, live: Mapping[str, Any] | None, episodes: int, options: dict[str, Any]) -> RemoteFineTuning:
    config = parse_section(RemoteConfig, options)
    return RemoteFineTuning(make_task(task, episodes, live, config.order), config)


class RemoteFineTuningEnv(RankAllocationEnv):
    """AirLLM's problem: one link from the cloud to an edge device, one rank per adapted site.

    ## Description
    A cloud fine-tunes a model with adapters in P E Q form and sends them to an edge device over one link of varying quality
    (AirLLM, arXiv 2507.11515). Before every step the agent chooses the rank of each site. A message that fits into its slot is
    trained and sent; one that does not costs a penalty and nothing is trained. With its defaults the environment is the
    published one; each option takes away one of its weaknesses.

    ## Action Space
    `MultiDiscrete`, one entry per site: action n is the rank `min_rank + n`, up to the site's cap. `action_masks()` gives the
    actions that fit the estimated budget while all other sites stay at `min_rank`.

    ## Observation Space
    `Box(-1, 1, (4 + sites,), float32)`; with any option that differs from the published problem, the lines marked * as well.

    | Entries | Meaning | Min | Max |
    | --- | --- | --- | --- |
    | 1 | SNR as known, between the lowest and the highest level (0.5: one level only) | 0 | 1 |
    | 1 | bandwidth, between the smallest and the largest | 0 | 1 |
    | 1 | token entropy of the last batch (`language = "coming"`: of the coming one) | 0 | 1 |
    | 1 | share of unknown words: 0 for every subword tokenizer | 0 | 0 |
    | sites | ranks of the step before over the caps | 0 | 1 |
    | 2 * | unigram surprisal, share of words that the tokenizer splits | 0 | 1 |
    | 1 * | age of the SNR over the horizon | 0 | 1 |
    | 1 * | bytes that fit at the rate as known, over those of the full adapter | 0 | 1 |
    | 1 * | airtime left over the episode's budget (1: no budget) | 0 | 1 |
    | 1 * | step over the horizon | 0 | 1 |
    | sites * | worth of all components of a site, over that of the best site | 0 | 1 |

    ## Rewards
    With `load = bits / (C tau)`: `-loss - cost_weight * load` where the message fits, else `-(penalty + cost_weight) * load`
    (beyond the episode's airtime: the penalty times one plus the slots missing). Where `budget_s` ends an episode early, the
    steps that are left count at the held-out loss reached.

    ## Starting State
    Ranks are `max(min_rank, cap // 2)`. `reset(seed=s)` begins a new run: an untrained adapter and the streams of s from their
    start. `reset()` begins the next episode, whose fine-tune goes on (`fresh = True`: starts again).

    ## Episode End
    Truncated after `horizon` steps. Terminated only with `budget_s`, once not even the smallest message fits the airtime left
    at the best rate.

    ## Arguments
    `task`: name or path of a recorded response (default: "minilm-trec", which is packaged), "live", a task, or a function from a
    number of episodes to a task. All others but `live` are those of `fedlora_envs.remote.RemoteConfig`.

    ```python
    import gymnasium, fedlora_envs.gym_envs
    env = gymnasium.make("fedlora/RemoteFineTuning-v0", channel="markov", csi_delay=1, budget_s=8.0)
    ```

    With `task="live"` the real model is fine-tuned in every step (seconds, not microseconds), by default just as it was when
    "minilm-trec" was recorded. `live` changes that; an option that is left out is as recorded:

    | Key of `live` | Meaning |
    | --- | --- |
    | like | response model whose recorded run is taken, by name or file ("minilm-trec") |
    | run | run file to take instead |
    | set | list of changes of the run: "device=cuda", "training.lr=0.005" |
    | local_steps | mini-batches of one step |
    | heldout | held-out examples to measure on |

    ```python
    env = gymnasium.make("fedlora/RemoteFineTuning-v0", task="live", live={"set": ["device=cuda"]}, loss="heldout")
    ```

    Environments with equal runs share model and data within a process.

    `info` of a step: bits, latency_s, energy_j, cost (slots by which the message was too long), load, utility, feasible, snr_db;
    loss and accuracy where they were measured.

    ## Version History
    * v0: first version
    """

    def __init__(
        self,
        task: TaskSource = "minilm-trec",
        live: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        self.render_mode = render_mode
        super().__init__(_remote(task, live, 1, options))


class RemoteFineTuningVectorEnv(RankAllocationVectorEnv):
    """Many of `RemoteFineTuningEnv` at once, in arrays (see there)."""

    def __init__(
        self,
        num_envs: int = 1,
        task: TaskSource = "minilm-trec",
        live: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        self.render_mode = render_mode
        super().__init__(_remote(task, live, num_envs, options))


# Name: what both classes' names begin with.
_NAMES = {
    "fedlora/RemoteFineTuning-v0": f"{__name__}:RemoteFineTuning",
    "fedlora/FederatedRankAllocation-v0": "fedlora_envs.gym_federated:FederatedRankAllocation",
}


def register() -> None:
    """Make the environments known to Gymnasium; twice does no harm.

    They truncate at their own horizon, an option of theirs: no `max_episode_steps`, which would wrap a second limit around.
    """
    for name, stem in _NAMES.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=f"{stem}Env", vector_entry_point=f"{stem}VectorEnv")


register()
