"""Energy that clients spend: the radio's circuits and power amplifier, computing, and the battery behind both.

E = P_circuit T + P_tx T_tx / eta_PA + E_cmp, with E_cmp = kappa C D E f^2 (CPU model) or board power times compute time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlora.errors import ConfigError
from fedlora_envs.constants import constants

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Radio:
    """Power figures of a client's radio.

    Args:
        tx_w: Radiated power, one number or [K] (23 dBm is 0.2 W).
        pa_efficiency: Radiated power over what the power amplifier draws, in (0, 1].
        circuit_tx_w: Everything but the amplifier, while sending.
        circuit_rx_w: Everything while receiving.

    Raises:
        ConfigError: An efficiency outside (0, 1] or a negative power.
    """

    tx_w: ArrayLike
    pa_efficiency: float = field(default_factory=lambda: float(constants("fl_papers")["pa_efficiency"]["value"]))
    circuit_tx_w: float = field(default_factory=lambda: float(constants("fl_papers")["circuit_power_w"]["tx"]))
    circuit_rx_w: float = field(default_factory=lambda: float(constants("fl_papers")["circuit_power_w"]["rx"]))

    def __post_init__(self) -> None:
        if not 0 < self.pa_efficiency <= 1:
            raise ConfigError(f"pa_efficiency must be in (0, 1], got {self.pa_efficiency:g}")
        for name in ("tx_w", "circuit_tx_w", "circuit_rx_w"):
            power = np.asarray(getattr(self, name), dtype=np.float64)
            if not (np.isfinite(power) & (power >= 0)).all():
                raise ConfigError(f"{name} must be a finite power >= 0 W, got {np.min(power):g}")


@dataclass(frozen=True)
class Energy:
    """Joules of K clients in one round, by phase, each [K]."""

    downlink_j: Floats
    compute_j: Floats
    uplink_j: Floats

    @property
    def total_j(self) -> Floats:
        """Joules of each client, [K]."""
        return self.downlink_j + self.compute_j + self.uplink_j


def round_energy(
    radio: Radio, downlink_s: Floats, compute_j: Floats, uplink_s: Floats, transmit_s: Floats | None = None
) -> Energy:
    """Return the energy of one round.

    Args:
        radio: The clients' radio.
        downlink_s: Seconds spent receiving, [K].
        compute_j: Joules of computing, [K] (see `board_compute_j` and `cycles_compute_j`).
        uplink_s: Seconds from the first to the last bit sent, [K].
        transmit_s: Seconds of it in which the amplifier is on, [K]; None: all of them. Less under time division.
    """
    amplifier_w = np.asarray(radio.tx_w, dtype=np.float64) / radio.pa_efficiency
    sending_s = uplink_s if transmit_s is None else transmit_s
    return Energy(radio.circuit_rx_w * downlink_s, compute_j, radio.circuit_tx_w * uplink_s + amplifier_w * sending_s)


def board_compute_j(power_w: ArrayLike, compute_s: ArrayLike) -> Floats:
    """Return the joules of a board that draws `power_w` for `compute_s` seconds; the arguments broadcast."""
    joules: Floats = np.asarray(power_w, dtype=np.float64) * np.asarray(compute_s, dtype=np.float64)
    return joules


def cycles_compute_j(
    kappa: ArrayLike, cycles_per_sample: ArrayLike, samples: ArrayLike, frequency_hz: ArrayLike, epochs: ArrayLike = 1
) -> Floats:
    """Return the joules kappa C D E f^2 of the CPU model of Yang et al. (IEEE TWC 2021); the arguments broadcast.

    Args:
        kappa: Effective switched capacitance of the chip (1e-28 there: 0.8 W at 2 GHz).
        cycles_per_sample: CPU cycles C that one sample takes.
        samples: Samples D.
        frequency_hz: Clock f.
        epochs: Local passes E over the samples.
    """
    cycles = np.asarray(cycles_per_sample, dtype=np.float64) * np.asarray(samples, dtype=np.float64)
    per_cycle_j = np.asarray(kappa, dtype=np.float64) * np.square(np.asarray(frequency_hz, dtype=np.float64))
    joules: Floats = per_cycle_j * cycles * np.asarray(epochs, dtype=np.float64)
    return joules


class Battery:
    """The batteries of N clients.

    Args:
        capacity_j: Joules of a full battery, [N], above 0; inf: on the mains.
        left_j: Joules at the start, [N]; None: full.
        recharge_w: Power that flows in at all times, one number or [N].

    Raises:
        ConfigError: A capacity that is not above 0, or joules left outside 0 to the capacity.
    """

    def __init__(self, capacity_j: ArrayLike, left_j: ArrayLike | None = None, recharge_w: ArrayLike = 0.0) -> None:
        self.capacity_j: Floats = np.atleast_1d(np.asarray(capacity_j, dtype=np.float64))
        if not (self.capacity_j > 0).all():
            raise ConfigError(f"a battery's capacity must be above 0 J, got {self.capacity_j.min():g}")
        left = self.capacity_j if left_j is None else np.asarray(left_j, dtype=np.float64)
        self.left_j: Floats = np.broadcast_to(left, self.capacity_j.shape).copy()
        if not ((self.left_j >= 0) & (self.left_j <= self.capacity_j)).all():
            raise ConfigError("left_j must lie between 0 and the battery's capacity")
        self.recharge_w: Floats = np.asarray(recharge_w, dtype=np.float64)
        if not (np.isfinite(self.recharge_w) & (self.recharge_w >= 0)).all():
            raise ConfigError("recharge_w must be finite powers >= 0 W")

    @property
    def empty(self) -> NDArray[np.bool_]:
        """Which batteries are empty, [N]."""
        return self.left_j <= 0

    def spend(self, joules: ArrayLike, clients: NDArray[np.integer]) -> Floats:
        """Take `joules` [K] from the batteries of the distinct `clients` [K]; return what each really gave, [K]."""
        before = self.left_j[clients]
        given: Floats = np.minimum(np.asarray(joules, dtype=np.float64), before)
        self.left_j[clients] = before - given
        return given

    def recharge(self, seconds: float) -> None:
        """Let `seconds` go by in which the batteries charge."""
        self.left_j = np.minimum(self.capacity_j, self.left_j + self.recharge_w * seconds)
