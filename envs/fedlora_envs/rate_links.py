"""Links that are rates from the start: the same for everybody, or played back from traces."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.streams import stream
from fedlora_envs.config import WorldConfig
from fedlora_envs.links import Clients, Delivery, Floats, Upload
from fedlora_envs.radio.trace_files import load_all
from fedlora_envs.radio.traces import TracePlayer


class FixedLinks:
    """The same rates for everybody, always.

    Args:
        config: The world.
        clients: N.
    """

    def __init__(self, config: WorldConfig, clients: int) -> None:
        given = (config.fixed.downlink_bps, config.fixed.uplink_bps)
        self._rates_bps = np.array([np.inf if rate is None else rate for rate in given])
        self._clients = clients

    def step(self, round_number: int) -> None:
        """Nothing moves."""

    def measured(self) -> Floats:
        """Return the rates, `[2, N]`."""
        return np.repeat(self._rates_bps[:, None], self._clients, axis=1)

    def expected(self, measured: Floats, sharing: int) -> tuple[Floats, Floats, Floats]:
        """Return the rates as measured; there is no SNR."""
        return measured[0], measured[1], np.full(measured.shape[1], np.nan)

    def download(self, round_number: int, asked: Clients, places: NDArray[np.intp], sizes: NDArray[np.int64]) -> Delivery:
        """Return the downlink: everybody at the rate."""
        return Delivery(8.0 * sizes / self._rates_bps[0], np.zeros(len(places)))

    def upload(
        self, round_number: int, asked: Clients, places: NDArray[np.intp], sizes: NDArray[np.int64], starts_s: Floats
    ) -> Upload:
        """Return the uplink: everybody at the rate."""
        return _rated(np.full(len(places), self._rates_bps[1]))

    def state(self) -> dict[str, NDArray[Any]]:
        """Return nothing: nothing moves."""
        return {}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Nothing moved."""


class TraceLinks:
    """Rates played back from traces: each client loops one of them from a random moment on.

    A round starts `cell.step_s` seconds after the one before, however long that took: what is sent never shifts the trace.

    Args:
        config: The world.
        clients: N.
        seed: Root of the streams.

    Attributes:
        traces: What is played back.

    Raises:
        ConfigError: Trace files that cannot be read.
    """

    def __init__(self, config: WorldConfig, clients: int, seed: int) -> None:
        folder = Path(str(files("fedlora_envs") / "data" / "traces")) if config.trace.path is None else Path(config.trace.path)
        self.traces = load_all(folder, config.trace.format)
        self._player = TracePlayer(self.traces, clients, stream(seed, "trace"))
        self._share, self._step_s, self._clients, self._now_s = config.trace.uplink_share, config.cell.step_s, clients, 0.0

    def step(self, round_number: int) -> None:
        """Move on to the round's place in the traces."""
        self._now_s = round_number * self._step_s

    def measured(self) -> Floats:
        """Return the rates at the start of the round, `[2, N]`."""
        rate = self._player.rate_bps(self._now_s)
        return np.stack([rate, self._share * rate])

    def expected(self, measured: Floats, sharing: int) -> tuple[Floats, Floats, Floats]:
        """Return the rates as measured; there is no SNR."""
        return measured[0], measured[1], np.full(measured.shape[1], np.nan)

    def download(self, round_number: int, asked: Clients, places: NDArray[np.intp], sizes: NDArray[np.int64]) -> Delivery:
        """Return the downlink: every client over its own trace."""
        at_once = np.zeros(len(places))
        return Delivery(self._seconds(asked[places], np.asarray(8.0 * sizes, np.float64), at_once), np.zeros(len(places)))

    def upload(
        self, round_number: int, asked: Clients, places: NDArray[np.intp], sizes: NDArray[np.int64], starts_s: Floats
    ) -> Upload:
        """Return the uplink: every client over its own trace, from the moment it starts to send."""
        bits = np.asarray(8.0 * sizes, np.float64)
        return _rated(bits / self._seconds(asked[places], bits / self._share, np.where(np.isfinite(starts_s), starts_s, 0.0)))

    def state(self) -> dict[str, NDArray[Any]]:
        """Return where the traces stand."""
        return {"now_s": np.array([self._now_s])}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned."""
        self._now_s = float(state["now_s"][0])

    def _seconds(self, clients: Clients, bits: Floats, starts_s: Floats) -> Floats:
        start, load = np.zeros(self._clients), np.zeros(self._clients)
        start[clients], load[clients] = self._now_s + starts_s, bits
        return self._player.transfer_s(start, load)[clients]


def _rated(rates_bps: Floats) -> Upload:
    nothing = np.full(len(rates_bps), np.nan)
    return Upload(rates_bps, None, np.zeros(len(rates_bps)), nothing, nothing)
