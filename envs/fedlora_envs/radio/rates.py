"""Rate models: from linear SNR to spectral efficiency, ideal or net of block errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import e, log2
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from fedlora.errors import ConfigError, UnknownNameError
from fedlora_envs.constants import constants
from fedlora_envs.radio.goodput import GoodputTable, LinkAdaptation, goodput_table

Floats = NDArray[np.floating[Any]]


class RateModel(Protocol):
    """What a link carries at a given SNR. Models are immutable and hashable: tables are made once per model."""

    def __hash__(self) -> int: ...

    def efficiency(self, snr: Floats) -> Floats:
        """Return bit/s/Hz, net of errors, at linear `snr` of any shape and either float type."""
        ...

    def retransmitted(self, snr: Floats) -> Floats:
        """Return the share of airtime that is HARQ retransmission, 0 to 1, same shape; 0 for capacity formulas."""
        ...

    def both(self, snr: Floats) -> tuple[Floats, Floats]:
        """Return (efficiency, retransmitted), in one lookup where the model has a table."""
        ...


class _ErrorFree(ABC):
    """What capacity formulas share: nothing is sent twice."""

    @abstractmethod
    def efficiency(self, snr: Floats) -> Floats:
        """Return bit/s/Hz."""

    def retransmitted(self, snr: Floats) -> Floats:
        """Return zeros."""
        return np.zeros_like(snr)

    def both(self, snr: Floats) -> tuple[Floats, Floats]:
        """Return (efficiency, zeros)."""
        return self.efficiency(snr), self.retransmitted(snr)


@dataclass(frozen=True)
class Shannon(_ErrorFree):
    """Capacity of the AWGN channel, log2(1 + snr)."""

    def efficiency(self, snr: Floats) -> Floats:
        """Return bit/s/Hz."""
        return _log2_1p(snr)


@dataclass(frozen=True)
class ShannonGap(_ErrorFree):
    """Capacity at an SNR lower by a gap: log2(1 + snr / Gamma).

    Args:
        gap_db: Gamma in dB.
    """

    gap_db: float = 2.0

    def efficiency(self, snr: Floats) -> Floats:
        """Return bit/s/Hz."""
        return _log2_1p(snr * 10 ** (-self.gap_db / 10))


@dataclass(frozen=True)
class TruncatedShannon(_ErrorFree):
    """Attenuated and truncated capacity of TR 36.942, Annex A: alpha log2(1 + snr), 0 below a minimum, capped.

    Args:
        alpha: Share of capacity that is reached.
        min_snr_db: Below this nothing is sent.
        max_efficiency: Cap in bit/s/Hz.
    """

    alpha: float = 0.6
    min_snr_db: float = -10.0
    max_efficiency: float = 4.4

    def efficiency(self, snr: Floats) -> Floats:
        """Return bit/s/Hz."""
        capped = np.minimum(self.alpha * _log2_1p(snr), self.max_efficiency)
        result: Floats = np.where(snr >= 10 ** (self.min_snr_db / 10), capped, np.zeros_like(capped))
        return result


@dataclass(frozen=True)
class FiniteBlocklength:
    """Normal approximation to the best rate of short blocks; only matters for payloads below some 10 kbit.

    A block of `block_length` symbols carries R(n, eps) bit per symbol and fails with probability `error`; failed blocks are sent
    again, so the net efficiency is (1 - eps) R and eps of the airtime is retransmission.

    Args:
        block_length: n, complex channel uses.
        error: eps, block error probability.
    """

    block_length: int = 500
    error: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse blocks that do not exist."""
        if self.block_length < 1 or not 0 < self.error < 1:
            raise ConfigError(
                f"rate model finite_blocklength: {self.block_length} symbols at error {self.error} is no code; "
                "give at least 1 symbol and an error between 0 and 1"
            )

    def efficiency(self, snr: Floats) -> Floats:
        """Return bit/s/Hz, net of errors."""
        return (1 - self.error) * normal_approximation(snr, self.block_length, self.error)

    def retransmitted(self, snr: Floats) -> Floats:
        """Return eps wherever anything is sent."""
        sent = normal_approximation(snr, self.block_length, self.error) > 0
        return sent.astype(np.asarray(snr).dtype) * self.error

    def both(self, snr: Floats) -> tuple[Floats, Floats]:
        """Return (efficiency, retransmitted)."""
        return self.efficiency(snr), self.retransmitted(snr)


@dataclass(frozen=True)
class Cqi:
    """NR link adaptation with block errors and HARQ, from one lookup table (see `fedlora_envs.radio.goodput`).

    Args:
        adaptation: CQI table, implementation margin, choice rule and HARQ.
    """

    adaptation: LinkAdaptation = field(default_factory=LinkAdaptation)

    @property
    def table(self) -> GoodputTable:
        """The lookup table, made at first use."""
        return goodput_table(self.adaptation)

    def efficiency(self, snr: Floats) -> Floats:
        """Return bit/s/Hz, net of errors, in the type of `snr`."""
        return self.both(snr)[0]

    def retransmitted(self, snr: Floats) -> Floats:
        """Return the share of airtime that is retransmission."""
        return self.both(snr)[1]

    def both(self, snr: Floats) -> tuple[Floats, Floats]:
        """Return (efficiency, retransmitted) from one lookup."""
        values = np.asarray(snr)
        found = self.table.lookup(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
        columns = found.reshape(*values.shape, 2).astype(values.dtype, copy=False)
        return columns[..., 0], columns[..., 1]


NAMES = ("shannon", "shannon_gap", "truncated_shannon", "finite_blocklength", "cqi")


def make_rate_model(
    name: str,
    *,
    margin_db: float | None = None,
    table: str = "64qam",
    rule: str = "target",
    harq: str = "type1",
    max_transmissions: int | None = None,
    direction: str = "dl",
    block_length: int = 500,
    error: float = 1e-3,
) -> RateModel:
    """Return the rate model `name`.

    Args:
        name: One of `NAMES`.
        margin_db: Implementation margin of `cqi`, gap of `shannon_gap`; others ignore it. None takes the data file's (2 dB each).
        table: CQI table of `cqi`, "64qam" or "256qam".
        rule: CQI choice of `cqi`: "target" (10 % block errors) or "goodput".
        harq: "type1" or "chase", of `cqi`.
        max_transmissions: HARQ attempts of `cqi`; None takes the data file's (4).
        direction: "dl" or "ul": which constants `truncated_shannon` takes.
        block_length: Symbols per block of `finite_blocklength`.
        error: Block error probability of `finite_blocklength`.

    Raises:
        ConfigError: Unknown name, or a parameter that cannot work.
    """
    if name not in NAMES:
        raise UnknownNameError("rate model", name, NAMES)
    if margin_db is not None and not np.isfinite(margin_db):
        raise ConfigError(f"rate model {name}: margin_db is {margin_db}; give a finite number of dB")
    if name == "shannon":
        return Shannon()
    if name == "shannon_gap":
        return ShannonGap(constants("rate_models")["shannon_gap"]["gap_db"] if margin_db is None else margin_db)
    if name == "truncated_shannon":
        if direction not in ("dl", "ul"):
            raise UnknownNameError("link direction", direction, ("dl", "ul"))
        entry = constants("rate_models")[f"truncated_shannon_{direction}"]
        return TruncatedShannon(entry["alpha"], entry["min_snr_db"], entry["max_efficiency"])
    if name == "finite_blocklength":
        return FiniteBlocklength(block_length, error)
    data = constants("cqi_tables")
    margin = data["implementation_margin"]["db"] if margin_db is None else margin_db
    attempts = data["harq"]["max_transmissions"] if max_transmissions is None else max_transmissions
    return Cqi(LinkAdaptation(table, margin, rule, harq, attempts))


def shannon_bps(snr_db: Floats | float, bandwidth_hz: Floats | float) -> Floats:
    """Return the Shannon capacity in bit/s at `snr_db`, broadcast against `bandwidth_hz`."""
    result: Floats = np.asarray(bandwidth_hz) * _log2_1p(10 ** (np.asarray(snr_db, dtype=np.float64) / 10))
    return result


def normal_approximation(snr: Floats, block_length: int, error: float) -> Floats:
    """Return R(n, eps) in bit per complex symbol, never below 0 (Polyanskiy, Poor, Verdu 2010).

    R = C - sqrt(V / n) Qinv(eps) + log2(n) / (2 n) with C = log2(1 + snr) and V = (1 - (1 + snr)^-2) (log2 e)^2. Where the first
    two terms are not positive the approximation says nothing, and the rate is 0.
    """
    values = np.asarray(snr)
    dispersion = (1 - (1 + values) ** -2) * log2(e) ** 2
    rate = _log2_1p(values) + np.sqrt(dispersion / block_length) * float(ndtri(error))
    result: Floats = np.where(rate > 0, rate + log2(block_length) / (2 * block_length), np.zeros_like(rate))
    return result


def _log2_1p(snr: Floats) -> Floats:
    result: Floats = np.log1p(snr) * np.asarray(1 / np.log(2), dtype=np.asarray(snr).dtype)
    return result
