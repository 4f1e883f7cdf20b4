"""The clients' devices in a world: how fast they compute, what they spend, what they can hold, and when they give up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora.federation.world import WorldSetup
from fedlora.streams import stream
from fedlora_envs.availability import drop_times
from fedlora_envs.config import WorldConfig
from fedlora_envs.devices import Fleet, cycles_compute_s, jitter_factors
from fedlora_envs.energy import Radio, board_compute_j, cycles_compute_j

Floats = NDArray[np.float64]
Clients = NDArray[np.int64]


@dataclass(frozen=True)
class Powers:
    """Watts drawn in each phase, one number or [K]: receiving, computing, sending (amplifier on), sending (circuits)."""

    receive_w: float
    compute_w: Floats
    amplifier_w: float
    circuit_w: float


class Workers:
    """N devices.

    Args:
        config: The world.
        clients: N.
        setup: What the world is told about the run.

    Raises:
        ConfigError: An unknown tier, shares that cannot be, or no device that could hold the run's model.
    """

    def __init__(self, config: WorldConfig, clients: int, setup: WorldSetup) -> None:
        self.config, self.clients, self.setup = config, clients, setup
        devices = config.devices
        rng = stream(setup.seed, "compute")
        self._cycles: Floats | None = None
        if devices.cycles_per_example is not None:
            low, high = devices.cycles_per_example
            if not 0 < low <= high:
                raise ConfigError(f"world.options.devices.cycles_per_example = [{low:g}, {high:g}] is no range of cycles")
            self._cycles = rng.uniform(low, high, clients)
            self.fleet = None
        else:
            self.fleet = Fleet.mixed(clients, devices.mix, rng)
            if not self.fits().any():
                most = self.fleet.memory_bytes.max() / 1e9
                raise ConfigError(
                    f"no device of world.options.devices.mix holds the run's model: it needs {setup.memory_bytes / 1e9:.2g} GB, "
                    f"the largest has {most:.2g} GB. Choose larger devices, a smaller model or batch, or check_memory = false"
                )
        measured = devices.flops == "measured" and setup.measure_flops is not None and self.fleet is not None
        self.flops_per_unit = setup.measure_flops() if measured and setup.measure_flops else setup.flops_per_unit

    def notes(self) -> list[str]:
        """Return what the user should know before the run."""
        small = int((~self.fits()).sum())
        if not small:
            return []
        return [f"{small} of {self.clients} clients have too little memory for the model and drop out whenever they are drawn"]

    def fits(self) -> NDArray[np.bool_]:
        """Return which clients can hold the model, [N]."""
        if self.fleet is None or not self.config.devices.check_memory:
            return np.ones(self.clients, bool)
        return self.fleet.fits(self.setup.memory_bytes)

    def too_small(self, client: int) -> str:
        """Return why a client cannot hold the model."""
        assert self.fleet is not None
        have = self.fleet.memory_bytes[client] / 1e9
        return f"out of memory, training needs {self.setup.memory_bytes / 1e9:.2g} GB and {self.device(client)} has {have:.2g} GB"

    def device(self, client: int) -> str:
        """Return the tier of a client's device."""
        return "cpu" if self.fleet is None else self.fleet.tiers[int(self.fleet.tier[client])].name

    def speed(self) -> Floats:
        """Return operations (or cycles) per second, [N]."""
        return np.full(self.clients, self.config.devices.frequency_hz) if self.fleet is None else self.fleet.flops

    def compute_s(self, round_number: int, clients: Clients, work: Floats) -> Floats:
        """Return how long `work` [K] takes, jitter included: operations, or examples where cycles are counted."""
        devices = self.config.devices
        uniforms = stream(self.setup.seed, "jitter", round_number).random(self.clients)
        law = devices.jitter_law if devices.jitter else "none"
        jitter = jitter_factors(law, devices.jitter, uniforms)[clients]
        if self.fleet is not None:
            return self.fleet.compute_s(work, clients, jitter)
        assert self._cycles is not None
        return cycles_compute_s(self._cycles[clients], work, devices.frequency_hz) * jitter

    def leave_s(self, round_number: int) -> Floats:
        """Return after how long each client drops out of a round, [N]; inf: not at all."""
        uniforms = stream(self.setup.seed, "dropout", round_number).random(self.clients)
        return drop_times(self.config.availability.dropouts_per_s, uniforms)

    def powers(self, clients: Clients, work: Floats, compute_s: Floats) -> Powers:
        """Return what these clients draw in each phase, [K]."""
        devices, energy = self.config.devices, self.config.energy
        radiated_w = 10 ** (self.config.uplink.power_dbm / 10 - 3)
        radio = Radio(radiated_w, energy.pa_efficiency, energy.circuit_tx_w, energy.circuit_rx_w)
        if self.fleet is not None:
            compute_w = board_compute_j(self.fleet.power_w[clients], np.ones(len(clients)))
        else:
            assert self._cycles is not None
            joules = cycles_compute_j(devices.kappa, self._cycles[clients], work, devices.frequency_hz)
            compute_w = np.divide(joules, compute_s, out=np.zeros(len(clients)), where=compute_s > 0)
        return Powers(radio.circuit_rx_w, compute_w, radiated_w / radio.pa_efficiency, radio.circuit_tx_w)
