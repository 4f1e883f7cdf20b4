"""The worlds that a run file can name: one YAML file each in `worlds/`, found by entry point (group `fedlora.worlds`)."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml

from fedlora.config import parse_section
from fedlora.federation.world import WorldSetup
from fedlora_envs.config import WorldConfig, merge
from fedlora_envs.world import RadioWorld


class Preset:
    """A named world.

    Args:
        name: Name of its file in `worlds/`, without the ending.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        text = (files("fedlora_envs") / "worlds" / f"{name}.yaml").read_text(encoding="utf-8")
        self.tree: dict[str, Any] = yaml.safe_load(text)
        self.summary: str = self.tree["summary"]

    def config(self, **options: Any) -> WorldConfig:
        """Return the preset's tree with `options` laid over it (ConfigError for unknown keys and bad values)."""
        return parse_section(WorldConfig, merge(self.tree, options), "world.options.")

    def __call__(self, setup: WorldSetup, **options: Any) -> RadioWorld:
        """Return the world for a run."""
        return RadioWorld(self.name, self.config(**options), setup)


ideal = Preset("ideal")
airllm = Preset("airllm")
airllm_markov = Preset("airllm-markov")
umi_indoor = Preset("umi-indoor")
uma_macro = Preset("uma-macro")
inh_office = Preset("inh-office")
yang2021 = Preset("yang2021")
trace = Preset("trace")
