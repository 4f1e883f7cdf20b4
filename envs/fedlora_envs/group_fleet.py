"""The devices of E groups of K clients: who is there, how long they compute, when they give up, and what it takes in energy.

As `Workers` and `OnOff`, with draws that are a hash of each group's seed, episode and round (`fedlora_envs.noise`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora_envs.availability import OnOff, drop_times
from fedlora_envs.config import WorldConfig
from fedlora_envs.devices import jitter_factors, tier, tier_counts
from fedlora_envs.energy import Energy, Radio, round_energy
from fedlora_envs.noise import uniforms

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Seeds = NDArray[np.uint64]
Counts = NDArray[np.int64]


class GroupFleet:
    """Devices; arrays are flat, `[E * K]`, group by group.

    Each group has the tiers of `devices.mix` in the same numbers, in an order drawn for each episode.

    Args:
        config: The world.
        groups: E.
        size: K.
        work: Operations of one client's training in a round.

    Attributes:
        flops: Operations per second that training reaches, `[E * K]`.

    Raises:
        ConfigError: An unknown tier, bad shares, or a world that counts cycles.
    """

    def __init__(self, config: WorldConfig, groups: int, size: int, work: float) -> None:
        devices = config.devices
        if devices.cycles_per_example is not None:
            raise ConfigError("devices.cycles_per_example: many rounds at once count operations. Unset it, or take another world")
        self.config, self.groups, self.size, self.work = config, groups, size, work
        tiers = [tier(name) for name in devices.mix]
        # The tier of each place of a group, before the places are shuffled.
        places = np.repeat(np.arange(len(tiers)), tier_counts(size, devices.mix))
        self._speeds = np.array([one.flops for one in tiers])[places]
        self._powers = np.array([one.busy_w for one in tiers])[places]
        self._law = devices.jitter_law if devices.jitter else "none"
        self.flops, self._power_w = np.ones(groups * size), np.zeros(groups * size)
        energy = config.energy
        radiated_w = 10 ** (config.uplink.power_dbm / 10 - 3)
        self._radio = Radio(radiated_w, energy.pa_efficiency, energy.circuit_tx_w, energy.circuit_rx_w)
        on_s, off_s = config.availability.on_s, config.availability.off_s
        self._presence = None if on_s is None else OnOff(on_s, off_s, np.zeros(groups * size))

    def begin(self, which: Flags, seeds: Seeds, episode: Counts) -> None:
        """Deal the devices of some groups `[E]` anew; who is there follows the stationary law."""
        new, start = np.repeat(which, self.size), np.zeros(self.groups, np.int64)
        order = np.argsort(uniforms(seeds, "compute", episode, start, self.size), axis=1)
        self.flops = np.where(new, self._speeds[order].ravel(), self.flops)
        self._power_w = np.where(new, self._powers[order].ravel(), self._power_w)
        if self._presence is not None:
            first = uniforms(seeds, "availability", episode, start, self.size).ravel()
            self._presence.on = np.where(new, first < self._presence.share_on, self._presence.on)

    def pass_time(self, seeds: Seeds, episode: Counts, round_number: Counts) -> None:
        """Let clients come and go until the round after `round_number` `[E]` begins."""
        if self._presence is not None:
            drawn = uniforms(seeds, "availability", episode, round_number, self.size).ravel()
            self._presence.step(self.config.cell.step_s, drawn)

    def there(self) -> Flags:
        """Return who can be reached, `[E * K]`."""
        return np.ones(self.groups * self.size, np.bool_) if self._presence is None else self._presence.on.copy()

    def expected_s(self) -> Floats:
        """Return how long training takes without jitter, `[E * K]`."""
        return self.work / self.flops

    def compute_s(self, seeds: Seeds, episode: Counts, round_number: Counts) -> Floats:
        """Return how long training takes in a round, `[E * K]`."""
        drawn = uniforms(seeds, "jitter", episode, round_number, self.size).ravel()
        return self.expected_s() * jitter_factors(self._law, self.config.devices.jitter, drawn)

    def leave_s(self, seeds: Seeds, episode: Counts, round_number: Counts) -> Floats:
        """Return after how long each client drops out of a round, `[E * K]`; inf: not at all."""
        hazard = self.config.availability.dropouts_per_s
        if not hazard:
            return np.full(self.groups * self.size, np.inf)
        return drop_times(hazard, uniforms(seeds, "dropout", episode, round_number, self.size).ravel())

    def energy(self, downlink_s: Floats, compute_s: Floats, uplink_s: Floats) -> Energy:
        """Return the energy of a round, `[E * K]`; the amplifier is on for its direction's share of the upload."""
        on_s = uplink_s * self.config.uplink.tdd_share
        return round_energy(self._radio, downlink_s, self._power_w * compute_s, uplink_s, on_s)
