"""A live task from plain options: what a TOML file or `gymnasium.make` says about the real model in the loop."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import Field

from fedlora.config import ConfigSection, RunConfig, load_config
from fedlora.errors import ConfigError
from fedlora_envs.tasks.response import find

if TYPE_CHECKING:
    from fedlora_envs.tasks.live import LiveTask, Order


class LiveOptions(ConfigSection):
    """The fine-tunings that are run; by default those that a response model was fitted to."""

    like: str = Field("minilm-trec", description="response model whose recorded run is taken, by name or file")
    run: str | None = Field(None, description="run file to take instead of the recorded run")
    set: list[str] = Field([], description='changes of the run, for example ["model.name=minilm-l3", "device=cuda"]')
    local_steps: int | None = Field(None, ge=1, description="mini-batches of one step; unset: as recorded")
    heldout: int | None = Field(None, ge=1, description="held-out examples to measure on; unset: as recorded")


def live_run(options: LiveOptions) -> tuple[RunConfig, int, int]:
    """Return the run, its mini-batches per step and its held-out examples.

    Raises:
        ConfigError: No such response model or run file, or a change that cannot be.
    """
    source = find(options.like).source
    if options.run is None and "run" not in source:
        raise ConfigError(f"like = '{options.like}': this response model does not say what was run. Give run = \"RUN.toml\"")
    config = load_config(options.run, options.set, None if options.run else source["run"])
    steps = options.local_steps or source.get("local_steps", 5)
    return config, steps, options.heldout or source.get("heldout", 64)


def make_live(options: LiveOptions, episodes: int, order: Order = "index") -> LiveTask:
    """Return E fine-tunings of the real model.

    Model and data of equal runs are loaded once per process and shared by all tasks made here, which are used in turn.

    Args:
        options: What is run.
        episodes: E.
        order: Which components a rank keeps (see `LiveTask`).

    Raises:
        FedLoRAError: Whatever of the options or the run cannot work.
    """
    from fedlora.federation.workbench import cached_workbench
    from fedlora_envs.tasks.live import LiveTask, alone

    config, steps, heldout = live_run(options)
    plain = json.dumps(alone(config, steps).model_dump(mode="json", exclude_none=True), sort_keys=True)
    return LiveTask(config, episodes, steps, heldout, order, bench=cached_workbench(plain))
