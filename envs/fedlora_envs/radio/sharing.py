"""How the clients of one round share the band: static uplink shares, and the downlink of one model to many.

Arrays over clients throughout. An uplink is power-limited: with a = P g / N0 in Hz, a client in bandwidth b has the rate
b log2(1 + a / b) in bit/s, which grows with b but never beyond a / ln 2 (Yang et al., IEEE TWC 20(3) 2021, arXiv 1911.02417).
Fewer hertz therefore mean a better SNR per hertz, and n clients on 1/n of the band each lose less than a factor n.

A client without bits, without any received power (a = 0) or that never arrives (arrival inf) takes no part: it is given 0 Hz
and the others share what there is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import lambertw

from fedlora.errors import ConfigError, UnknownNameError

Floats = NDArray[np.float64]
LN2 = float(np.log(2.0))

# -- uplink: rates and the bandwidth that a rate needs ---------------------------------------------------------------------


def uplink_rate_bps(bandwidth_hz: Floats, a_hz: Floats) -> Floats:
    """Return b log2(1 + a / b) in bit/s, elementwise; 0 where the bandwidth is 0.

    Args:
        bandwidth_hz: Bandwidth b of each client.
        a_hz: Received power over noise density P g / N0 of each client (over the SNR gap, if there is one).
    """
    bandwidth_hz, a_hz = np.broadcast_arrays(np.asarray(bandwidth_hz, np.float64), np.asarray(a_hz, np.float64))
    snr = np.divide(a_hz, bandwidth_hz, out=np.zeros(bandwidth_hz.shape), where=bandwidth_hz > 0)
    rate: Floats = bandwidth_hz * np.log1p(snr) / LN2
    return rate


def bandwidth_for_rate_hz(rate_bps: Floats, a_hz: Floats) -> Floats:
    """Return the bandwidth in which a client reaches `rate_bps`; inf where no bandwidth is enough (rate >= a / ln 2).

    With G = rate ln 2 / a and the branch -1 of Lambert's function, b = -rate ln 2 / (W(-G e^-G) + G), that is an SNR of
    x = a / b = -W / G - 1, the root of ln(1 + x) = G x. Newton steps restore the digits that the sum loses, and towards
    G = 1, where they lose digits themselves, x is its own power series in 1 - G.

    Args:
        rate_bps: Rates, [K], >= 0.
        a_hz: Received power over noise density of each client, [K], >= 0.
    """
    rate_bps, a_hz = np.asarray(rate_bps, np.float64), np.asarray(a_hz, np.float64)
    load = np.divide(rate_bps * LN2, a_hz, out=np.full(a_hz.shape, np.inf), where=a_hz > 0)
    bandwidth_hz = np.where(rate_bps > 0, np.inf, 0.0)
    solvable = np.flatnonzero((rate_bps > 0) & (load < 1))
    g = load[solvable]
    room = 1.0 - g
    snr = room * (2 + room * (8 / 3 + room * (28 / 9)))
    far = room > 1e-4
    g_far = g[far]
    x = -lambertw(-g_far * np.exp(-g_far), -1).real / g_far - 1
    for _ in range(2):
        x -= (np.log1p(x) - g_far * x) / (1 / (1 + x) - g_far)
    snr[far] = x
    bandwidth_hz[solvable] = a_hz[solvable] / snr
    return bandwidth_hz


# -- uplink: static shares -------------------------------------------------------------------------------------------------


def allocate(name: str, bits: Floats, a_hz: Floats, arrivals_s: Floats, bandwidth_hz: float, gap: float = 1.0) -> Floats:
    """Return the bandwidth of each client for the whole round, [K] in Hz; the shares of those that take part sum to B.

    Args:
        name: "equal"; "proportional" (to bits over the spectral efficiency at an equal share); "min_max" (the last client
            finishes as early as can be: all of them finish together; a client next to unreachable takes nearly all of B).
        bits: Bits that each client sends, [K].
        a_hz: Received power over noise density P g / N0 of each client, [K] in Hz.
        arrivals_s: When each client starts to send (download and computing are over), [K] in s; inf for never.
        bandwidth_hz: The band B, > 0.
        gap: SNR gap of the modulation to capacity, linear, >= 1: a client sends b log2(1 + a / (gap b)).

    Raises:
        UnknownNameError: No such allocation.
        ConfigError: Bandwidth not above 0, gap below 1, arrays of different lengths, negative values or NaN.
    """
    if name not in ALLOCATIONS:
        raise UnknownNameError("bandwidth allocation", name, ALLOCATIONS)
    if not 0 < bandwidth_hz < np.inf:
        raise ConfigError(f"bandwidth_hz must be a finite number above 0, got {bandwidth_hz:g}")
    if not 1 <= gap < np.inf:
        raise ConfigError(f"the SNR gap must be at least 1 (0 dB), got {gap:g}")
    bits, a_hz = _per_client("bits", bits), _per_client("a_hz", a_hz) / gap
    arrivals_s = _per_client("arrivals_s", arrivals_s, finite=False)
    if not bits.shape == a_hz.shape == arrivals_s.shape:
        raise ConfigError(f"bits, a_hz and arrivals_s are of {bits.size}, {a_hz.size} and {arrivals_s.size} clients")
    taking_part = np.flatnonzero((bits > 0) & (a_hz > 0) & (arrivals_s < np.inf))
    shares_hz = np.zeros(bits.shape)
    if taking_part.size:
        rule = ALLOCATIONS[name]
        shares_hz[taking_part] = rule(bits[taking_part], a_hz[taking_part], arrivals_s[taking_part], bandwidth_hz)
    return shares_hz


def _equal(bits: Floats, a_hz: Floats, arrivals_s: Floats, bandwidth_hz: float) -> Floats:
    return np.full(bits.shape, bandwidth_hz / bits.size)


def _proportional(bits: Floats, a_hz: Floats, arrivals_s: Floats, bandwidth_hz: float) -> Floats:
    need = bits / np.log1p(a_hz * bits.size / bandwidth_hz)
    share: Floats = bandwidth_hz * need / need.sum()
    return share


def _min_max(bits: Floats, a_hz: Floats, arrivals_s: Floats, bandwidth_hz: float) -> Floats:
    """Bisect the common finish T so that sum_k b_k(bits_k / (T - arrival_k)) = B."""
    if bits.size == 1:
        return np.array([bandwidth_hz])
    arrivals_s = arrivals_s - arrivals_s.min()  # a late round must not cost digits
    # Not before: then one client needs an infinite band. Not after: an equal split is through by then.
    low = float(np.max(arrivals_s + bits * LN2 / a_hz))
    high = float(np.max(arrivals_s + bits / uplink_rate_bps(_equal(bits, a_hz, arrivals_s, bandwidth_hz), a_hz)))
    while high - low > 4e-16 * high:
        middle = 0.5 * (low + high)
        if bandwidth_for_rate_hz(bits / (middle - arrivals_s), a_hz).sum() > bandwidth_hz:
            low = middle
        else:
            high = middle
    needed_hz = bandwidth_for_rate_hz(bits / (high - arrivals_s), a_hz)
    return needed_hz * (bandwidth_hz / float(needed_hz.sum()))


ALLOCATIONS: dict[str, Callable[[Floats, Floats, Floats, float], Floats]] = {
    "equal": _equal,
    "proportional": _proportional,
    "min_max": _min_max,
}


# -- processor sharing in closed form --------------------------------------------------------------------------------------


def processor_sharing_s(bits: Floats, rates_alone_bps: Floats) -> Floats:
    """Return when each of K transfers that start together is through, if each of n under way has 1/n of its rate alone.

    With w_(1) <= ... <= w_(K) the times that they would take alone, T_(j) = sum_{i <= j} (w_(i) - w_(i-1)) (K - i + 1).

    Args:
        bits: Bits to send, [K], >= 0; a transfer of none takes no part and is through at 0.
        rates_alone_bps: Rate of each with the medium to itself, [K]; 0 for one that cannot be served: it takes inf and,
            as it never sends, nothing from the others.
    """
    alone_s = np.full(bits.shape, np.inf)
    np.divide(bits, rates_alone_bps, out=alone_s, where=rates_alone_bps > 0)
    alone_s[bits == 0] = 0.0
    order = np.argsort(alone_s, kind="stable")
    served = order[np.isfinite(alone_s[order])]
    steps = np.diff(alone_s[served], prepend=0.0) * np.arange(served.size, 0, -1)
    through_s = np.full(bits.shape, np.inf)
    through_s[served] = np.cumsum(steps)
    return through_s


# -- downlink --------------------------------------------------------------------------------------------------------------


def broadcast_bits(bits: Floats) -> float:
    """Return the bits of one transmission that serves clients of all ranks: the largest payload, which contains the others.

    Ranks are nested (a smaller rank is a leading part), so that each recipient cuts what it needs out of one message.
    """
    return float(np.max(bits, initial=0.0))


def broadcast_s(bits: Floats, rates_bps: Floats) -> Floats:
    """Return when each client has its payload, if one message goes to all at the rate of the worst recipient, [K] in s.

    Args:
        bits: Payload of each client, [K]; 0 for one that is no recipient: it is not waited for, and its time is 0.
        rates_bps: Rate of each client with the whole band, [K]; inf results where a recipient's rate is 0.
    """
    recipients = bits > 0
    worst = float(np.min(rates_bps[recipients], initial=np.inf))
    duration_s = broadcast_bits(bits) / worst if worst > 0 else np.inf
    return np.where(recipients, duration_s, 0.0)


def unicast_s(bits: Floats, rates_bps: Floats) -> Floats:
    """Return when each client has its payload, if every client is sent its own at the same time, [K] in s.

    The base station spreads its power evenly over the band, so a client's rate is proportional to its part of the band and
    the band's parts go to the others as clients get through: processor sharing.
    """
    return processor_sharing_s(bits, rates_bps)


def quantile_broadcast(rates_bps: Floats, q: float) -> tuple[NDArray[np.bool_], float]:
    """Return (who hears the broadcast, [K] bool; its rate in bit/s): the best share `q` of the clients, at their worst rate.

    Args:
        rates_bps: Rate of each recipient with the whole band, [K].
        q: Share of the recipients to broadcast to, 0 to 1; rounded up to whole clients. Ties go to the lower index.

    Raises:
        ConfigError: q outside 0 to 1.
    """
    if not 0 <= q <= 1:
        raise ConfigError(f"the broadcast's share of clients must lie between 0 and 1, got {q:g}")
    best = np.argsort(-rates_bps, kind="stable")[: int(np.ceil(q * rates_bps.size - 1e-9))]
    hears = np.zeros(rates_bps.shape, dtype=bool)
    hears[best] = True
    return hears, float(np.min(rates_bps[best], initial=np.inf))


def quantile_broadcast_s(bits: Floats, rates_bps: Floats, q: float) -> Floats:
    """Return when each client has its payload: first one broadcast to the best share `q`, then unicast to the rest, [K] in s.

    Args:
        bits: Payload of each client, [K]; 0 for one that is no recipient.
        rates_bps: Rate of each client with the whole band, [K].
        q: Share of the recipients to broadcast to, 0 to 1.

    Raises:
        ConfigError: q outside 0 to 1.
    """
    recipients = np.flatnonzero(bits > 0)
    hears = np.zeros(bits.shape, dtype=bool)
    hears[recipients] = quantile_broadcast(rates_bps[recipients], q)[0]
    first_s = broadcast_s(np.where(hears, bits, 0.0), rates_bps)
    rest_s = unicast_s(np.where(hears, 0.0, bits), rates_bps) + first_s.max(initial=0.0)
    return np.where(bits > 0, np.where(hears, first_s, rest_s), 0.0)


def _per_client(name: str, values: Floats, finite: bool = True) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not (array >= 0).all() or (finite and not np.isfinite(array).all()):
        what = "finite numbers" if finite else "numbers (or inf)"
        raise ConfigError(f"{name} must be {what} >= 0, one per client")
    return array
