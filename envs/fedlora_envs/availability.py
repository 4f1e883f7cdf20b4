"""Availability: which clients are reachable, and when a client drops out of a round."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlora.errors import ConfigError

Floats = NDArray[np.float64]


class OnOff:
    """A two-state Markov chain in continuous time per client, looked at whenever the caller likes.

    On and off times are exponential. A step of any length is exact, so that two half steps are distributed as one whole.

    Args:
        mean_on_s: Mean time on, [N] or one number for all, above 0; inf: never goes off.
        mean_off_s: Mean time off, likewise.
        uniforms: [N] in [0, 1): draw the first states from the stationary law.

    Attributes:
        on: Which clients are on, [N].

    Raises:
        ConfigError: A mean that is not above 0, or a client whose means are both inf.
    """

    def __init__(self, mean_on_s: ArrayLike, mean_off_s: ArrayLike, uniforms: Floats) -> None:
        self._off_rate = _rate(mean_on_s, "mean_on_s")
        self._on_rate = _rate(mean_off_s, "mean_off_s")
        total = self._off_rate + self._on_rate
        if not (total > 0).all():
            raise ConfigError("mean_on_s and mean_off_s are both inf; a client that never changes needs one finite mean")
        self.share_on: Floats = np.broadcast_to(self._on_rate / total, uniforms.shape)
        self.on: NDArray[np.bool_] = uniforms < self.share_on

    def step(self, dt_s: float, uniforms: Floats) -> NDArray[np.bool_]:
        """Move on by `dt_s` seconds and return which clients are on then, [N].

        With rates l (on to off) and m, P(on after dt) = s + (1 - s) e^{-(l+m) dt} from on and s (1 - e^{-(l+m) dt}) from off,
        where s = m/(l+m).

        Args:
            dt_s: Seconds, >= 0.
            uniforms: Numbers in [0, 1), one per client, whatever its state.

        Raises:
            ConfigError: Time running back.
        """
        if not dt_s >= 0:
            raise ConfigError(f"availability cannot step by {dt_s:g} s; time does not run back")
        memory = np.exp(-(self._off_rate + self._on_rate) * dt_s)
        self.on = uniforms < self.share_on * (1.0 - memory) + self.on * memory
        return self.on


def drop_times(rate_per_s: ArrayLike, uniforms: Floats) -> Floats:
    """Return after how many seconds each client drops out, [N]: exponential, inf at rate 0.

    P(drop within T) = 1 - exp(-rate T).

    Args:
        rate_per_s: Hazard rate in 1/s, [N] or one number for all.
        uniforms: Numbers in [0, 1), [N].

    Raises:
        ConfigError: A rate that is negative or not finite.
    """
    rates = np.asarray(rate_per_s, dtype=np.float64)
    if not (np.isfinite(rates) & (rates >= 0)).all():
        raise ConfigError("drop-out rates must be finite numbers >= 0 in 1/s")
    rates = np.broadcast_to(rates, uniforms.shape)
    times: Floats = np.full(uniforms.shape, np.inf)
    np.divide(-np.log1p(-uniforms), rates, out=times, where=rates > 0)
    return times


def _rate(mean_s: ArrayLike, name: str) -> Floats:
    mean = np.asarray(mean_s, dtype=np.float64)
    if not (mean > 0).all():
        raise ConfigError(f"{name} must be above 0 s (inf: never), got {np.min(mean):g}")
    return 1.0 / mean
