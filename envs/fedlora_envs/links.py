"""What a world knows of its links, and how long messages take over them: arrays over all N clients, or the K of one exchange."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedlora_envs.medium import Medium

Floats = NDArray[np.float64]
Clients = NDArray[np.int64]


@dataclass(frozen=True)
class Delivery:
    """The downlink of one exchange to n clients, [n].

    Attributes:
        seconds: When each client has its message; inf where nothing gets through.
        repeated: Share of the airtime that was retransmission.
    """

    seconds: Floats
    repeated: Floats


@dataclass(frozen=True)
class Upload:
    """The uplink of one exchange, [K].

    Attributes:
        rates_bps: Rate of each client where shares are static; 0 where nothing gets through.
        medium: The medium where rates depend on who else is sending; None where shares are static.
        repeated: Share of the airtime that is retransmission.
        snr_db: Mean SNR over the band that the client has; NaN where there is no SNR.
        airtime_s: How long the transmitter is on, where that is not the whole upload; NaN elsewhere.
    """

    rates_bps: Floats
    medium: Medium | None
    repeated: Floats
    snr_db: Floats
    airtime_s: Floats


class Links(Protocol):
    """The radio side of a world. Rounds count from 1; whatever is drawn depends on the seed and the round alone."""

    def step(self, round_number: int) -> None:
        """Move on to a round, the one after the last."""
        ...

    def measured(self) -> Floats:
        """Return what can be measured of the links now, `[2, N]` (downlink, uplink): SNR in dB, or rate in bit/s."""
        ...

    def expected(self, measured: Floats, sharing: int) -> tuple[Floats, Floats, Floats]:
        """Return what a measurement `[2, N]` promises: downlink and uplink rate in bit/s, and uplink SNR in dB (or NaN), [N].

        Args:
            measured: As `measured` returns it, for all clients or some of them, perhaps old or wrong.
            sharing: How many clients share the uplink.
        """
        ...

    def download(self, round_number: int, asked: Clients, places: NDArray[np.intp], sizes: NDArray[np.int64]) -> Delivery:
        """Return the downlink of one exchange, [n].

        Args:
            round_number: The round.
            asked: Clients of the exchange, [K]; they are who the fading is drawn for.
            places: Which of them can be reached, [n].
            sizes: Bytes, [n].
        """
        ...

    def upload(
        self, round_number: int, asked: Clients, places: NDArray[np.intp], sizes: NDArray[np.int64], starts_s: Floats
    ) -> Upload:
        """Return the uplink of one exchange.

        Args:
            round_number: The round.
            asked: Clients of the exchange, [K]; they are who the fading is drawn for.
            places: Which of them have something to send, [n].
            sizes: Bytes, [n].
            starts_s: When they start to send, [n].
        """
        ...

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that crosses a round."""
        ...

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned."""
        ...
