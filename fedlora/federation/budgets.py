"""Bytes that fit before a round's deadline, as far as the server's estimates of links and devices go."""

from __future__ import annotations

import numpy as np

from fedlora.federation.policy import Floats, Links


def budget_bytes(links: Links, broadcast_bits: float | None = None, together: int | None = None) -> Floats:
    """Return the bytes of the uplink that fit before the deadline at the estimated rates, `[clients]`, >= 0.

    What the deadline leaves after the download and the expected computing, times the uplink's rate. inf where there is no
    deadline, 0 where the estimate is an outage: nothing gets through then, however long it takes.

    Args:
        links: What is known of the clients' links.
        broadcast_bits: Size of the message that goes to all, at the rate of the slowest who can hear it, even one
            whose reply would not come through. None: each client gets
            its own slice at its own rate, as large as its reply.
        together: Clients of one round, where `links` holds several rounds one after the other; default: all of them.
    """
    up_bps, outage = np.asarray(links.uplink_bps, np.float64), links.outage
    left_s = links.deadline_s - (np.zeros(len(up_bps)) if links.compute_s is None else links.compute_s)
    with np.errstate(divide="ignore", invalid="ignore"):
        if broadcast_bits is None:
            bits = np.maximum(left_s, 0.0) / (1.0 / up_bps + 1.0 / links.downlink_bps)
        else:
            groups = np.where(links.downlink_bps > 0, links.downlink_bps, np.inf).reshape(-1, together or len(up_bps))
            slowest_bps = np.repeat(groups.min(axis=1, initial=np.inf), groups.shape[1])
            left_s = left_s - broadcast_bits / slowest_bps
            bits = np.maximum(left_s, 0.0) * up_bps
    # inf x 0 and inf / inf: on a link that takes no time everything fits into any time that is left.
    bits = np.where(np.isnan(bits), np.where(left_s > 0, np.inf, 0.0), bits)
    return np.asarray(np.where(outage, 0.0, bits / 8), np.float64)
