"""The response model fitted to records by least squares, and how wrong it is on episodes that it has not seen."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, least_squares

from fedlora.errors import ConfigError
from fedlora_envs.tasks.base import Floats
from fedlora_envs.tasks.recording import Records
from fedlora_envs.tasks.response import Response

_FOLDS = 4
# A batch's loss says as much about the fine-tune as a held-out loss does, with more noise.
_BATCH_WEIGHT = 0.7
# Pulls the log of each site's worth to the sites' mean: a site that was seldom alone is not thought worthless.
_PULL = 0.1
_SPAN = 6.0  # how far each log parameter may go from its start
_KNOTS = 10
# Fitted once by cross-validation on the shipped records (powers 1 to 3, tails 0.25 to endless): flat about here.
_FIXED = {"age": 2.0, "tail": 0.5}
_PACES = np.linspace(0.0, 0.8, 17)


def fit(records: Records) -> Response:
    """Return the response model of recorded fine-tunes, its errors from cross-validation over whole episodes.

    Raises:
        ConfigError: Too few episodes.
    """
    count = len(records)
    if count < _FOLDS:
        raise ConfigError(f"{count} recorded episodes are too few to fit and to check: record at least {_FOLDS}")
    fold = np.random.default_rng(0).permutation(count) % _FOLDS
    held, batch = np.zeros_like(records.loss), np.zeros_like(records.loss)
    for number in range(_FOLDS):
        own = _Problem(records.take(fold != number))
        held[fold == number], batch[fold == number] = _Problem(records.take(fold == number)).predict(own.solve())
    problem = _Problem(records)
    best = problem.solve()
    response = Response(**problem.named(best), **_around(records, problem, best))
    found = {"episodes": float(count), "folds": float(_FOLDS), **_errors(records, held, batch)}
    found["accuracy_rmse"] = _rms(response.accuracy(held) - records.accuracy)
    rounded = {name: float(f"{value:.4g}") for name, value in found.items()}
    return response.model_copy(update={"errors": rounded, "source": {k: records.header[k] for k in _SOURCE}})


_SOURCE = ("run", "seed", "horizon", "local_steps", "heldout")


class _Problem:
    """Records in the form that residuals need; parameters are logs: of each site's weight, then of `_NAMES`."""

    _NAMES = ("curve", "floor", "plateau", "settle", "head", "shape", "cut")

    def __init__(self, records: Records) -> None:
        self.records, header = records, records.header
        self.caps = np.array(header["caps"], np.int64)
        levels = np.arange(1, int(self.caps.max()) + 1)
        self.trained = levels <= records.ranks[..., None]
        self.measured = levels <= records.measured[..., None]
        self.steps = np.arange(1, records.loss.shape[1] + 1)

    def named(self, parameters: Floats) -> dict[str, Any]:
        """Return parameters as fields of a response."""
        header, sites = self.records.header, len(self.caps)
        values = np.exp(parameters)
        fields: dict[str, Any] = {name: header[name] for name in ("sites", "caps", "numbers")} | _FIXED
        fields |= {"untrained": header["untrained_loss"], "weights": values[:sites].tolist()}
        return fields | dict(zip(self._NAMES, values[sites:].tolist(), strict=True))

    def predict(self, parameters: Floats, pace: Floats | None = None) -> tuple[Floats, Floats]:
        """Return (held-out loss after each step, batch loss before it), `[N, T]` each; `pace` `[N, T]` speeds steps up."""
        response = Response.model_construct(**self.named(parameters))
        grown = self.trained if pace is None else self.trained * pace[..., None, None]
        after = np.cumsum(grown, axis=1, dtype=np.float64)
        before = np.concatenate([np.zeros_like(after[:, :1]), after[:, :-1]], axis=1)
        return (
            self._loss(response, after, self.measured, self.steps),
            self._loss(response, before, self.trained, self.steps - 1),
        )

    def solve(self) -> Floats:
        """Return the parameters of the least squares."""
        records, sites, horizon = self.records, len(self.caps), len(self.steps)
        plateau = float(np.quantile(records.loss, 0.9))
        # Half the horizon at full ranks makes a progress of one.
        start = np.log(
            [4.0 / (sites * horizon**2)] * sites
            + [2.0, 0.7 * float(records.loss.min()) + 1e-3, plateau, 1.0, 0.1 / horizon, 1.5, 0.05]
        )

        def residuals(parameters: Floats) -> Floats:
            held, batch = self.predict(parameters)
            pull = _PULL * (parameters[:sites] - parameters[:sites].mean())
            return np.concatenate([(held - records.loss).ravel(), _BATCH_WEIGHT * (batch - records.batch_loss).ravel(), pull])

        found = least_squares(residuals, start, bounds=(start - _SPAN, start + _SPAN), x_scale=0.3, max_nfev=200)
        return np.asarray(found.x)

    def _loss(self, response: Response, age: Floats, covered: NDArray[np.bool_], steps: NDArray[np.int64]) -> Floats:
        parts = response.grown(age) * response.worth
        return response.loss(np.where(covered, parts, 0.0).sum(axis=(2, 3)), parts.sum(axis=(2, 3)), steps)


def _around(records: Records, problem: _Problem, best: Floats) -> dict[str, Any]:
    """Return the fields about the loss: noise, text, accuracy, norms."""
    held, batch = problem.predict(best)
    luck, noise = (held - records.loss)[:, ::2], records.batch_loss - batch  # every other step is measured at its own ranks
    text = records.text.reshape(-1, 3)
    mean, std = text.mean(axis=0), text.std(axis=0)
    weights = _text_weights((text - mean) / np.maximum(std, 1e-9), noise)
    knots = _knots(records.loss.ravel(), records.accuracy.ravel())
    return {
        "batch_std": float(np.sqrt(max(float(np.var(noise)) - float(np.var(luck)), 0.0))),
        "pace_std": _pace(problem, best, float(np.std(luck))),
        "text_mean": mean.tolist(),
        "text_std": std.tolist(),
        "text_weights": weights.tolist(),
        "knots_loss": knots[0].tolist(),
        "knots_accuracy": knots[1].tolist(),
        **_norms(records, problem),
    }


def _pace(problem: _Problem, best: Floats, wanted: float) -> float:
    """Return the spread of the pace that makes equal ranks differ as much as the records do from the fit."""
    rng = np.random.default_rng(0)
    plain = problem.predict(best)[0][:, ::2]
    draws = rng.standard_normal((8, *problem.records.loss.shape))
    spread = [
        _rms(np.stack([problem.predict(best, np.exp(std * own - std**2 / 2))[0][:, ::2] - plain for own in draws]))
        for std in _PACES
    ]
    return float(np.interp(wanted, np.maximum.accumulate(spread), _PACES))


def _text_weights(text: Floats, noise: Floats) -> Floats:
    """Return the linear effect of standardised text features `[n, 3]` on batch losses, or zeros where it predicts nothing new."""
    rows = noise.shape[1]
    residual = (noise - noise.mean()).ravel()
    fold = np.repeat(np.arange(len(noise)) % _FOLDS, rows)
    error = 0.0
    for number in range(_FOLDS):
        own = np.linalg.lstsq(text[fold != number], residual[fold != number], rcond=None)[0]
        error += float(np.square(residual[fold == number] - text[fold == number] @ own).sum())
    useful = error < float(np.square(residual).sum())
    return np.linalg.lstsq(text, residual, rcond=None)[0] if useful else np.zeros(3)


def _knots(loss: Floats, accuracy: Floats) -> tuple[Floats, Floats]:
    """Return the falling curve of accuracy over loss: means of equal parts of the records, made monotone."""
    order = np.argsort(loss)
    parts = np.array_split(order, min(_KNOTS, len(order)))
    at = np.array([loss[part].mean() for part in parts])
    means = np.array([accuracy[part].mean() for part in parts], np.float64)
    fallen = isotonic_regression(means, increasing=False).x
    keep = np.asarray(np.diff(at, prepend=-1.0) > 1e-6)
    if keep.sum() < 2:  # records that never moved
        return np.array([at[0], at[0] + 1.0]), np.repeat(fallen[:1], 2)
    return at[keep], np.asarray(fallen)[keep]


def _norms(records: Records, problem: _Problem) -> dict[str, Any]:
    """Return the scale of each site's component norms over the cube of their ages, and how episodes differ from it."""
    age = np.cumsum(problem.trained, axis=1, dtype=np.float64)
    real = (age > 0) & (records.gains > 0)
    ratio = np.log(np.where(real, records.gains, 1.0)) - 3 * np.log(np.where(real, age, 1.0))
    count = real.sum(axis=(1, 3))
    each = np.where(real, ratio, 0.0).sum(axis=(1, 3)) / np.maximum(count, 1)  # [N, L]
    seen = count > 0
    scale = (each * seen).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    spread = np.where(seen, each - scale, 0.0)
    return {
        "energy": np.asarray(np.exp(scale)).tolist(),
        "energy_std": float(np.sqrt(np.square(spread).sum() / max(seen.sum(), 1))),
    }


def _errors(records: Records, held: Floats, batch: Floats) -> dict[str, float]:
    error = held - records.loss
    about = records.loss - records.loss.mean()
    return {
        "loss_rmse": _rms(error),
        "loss_r2": 1.0 - float(np.square(error).sum() / max(float(np.square(about).sum()), 1e-12)),
        "loss_rmse_as_trained": _rms(error[:, ::2]),
        "loss_rmse_cut": _rms(error[:, 1::2]) if error.shape[1] > 1 else 0.0,
        "batch_loss_rmse": _rms(batch - records.batch_loss),
    }


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.square(values).mean()))
