"""AirComp: clients send their updates at the same time as analogue amplitudes, and the air adds them up.

Truncated channel inversion (Zhu, Wang, Huang, "Broadband analog aggregation", IEEE TWC 19(1) 2020, arXiv 1812.11494): client k
with complex gain h_k sends p_k x_k with p_k = sqrt(eta) / h_k where |h_k|^2 >= g0, and is silent in a deeper fade. The server
receives sqrt(eta) sum_k x_k + n and divides by sqrt(eta) |S|, S being those that were not silent. Over Rayleigh fading the mean
power is eta E1(g0), and a share exp(-g0) of the clients takes part. All of this needs channel knowledge at the clients and
tight synchronisation, which are taken for granted here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import exp1, gammaln
from torch import Tensor

from fedlora.adapters import Adapter, Tensors
from fedlora.aggregation import Aggregator, GlobalState, Update, in_order
from fedlora.errors import ConfigError
from fedlora.streams import stream


def eta(power: float, threshold: float) -> float:
    """Return the receive level eta = P / E1(g0) at which truncated inversion of Rayleigh fading spends the mean power P.

    Args:
        power: Mean transmit power P of a client, for signals of unit variance.
        threshold: Gain g0 (mean gain 1) below which a client stays silent, > 0.
    """
    return float(power / exp1(threshold))


def airtime_s(numbers: float, bandwidth_hz: float) -> float:
    """Return how long D real numbers take: two per symbol (I and Q), D / (2 B) s whatever the number of clients.

    Raises:
        ConfigError: Bandwidth not above 0.
    """
    if not bandwidth_hz > 0:
        raise ConfigError(f"bandwidth_hz must be above 0, got {bandwidth_hz:g}")
    return numbers / (2 * bandwidth_hz)


def predicted_mse(clients: int, threshold: float, power: float, noise_power: float, variance: float = 1.0) -> float:
    """Return the mean squared error of the received mean of `clients` against their true mean, per real dimension.

    variance E[1/|S| - 1/K] + noise_power / (2 eta) E[1/|S|^2]: error of a mean over some of the clients, and noise. |S| is
    binomial with probability exp(-g0), given that it is not 0.

    Args:
        clients: K, all of which send this number.
        threshold: g0.
        power: P; see `eta`.
        noise_power: Power of the complex noise per symbol.
        variance: Variance of the numbers, independent over clients, as they are sent per real dimension.
    """
    heard = np.arange(1, clients + 1)
    log_choose = gammaln(clients + 1) - gammaln(heard + 1) - gammaln(clients - heard + 1)
    with np.errstate(divide="ignore"):
        log_silent = np.log(-np.expm1(-threshold))
    silent = np.where(heard < clients, (clients - heard) * log_silent, 0.0)
    chance = np.exp(log_choose - threshold * heard + silent)
    chance /= chance.sum()
    subset = variance * float(chance @ (1 / heard - 1 / clients))
    return subset + noise_power / (2 * eta(power, threshold)) * float(chance @ (1 / heard**2))


class AirCompMean(Aggregator):
    """The mean of what clients change, received over the air: noisy, and without the clients in a deep fade.

    Every client sends its change against the global state on the positions that it trained (others stay empty: zero-padding),
    scaled by one scalar per round that is the same for all and makes the changes' mean square 1; that scalar and who was
    silent travel digitally. The server divides each entry by the number of clients that sent it and were heard. Entries that
    nobody sent, or nobody through a fade, keep their old value bit by bit. The task head travels with the rest.

    What is averaged is the adapter's state: for lora and triplet the factors one by one, as `fedavg-factors` does, which is
    not the mean of their products; for ravan s H, as `ravan` does, which is. With weighting "examples" clients scale what they
    send by their weight, and the server divides by the sum of the weights heard.

    A symbol carries two numbers, in its real and imaginary part, which share the power: after scaling back, the noise has
    variance E1(g0) / (snr |S|^2) per number of unit variance, twice `predicted_mse` at variance 1/2.

    Args:
        adapters: One per site, in canonical order.
        weighting: "uniform", "examples", or "auto" (uniform).
        snr_db: Mean received SNR of a client at full power, P E|h|^2 / noise, the same for all; inf for no noise.
        threshold: Gain g0 (mean gain 1, Rayleigh) below which a client stays silent; 0 only without noise.
        coherence_symbols: Symbols of two numbers after which a client's fade is drawn anew; 0 for one fade per round.

    Raises:
        ConfigError: Options out of range.
    """

    name = "aircomp"
    summary = "AirComp: changes added by the air itself, truncated inversion, noise (analogue uplink)"
    source = "arXiv 1812.11494"
    exact: ClassVar[str] = "no: noise and clients in a fade; factors one by one (lora, triplet)"
    mixed_ranks = True
    default_weighting = "uniform"

    def __init__(
        self,
        adapters: Sequence[Adapter],
        weighting: str = "auto",
        *,
        snr_db: float = 20.0,
        threshold: float = 0.1,
        coherence_symbols: int = 0,
    ) -> None:
        super().__init__(adapters, weighting)
        for name, value in (("snr_db", snr_db), ("threshold", threshold)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"aggregator.options.{name} must be a number, got {value!r}")
        if not snr_db > -np.inf:
            raise ConfigError(f"aggregator.options.snr_db must be a number of dB, or inf for no noise, got {snr_db:g}")
        if not (0 < threshold < np.inf or (threshold == 0 and snr_db == np.inf)):
            raise ConfigError(
                f"aggregator.options.threshold must be above 0, got {threshold:g}: inverting every fade would take endless power "
                "(0 only with snr_db = inf)"
            )
        if isinstance(coherence_symbols, bool) or not isinstance(coherence_symbols, int) or coherence_symbols < 0:
            raise ConfigError(f"aggregator.options.coherence_symbols must be a whole number >= 0, got {coherence_symbols!r}")
        self._threshold, self._coherence_numbers = threshold, 2 * coherence_symbols
        self._noise = 0.0 if snr_db == np.inf else float(np.sqrt(exp1(threshold) * 10 ** (-snr_db / 10)))

    def aggregate(self, updates: Sequence[Update], state: GlobalState, round_number: int) -> tuple[GlobalState, list[float]]:
        updates = in_order(updates)
        old = state.flat()
        sums = {key: torch.zeros(tensor.shape, dtype=torch.float64) for key, tensor in old.items()}
        weights_heard = {key: torch.zeros(tensor.shape, dtype=torch.float64) for key, tensor in old.items()}
        numbers = sum(tensor.numel() for tensor in old.values())
        square, sent = 0.0, 0
        for update, weight in zip(updates, self.weights(updates), strict=True):
            heard = torch.from_numpy(self._heard(round_number, update.client, numbers))
            first = 0
            for key, value, mask in self._flat(update, state, round_number):
                change = torch.where(mask, value.double() - old[key].double(), 0.0) * weight
                square += float(change.square().sum())
                sent += int(mask.sum())
                audible = heard[first : first + change.numel()].view(change.shape)
                sums[key].add_(change * audible)
                weights_heard[key].add_((mask & audible).double(), alpha=weight)
                first += change.numel()
        scale = (square / sent) ** 0.5 if sent else 0.0
        merged = self._received(old, sums, weights_heard, scale * self._noise, round_number)
        received = GlobalState.from_flat(merged, len(state.sites))
        return state.followed_by(received.sites, received.head), self._coverage(weights_heard)

    def _heard(self, round_number: int, client: int, numbers: int) -> NDArray[np.bool_]:
        """Return for each number, in the order of the flat state, whether the client's fade lets it through, [numbers]."""
        length = self._coherence_numbers or numbers
        fades = max(1, -(-numbers // max(1, length)))
        gains = stream(self.adapters[0].seed, "aircomp fades", round_number, client).standard_exponential(fades)
        return np.repeat(gains >= self._threshold, length)[:numbers]

    def _flat(self, update: Update, state: GlobalState, round_number: int) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield (key, value, mask of what was sent) for all tensors of the state, in its flat order."""
        for index, (adapter, old) in enumerate(zip(self.at(round_number), state.sites, strict=True)):
            values, masks = adapter.place(update.sites[index], update.ranks[index], old)
            for name in old:
                yield f"{index}/{name}", values[name], masks[name]
        for name, tensor in state.head.items():
            value = update.head[name]
            if value.shape != tensor.shape:
                raise ValueError(f"tensor '{name}' has shape {tuple(value.shape)}, expected {tuple(tensor.shape)}")
            yield f"head/{name}", value, torch.ones(tensor.shape, dtype=torch.bool)

    def _received(
        self, old: Tensors, sums: Tensors, weights_heard: Tensors, deviation: float, round_number: int
    ) -> dict[str, Tensor]:
        """Return the next state; noise is drawn for every entry, so that what was sent does not shift it."""
        rng = stream(self.adapters[0].seed, "aircomp noise", round_number)
        merged: Tensors = {}
        for key, tensor in old.items():
            noise = torch.from_numpy(rng.standard_normal(tuple(tensor.shape)))
            heard = weights_heard[key] > 0
            mean = (sums[key] + deviation * noise) / torch.where(heard, weights_heard[key], 1.0)
            merged[key] = torch.where(heard, (tensor.double() + mean).to(tensor.dtype), tensor)
        return merged

    def _coverage(self, weights_heard: Tensors) -> list[float]:
        """Return the share of entries per site that were heard of anybody."""
        shares = []
        for index in range(len(self.adapters)):
            own = [weight > 0 for key, weight in weights_heard.items() if key.startswith(f"{index}/")]
            entries = sum(heard.numel() for heard in own)
            shares.append(sum(int(heard.sum()) for heard in own) / entries if entries else 0.0)
        return shares
