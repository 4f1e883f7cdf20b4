"""A world in numbers and pictures: what its links carry, what a payload costs over them, and how rounds go.

Everything is measured on the world itself: the links, exchanges and devices that a run would get, over random clients.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora.federation.world import WorldSetup
from fedlora.streams import stream
from fedlora_envs.clock import RoundPlan, event_round
from fedlora_envs.config import WorldConfig
from fedlora_envs.outcome import Fate
from fedlora_envs.portrait_plots import draw
from fedlora_envs.world import RadioWorld

Floats = NDArray[np.float64]

PERCENTILES = (5, 25, 50, 75, 95)
WORK_FLOPS = 5e11
"""Local training of a portrait: 20 steps of 16 texts of 32 tokens through a backbone of 12 million numbers, 4 operations each."""
WORK_EXAMPLES = 320
"""The same where the world counts cycles per example: 20 steps of 16."""

_MOST_SAMPLES = 200_000  # of clients' SNRs, over all rounds
_FOLLOWED = 3  # clients whose SNR is drawn over rounds


@dataclass(frozen=True)
class Question:
    """What a portrait is asked for.

    Attributes:
        clients: N, >= 1.
        per_round: Clients drawn each round, 1 to N.
        payload_bytes: Size of every message, both ways, above 0.
        rounds: Exchanges to simulate, >= 1.
        seed: Root of the streams, >= 0.

    Raises:
        ConfigError: A number out of its range.
    """

    clients: int
    per_round: int
    payload_bytes: int
    rounds: int
    seed: int

    def __post_init__(self) -> None:
        if self.payload_bytes <= 0:
            raise ConfigError(f"a payload of {self.payload_bytes} bytes: there is nothing to send. Give 1 byte or more")
        for name in ("clients", "per_round", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: give 1 or more")
        if self.seed < 0:
            raise ConfigError(f"seed = {self.seed}: give 0 or more")
        if self.per_round > self.clients:
            raise ConfigError(f"per_round = {self.per_round} is more than clients = {self.clients}: lower it or raise clients")


@dataclass
class Samples:
    """What the rounds brought; lists of arrays, one per round unless said otherwise.

    Attributes:
        measured: As `Links.measured`, `[2, N]`, of as many rounds as there is room for.
        expected: As `Links.expected`, `[3, N]`, of the same rounds.
        unheard: Which of all N clients the downlink does not reach, of the same rounds.
        followed: Downlink of the first clients as `Links.measured` gives it, [3], of all rounds.
        download_s: When each of a round's clients has the payload if all begin together, [K]; inf: never.
        upload_s: The same of the uplink.
        fate, energy_j, downlink_s, compute_s, uplink_s: As in `Outcome`, [K].
        duration_s: Of each round.
        void: Rounds in which nobody delivered.
    """

    measured: list[Floats] = field(default_factory=list)
    expected: list[Floats] = field(default_factory=list)
    unheard: list[NDArray[np.bool_]] = field(default_factory=list)
    followed: list[Floats] = field(default_factory=list)
    download_s: list[Floats] = field(default_factory=list)
    upload_s: list[Floats] = field(default_factory=list)
    fate: list[NDArray[np.int8]] = field(default_factory=list)
    energy_j: list[Floats] = field(default_factory=list)
    downlink_s: list[Floats] = field(default_factory=list)
    compute_s: list[Floats] = field(default_factory=list)
    uplink_s: list[Floats] = field(default_factory=list)
    duration_s: list[float] = field(default_factory=list)
    void: int = 0


def portrait(name: str, config: WorldConfig, question: Question, plots: Path | None = None) -> dict[str, Any]:
    """Return what a world is like, as plain data that JSON can hold.

    Percentiles are of clients (the largest value that no more than that share of them is below); None stands for a number
    that does not exist or has no limit. Mean rates are what the server expects from the mean SNR: every client alone on the
    downlink, `per_round` clients with an even share of the uplink each, Rayleigh fading where there is fading.

    Args:
        name: What the user called the world.
        config: The world.
        question: How many clients, rounds and bytes.
        plots: Folder for PNG files, made where it is missing; files of the same names are replaced. None: no pictures.

    Raises:
        ConfigError: A world that cannot be.
        RunFolderError: Pictures that cannot be written.
    """
    world = RadioWorld(name, config, WorldSetup(question.seed, question.clients, question.per_round))
    paths = [] if plots is None else draw(world, Samples().followed, plots, only=("cell", "fading"))
    samples = simulate(world, question)
    if plots is not None:
        paths += draw(world, samples.followed, plots, samples.measured, samples.expected, only=("snr", "levels"))
    return {
        "world": name,
        "summary": config.summary,
        "sources": config.sources,
        "setting": {
            "clients": world.clients,
            "per_round": question.per_round,
            "payload_bytes": question.payload_bytes,
            "rounds": question.rounds,
            "seed": question.seed,
            "work": work_of(config)[1],
            "deadline_s": config.deadline_s,
        },
        "links": _links(world, samples),
        "outage": _outage(samples),
        "payload": {
            "downlink_s": percentiles(_through(samples.download_s)),
            "uplink_s": percentiles(_through(samples.upload_s)),
        },
        "rounds": {
            "duration_s": percentiles(np.array(samples.duration_s)),
            **{what: percentiles(np.concatenate(getattr(samples, what))) for what in ("downlink_s", "compute_s", "uplink_s")},
            "energy_j": percentiles(np.concatenate(samples.energy_j)),
        },
        "replies": _fates(samples),
        "devices": _devices(world),
        "notes": [*world.notes, *_notes(config, samples)],
        "plots": [str(path) for path in paths],
    }
