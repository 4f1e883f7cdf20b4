"""The worlds that a run file can name: one YAML file each in `worlds/`, found by entry point (group `fedlora.worlds`)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
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

    def portrait(
        self,
        *,
        clients: int | None = None,
        per_round: int = 10,
        payload_bytes: int = 200_000,
        rounds: int = 50,
        seed: int = 0,
        plots: Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return what the world is like in numbers, as plain data, and draw it (see `fedlora_envs.portrait`).

        Args:
            clients: Clients to spread; default: as many as the world holds, or 2,000.
            per_round: Clients drawn each round.
            payload_bytes: Size of every message.
            rounds: Exchanges to simulate.
            seed: Root of the streams.
            plots: Folder for PNG files; None: no pictures.
            options: What to change in the world.

        Raises:
            ConfigError: A world that cannot be, or numbers out of range.
            RunFolderError: Pictures that cannot be written.
        """
        from fedlora_envs.portrait import Question, portrait

        config = self.config(**(options or {}))
        question = Question(clients if clients is not None else config.clients or 2000, per_round, payload_bytes, rounds, seed)
        return portrait(self.name, config, question, plots)


ideal = Preset("ideal")
airllm = Preset("airllm")
airllm_markov = Preset("airllm-markov")
umi_indoor = Preset("umi-indoor")
uma_macro = Preset("uma-macro")
inh_office = Preset("inh-office")
yang2021 = Preset("yang2021")
trace = Preset("trace")
