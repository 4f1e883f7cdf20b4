"""The scenario of terminals.py in mobile-env, through the classes that it lets one replace: channel, movement, terminal."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import numpy as np
from macro_cell import (
    BAND_HZ,
    BASE_HEIGHT_M,
    FC_GHZ,
    HORIZON,
    INTERCEPT_DB,
    NEAREST_M,
    NOISE_FIGURE_DB,
    POWER_DBM,
    SIDE_M,
    SLOPE_DB,
    SPEED_MPS,
    USER_HEIGHT_M,
)
from mobile_env.core.base import MComCore
from mobile_env.core.channels import Channel
from mobile_env.core.entities import BaseStation, UserEquipment
from mobile_env.core.movement import Movement, RandomWaypointMovement
from mobile_env.scenarios.registry import scenarios
from numpy.typing import NDArray
from shapely.geometry import Point

from fedlora_envs.radio.budget import noise_dbm

Floats = NDArray[np.float64]


class MacroChannel(Channel):  # type: ignore[misc]
    """The loss of macro_cell.py in place of Okumura-Hata, which fedlora does not have."""

    def power_loss(self, bs: Any, ue: Any) -> float:
        """Return the loss in dB between a station and a terminal."""
        return float(INTERCEPT_DB + SLOPE_DB * np.log10(max(bs.point.distance(ue.point), NEAREST_M) / 1000))


class Terminal(UserEquipment):  # type: ignore[misc]
    """A terminal where it stands: mobile-env's own is moved to whole metres whenever a distance is taken."""

    @property
    def point(self) -> Point:
        """The position in metres."""
        return Point(self.x, self.y)


class Replay(Movement):  # type: ignore[misc]
    """Terminals that walk ways given beforehand, `[steps, K, 2]`; they stay where a way ends."""

    def __init__(self, ways: Floats, **options: Any) -> None:
        super().__init__(**options)
        self.ways, self.steps = ways, dict[int, int]()

    def initial_position(self, ue: Any) -> tuple[float, float]:
        """Return where a way begins."""
        self.steps[ue.ue_id] = 0
        return self._at(ue)

    def move(self, ue: Any) -> tuple[float, float]:
        """Return the next place."""
        self.steps[ue.ue_id] = min(self.steps[ue.ue_id] + 1, len(self.ways) - 1)
        return self._at(ue)

    def _at(self, ue: Any) -> tuple[float, float]:
        x, y = self.ways[self.steps[ue.ue_id], ue.ue_id].tolist()
        return x, y


def places(scenario: str) -> tuple[Floats, Floats]:
    """Return where stations and terminals of one of mobile-env's scenarios start, `[stations, 2]` and `[users, 2]` in metres."""
    env = scenarios[scenario]()
    env.reset(seed=0)
    stations, users = (np.array([(own.x, own.y) for own in group.values()], np.float64) for group in (env.stations, env.users))
    return stations, users


def environment(users: Floats, stations: Floats, walk: bool = False, ways: Floats | None = None) -> Any:
    """Return an environment that was reset, with every terminal connected to every station.

    Args:
        users: Where terminals stand, `[K, 2]`.
        stations: Where stations stand, whole metres, `[S, 2]`.
        walk: Move about as mobile-env's terminals do, in place of standing still; terminals are then mobile-env's own.
        ways: Ways to walk, `[steps, K, 2]`, in place of standing still.
    """
    station = {"bw": BAND_HZ, "freq": FC_GHZ * 1e3, "tx": POWER_DBM, "height": BASE_HEIGHT_M}
    noise_mw = float(10 ** (noise_dbm(BAND_HZ, NOISE_FIGURE_DB) / 10))
    user = {"velocity": SPEED_MPS, "snr_tr": 0.0, "noise": noise_mw, "height": USER_HEIGHT_M}
    config: dict[str, Any] = {
        "width": SIDE_M,
        "height": SIDE_M,
        "EP_MAX_TIME": HORIZON,
        "arrival_params": {"ep_time": HORIZON},
        "channel": MacroChannel,
        "movement": RandomWaypointMovement if walk else Replay,
        "movement_params": {"width": SIDE_M, "height": SIDE_M},
    }
    if not walk:
        config["movement_params"]["ways"] = users[None] if ways is None else ways
    kind = UserEquipment if walk else Terminal
    env = MComCore(
        [BaseStation(number, tuple(place), **station) for number, place in enumerate(stations.tolist())],
        [kind(number, **user) for number in range(len(users))],
        config,
    )
    begin(env)
    return env


def begin(env: Any) -> None:
    """Reset an environment and connect every terminal to every station."""
    env.reset(seed=0)
    for number in range(env.NUM_STATIONS):
        for user in env.users.values():
            env.apply_action(number + 1, user)


def links(env: Any) -> tuple[Floats, Floats]:
    """Return (SNR in dB, rate in bit/s with a whole station) of every terminal at every station, `[stations, users]`."""
    stations, users, channel = env.stations.values(), env.users.values(), env.channel
    snr = [[channel.snr(station, user) for user in users] for station in stations]
    rate = [
        [channel.datarate(station, user, own) for user, own in zip(users, row, strict=True)]
        for station, row in zip(stations, snr, strict=True)
    ]
    return 10 * np.log10(np.array(snr)), np.array(rate)


def step(env: Any) -> None:
    """Take one step in which nobody connects or leaves; an episode that is over begins anew."""
    truncated = env.step(np.zeros(env.NUM_USERS, np.int64))[3]
    if truncated:
        begin(env)


def replay(ways: Floats, station: Floats) -> tuple[Floats, Floats]:
    """Let terminals walk along `ways` `[steps, K, 2]`; return their SNRs in dB and rates in bit/s, `[steps, K]` each."""
    env = environment(ways[0], station, ways=ways)
    server, users = env.stations[0], list(env.users.values())
    snr, rate = [], []
    for number in range(len(ways)):
        snr.append([env.channel.snr(server, user) for user in users])
        if number == 0:
            env.datarates = env.station_allocation(server)
        rate.append([env.datarates[server, user] for user in users])
        step(env)
    return 10 * np.log10(np.array(snr)), np.array(rate)
