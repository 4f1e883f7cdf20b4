"""SNR level channels: every link is at one of a few given SNRs, as in AirLLM's environment, and moves in its own time step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError, UnknownNameError

KINDS = ("iid", "markov")


class LevelChannel:
    """N links on a ladder of SNR levels; the stationary law is uniform for both kinds.

    "iid" draws a level anew at every step (a contextual bandit to its user). "markov" steps to each neighbour with probability
    p / 2 and stays at the ends instead of leaving them; its second eigenvalue is 1 - p (1 - cos(pi / levels)).

    Args:
        kind: "iid" or "markov".
        levels_db: SNR levels in dB, rising.
        p: Probability to move, for inner levels of "markov"; 0 < p <= 1.

    Raises:
        ConfigError: Unknown kind, no or unordered levels, `p` out of range.
    """

    def __init__(self, kind: str, levels_db: Sequence[float], p: float = 0.2) -> None:
        if kind not in KINDS:
            raise UnknownNameError("level channel", kind, KINDS)
        levels = np.asarray(levels_db, dtype=np.float64)
        if levels.ndim != 1 or not levels.size or not np.all(np.isfinite(levels)) or np.any(np.diff(levels) <= 0):
            raise ConfigError(
                f"level channel: levels {list(levels_db)} are no rising list of SNRs in dB; give e.g. -5, 0, 5, 10, 15"
            )
        if kind == "markov" and not 0 < p <= 1:
            raise ConfigError(f"level channel markov: p is {p}; give a probability above 0 and at most 1")
        self.kind, self.levels_db, self.p = kind, levels, float(p)

    def first(self, n: int, rng: np.random.Generator) -> NDArray[np.intp]:
        """Return the level index of each of `n` links, drawn from the uniform law."""
        return self._indices(rng.random(n))

    def next(self, state: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
        """Return the level indices one step after `state` [N]; one uniform variate per link for both kinds."""
        uniform = rng.random(state.size)
        if self.kind == "iid":
            return self._indices(uniform)
        moved = state + (uniform < self.p / 2) - (uniform >= 1 - self.p / 2)
        return np.clip(moved, 0, self.levels_db.size - 1)

    def snr_db(self, state: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return the SNR of each link in dB."""
        return np.asarray(self.levels_db[state])

    def _indices(self, uniform: NDArray[np.float64]) -> NDArray[np.intp]:
        return (uniform * self.levels_db.size).astype(np.intp)
