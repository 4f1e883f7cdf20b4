"""What the sender knows of the channel: an old value, measured with an error."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError

Floats = NDArray[np.floating[Any]]


def estimated_snr_db(snr_db: Floats, error_db: float, normals: Floats) -> NDArray[np.float64]:
    """Return `snr_db` [N] as a receiver with a Gaussian measurement error reports it.

    Args:
        snr_db: SNR at the time of the measurement, dB.
        error_db: Standard deviation of the error in dB, 0 for a perfect measurement.
        normals: Standard normal variates [N]; drawn by the caller whatever `error_db` is, so that streams stay aligned.
    """
    if not (np.isfinite(error_db) and error_db >= 0):
        raise ConfigError(f"channel knowledge: error_db is {error_db}; give a standard deviation of 0 dB or more")
    return np.asarray(snr_db, dtype=np.float64) + error_db * np.asarray(normals)


class DelayedCsi:
    """Channel knowledge that is some rounds old.

    Give it what is measured in each round, then read what the sender knows in that round. Until enough rounds have passed, the
    oldest measurement stands in.

    Args:
        delay_rounds: 0 reads the present round's values, 1 the last round's, and so on.
    """

    def __init__(self, delay_rounds: int) -> None:
        if delay_rounds < 0:
            raise ConfigError(f"channel knowledge: a delay of {delay_rounds} rounds is knowledge of the future; give 0 or more")
        self.delay_rounds = delay_rounds
        self._known: deque[NDArray[np.float64]] = deque(maxlen=delay_rounds + 1)

    def push(self, snr_db: Floats) -> None:
        """Store the present round's values [N], by copy."""
        values = np.array(snr_db, dtype=np.float64)
        if self._known and values.shape != self._known[-1].shape:
            raise ConfigError(
                f"channel knowledge: {values.shape} values after {self._known[-1].shape}; give one value per link in every round"
            )
        self._known.append(values)

    @property
    def age(self) -> int:
        """How many rounds old the values of `read` are: `delay_rounds`, less in the first rounds."""
        return max(0, len(self._known) - 1)

    def state(self) -> NDArray[np.float64]:
        """Return all stored measurements, oldest first, [rounds, ...]."""
        return np.stack(self._known)

    def restore(self, state: NDArray[np.float64]) -> None:
        """Go on from what `state` returned."""
        self._known = deque(state, maxlen=self.delay_rounds + 1)

    def read(self) -> NDArray[np.float64]:
        """Return what the sender knows [N]; do not change it.

        Raises:
            ConfigError: Nothing was stored yet.
        """
        if not self._known:
            raise ConfigError("channel knowledge: read before the first round's values were stored; call push first")
        return self._known[0]
