"""The clients' devices in a world: how fast they compute, what they spend, what they can hold, and when they give up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora.federation.world import WorldSetup
from fedlora.streams import stream
from fedlora_envs.availability import drop_times
from fedlora_envs.config import WorldConfig
from fedlora_envs.devices import Fleet, cycles_compute_s, jitter_factors
from fedlora_envs.energy import Radio, cycles_compute_j

Floats = NDArray[np.float64]
Clients = NDArray[np.int64]


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
        energy, radiated_w = config.energy, 10 ** (config.uplink.power_dbm / 10 - 3)
        self.radio = Radio(radiated_w, energy.pa_efficiency, energy.circuit_tx_w, energy.circuit_rx_w)
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

    def expected_s(self, clients: Clients) -> Floats | None:
        """Return how long these clients' training takes without jitter, [K]; None where nobody said how much there is."""
        told = self.setup.units if self._cycles is None else self.setup.examples
        if not told or (self.fleet is not None and not self.flops_per_unit):
            return None
        work = np.array([told[client] for client in clients.tolist()], np.float64)
        if self.fleet is not None:
            return self.fleet.compute_s(work * self.flops_per_unit, clients)
        assert self._cycles is not None
        return cycles_compute_s(self._cycles[clients], work, self.config.devices.frequency_hz)

    def leave_s(self, round_number: int) -> Floats:
        """Return after how long each client drops out of a round, [N]; inf: not at all."""
        uniforms = stream(self.setup.seed, "dropout", round_number).random(self.clients)
        return drop_times(self.config.availability.dropouts_per_s, uniforms)

    def compute_w(self, clients: Clients, work: Floats, compute_s: Floats) -> Floats:
        """Return what these clients draw while they compute, [K]: the board's power, or kappa f^2 a cycle."""
        if self.fleet is not None:
            return np.asarray(self.fleet.power_w[clients], np.float64)
        assert self._cycles is not None
        devices = self.config.devices
        joules = cycles_compute_j(devices.kappa, self._cycles[clients], work, devices.frequency_hz)
        return np.divide(joules, compute_s, out=np.zeros(len(clients)), where=compute_s > 0)
