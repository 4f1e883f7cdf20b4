"""What Flower and the protocols under it put on the air beside the payload: stated, so that predictions can be made before a run.

| part | where it comes from |
|---|---|
| framing | IPv4 + TCP with time stamps, 52 bytes in packets of 1,500; TLS 1.3 records, 22 bytes in 16 KiB |
| acknowledgements | 52 bytes for about every second packet of the other direction |
| per message | HTTP requests and answers around one message (announce, fetch or store the objects, confirm), protobuf, TLS |

The first two follow from the protocols; the third was fitted to runs without loss (`fit`), and holds for Flower 1.41 with one
packed array per message. Looks for work and heartbeats between exchanges belong to no message: they are measured and told apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

_HEADERS, _PACKET = 52, 1500
_TLS, _RECORD = 22, 16384


@dataclass(frozen=True)
class Overhead:
    """Bytes on the air beside the payload.

    Attributes:
        framing: Bytes of headers per byte of payload.
        acks: Bytes of acknowledgements per byte that comes the other way.
        message: Bytes per round, (down, up): it has one message down and one up, and both cause bytes both ways.
    """

    framing: float = _HEADERS / (_PACKET - _HEADERS) + _TLS / _RECORD
    acks: float = _HEADERS / (2 * _PACKET)
    message: tuple[float, float] = (0.0, 0.0)

    def on_air(self, down: float, up: float) -> tuple[float, float]:
        """Return the bytes on the air, (down, up), of a round of one client.

        Args:
            down: Payload bytes of the message to it.
            up: Payload bytes of its reply.
        """
        whole = (1.0 + self.framing) * np.array([down, up])
        found = whole + self.acks * whole[::-1] + np.array(self.message)
        return float(found[0]), float(found[1])


FLOWER = Overhead(message=(8490.0, 20060.0))
"""What Flower 1.41 costs a node of `fedlora node` with TLS and node authentication.

Fitted to 24 rounds of one client with payloads of 33, 157 and 599 kB, four of them on a machine with ten times more to do than it
has cores: the bytes of all transfers come out within 15 %, of all of 157 kB and more within 3 %.
"""


def fit(down: ArrayLike, up: ArrayLike, air_down: ArrayLike, air_up: ArrayLike) -> Overhead:
    """Return the overhead whose parts per message explain the bytes that were measured on the air best.

    Args:
        down: Payload bytes down of each client and round, [n].
        up: The same up, [n].
        air_down: Bytes on the air down, [n].
        air_up: The same up, [n].
    """
    bare = Overhead()
    payload = np.stack([np.asarray(down, np.float64), np.asarray(up, np.float64)])
    air = np.stack([np.asarray(air_down, np.float64), np.asarray(air_up, np.float64)])
    rest = air - (1 + bare.framing) * (payload + bare.acks * payload[::-1])
    # Large messages vary by more bytes than a small one has: relative errors count. The median is not moved by one odd round.
    weight = 1 / payload.mean(axis=0)
    parts = [max(0.0, _weighted_median(row, weight)) for row in rest]
    return replace(bare, message=(parts[0], parts[1]))


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(share, 0.5)])
