"""The world's channel of each round as something the relay can play, and what the world charges for given bytes over it.

In round n the world's links say how long the drawn clients' messages take. From that, each client gets a rate each way: where
fading moves during a transfer, as a profile over its bits. What a world does to clients becomes outages: offline, out of reach,
dropping out. A broadcast has no counterpart on sockets; each listener gets the rate at which it would hear the broadcast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora.config import RunConfig
from fedlora.errors import ConfigError
from fedlora.federation.world import WORLDS, WorldSetup
from fedlora.registry import construct
from fedlora.streams import stream
from fedlora_envs.clock import RoundPlan, event_round
from fedlora_envs.emulation.pipe import Channel
from fedlora_envs.emulation.relay import DOWN, UP
from fedlora_envs.links import Upload
from fedlora_envs.outcome import Fate
from fedlora_envs.world import RadioWorld

Floats = NDArray[np.float64]
Clients = NDArray[np.int64]
Sizes = NDArray[np.int64]

CEILING_BPS = 300e6
"""The relay carries about twice that on one core of 2020s hardware; faster links are played at this rate."""

IDLE_BPS = 10e6
"""Rate of clients that were not drawn: they only ask whether there is work."""

START_BPS = 100e6
"""Rate of all links before the first round: nodes register, and the world knows no round 0."""

_PIECES = 10
_PIECE_BYTES = 30_000  # shorter pieces would be a handful of packets
_REACH = 1.25  # of the payload: what protocols add still falls into the profile
_EVEN = ("equal", "proportional")  # rules whose shares do not change where all payloads are scaled alike


@dataclass(frozen=True)
class Charges:
    """What the world charges for one round's messages; arrays over the drawn clients, [K].

    Attributes:
        clients: Client numbers.
        down_s: Seconds on the air of each message down; inf where nothing gets through.
        up_s: The same for the replies; inf where nothing gets through.
        leave_s: When each client drops out, from the start of the round; inf: not at all.
        away: Who is offline.
        down, up: Rates over the bits of the round: (bits, bit/s) per client.
    """

    clients: Clients
    down_s: Floats
    up_s: Floats
    leave_s: Floats
    away: NDArray[np.bool_]
    down: list[list[tuple[float, float]]]
    up: list[list[tuple[float, float]]]


class Schedule:
    """The channel of one run, round by round.

    Args:
        config: The run; it must name a world.
        scale: Real seconds per second of the world.

    Raises:
        ConfigError: No world, or one whose transmission has no packets.
    """

    def __init__(self, config: RunConfig, scale: float = 1.0) -> None:
        if config.world.name is None:
            raise ConfigError(
                "emulation plays the channel of a world: set world.name in the run file (`fedlora methods` lists them)"
            )
        if not (math.isfinite(scale) and scale > 0):
            raise ConfigError(f"the time scale must be above 0 real seconds per second of the world, got {scale:g}")
        self.config, self.scale, self.world = config, scale, world_of(config)
        sharing = self.world.config.uplink.sharing
        if sharing == "aircomp":
            raise ConfigError(
                "world.options.uplink.sharing = 'aircomp' adds analogue signals on the air; sockets carry packets. "
                "Choose another rule for sharing the uplink"
            )
        self._even = sharing in _EVEN

    def draw(self, round_number: int) -> Clients:
        """Return the clients of a round: the same draw as the strategy's where all clients are there."""
        config = self.config
        chosen = stream(config.seed, "clients", round_number).choice(
            np.arange(config.clients, dtype=np.int64), config.clients_per_round, replace=False
        )
        return np.sort(chosen)

    def charges(self, round_number: int, clients: Clients, down: Sizes, up: Sizes, compute_s: Floats) -> Charges:
        """Return what the world charges for the messages of a round; rounds must be asked for in order, each as often as needed.

        Args:
            round_number: The round, from 1.
            clients: Who was drawn, [K].
            down: Bytes of the messages to them, [K].
            up: Bytes of their replies, [K].
            compute_s: Seconds of the world between the two; of use where it matters who sends at the same time, [K].
        """
        world, places = self.world, np.arange(len(clients))
        world.observe(round_number, clients)
        down_s = world.links.download(round_number, clients, places, down).seconds
        up_s = self._upload_s(round_number, clients, up, down_s, compute_s)
        reach = _REACH * np.arange(1, self._pieces(down) + 1) / self._pieces(down)
        down_at = [world.links.download(round_number, clients, places, _part(down, share)).seconds for share in reach]
        reach_up = _REACH * np.arange(1, self._pieces(up) + 1) / self._pieces(up) if self._even else np.ones(1)
        up_at = [self._upload_s(round_number, clients, _part(up, share), down_s, compute_s) for share in reach_up]
        return Charges(
            clients,
            down_s,
            up_s,
            world.workers.leave_s(round_number)[clients],
            self._away(round_number, clients, down),
            [_profile(down[k], reach, [float(at[k]) for at in down_at]) for k in places],
            [_profile(up[k], reach_up, [float(at[k]) for at in up_at]) for k in places],
        )

    def channels(self, charges: Charges) -> dict[int, dict[str, Channel]]:
        """Return the channels of all clients during a round, by client and direction, in real seconds."""
        found = {client: {way: Channel([(0.0, IDLE_BPS)]) for way in (UP, DOWN)} for client in range(self.config.clients)}
        for place, client in enumerate(charges.clients.tolist()):
            gone_s = 0.0 if charges.away[place] else float(charges.leave_s[place])
            outages = [(gone_s * self.scale, math.inf)] if math.isfinite(gone_s) else []
            for way, pieces in ((DOWN, charges.down[place]), (UP, charges.up[place])):
                paced = [(bits, min(rate / self.scale, CEILING_BPS)) for bits, rate in pieces]
                found[client][way] = Channel(paced, outages)
        return found

    def _pieces(self, sizes: Sizes) -> int:
        return int(np.clip(sizes.max(initial=1) // _PIECE_BYTES, 1, _PIECES))

    def _away(self, round_number: int, clients: Clients, sizes: Sizes) -> NDArray[np.bool_]:
        """Return who is offline; the world stays where it is."""
        state = {name: array.copy() for name, array in self.world.state().items()}
        self.world.round = round_number - 1  # nothing is ever played to its end here
        self.world.begin(clients, sizes)
        away: NDArray[np.bool_] = self.world.outcome.fate == Fate.OFFLINE
        self.world.restore(state)
        return away

    def _upload_s(self, round_number: int, clients: Clients, sizes: Sizes, down_s: Floats, compute_s: Floats) -> Floats:
        """Return how long the replies are on the air, [K]; inf where nothing gets through."""
        starts_s = np.asarray(down_s + compute_s, np.float64)
        sends = np.flatnonzero(np.isfinite(starts_s))
        seconds = np.full(len(clients), np.inf)
        if sends.size:
            upload = self.world.links.upload(round_number, clients, sends, sizes[sends], starts_s[sends])
            seconds[sends] = _seconds(upload, sizes[sends], down_s[sends], compute_s[sends])
        return seconds


def world_of(config: RunConfig) -> RadioWorld:
    """Return the world of a run as far as its channels go: what only computing needs (the model's size) it is not told.

    Raises:
        ConfigError: Options that cannot be, or a world that is not one of fedlora_envs.
    """
    assert config.world.name is not None
    width = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}[config.wire.dtype]
    rule = "" if config.aggregator.method == "auto" else config.aggregator.method
    setup = WorldSetup(config.seed, config.clients, config.clients_per_round, aggregator=rule, number_bytes=width)
    world = construct("world.name", config.world.name, WORLDS.get(config.world.name), setup, options=config.world.options)
    if not isinstance(world, RadioWorld):
        raise ConfigError(f"world.name = '{config.world.name}' is no radio world of fedlora_envs: its channel cannot be emulated")
    return world


def _seconds(upload: Upload, sizes: Sizes, down_s: Floats, compute_s: Floats) -> Floats:
    """Return how long each upload takes, [n]; inf where nothing gets through."""
    bits = np.asarray(8.0 * sizes, np.float64)
    if upload.medium is None:
        with np.errstate(divide="ignore"):
            return np.asarray(bits / upload.rates_bps, np.float64)
    times = event_round(upload.medium, RoundPlan(down_s, compute_s, bits))
    return np.where(np.isfinite(times.finish_s), times.uplink_s, np.inf)


def transfer_s(pieces: list[tuple[float, float]], bits: float) -> float:
    """Return how long so many bits take at rates over bits as in `Charges.down`; inf where nothing gets through."""
    seconds = 0.0
    for place, (span, rate) in enumerate(pieces):
        part = bits if place == len(pieces) - 1 else min(bits, span)
        if part > 0:
            seconds += part / rate if rate > 0 else math.inf
        bits -= part
    return seconds


def _part(sizes: Sizes, share: float) -> Sizes:
    return np.maximum(1, np.round(sizes * share)).astype(np.int64)


def _profile(size: int, reach: Floats, seconds: list[float]) -> list[tuple[float, float]]:
    """Return (bits, bit/s) pieces of a transfer that has reached share `reach[i]` of its `size` bytes after `seconds[i]`.

    What comes after them goes at their mean rate.
    """
    if not math.isfinite(seconds[-1]):
        return [(0.0, 0.0)]
    size, seconds = int(size), [float(at) for at in seconds]
    pieces: list[tuple[float, float]] = []
    bits_before = seconds_before = 0.0
    for share, at in zip(reach.tolist(), seconds, strict=True):
        bits = 8.0 * size * share
        if at > seconds_before * (1 + 1e-9):
            pieces.append((bits - bits_before, (bits - bits_before) / (at - seconds_before)))
            bits_before, seconds_before = bits, at
    if not pieces:
        return [(0.0, math.inf)]
    if len({round(rate / pieces[0][1], 6) for _, rate in pieces}) == 1:  # a steady rate
        return [(0.0, pieces[0][1])]
    return [*pieces, (0.0, bits_before / seconds_before)]
