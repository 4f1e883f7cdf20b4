"""A world in numbers and pictures: what its links carry, what a payload costs over them, and how rounds go.

Everything is measured on the world itself: the links, exchanges and devices that a run would get, over random clients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora.federation.world import WorldSetup
from fedlora.files import disk_errors
from fedlora.streams import stream
from fedlora_envs.clock import RoundPlan, event_round
from fedlora_envs.config import WorldConfig
from fedlora_envs.outcome import Fate
from fedlora_envs.portrait_plots import plot_cell, plot_distribution, plot_fading, plot_levels, plot_traces
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
        followed: Downlink of the first clients as `Links.measured` gives it, [3], of all rounds.
        download_s: When each of a round's clients has the payload if all begin together, [K]; inf: never.
        upload_s: The same of the uplink.
        fate, energy_j, compute_s: As in `Outcome`, [K].
        duration_s: Of each round.
        void: Rounds in which nobody delivered.
    """

    measured: list[Floats] = field(default_factory=list)
    expected: list[Floats] = field(default_factory=list)
    followed: list[Floats] = field(default_factory=list)
    download_s: list[Floats] = field(default_factory=list)
    upload_s: list[Floats] = field(default_factory=list)
    fate: list[NDArray[np.int8]] = field(default_factory=list)
    energy_j: list[Floats] = field(default_factory=list)
    compute_s: list[Floats] = field(default_factory=list)
    duration_s: list[float] = field(default_factory=list)
    void: int = 0


def portrait(name: str, config: WorldConfig, question: Question, plots: Path | None = None) -> dict[str, Any]:
    """Return what a world is like, as plain data that JSON can hold.

    Percentiles are values that occur (the smallest that at least that share is at or below); None stands for a number
    that does not exist or has no limit. Mean rates are what the server expects from the mean SNR: every client alone on the
    downlink, `per_round` clients with an even share of the uplink each, Rayleigh fading where there is fading; outage is the
    share of clients whose mean rate is then 0. A payload's times are of drawn clients that all begin together and are not in
    outage; compute time and energy of a round are of those who computed, and who spent any.

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
    samples = simulate(world, question)
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
        "outage": {"downlink_share": _share(samples, 0), "uplink_share": _share(samples, 1)},
        "payload": {
            "downlink_s": percentiles(_through(samples.download_s)),
            "uplink_s": percentiles(_through(samples.upload_s)),
        },
        "rounds": {
            "duration_s": percentiles(np.array(samples.duration_s)),
            "compute_s": percentiles(_spent(samples.compute_s)),
            "energy_per_client_j": percentiles(_spent(samples.energy_j)),
        },
        "replies": _fates(samples),
        "devices": _devices(world),
        "notes": [*world.notes, *_notes(config, samples)],
        "plots": [] if plots is None else _draw(world, samples, plots),
    }


def simulate(world: RadioWorld, question: Question) -> Samples:
    """Return what `question.rounds` exchanges of the world's next rounds bring, clients drawn at random as in a run."""
    samples, work = Samples(), work_of(world.config)[0]
    for number in range(1, question.rounds + 1):
        drawn = stream(question.seed, "portrait", number).choice(world.clients, question.per_round, replace=False)
        clients = np.asarray(drawn, np.int64)
        sizes = np.full(len(clients), question.payload_bytes, np.int64)
        reached = world.begin(clients, sizes)
        outcome = world.play(clients[reached], np.full(int(reached.sum()), work), sizes[reached])
        for what in ("fate", "energy_j", "compute_s"):
            getattr(samples, what).append(getattr(outcome, what))
        samples.duration_s.append(outcome.duration_s)
        samples.void += bool(outcome.void)
        samples.download_s.append(world.links.download(number, clients, np.arange(len(clients)), sizes).seconds)
        samples.upload_s.append(_upload_s(world, number, clients, sizes))
        samples.followed.append(world.links.measured()[0, :_FOLLOWED])
        if number == 1 or number * world.clients <= _MOST_SAMPLES:
            samples.measured.append(world.links.measured())
            samples.expected.append(np.stack(world.links.expected(samples.measured[-1], question.per_round)))
    return samples


def _upload_s(world: RadioWorld, number: int, clients: NDArray[np.int64], sizes: NDArray[np.int64]) -> Floats:
    """Return how long each client's payload takes if all begin to send together, [K]; inf: nothing gets through."""
    seconds, everybody = np.full(len(clients), np.inf), np.arange(len(clients))
    upload = world.links.upload(number, clients, everybody, sizes, np.zeros(len(clients)))
    sends = np.flatnonzero(upload.rates_bps > 0)
    if upload.medium is None:
        seconds[sends] = 8.0 * sizes[sends] / upload.rates_bps[sends]
    elif sends.size:
        # Without those in outage, who would be given their turns.
        medium = world.links.upload(number, clients, sends, sizes[sends], np.zeros(sends.size)).medium
        assert medium is not None
        seconds[sends] = event_round(medium, RoundPlan(0.0, 0.0, 8.0 * sizes[sends])).uplink_s
    return seconds


def work_of(config: WorldConfig) -> tuple[float, str]:
    """Return the work of a client in a round, in what the world's devices count, and what it is in words."""
    if config.devices.cycles_per_example is not None:
        return float(WORK_EXAMPLES), f"{WORK_EXAMPLES} examples a client and round (20 steps of 16)"
    words = "operations a client and round (20 steps of 16 texts of 32 tokens, a backbone of 12 million numbers)"
    return WORK_FLOPS, f"{WORK_FLOPS:.0e} {words}".replace("e+", "e")


def percentiles(values: Floats) -> dict[str, float | None]:
    """Return the percentiles of those values that are numbers: {"p5": ..., ...}, None where there is no number or no limit."""
    there = values[~np.isnan(values)]
    if not there.size:
        return {f"p{share}": None for share in PERCENTILES}
    found = np.percentile(there, PERCENTILES, method="inverted_cdf")
    return {f"p{share}": plain(value) for share, value in zip(PERCENTILES, found.tolist(), strict=True)}


def plain(value: float) -> float | None:
    """Return a number that JSON has, rounded to nine digits; None for any other."""
    return float(f"{value:.9g}") if np.isfinite(value) else None


def _links(world: RadioWorld, samples: Samples) -> dict[str, dict[str, float | None]]:
    measured, expected = np.concatenate(samples.measured, axis=1), np.concatenate(samples.expected, axis=1)
    has_snr = world.config.links in ("cell", "levels")
    snr = {
        "downlink_snr_db": percentiles(measured[0]),
        "uplink_snr_whole_band_db": percentiles(measured[1]),
        "uplink_snr_own_band_db": percentiles(expected[2]),
    }
    rates = {"downlink_rate_bps": percentiles(expected[0]), "uplink_rate_bps": percentiles(expected[1])}
    return (snr if has_snr else {}) | rates


def _share(samples: Samples, direction: int) -> float:
    """Return the share of clients to whom the server expects nothing to get through."""
    return float(np.mean(np.concatenate(samples.expected, axis=1)[direction] <= 0))


def _through(seconds: list[Floats]) -> Floats:
    times = np.concatenate(seconds)
    return times[np.isfinite(times)]


def _spent(amounts: list[Floats]) -> Floats:
    """Return what clients spent of something, without those that never came to it."""
    every = np.concatenate(amounts)
    return every[every > 0]


def _fates(samples: Samples) -> dict[str, float]:
    """Return which share of the replies ended how; reasons that never occurred are left out."""
    fates = np.concatenate(samples.fate)
    through = (Fate.DONE, Fate.LATE)
    totals = {
        "done_share": float(np.mean(fates == Fate.DONE)),
        "late_share": float(np.mean(fates == Fate.LATE)),
        "dropped_share": float(np.mean(~np.isin(fates, through))),
    }
    why = {f"of_which_{fate.name.lower()}_share": float(np.mean(fates == fate)) for fate in Fate if fate not in through}
    happened = {name: share for name, share in why.items() if share}
    return totals | happened | {"void_rounds_share": samples.void / len(samples.duration_s)}


def _devices(world: RadioWorld) -> list[dict[str, Any]]:
    """Return a row per kind of device; its compute time is without jitter, or the clients' median where cycles are counted."""
    workers, work = world.workers, work_of(world.config)[0]
    everybody = np.arange(world.clients)
    load = np.full(world.clients, work)
    if workers.fleet is None:
        compute_s = workers.compute_s(1, everybody, load)
        power_w = workers.compute_w(everybody, load, compute_s)
        figures = {"compute_s": plain(float(np.median(compute_s))), "power_w": plain(float(np.median(power_w)))}
        return [{"device": "cpu", "clients": world.clients, "memory_gb": None, **figures}]
    fleet = workers.fleet
    compute_s = fleet.compute_s(load, everybody)
    rows = []
    for index, tier in enumerate(fleet.tiers):
        own = np.flatnonzero(fleet.tier == index)
        if own.size:
            row = {"device": tier.name, "clients": own.size, "memory_gb": plain(tier.memory_bytes / 1e9)}
            rows.append(row | {"compute_s": plain(compute_s[own[0]]), "power_w": plain(tier.busy_w)})
    return rows


def _notes(config: WorldConfig, samples: Samples) -> list[str]:
    notes = []
    if np.isinf(samples.expected[0][:2]).all():
        notes.append("messages take no time in this world: its rates have no limit")
    if config.links == "trace":
        notes.append(
            "outage is the share of clients whose trace is at rate 0 when the round starts; transfers wait until it passes"
        )
    if samples.void:
        notes.append(f"{samples.void} of {len(samples.duration_s)} rounds were void: nobody delivered")
    if config.links == "cell" and config.uplink.sharing != "equal":
        notes.append(
            f"uplink SNR and rate are for even shares of the band; the payload's times are for '{config.uplink.sharing}'"
        )
    return notes


def _draw(world: RadioWorld, samples: Samples, folder: Path) -> list[str]:
    """Draw what there is to draw; return the files' paths."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    measured, expected = np.concatenate(samples.measured, axis=1), np.concatenate(samples.expected, axis=1)
    names = {"cell": folder / "cell.png", "snr": folder / "snr.png", "fading": folder / "fading.png"}
    drawn = [
        plot_cell(world, names["cell"]),
        plot_distribution(world, measured, expected, names["snr"]),
        plot_fading(world, names["fading"])
        or plot_levels(world, np.array(samples.followed), names["fading"])
        or plot_traces(world, names["fading"]),
    ]
    return [str(path) for path, there in zip(names.values(), drawn, strict=True) if there]
