"""From power to SNR and from SNR to rate: noise, margins, resource blocks, uplink power and interference.

Constants with sources: `data/budget.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora_envs.constants import constants

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SUBCARRIERS = 12
SYMBOLS_PER_SLOT = 14
_CHUNK = 1 << 13


def noise_dbm(bandwidth_hz: Floats | float, noise_figure_db: float) -> Floats:
    """Return the receiver's noise power in dBm over `bandwidth_hz`, one or [n].

    Raises:
        ConfigError: A bandwidth that is not positive.
    """
    bandwidth = np.asarray(bandwidth_hz, dtype=np.float64)
    if not np.all(bandwidth > 0):
        raise ConfigError(f"a bandwidth of {bandwidth.min():g} Hz: it must be positive")
    thermal = float(constants("budget")["thermal_noise"]["dbm_per_hz"])
    return np.asarray(thermal + 10 * np.log10(bandwidth) + noise_figure_db)


def snr_db(
    tx_dbm: Floats | float, gains_db: Floats | float, loss_db: Floats, noise_dbm: Floats | float, margin_db: float
) -> Floats:
    """Return the mean SNR [n] in dB of links.

    Args:
        tx_dbm: Transmit power over the same bandwidth as the noise.
        gains_db: Sum of the antenna gains.
        loss_db: Path loss, shadowing and penetration together [n].
        noise_dbm: Noise power, see the function of that name.
        margin_db: Interference over noise (`data/budget.yaml`, interference_margin_db); 0 if interference is in `noise_dbm`.
    """
    return np.asarray(tx_dbm + gains_db - loss_db - noise_dbm - margin_db)


def add_dbm(first_dbm: Floats | float, second_dbm: Floats | float) -> Floats:
    """Return the sum in dBm of two powers in dBm, for example noise and interference."""
    return np.asarray(10 * np.logaddexp(np.log(10) / 10 * first_dbm, np.log(10) / 10 * second_dbm) / np.log(10))


def sinr_cap(snr: Floats, evm: float) -> Floats:
    """Return the linear SNR left after transmitter impairments of error vector magnitude `evm`: 1/snr' = 1/snr + evm^2."""
    return np.asarray(snr / (1 + snr * evm**2))


def prb_count(bandwidth_hz: float, scs_khz: int) -> int:
    """Return how many resource blocks fit a channel (TS 38.101 Tables 5.3.2-1).

    Between two bandwidths of the table the lower one's count holds: a 22 MHz channel carries a 20 MHz carrier.

    Raises:
        ConfigError: A subcarrier spacing without a table, or a bandwidth outside it.
    """
    tables: dict[int, dict[int, int]] = constants("budget")["prb"]["tables"]
    if scs_khz not in tables:
        raise ConfigError(f"no resource blocks of {scs_khz} kHz subcarriers are defined; choose one of {sorted(tables)}")
    table = tables[scs_khz]
    mhz = bandwidth_hz / 1e6
    if not min(table) <= mhz <= max(table):
        raise ConfigError(
            f"a channel of {mhz:g} MHz with {scs_khz} kHz subcarriers: NR has {min(table)} to {max(table)} MHz; "
            "choose such a bandwidth or another subcarrier spacing"
        )
    return table[max(size for size in table if size <= mhz)]


def prb_hz(scs_khz: int) -> float:
    """Return the bandwidth of one resource block."""
    return SUBCARRIERS * scs_khz * 1e3


def nr_rate_bps(
    se: Floats | float, prb: Ints | int, scs_khz: int, overhead: float, layers: int = 1, tdd_share: float = 1.0
) -> Floats:
    """Return the rate in bit/s of `prb` resource blocks at spectral efficiency `se` (TS 38.306 4.1.2).

    273 blocks of 30 kHz, 256QAM at 948/1024, 4 layers and 14 % overhead give the standard's 2337.0 Mb/s.

    Args:
        se: Bits per resource element, one or [n].
        prb: Resource blocks, one or [n].
        scs_khz: Subcarrier spacing: 15 times a power of two.
        overhead: Share of resource elements that carry no data.
        layers: Spatial layers.
        tdd_share: Share of time that this direction has.
    """
    slots_per_s = 1000 * scs_khz / 15
    elements = SUBCARRIERS * np.asarray(prb) * SYMBOLS_PER_SLOT * slots_per_s
    return np.asarray(se * elements * (1 - overhead) * tdd_share * layers)


def uplink_power_dbm(path_loss_db: Floats, prb: Ints | int, scs_khz: int, max_dbm: float, p0_dbm: float, alpha: float) -> Floats:
    """Return the power [n] in dBm under open-loop control: min(Pmax, P0 + 10 log10(2^mu M) + alpha PL) (TS 38.213 7.1.1).

    Args:
        path_loss_db: Path loss, shadowing and penetration together [n].
        prb: Resource blocks M of each client, one or [n].
        scs_khz: Subcarrier spacing, 15 * 2^mu.
        max_dbm: Highest power of the terminal.
        p0_dbm: Power wanted at the receiver, per block of 15 kHz subcarriers.
        alpha: Share of the path loss that is made up for.
    """
    blocks_db = 10 * np.log10(np.asarray(prb) * scs_khz / 15)
    return np.asarray(np.minimum(max_dbm, p0_dbm + blocks_db + alpha * path_loss_db))


def choose_prb(snr_one_prb: Floats, allowed_prb: Ints | int, efficiency: Callable[[Floats], Floats]) -> tuple[Ints, Floats]:
    """Return for every link the resource-block count that carries most at full power, and the SNR it then has.

    A client's power is fixed: over p blocks its SNR is snr_one_prb / p, so p * efficiency(snr_one_prb / p) has a best p. The
    search is exact for every non-decreasing efficiency: p runs over a geometric grid, and inside a gap of the grid only where
    the gap's bound, its last p times the efficiency at its start, could beat the best so far. Ties go to the smallest count.

    Args:
        snr_one_prb: Linear SNR [n] with the whole power on one block.
        allowed_prb: Most blocks a link may have, one or [n], at least 1.
        efficiency: Maps linear SNRs of any shape to bit/s/Hz, non-decreasing.

    Returns:
        Counts [n] and linear SNRs [n].

    Raises:
        ConfigError: A link is allowed no block.
    """
    one = np.asarray(snr_one_prb, dtype=np.float64)
    allowed = np.broadcast_to(np.asarray(allowed_prb, dtype=np.int64), one.shape)
    if one.size and allowed.min() < 1:
        raise ConfigError("a link is allowed no resource block: there are more links than blocks to share")
    prb = np.empty(one.shape, dtype=np.int64)
    for start in range(0, one.size, _CHUNK):  # bounds the memory of the [grid, n] arrays
        part = slice(start, start + _CHUNK)
        prb[part] = _best_prb(one[part], allowed[part], efficiency)
    return prb, one / prb


def _best_prb(one: Floats, allowed: Ints, efficiency: Callable[[Floats], Floats]) -> Ints:
    grid = _geometric(int(allowed.max()))
    counts = np.minimum(np.array(grid, dtype=np.int64)[:, None], allowed)
    reached = efficiency(one / counts)
    rates = counts * reached
    first = rates.argmax(axis=0)
    links = np.arange(one.size)
    best: Ints = counts[first, links]
    best_rate: Floats = rates[first, links]
    for index, (low, high) in enumerate(pairwise(grid)):
        last = np.minimum(high - 1, allowed)
        bound = last * reached[index]
        live = np.flatnonzero((last > low) & ((bound > best_rate) | ((bound == best_rate) & (low < best))))
        if not live.size:
            continue
        inner = np.arange(low + 1, high)[:, None]
        rate = np.where(inner <= allowed[live], inner * efficiency(one[live] / inner), -1.0)
        row = rate.argmax(axis=0)
        found, count = rate[row, np.arange(live.size)], low + 1 + row
        better = (found > best_rate[live]) | ((found == best_rate[live]) & (count < best[live]))
        best[live[better]], best_rate[live[better]] = count[better], found[better]
    return best


def _geometric(most: int) -> list[int]:
    """Return 1, 2, 3, ... in steps that grow by a quarter, up to `most` inclusive."""
    grid = [1]
    while grid[-1] < most:
        grid.append(min(max(grid[-1] + 1, grid[-1] * 5 // 4), most))
    return grid


def neighbour_sites(isd_m: float) -> Floats:
    """Return `xy` [6, 2] in metres of the sites around one at the origin, in a hexagonal plan of distance `isd_m`."""
    angle = np.arange(6) * np.pi / 3
    return isd_m * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def hexagon_interference_dbm(
    xy: Floats, isd_m: float, tx_dbm: float, activity: float, loss_db: Callable[[Floats], Floats]
) -> Floats:
    """Return the downlink interference [n] in dBm of the six neighbour sites: the sum of activity * power * gain.

    Args:
        xy: Positions [n, 2] in metres, the serving site at the origin.
        isd_m: Distance between sites.
        tx_dbm: Power of a site over the receiver's bandwidth, antenna gains included.
        activity: Share of time that a neighbour transmits, from 0 (no interference, -inf dBm) to 1.
        loss_db: Maps horizontal distances [6, n] to losses [6, n] in dB; adds shadowing if that is wanted.

    Raises:
        ConfigError: `activity` is not between 0 and 1.
    """
    if not 0 <= activity <= 1:
        raise ConfigError(f"an interference activity of {activity}: it is a share of time, from 0 to 1")
    sites = neighbour_sites(isd_m)
    d2 = np.hypot(xy[None, :, 0] - sites[:, None, 0], xy[None, :, 1] - sites[:, None, 1])
    received_mw = activity * np.sum(10 ** ((tx_dbm - loss_db(d2)) / 10), axis=0)
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(received_mw))
