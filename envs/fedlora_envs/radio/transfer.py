"""How long a payload takes over a fading link, per link and for a broadcast.

| mode | fading during the transfer |
|---|---|
| `quasi_static` | one gain for all of it: outage and stragglers at their strongest |
| `slotted` | one gain per coherence block; bits add up until the payload is through |
| `ergodic` | the expected rate: the limit of `slotted` for long payloads |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError, UnknownNameError
from fedlora_envs.radio.ergodic import ergodic, ergodic_worst
from fedlora_envs.radio.fading import Fading
from fedlora_envs.radio.rates import RateModel

Floats = NDArray[np.floating[Any]]

MODES = ("quasi_static", "slotted", "ergodic")
MAX_BLOCKS = 4096
_BATCH, _BATCH_BLOCKS = 16384, 64  # SNRs and blocks looked up at once


@dataclass(frozen=True)
class Transfer:
    """Outcome of N transfers; float64 [N] each.

    Attributes:
        seconds: Time until the last bit is through; inf where the link carries nothing.
        retransmission_s: The part of it that went into HARQ retransmissions; 0 where `seconds` is inf.
        mean_bps: Payload bits over seconds; 0 where `seconds` is inf.
    """

    seconds: NDArray[np.float64]
    retransmission_s: NDArray[np.float64]
    mean_bps: NDArray[np.float64]


def transfer_s(
    bits: Floats | float,
    bandwidth_hz: Floats | float,
    mean_snr: Floats,
    rate: RateModel,
    fading: Fading | None = None,
    mode: str = "quasi_static",
    *,
    max_blocks: int = MAX_BLOCKS,
) -> Transfer:
    """Return the time of one transfer per link, all starting at the same instant.

    Args:
        bits: Payload, scalar or [N], positive.
        bandwidth_hz: Scalar or [N], positive.
        mean_snr: Mean SNR over the fading, linear, [N].
        rate: Rate model.
        fading: Process over the same N links, stepped once (`quasi_static`), once per block of `fading.step_s` seconds
            (`slotted`; finished links are dropped from it) or only asked for its Rician K (`ergodic`). None: no fading, and all
            modes agree.
        mode: One of `MODES`.
        max_blocks: `slotted` follows the fading so long; what is then left goes at the expected rate.

    Raises:
        ConfigError: A payload of zero bits, a bandwidth or SNR that cannot be, arrays of different lengths.
    """
    mean = _checked_snr(mean_snr, fading)
    load = _checked("bits", bits, mean.size, "an empty payload is not a transfer: leave the link out")
    width = _checked("bandwidth_hz", bandwidth_hz, mean.size, "give every link some bandwidth")
    _check_mode(mode, max_blocks)
    if fading is None or mode == "quasi_static":
        snr = mean if fading is None else mean * fading.step()
        efficiency, share = rate.both(snr)
        return _at_constant_rate(load, width, efficiency, share)
    k_factor = fading.k_factor

    def expected(links: NDArray[np.intp]) -> tuple[Floats, Floats]:
        return ergodic(rate, mean[links], k_factor[links])

    if mode == "ergodic":
        return _at_constant_rate(load, width, *expected(np.arange(mean.size)))
    return _slotted(load, width, mean, rate, fading, max_blocks, expected)


def broadcast_s(
    bits: float,
    bandwidth_hz: float,
    mean_snr: Floats,
    rate: RateModel,
    fading: Fading | None = None,
    mode: str = "quasi_static",
    *,
    max_blocks: int = MAX_BLOCKS,
) -> Transfer:
    """Return the time of one payload sent to all N links at once, at the rate of the weakest link in every block.

    Arguments and errors as in `transfer_s`, but `bits` and `bandwidth_hz` are scalars, and so are the results ([1] arrays).
    """
    mean = _checked_snr(mean_snr, fading)
    load = _checked("bits", bits, 1, "an empty payload is not a transfer: leave the broadcast out")
    width = _checked("bandwidth_hz", bandwidth_hz, 1, "give the broadcast some bandwidth")
    _check_mode(mode, max_blocks)
    if fading is None or mode == "quasi_static":
        snr = mean if fading is None else mean * fading.step()
        return _at_constant_rate(load, width, *rate.both(snr.min(keepdims=True)))
    k_factor = fading.k_factor

    def expected(_: NDArray[np.intp]) -> tuple[Floats, Floats]:
        efficiency, share = ergodic_worst(rate, mean, k_factor)
        return np.array([efficiency]), np.array([share])

    if mode == "ergodic":
        return _at_constant_rate(load, width, *expected(np.zeros(1, np.intp)))
    return _slotted(load, width, np.ones(1), rate, _Weakest(mean, fading), max_blocks, expected)


class _Weakest:
    """The weakest of several links as a fading process over one link of mean 1; its steps are SNRs, not gains."""

    def __init__(self, mean: NDArray[np.float64], fading: Fading) -> None:
        self.n, self.step_s, self.k_factor = 1, fading.step_s, np.zeros(1)
        self._mean, self._fading = mean.astype(np.float32), fading

    def step(self) -> NDArray[np.float32]:
        return np.asarray((self._mean * self._fading.step()).min(keepdims=True))

    def reset(self, rng: np.random.Generator) -> None:
        self._fading.reset(rng)

    def keep(self, index: NDArray[np.intp]) -> None:
        """Follow the one link there is."""


def _slotted(
    load: NDArray[np.float64],
    width: NDArray[np.float64],
    mean: NDArray[np.float64],
    rate: RateModel,
    fading: Fading,
    max_blocks: int,
    expected: Callable[[NDArray[np.intp]], tuple[Floats, Floats]],
) -> Transfer:
    step_s, seconds, repeated = fading.step_s, np.zeros(load.size), np.zeros(load.size)
    # Of the links still followed: their number in the result, bits left (inf once through), bits per block at 1 bit/s/Hz, ...
    link, left, wasted = np.arange(load.size), load.copy(), np.zeros(load.size)
    per_efficiency, mean32 = width * step_s, mean.astype(np.float32)
    running, block = load.size, 0
    while running and block < max_blocks:
        # Few links take many blocks at a time, so that stragglers cost no more per block than their fading does.
        count = min(max(1, _BATCH // link.size), _BATCH_BLOCKS, max_blocks - block)
        snr = np.empty((count, link.size), np.float32)
        for row in snr:
            np.multiply(mean32, fading.step(), out=row)
        efficiency, share = rate.both(snr)
        carried = np.cumsum(efficiency * per_efficiency, axis=0)
        ended = np.flatnonzero(carried[-1] >= left)
        if ended.size:
            last = np.argmax(carried[:, ended] >= left[ended], axis=0)
            unused = (carried[last, ended] - left[ended]) / (efficiency[last, ended] * per_efficiency[ended])
            spent = np.cumsum(share[:, ended], axis=0, dtype=np.float64)[last, np.arange(ended.size)]
            seconds[link[ended]] = (block + last + 1 - unused) * step_s
            repeated[link[ended]] = (wasted[ended] + spent - unused * share[last, ended]) * step_s
        left -= carried[-1]
        left[ended] = np.inf
        wasted += share.sum(axis=0)
        running, block = running - ended.size, block + count
        if running < 0.7 * link.size:
            kept = np.flatnonzero(np.isfinite(left))
            fading.keep(kept)
            link, left, wasted = link[kept], left[kept], wasted[kept]
            per_efficiency, mean32 = per_efficiency[kept], mean32[kept]
    if running:
        late = np.flatnonzero(np.isfinite(left))
        ends = link[late]
        rest = _at_constant_rate(left[late], width[ends], *expected(ends))
        seconds[ends] = block * step_s + rest.seconds
        repeated[ends] = wasted[late] * step_s + rest.retransmission_s
    return _finished(load, seconds, repeated)


def _at_constant_rate(bits: NDArray[np.float64], width: NDArray[np.float64], efficiency: Floats, share: Floats) -> Transfer:
    bps = efficiency * width
    with np.errstate(divide="ignore"):
        seconds = np.where(bps > 0, bits / bps, np.inf)
    return _finished(bits, seconds, np.where(bps > 0, seconds, 0.0) * share)


def _finished(bits: NDArray[np.float64], seconds: NDArray[np.float64], repeated: NDArray[np.float64]) -> Transfer:
    through = np.isfinite(seconds)
    return Transfer(seconds, np.where(through, repeated, 0.0), np.where(through, bits / seconds, 0.0))


def _checked_snr(mean_snr: Floats, fading: Fading | None) -> NDArray[np.float64]:
    mean = np.asarray(mean_snr, dtype=np.float64)
    if mean.ndim != 1 or not mean.size or not np.all(np.isfinite(mean)) or np.any(mean < 0):
        raise ConfigError("transfer: mean_snr must be a list of finite linear SNRs, one per link, none negative (dB were given?)")
    if fading is not None and fading.n != mean.size:
        raise ConfigError(f"transfer: {mean.size} links but fading over {fading.n}; make the fading for the links that send")
    return mean


def _checked(name: str, values: Floats | float, n: int, advice: str) -> NDArray[np.float64]:
    given = np.asarray(values, dtype=np.float64)
    if given.shape not in ((), (1,), (n,)):
        raise ConfigError(f"transfer: {name} has shape {given.shape}; give one number or one per link ({n})")
    wrong = given[~(np.isfinite(given) & (given > 0))]
    if wrong.size:
        raise ConfigError(f"transfer: {name} of {wrong.flat[0]:g}; {advice}")
    return np.broadcast_to(given, (n,))


def _check_mode(mode: str, max_blocks: int) -> None:
    if mode not in MODES:
        raise UnknownNameError("transfer mode", mode, MODES)
    if max_blocks < 1:
        raise ConfigError(f"transfer: max_blocks is {max_blocks}; give at least 1")
