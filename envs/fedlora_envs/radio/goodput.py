"""From SNR to goodput: CQI choice, block errors, HARQ, and one lookup table that replaces all three in the hot loop.

Block error curves are Gaussian Q-functions in dB, fitted to a Monte Carlo with an NR LDPC code (data/cqi_tables.yaml). CQI 0
means out of range: nothing is sent. Efficiencies are net of block errors, in bit/s/Hz.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc, ndtr

from fedlora.errors import ConfigError, UnknownNameError
from fedlora_envs.constants import constants

Floats = NDArray[np.floating[Any]]
Rule = Literal["target", "goodput"]
Harq = Literal["type1", "chase"]

TABLES = ("64qam", "256qam")
RULES = ("target", "goodput")
HARQ = ("type1", "chase")

# The lookup table has 64 cells in each of 26 octaves of SNR, from 2^-8 (-24 dB) to 2^18 (54 dB): a cell is 0.03 to 0.07 dB wide.
OCTAVES = 26
CELLS = 64 * OCTAVES
_FIRST_OCTAVE = -8
# A float32's exponent and its first six mantissa bits number the cells; that is a logarithm without computing one.
_SHIFT = 17
_FIRST_CELL = np.int32((127 + _FIRST_OCTAVE) * 64)
_CHUNK = 16384  # links whose scratch arrays stay in the cache


@dataclass(frozen=True, eq=False)
class CqiTable:
    """A CQI table with its codes' error curves; every array is float64 [15], for CQI 1 to 15.

    Attributes:
        efficiency: bit/s/Hz without errors.
        mu_db: SNR at 50 % block errors.
        sigma_db: Width of the curve.
        threshold_db: SNR at 10 % block errors, as published with the curve.
        beta: EESM parameter (see `eesm`).
    """

    name: str
    efficiency: NDArray[np.float64]
    mu_db: NDArray[np.float64]
    sigma_db: NDArray[np.float64]
    threshold_db: NDArray[np.float64]
    beta: NDArray[np.float64]


@cache
def cqi_table(name: str) -> CqiTable:
    """Return the CQI table "64qam" (TS 38.214 Table 5.2.2.1-2) or "256qam" (Table 5.2.2.1-3)."""
    if name not in TABLES:
        raise UnknownNameError("CQI table", name, TABLES)
    data, betas = constants("cqi_tables"), constants("eesm")
    codes = data["thresholds"]["codes"] | data["thresholds_repetition"]["codes"]
    rows = data[f"table_{name}"]["rows"]
    curves = np.array([codes[f"{modulation} {rate}"] for modulation, rate, _ in rows], dtype=np.float64)
    mcs = betas[f"cqi_{name}"]
    beta = np.array(betas[f"mcs_table_{mcs['mcs_table']}"]["beta"])[mcs["mcs"]]
    return CqiTable(name, np.array([row[2] for row in rows]), curves[:, 0], curves[:, 1], curves[:, 2], beta)


def bler(snr_db: Floats, table: CqiTable) -> NDArray[np.float64]:
    """Return the block error rate of CQI 1 to 15 at `snr_db` [...]: float64 [..., 15]."""
    result: NDArray[np.float64] = ndtr((table.mu_db - np.asarray(snr_db)[..., None]) / table.sigma_db)
    return result


class Arq(NamedTuple):
    """What a block costs: expected transmissions, and the probability that it is still wrong after the last one."""

    transmissions: NDArray[np.float64]
    residual: NDArray[np.float64]


def arq_expected(error: Floats, max_transmissions: int) -> Arq:
    """Return the cost of HARQ type I: independent errors of probability `error` [...], at most `max_transmissions` attempts.

    E[transmissions] = (1 - p^K) / (1 - p); residual p^K.
    """
    _check_attempts(max_transmissions)
    p = np.asarray(error, dtype=np.float64)
    # The sum 1 + p + ... + p^(K-1) also holds at p = 1, where the closed form divides by zero.
    transmissions: NDArray[np.float64] = np.asarray(np.polynomial.polynomial.polyval(p, np.ones(max_transmissions)), np.float64)
    return Arq(transmissions, p**max_transmissions)


def chase_failure(attempts: int | NDArray[np.integer[Any]], threshold: Floats | float, mean_snr: Floats | float) -> Floats:
    """Return P(block still wrong after `attempts`) under chase combining with independent Rayleigh fades, all broadcast.

    SNRs add up, and a block is right once their sum reaches `threshold` (linear): the regularised lower incomplete gamma
    function at (attempts, threshold / mean_snr).
    """
    result: Floats = np.asarray(gammainc(attempts, np.asarray(threshold) / np.asarray(mean_snr)))
    return result


def harq_expected(snr_db: Floats, table: CqiTable, harq: str = "type1", max_transmissions: int = 4) -> Arq:
    """Return the cost of a block of CQI 1 to 15 at a constant `snr_db` [...]; both arrays are [..., 15].

    "type1" decodes each attempt alone. "chase" adds up the attempts: after k of them the error rate is that of k times the SNR.
    """
    if harq not in HARQ:
        raise UnknownNameError("HARQ kind", harq, HARQ)
    if harq == "type1":
        return arq_expected(bler(snr_db, table), max_transmissions)
    _check_attempts(max_transmissions)
    failures = [bler(np.asarray(snr_db) + 10 * np.log10(k), table) for k in range(1, max_transmissions + 1)]
    transmissions: NDArray[np.float64] = 1 + np.sum(failures[:-1], axis=0)
    return Arq(np.broadcast_to(transmissions, failures[-1].shape), failures[-1])


def choose_cqi(
    snr_db: Floats, table: CqiTable, rule: str = "target", target: float = 0.1, harq: str = "type1", max_transmissions: int = 4
) -> NDArray[np.intp]:
    """Return the CQI, 0 to 15, that a receiver which knows `snr_db` [...] reports.

    Args:
        snr_db: SNR in dB, the implementation margin already taken off.
        table: CQI table.
        rule: "target", as in TS 38.214: the highest CQI whose block error rate is at most `target`, 0 where CQI 1 misses it.
            "goodput": the CQI of the highest goodput, never 0.
        target: Block error rate, 0.1 in the standard.
        harq: Used by "goodput" (see `harq_expected`).
        max_transmissions: Used by "goodput".
    """
    if rule not in RULES:
        raise UnknownNameError("CQI rule", rule, RULES)
    if not 0 < target < 1:
        raise ConfigError(f"CQI rule: a block error target of {target} cannot be met or never is; give a value between 0 and 1")
    if rule == "goodput":
        cost = harq_expected(snr_db, table, harq, max_transmissions)
        best: NDArray[np.intp] = np.argmax(table.efficiency * (1 - cost.residual) / cost.transmissions, axis=-1) + 1
        return best
    # Thresholds rise with the CQI, so counting those that are met finds the highest one.
    met: NDArray[np.intp] = np.sum(bler(snr_db, table) <= target, axis=-1, dtype=np.intp)
    return met


def goodput(
    snr_db: Floats, cqi: NDArray[np.intp], table: CqiTable, harq: str = "type1", max_transmissions: int = 4
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (bit/s/Hz net of errors, share of airtime that is retransmission) when `cqi` [...] is sent at `snr_db` [...]."""
    cost = harq_expected(snr_db, table, harq, max_transmissions)
    sent = cqi > 0
    column = np.maximum(cqi - 1, 0)[..., None]
    transmissions = np.take_along_axis(cost.transmissions, column, axis=-1)[..., 0]
    residual = np.take_along_axis(cost.residual, column, axis=-1)[..., 0]
    efficiency = table.efficiency[column[..., 0]] * (1 - residual) / transmissions
    return np.where(sent, efficiency, 0.0), np.where(sent, 1 - 1 / transmissions, 0.0)


@dataclass(frozen=True)
class LinkAdaptation:
    """Everything that a goodput table depends on; hashable, so that tables are made once.

    Attributes:
        table: CQI table, "64qam" or "256qam".
        margin_db: Implementation margin: a receiver behaves as AWGN theory does at an SNR lower by this.
        rule: How the CQI is chosen (see `choose_cqi`).
        harq: "type1" or "chase" (see `harq_expected`).
        max_transmissions: Attempts per block, at least 1; what is then still wrong is sent anew by the layer above.
    """

    table: str = "64qam"
    margin_db: float = 2.0
    rule: str = "target"
    harq: str = "type1"
    max_transmissions: int = 4

    def __post_init__(self) -> None:
        """Refuse what no table can be made of."""
        cqi_table(self.table)
        if not np.isfinite(self.margin_db):
            raise ConfigError(f"rate model: margin_db is {self.margin_db}; give a finite number of dB (2 is usual, 0 is theory)")
        for kind, name, valid in (("CQI rule", self.rule, RULES), ("HARQ kind", self.harq, HARQ)):
            if name not in valid:
                raise UnknownNameError(kind, name, valid)
        _check_attempts(self.max_transmissions)


class GoodputTable:
    """Goodput and retransmission share by linear SNR in one lookup: no logarithm, no search, no branch per link.

    A cell holds the mean over its width; SNRs outside the table (0 too) take the first or last cell.

    Args:
        adaptation: What link adaptation does with perfect knowledge of the SNR.
    """

    def __init__(self, adaptation: LinkAdaptation) -> None:
        found = cqi_table(adaptation.table)
        snr_db = _cell_points_db() - adaptation.margin_db
        harq = (adaptation.harq, adaptation.max_transmissions)
        cqi = choose_cqi(snr_db, found, adaptation.rule, harq=harq[0], max_transmissions=harq[1])
        columns = goodput(snr_db, cqi, found, *harq)
        self.values = np.stack([column.mean(axis=-1) for column in columns], axis=-1).astype(np.float32)

    def lookup(self, snr: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return float32 [N, 2], goodput in bit/s/Hz and retransmission share, at linear `snr`, float32 [N] and contiguous.

        Args:
            snr: SNR, finite and not negative (not checked here).
            out: Where to write the result; made when None.
        """
        result = np.empty((snr.size, 2), np.float32) if out is None else out
        for start in range(0, snr.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            # mode="clip" both guards the ends of the table and spares numpy a buffered copy.
            np.take(self.values, _cells(snr[part]), axis=0, out=result[part], mode="clip")
        return result


class DelayedGoodputTable:
    """Goodput when the CQI was chosen from an estimate (old, noisy or offset) and the block meets another SNR.

    Args:
        adaptation: What link adaptation does.
    """

    def __init__(self, adaptation: LinkAdaptation) -> None:
        found = cqi_table(adaptation.table)
        harq = (adaptation.harq, adaptation.max_transmissions)
        points = _cell_points_db() - adaptation.margin_db
        middle = points[:, points.shape[1] // 2]
        self.cqi = choose_cqi(middle, found, adaptation.rule, harq=harq[0], max_transmissions=harq[1])
        rows = []
        for cqi in range(16):
            columns = goodput(points, np.full(points.shape, cqi, np.intp), found, *harq)
            rows.append(np.stack([column.mean(axis=-1) for column in columns], axis=-1))
        self.values = np.stack(rows).astype(np.float32)
        self.errors = np.concatenate(
            [np.zeros((1, CELLS), np.float32), bler(points, found).mean(axis=1).T.astype(np.float32)], axis=0
        )

    def choose(self, estimated_snr: NDArray[np.float32]) -> NDArray[np.intp]:
        """Return the CQI, intp [N], for the linear SNR that the sender believes in, float32 [N]."""
        return np.take(self.cqi, _cells(np.ascontiguousarray(estimated_snr)), mode="clip")

    def lookup(self, estimated_snr: NDArray[np.float32], snr: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return float32 [N, 2], goodput in bit/s/Hz and retransmission share: CQI by the estimate, errors by `snr`."""
        flat = self.choose(estimated_snr) * CELLS + self._clipped(snr)
        return np.take(self.values.reshape(-1, 2), flat, axis=0)

    def error(self, cqi: NDArray[np.intp], snr: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the block error rate, float32 [N], of one attempt with `cqi` at the actual linear `snr`; 0 for CQI 0."""
        return np.take(self.errors.reshape(-1), cqi * CELLS + self._clipped(snr))

    @staticmethod
    def _clipped(snr: NDArray[np.float32]) -> NDArray[np.intp]:
        return np.clip(_cells(np.ascontiguousarray(snr)), 0, CELLS - 1)


@cache
def goodput_table(adaptation: LinkAdaptation) -> GoodputTable:
    """Return the table of `adaptation`, made once per process."""
    return GoodputTable(adaptation)


@cache
def delayed_goodput_table(adaptation: LinkAdaptation) -> DelayedGoodputTable:
    """Return the table of `adaptation` for estimated SNRs, made once per process."""
    return DelayedGoodputTable(adaptation)


class Olla:
    """Outer-loop link adaptation: an offset per link that is taken off the estimated SNR until errors meet the target.

    A block that fails raises the offset by `up_db`; one that succeeds lowers it by `up_db` * target / (1 - target).

    Args:
        n: Links.
        target: Block error rate to reach.
        up_db: Step after an error (the data file's default; 0.25 to 1 dB are usual).
        limit_db: The offset stays within this on either side.
    """

    def __init__(self, n: int, target: float | None = None, up_db: float | None = None, limit_db: float | None = None) -> None:
        default = constants("cqi_tables")["olla"]
        self.target = float(default["target"] if target is None else target)
        self.up_db = float(default["up_db"] if up_db is None else up_db)
        self.limit_db = float(default["limit_db"] if limit_db is None else limit_db)
        if not 0 < self.target < 1 or not self.up_db > 0 or not self.limit_db > 0:
            raise ConfigError(
                f"OLLA: target {self.target}, up_db {self.up_db}, limit_db {self.limit_db} cannot work; "
                "give a target between 0 and 1 and positive steps and limits"
            )
        self.offset_db = np.zeros(n)

    def update(self, failed: NDArray[np.bool_], sent: NDArray[np.bool_] | None = None) -> None:
        """Take the outcome of one block per link; links that did not send (`sent` False) keep their offset."""
        change = np.where(failed, self.up_db, -self.up_db * self.target / (1 - self.target))
        if sent is not None:
            change = np.where(sent, change, 0.0)
        np.clip(self.offset_db + change, -self.limit_db, self.limit_db, out=self.offset_db)

    def adjust(self, estimated_snr_db: Floats) -> Floats:
        """Return the estimate, in dB, less the offset."""
        return estimated_snr_db - self.offset_db


def eesm(snr: Floats, beta: Floats | float) -> NDArray[np.float64]:
    """Return the exponential effective SNR, -beta ln mean exp(-snr / beta), over the last axis of linear `snr` [..., F].

    Args:
        snr: SNR of each frequency group.
        beta: Calibration parameter of the code (`CqiTable.beta`), scalar or [...].
    """
    scale = np.asarray(beta, dtype=np.float64)[..., None]
    values = np.asarray(snr, dtype=np.float64)
    least = values.min(axis=-1, keepdims=True)  # taken out so that no exponential underflows
    result: NDArray[np.float64] = least[..., 0] - scale[..., 0] * np.log(np.mean(np.exp(-(values - least) / scale), axis=-1))
    return result


def frequency_groups(bandwidth_hz: float, coherence_hz: float) -> int:
    """Return how many independently fading groups a band has, max(1, round(B / Bc)); Bc is 1 / (5 rms delay spread)."""
    if not bandwidth_hz > 0 or not coherence_hz > 0:
        raise ConfigError(
            f"frequency groups: bandwidth {bandwidth_hz} Hz and coherence bandwidth {coherence_hz} Hz must both be positive"
        )
    return max(1, round(bandwidth_hz / coherence_hz))


def _check_attempts(max_transmissions: int) -> None:
    if max_transmissions < 1:
        raise ConfigError(f"HARQ: max_transmissions is {max_transmissions}; a block is sent at least once, so give 1 or more")


def _cells(snr: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the cell of each SNR, not yet clipped to the table; 0 lies before the first."""
    number = np.right_shift(snr.view(np.int32), _SHIFT)
    number -= _FIRST_CELL
    return number.astype(np.intp)


def _cell_points_db(points: int = 9) -> NDArray[np.float64]:
    """Return [CELLS, points]: SNRs in dB spread evenly over each cell."""
    cell = np.arange(CELLS)[:, None] + (np.arange(points) + 0.5) / points
    octave = np.floor(cell / 64)
    result: NDArray[np.float64] = 10 * np.log10(2.0 ** (octave + _FIRST_OCTAVE) * (1 + cell / 64 - octave))
    return result
