"""The one link of AirLLM's problem, for E episodes at once: an SNR out of a few levels, a bandwidth, Shannon's rate.

C = B log2(1 + SNR). There is no fading, interference or path loss (arXiv 2507.11515 as its reference code has it); what may be
switched on is memory (a Markov ladder), and knowledge that is late or wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedlora_envs.noise import keys, normals_at, uniforms_at

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class LevelLink:
    """Links of E episodes; every draw is a function of the episode's seed, its number and the step.

    Args:
        kind: "iid" draws the level anew at every step; "markov" stays, or goes to a neighbour (and stays at the ends).
        levels_db: SNR levels, rising.
        bandwidths_hz: Bandwidths, drawn anew at every step and known when it begins.
        move: Probability to leave an inner level ("markov").
        delay: Steps by which the SNR that is known is older than the one that counts.
        error_db: Standard deviation of the estimate.
        episodes: E.

    Attributes:
        snr_db: SNR of the coming step, `[E]`.
        bandwidth_hz: Its bandwidth, `[E]`.
        rate_bps: Its rate, `[E]`.
        known_snr_db: What is known of the SNR, `[E]`.
        known_rate_bps: The rate that would follow, `[E]`.
    """

    def __init__(
        self,
        kind: Literal["iid", "markov"],
        levels_db: Sequence[float],
        bandwidths_hz: Sequence[float],
        *,
        move: float,
        delay: int,
        error_db: float,
        episodes: int,
    ) -> None:
        self.levels_db, self.bandwidths_hz = np.asarray(levels_db, np.float64), np.asarray(bandwidths_hz, np.float64)
        self._efficiency = np.log2(1.0 + 10.0 ** (self.levels_db / 10.0))
        self._markov, self._move, self._delay, self._error_db = kind == "markov", move, delay, error_db
        # Newest last. An episode's channel begins `delay` steps before the episode, so that its first estimate is as old as all.
        self._levels = np.zeros((episodes, delay + 1), np.int64)
        self._bands, self._error = np.zeros(episodes, np.int64), np.zeros(episodes)
        self._channel, self._csi = np.zeros(episodes, np.uint64), np.zeros(episodes, np.uint64)
        self._set()

    @property
    def best_bps(self) -> float:
        """Rate at the highest level and the largest bandwidth."""
        return float(self._efficiency.max() * self.bandwidths_hz.max())

    def begin(self, at: NDArray[np.intp], seeds: NDArray[np.uint64], episode: NDArray[np.int64]) -> None:
        """Start the channel anew in the episodes `at`, with the seeds and numbers of all, `[E]`; the others stay as they are."""
        self._channel[at] = keys(seeds[at], "channel", episode[at])
        clocks = self._delay + 1
        clock = np.arange(len(at) * clocks) % clocks
        draws = uniforms_at(np.repeat(self._channel[at], clocks), clock, 2).reshape(len(at), clocks, 2)
        history = [_index(draws[:, 0, 0], self.levels_db)]
        for later in range(1, clocks):
            history.append(self._next(history[-1], draws[:, later, 0]))
        self._levels = replaced(self._levels, at, np.column_stack(history))
        self._bands = replaced(self._bands, at, _index(draws[:, -1, 1], self.bandwidths_hz))
        if self._error_db:
            self._csi[at] = keys(seeds[at], "csi", episode[at])
            self._error = replaced(self._error, at, normals_at(self._csi[at], np.zeros(len(at), np.int64), 1)[:, 0])
        self._set()

    def move(self, step: NDArray[np.int64]) -> None:
        """Go on to step `step` of each episode, `[E]`."""
        draws = uniforms_at(self._channel, step + self._delay, 2)
        new = self._next(self._levels[:, -1], draws[:, 0])
        self._levels = np.column_stack((self._levels[:, 1:], new)) if self._delay else new[:, None]
        self._bands = _index(draws[:, 1], self.bandwidths_hz)
        if self._error_db:
            self._error = normals_at(self._csi, step, 1)[:, 0]
        self._set()

    def _next(self, level: NDArray[np.int64], uniform: Floats) -> NDArray[np.int64]:
        if not self._markov:
            return _index(uniform, self.levels_db)
        moved = level - (uniform < self._move / 2) + (uniform >= 1 - self._move / 2)
        return np.clip(moved, 0, len(self.levels_db) - 1)

    def _set(self) -> None:
        level, known = self._levels[:, -1], self._levels[:, 0]
        self.bandwidth_hz = self.bandwidths_hz[self._bands]
        self.snr_db, self.rate_bps = self.levels_db[level], self._efficiency[level] * self.bandwidth_hz
        self.known_snr_db, self.known_rate_bps = self.levels_db[known], self._efficiency[known] * self.bandwidth_hz
        if self._error_db:
            self.known_snr_db = self.known_snr_db + self._error_db * self._error
            self.known_rate_bps = np.log2(1.0 + 10.0 ** (self.known_snr_db / 10.0)) * self.bandwidth_hz


def replaced(old: NDArray[Any], at: NDArray[np.intp], new: Any) -> NDArray[Any]:
    """Return a copy of `old` with `new` at the places `at`: what was handed out before must not change."""
    copy = old.copy()
    copy[at] = new
    return copy


def _index(uniform: Floats, choices: Floats) -> NDArray[np.int64]:
    return (uniform * len(choices)).astype(np.int64)
