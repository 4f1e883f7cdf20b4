"""Learning rates follow one curve over the whole run, whatever a client's number of steps."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fedlora.config import TrainingConfig
from fedlora.training.schedule import learning_rates


def curve(rounds: int = 4, steps: int = 5, **options: object) -> list[float]:
    """Return the learning rate of every local step of a whole run, relative to the peak."""
    config = TrainingConfig(steps=steps, lr=0.2, **options)  # type: ignore[arg-type]
    return [
        float(learning_rates(config, [(number, rounds)], np.array([steps]), step)[0]) / 0.2
        for number in range(1, rounds + 1)
        for step in range(steps)
    ]


def test_constant_is_constant() -> None:
    assert curve() == pytest.approx([1.0] * 20)


def test_linear_falls_in_equal_steps_towards_zero() -> None:
    assert curve(schedule="linear") == pytest.approx([1 - step / 20 for step in range(20)], abs=1e-6)


def test_cosine_is_half_a_wave() -> None:
    wanted = [0.5 + 0.5 * math.cos(math.pi * step / 20) for step in range(20)]
    assert curve(schedule="cosine") == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warmup_rises_to_the_peak_and_goes_on_without_a_jump(schedule: str) -> None:
    rates = curve(schedule=schedule, warmup=0.25)
    assert rates[:5] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8], abs=1e-6)
    assert rates[5] == pytest.approx(1.0)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[5:]))
    assert max(rates) <= 1.0 + 1e-6


def test_clients_with_more_steps_pass_the_same_share_of_the_curve() -> None:
    config = TrainingConfig(steps=1, lr=1.0, schedule="linear")
    rates = learning_rates(config, [(2, 4), (2, 4)], np.array([10, 5]), 4)
    assert rates.tolist() == pytest.approx([1 - (1 + 0.4) / 4, 1 - (1 + 0.8) / 4])


def test_a_resumed_client_in_another_round_is_elsewhere_on_the_curve() -> None:
    config = TrainingConfig(steps=1, lr=1.0, schedule="linear")
    rates = learning_rates(config, [(1, 4), (3, 4)], np.array([5, 5]), 0)
    assert rates.tolist() == pytest.approx([1.0, 0.5])
