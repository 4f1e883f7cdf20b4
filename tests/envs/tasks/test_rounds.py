"""Rounds of K clients by a response model: one client is the model itself, and means are over those who delivered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlora.federation.gains import PRIOR
from fedlora_envs.tasks.rounds import RecordedRounds, made_up


def rounds(clients: int = 3, **changes: Any) -> RecordedRounds:
    models = RecordedRounds(made_up(4), 2, clients, changes.pop("steps", 4.0), changes.pop("participation", 0.5))
    models.response = models.response.model_copy(update={"age": 1.3, "shape": 0.8, **changes})
    models.begin(np.ones(2, np.bool_), np.arange(2, dtype=np.uint64), np.zeros(2, np.int64))
    return models


def test_true_gains_are_what_a_level_adds() -> None:
    everybody, nothing = np.ones((2, 3), np.bool_), np.zeros((2, 3, 12), np.int64)
    plain, more = rounds(age=1.0), rounds(age=1.0)
    for models in (plain, more):
        models.advance(np.full((2, 3, 12), 3), everybody)
    gains = plain.true_gains()
    assert (np.diff(gains, axis=2) < 0).all() and (np.diff(gains[:, ::2, 0], axis=1) > 0).all()
    sent = nothing.copy()
    sent[:, 1, 4] = 1
    plain.advance(nothing, everybody)
    more.advance(sent, everybody)
    np.testing.assert_allclose(plain.loss() - more.loss(), gains[:, 4, 0], rtol=0.02)


def test_rounds_with_one_client_are_the_steps_of_the_response_model() -> None:
    models = rounds(clients=1, steps=1.0)
    response, age = models.response, np.zeros((12, 4))
    rng = np.random.default_rng(0)
    for number in range(1, 8):
        ranks = rng.integers(0, 5, (2, 1, 12))
        models.advance(ranks, np.ones((2, 1), np.bool_))
        age += np.arange(1, 5) <= ranks[0, 0, :, None]
        total = np.array((response.grown(age) * response.worth).sum())
        assert models.loss()[0] == pytest.approx(float(response.loss(total, total, np.array(number))))


def test_the_mean_is_over_those_who_delivered() -> None:
    """Who sent nothing takes its part of the mean, who did not deliver takes none, and a void round moves nothing."""
    full, none = np.full((2, 1, 12), 4), np.zeros((2, 1, 12), np.int64)
    both, only, alone, void = rounds(2), rounds(2), rounds(2, participation=0.0), rounds(2)
    mixed = np.concatenate([full, none], axis=1)
    both.advance(mixed, np.ones((2, 2), np.bool_))
    only.advance(mixed, np.array([[True, False]] * 2))
    alone.advance(mixed, np.array([[True, False]] * 2))
    void.advance(mixed, np.zeros((2, 2), np.bool_))
    np.testing.assert_allclose(both.age, 0.5 * alone.age)
    np.testing.assert_allclose(alone.age, 4)
    np.testing.assert_allclose(only.age, 4 * 0.5**0.5)
    assert not void.age.any() and void.loss()[0] == pytest.approx(1.75) and void.steps_done[0] == 0


def test_what_is_shown_are_shares_of_squared_norms() -> None:
    models = rounds()
    flat = models.shown_gains()
    np.testing.assert_allclose(flat, 1 / 48)
    models.advance(np.full((2, 3, 12), 2), np.ones((2, 3), np.bool_))
    shown = models.shown_gains()
    np.testing.assert_allclose(shown.sum(axis=(1, 2)), 1)
    np.testing.assert_allclose(shown[:, :, 2:], PRIOR / 48)
    assert (shown[:, :, :2] > PRIOR / 48).all() and (shown[0] != shown[1]).any()
