"""Small-scale fading: power gains of N links, one block of time per step. Every law has mean 1.

| model | correlation of the complex gain over k steps of T seconds |
|---|---|
| `block` | none: every step is a fresh draw |
| `gauss_markov` | a^k with a = J0(2 pi fD T): Clarke's at one step only |
| `clarke` | J0(2 pi fD T k), in the ensemble of links |
| `markov` | birth-death chain on eight equally likely gains |

Arrays are float32. All draw the same number of variates whatever their values, so that two runs which differ in payloads only
see the same channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import j0

from fedlora.errors import ConfigError, UnknownNameError

Floats = NDArray[np.floating[Any]]
Gains = NDArray[np.float32]

MODELS = ("block", "gauss_markov", "clarke", "markov")
SPEED_OF_LIGHT_M_S = 299792458.0
FIRST_ZERO_OF_J0 = 2.404825557695773
MARKOV_STATES = 8
MARKOV_LIMIT = 0.02  # of fD T: above it the chain should skip states, which it cannot
PATHS = 16  # of the Clarke sum; its gain's variance is 1 - 1/PATHS instead of 1
RENORMALISE_STEPS = 10_000

_CHUNK = 16384  # links whose state stays in the cache
_WHOLE = 100_000  # up to so many links one chunk is as fast


class Fading(Protocol):
    """A fading process over N links.

    Attributes:
        n: Links now followed.
        step_s: Seconds per step.
        k_factor: Rician K of each link, linear, float64 [N]; 0 is Rayleigh.
    """

    n: int
    step_s: float
    k_factor: NDArray[np.float64]

    def step(self) -> Gains:
        """Advance by one block and return the gains, float32 [N]: a buffer that the next step overwrites."""
        ...

    def reset(self, rng: np.random.Generator) -> None:
        """Start anew, drawing from `rng` from now on; all links given at the start are followed again."""
        ...

    def keep(self, index: NDArray[np.intp]) -> None:
        """Follow only these of the present links; their gains are what they would have been anyway."""
        ...


def doppler_hz(speed_kmh: Floats | float, fc_ghz: Floats | float) -> NDArray[np.float64]:
    """Return the Doppler frequency fD = v fc / c in Hz."""
    speed_m_s = np.asarray(speed_kmh, dtype=np.float64) / 3.6
    return np.asarray(speed_m_s * np.asarray(fc_ghz) * 1e9 / SPEED_OF_LIGHT_M_S, dtype=np.float64)


def coherence_s(doppler_hz: Floats | float) -> NDArray[np.float64]:
    """Return the coherence time 0.423 / fD in seconds, inf for links at rest."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.divide(0.423, np.asarray(doppler_hz, dtype=np.float64)), dtype=np.float64)


def make_fading(
    model: str,
    n: int,
    rng: np.random.Generator,
    *,
    doppler_hz: Floats | float,
    step_s: float,
    k_factor: Floats | float = 0.0,
) -> Fading:
    """Return a fading process.

    Args:
        model: One of `MODELS`.
        n: Links.
        rng: Source of randomness; `fedlora.streams.fast_stream` is the fastest.
        doppler_hz: Doppler frequency, scalar or [n]; `block` ignores it.
        step_s: Seconds between steps.
        k_factor: Rician K, linear, scalar or [n]; `markov` knows Rayleigh only.

    Raises:
        ConfigError: Unknown model, or fD T outside the model's range.
    """
    if model not in MODELS:
        raise UnknownNameError("fading model", model, MODELS)
    kinds: dict[str, Callable[..., _Process]] = {"block": Block, "gauss_markov": GaussMarkov, "clarke": Clarke, "markov": Markov}
    process = kinds[model](n, doppler_hz, step_s, k_factor)
    process.reset(rng)
    return process


class _Process(ABC):
    """What the models share: checks, the links still followed, and work in chunks."""

    model = ""

    def __init__(self, n: int, doppler_hz: Floats | float, step_s: float, k_factor: Floats | float) -> None:
        if n < 1:
            raise ConfigError(f"fading {self.model}: {n} links; give at least one")
        if not (np.isfinite(step_s) and step_s > 0):
            raise ConfigError(f"fading {self.model}: step_s is {step_s}; give a positive number of seconds")
        self.step_s = float(step_s)
        self._doppler = self._per_link("doppler_hz", doppler_hz, n)
        self._k_factor = self._per_link("k_factor", k_factor, n)
        self._links = n
        # Diffuse and line-of-sight amplitudes: E|h|^2 = 1 for every K.
        self._diffuse = np.sqrt(1 / (1 + self._k_factor)).astype(np.float32)
        self._direct = np.sqrt(self._k_factor / (1 + self._k_factor)).astype(np.float32)
        self._rician = bool(np.any(self._k_factor > 0))
        self._check(self._doppler * self.step_s)
        self._follow_all()

    def _per_link(self, name: str, values: Floats | float, n: int) -> NDArray[np.float64]:
        given = np.asarray(values, dtype=np.float64)
        if given.shape not in ((), (1,), (n,)):
            raise ConfigError(f"fading {self.model}: {name} has shape {given.shape}; give one number or one per link ({n})")
        if not np.all(np.isfinite(given)) or np.any(given < 0):
            raise ConfigError(f"fading {self.model}: {name} must be finite and not negative")
        return np.broadcast_to(given, (n,))

    def _check(self, doppler_steps: NDArray[np.float64]) -> None:  # noqa: B027 - a model without limits has none to check
        """Refuse fD T outside the model's range."""

    def _follow_all(self) -> None:
        self.n = self._links
        self.k_factor = self._k_factor
        self._kept: NDArray[np.intp] | None = None
        self._all = np.empty(self._links, np.float32)
        self._out = self._all

    def keep(self, index: NDArray[np.intp]) -> None:
        """Follow only these links; the others are still drawn, so that nobody's gains shift."""
        self._kept = index if self._kept is None else self._kept[index]
        self.n = index.size
        self.k_factor = self.k_factor[index]
        self._out = np.empty(self.n, np.float32)

    @abstractmethod
    def step(self) -> Gains:
        """Advance by one block and return the gains."""

    def reset(self, rng: np.random.Generator) -> None:
        """Start anew from `rng`."""
        self._rng = rng
        self._follow_all()
        self._start()

    def _start(self) -> None:  # noqa: B027 - a model without memory has no state
        """Draw the state at time zero."""


class _Drawn(_Process):
    """Models that draw for every link given at the start, followed or not, so that nobody's gains shift."""

    def step(self) -> Gains:
        """Advance by one block and return the gains."""
        for part in _parts(self._links):
            self._advance(part, self._all[part])
        if self._kept is not None:
            np.take(self._all, self._kept, out=self._out, mode="clip")
        return self._out

    @abstractmethod
    def _advance(self, part: slice, gains: Gains) -> None:
        """Write the next step's gains of some links into `gains`."""


class Block(_Drawn):
    """Independent draws, one per step: exponential gains, noncentral chi-squared where K > 0."""

    model = "block"

    def _advance(self, part: slice, gains: Gains) -> None:
        if not self._rician:
            self._rng.standard_exponential(dtype=np.float32, out=gains)
            return
        fade = self._rng.standard_normal((2, gains.size), dtype=np.float32)
        fade *= self._diffuse[part] * np.float32(np.sqrt(0.5))
        fade[0] += self._direct[part]
        _power(fade, gains)


class GaussMarkov(_Drawn):
    """First-order autoregressive complex gain, a = J0(2 pi fD T); the line of sight stands still.

    Its correlation is a^k, which is Clarke's at one step only. Refused where J0 is not positive any more (fD T > 0.38).
    """

    model = "gauss_markov"

    def _check(self, doppler_steps: NDArray[np.float64]) -> None:
        limit = FIRST_ZERO_OF_J0 / (2 * np.pi)
        if doppler_steps.max() >= limit:
            raise ConfigError(
                f"fading gauss_markov: fD*T is {doppler_steps.max():.4g}, at or above {limit:.4g}, where neighbouring steps stop "
                f"being positively correlated; take step_s below {limit / self._doppler.max():.3g} s, or block or clarke"
            )
        a = np.broadcast_to(j0(2 * np.pi * doppler_steps), (self._links,))
        self._a = a.astype(np.float32)
        self._b = np.sqrt((1 - a**2) / 2).astype(np.float32)

    def _start(self) -> None:
        self._h = self._rng.standard_normal((2, self._links), dtype=np.float32)
        self._h *= np.float32(np.sqrt(0.5))
        self._noise = np.empty((2, min(self._links, _CHUNK if self._links > _WHOLE else self._links)), np.float32)

    def _advance(self, part: slice, gains: Gains) -> None:
        h = self._h[:, part]
        for row in range(2):
            noise = self._noise[row, : gains.size]
            self._rng.standard_normal(dtype=np.float32, out=noise)
            noise *= self._b[part]
            h[row] *= self._a[part]
            h[row] += noise
        _power(self._faded(part) if self._rician else h, gains)

    def _faded(self, part: slice) -> Gains:
        fade: Gains = self._h[:, part] * self._diffuse[part]
        fade[0] += self._direct[part]
        return fade

    def complex_gains(self) -> NDArray[np.complex64]:
        """Return the complex gains of the last step, [N]."""
        real, imaginary = self._faded(slice(None))
        found: NDArray[np.complex64] = real + np.complex64(1j) * imaginary
        return found if self._kept is None else found[self._kept]


class Clarke(_Process):
    """Sum of `PATHS` sinusoids with random angles and phases, turned by one complex product per path and step.

    Angles (2 pi p + U(-pi, pi)) / P (Xiao, Zheng and Beaulieu, IEEE Trans. Wireless Commun. 5(12), 2006): the correlation over
    the ensemble of links is J0 at every lag, whatever fD T. The line of sight is one more path from a random direction. The
    gain's variance is 1 - 1/P (Rayleigh), the price of finitely many paths. After the start nothing is drawn.
    """

    model = "clarke"

    def _start(self) -> None:
        self._steps = 0
        self._z: list[NDArray[np.complex64]] = []
        self._turn: list[NDArray[np.complex64]] = []
        path = np.arange(PATHS, dtype=np.float32)[:, None]
        for part in _parts(self._links):
            size = part.stop - part.start
            # The line of sight's two variates are drawn with K = 0 too: the paths' do not depend on K.
            uniform = self._rng.random((2, PATHS + 1, size), dtype=np.float32)
            angle = (2 * np.pi * uniform[0] - np.pi).astype(np.float32)
            angle[:PATHS] += np.float32(2 * np.pi) * path
            angle[:PATHS] /= np.float32(PATHS)
            phase = (2 * np.pi) * uniform[1]
            turn = (2 * np.pi * self.step_s * self._doppler[part]).astype(np.float32) * np.cos(angle)
            amplitude = np.empty((PATHS + 1, size), np.float32)
            amplitude[:PATHS] = self._diffuse[part] / np.float32(np.sqrt(PATHS))
            amplitude[PATHS] = self._direct[part]
            rows = PATHS + 1 if self._rician else PATHS
            self._z.append(_polar(amplitude[:rows], phase[:rows]))
            self._turn.append(_polar(np.float32(1), turn[:rows]))
        self._make_scratch()

    def _make_scratch(self) -> None:
        self._sums = [np.empty(z.shape[1], np.complex64) for z in self._z]

    def keep(self, index: NDArray[np.intp]) -> None:
        """Follow only these links; the others' phasors are dropped."""
        self.n = index.size
        self.k_factor = self.k_factor[index]
        z, turn = np.concatenate(self._z, axis=1)[:, index], np.concatenate(self._turn, axis=1)[:, index]
        self._z = [np.ascontiguousarray(z[:, part]) for part in _parts(self.n)]
        self._turn = [np.ascontiguousarray(turn[:, part]) for part in _parts(self.n)]
        self._out = np.empty(self.n, np.float32)
        self._make_scratch()

    def step(self) -> Gains:
        """Advance by one block and return the gains."""
        self._steps += 1
        for z, turn, total, part in zip(self._z, self._turn, self._sums, _parts(self.n), strict=True):
            if self._steps % RENORMALISE_STEPS == 0:
                self._renormalise(z, part)
            np.multiply(z, turn, out=z)
            # Summed as pairs of floats: numpy adds those twice as fast as complex numbers.
            flat = total.view(np.float32)
            np.add.reduce(z.view(np.float32), axis=0, out=flat)
            np.multiply(flat, flat, out=flat)
            np.add(flat[::2], flat[1::2], out=self._out[part])
        return self._out

    def complex_gains(self) -> NDArray[np.complex64]:
        """Return the complex gains of the last step, [N]."""
        return np.concatenate([z.sum(axis=0) for z in self._z])

    def _renormalise(self, z: NDArray[np.complex64], part: slice) -> None:
        k_factor = self.k_factor[part]
        size = np.abs(z)
        size[:PATHS] /= np.sqrt(1 / (PATHS * (1 + k_factor))).astype(np.float32)
        if self._rician:
            size[PATHS] /= np.where(k_factor > 0, np.sqrt(k_factor / (1 + k_factor)), 1).astype(np.float32)
            size[PATHS][k_factor == 0] = 1
        z /= size


class Markov(_Drawn):
    """Finite-state Markov chain of Wang and Moayeri (IEEE Trans. Veh. Technol. 44(1), 1995): eight equally likely Rayleigh bins.

    p(k, k+1) = N(G[k+1]) T K and p(k, k-1) = N(G[k]) T K with the level crossing rate N(G) = sqrt(2 pi G) fD exp(-G). A link's
    gain is its bin's mean. Holds for fD T up to 0.02 only.
    """

    model = "markov"

    def _check(self, doppler_steps: NDArray[np.float64]) -> None:
        if doppler_steps.max() > MARKOV_LIMIT:
            raise ConfigError(
                f"fading markov: fD*T is {doppler_steps.max():.4g}, above {MARKOV_LIMIT}, where the chain would skip states; "
                f"take step_s of at most {MARKOV_LIMIT / self._doppler.max():.3g} s, or the model clarke"
            )
        if self._rician:
            raise ConfigError("fading markov: a Rician K was given, but the chain knows Rayleigh only; take the model clarke")
        crossings = markov_crossings(MARKOV_STATES)
        steps = doppler_steps.astype(np.float32)
        self._doppler_steps = steps[0] if np.all(steps == steps[0]) else steps
        self._up = np.append(crossings, 0.0).astype(np.float32)
        self._down = np.append(0.0, crossings).astype(np.float32)
        self._gain = markov_gains(MARKOV_STATES).astype(np.float32)

    def _start(self) -> None:
        self.state = self._rng.integers(MARKOV_STATES, size=self._links)
        self._uniform = np.empty(self._links, np.float32)

    def _advance(self, part: slice, gains: Gains) -> None:
        state, uniform = self.state[part], self._uniform[part]
        self._rng.random(dtype=np.float32, out=uniform)
        rate = self._doppler_steps[part] if self._doppler_steps.ndim else self._doppler_steps
        up = uniform < self._up.take(state, mode="clip") * rate
        np.subtract(1, uniform, out=uniform)
        # "<" with 1 - u, which is never 0: a probability of 0 is never taken.
        down = uniform <= self._down.take(state, mode="clip") * rate
        state += up
        state -= down
        np.take(self._gain, state, out=gains, mode="clip")


def markov_crossings(states: int) -> NDArray[np.float64]:
    """Return p(k, k+1) / (fD T) for k = 0 to states - 2, which is p(k+1, k) / (fD T) too."""
    threshold = -np.log(1 - np.arange(1, states) / states)
    return np.asarray(states * np.sqrt(2 * np.pi * threshold) * np.exp(-threshold), dtype=np.float64)


def markov_gains(states: int) -> NDArray[np.float64]:
    """Return E[g | bin] of `states` equally likely bins of the exponential law; their mean is 1."""
    left = 1 - np.arange(states + 1) / states
    # The integral of g exp(-g) from a threshold -ln(left) on is left (1 - ln left), 0 at left = 0.
    beyond = left * (1 - np.log(np.where(left > 0, left, 1)))
    return np.asarray(states * (beyond[:-1] - beyond[1:]), dtype=np.float64)


def _parts(n: int) -> list[slice]:
    size = n if n <= _WHOLE else _CHUNK
    return [slice(start, min(n, start + size)) for start in range(0, n, max(1, size))]


def _polar(radius: Gains | np.float32, angle: Gains) -> NDArray[np.complex64]:
    result = np.empty(angle.shape, np.complex64)
    result.real = radius * np.cos(angle)
    result.imag = radius * np.sin(angle)
    return result


def _power(parts: Gains, gains: Gains) -> None:
    """Write the squared modulus of [2, n] real and imaginary parts to `gains`."""
    np.multiply(parts[0], parts[0], out=gains)
    gains += parts[1] * parts[1]
