"""Policies that go by what components are worth: greedy, and AdaLoRA's importance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlora.errors import ConfigError
from fedlora.federation.policy import make_policy
from fedlora_policies.importance import GreedyPolicy, ImportancePolicy
from looks import COSTS, GAINS, SETUP, look


def test_greedy_goes_by_gain_per_byte() -> None:
    """Per 100 bytes: site 1 gives 8, 4, 2, 1; site 2 4.5, 3, 1.5, 0; site 3 2, 1.8, 1.6, 1.4 (levels of two ranks)."""
    budget = np.array([139.0, 140.0, 340.0, 440.0, 640.0, 690.0, np.inf])
    ranks = GreedyPolicy(SETUP).choose(look(1, tuple(range(7)), budget_bytes=budget))
    assert ranks.tolist() == [
        [0, 0, 2], [1, 0, 0], [1, 1, 0], [2, 1, 0], [2, 2, 0], [2, 2, 2], [4, 3, 8],
    ]  # fmt: skip


def test_greedy_backs_off() -> None:
    ranks = GreedyPolicy(SETUP, backoff=0.5).choose(look(budget_bytes=np.array([680.0, 280.0, np.inf])))
    assert ranks.tolist() == [[1, 1, 0], [1, 0, 0], [4, 3, 8]]


def test_the_price_is_in_units_of_the_mean_worth_of_a_byte() -> None:
    """36.4 in 1,400 bytes: the mean is 2.6 per 100."""
    mean = float(GAINS.sum()) / (COSTS.full - COSTS.base) * 100
    for price, ranks in ((0, [4, 3, 8]), (1.9 / mean, [3, 2, 2]), (1.0, [2, 2, 0]), (5 / mean, [1, 0, 0]), (9 / mean, [0, 0, 0])):
        assert GreedyPolicy(SETUP, price).choose(look()).tolist() == [ranks] * 3
        scaled = look(gains=1e-6 * np.tile(GAINS, (3, 1, 1)))
        assert GreedyPolicy(SETUP, price).choose(scaled).tolist() == [ranks] * 3  # whatever gains are measured in


def test_importance_asks_for_worth_not_for_worth_per_byte() -> None:
    """Largest first: 9 and 8 and 6, together 500 bytes and the base; greedy prefers the 4 of a cheap site to the 6."""
    share = 540 / COSTS.full
    assert ImportancePolicy(SETUP, share=share).choose(look()).tolist() == [[1, 2, 0]] * 3
    assert GreedyPolicy(SETUP).choose(look(budget_bytes=np.full(3, 540.0))).tolist() != [[1, 2, 0]] * 3


def test_importance_keeps_both_limits() -> None:
    ranks = ImportancePolicy(SETUP, share=0.5).choose(look(budget_bytes=np.array([340.0, 39.0, np.inf])))
    assert ranks.tolist()[0] == [1, 1, 0] and not ranks[1].any()
    assert COSTS.bytes(ranks[2]) <= 0.5 * COSTS.full < COSTS.bytes(ranks[2]) + 200


def test_importance_is_smoothed_over_rounds_and_forgotten_between_episodes() -> None:
    other = np.tile(GAINS[[1, 0, 2]], (3, 1, 1))  # sites 1 and 2 change places
    share = 240 / COSTS.full  # room for one level of site 2, or two of site 1
    fresh = ImportancePolicy(SETUP, share=share).choose(look(gains=other))
    policy = ImportancePolicy(SETUP, share=share, memory=0.9)
    before = policy.choose(look(1))
    assert before.tolist() != fresh.tolist()
    assert policy.choose(look(2, gains=other)).tolist() == before.tolist()  # one round does not outweigh the past
    for number in range(3, 40):
        late = policy.choose(look(number, gains=other))
    assert late.tolist() == fresh.tolist()
    assert policy.choose(look(40, (3, 4, 6))).tolist() == before.tolist()  # clients that were not there have no past
    assert policy.choose(look(1)).tolist() == before.tolist()


def test_importance_goes_on_from_its_state() -> None:
    rng = np.random.default_rng(0)
    drawn = [np.sort(rng.exponential(1, (3, 3, 4)), axis=2)[:, :, ::-1] for _ in range(6)]
    whole = ImportancePolicy(SETUP, share=0.3)
    ranks = [whole.choose(look(number, gains=gains)) for number, gains in enumerate(drawn, 1)]
    cut = ImportancePolicy(SETUP, share=0.3)
    assert cut.state() == {}
    for number, gains in enumerate(drawn[:3], 1):
        cut.choose(look(number, gains=gains))
    resumed = ImportancePolicy(SETUP, share=0.3)
    resumed.restore({name: array.copy() for name, array in cut.state().items()})
    forgetful = ImportancePolicy(SETUP, share=0.3)
    again = [[item.choose(look(number, gains=drawn[number - 1])) for number in (4, 5, 6)] for item in (resumed, forgetful)]
    assert np.array_equal(again[0], ranks[3:]) and not np.array_equal(again[1], ranks[3:])
    assert all(np.array_equal(resumed.state()[name], array, equal_nan=True) for name, array in whole.state().items())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("greedy", {"price": -1}, "policy.options.price = -1: give a number of at least 0"),
        ("greedy", {"price": float("nan")}, "policy.options.price = nan: give a number of at least 0"),
        ("greedy", {"price": float("inf")}, "give a number of at least 0"),
        ("greedy", {"price": "high"}, "policy.options.price = 'high'"),
        ("greedy", {"price": True}, "policy.options.price = True"),
        ("greedy", {"prize": 1}, "Its options: price, backoff"),
        ("importance", {"share": 0}, "policy.options.share = 0: give a number above 0 and at most 1"),
        ("importance", {"share": 1.1}, "give a number above 0 and at most 1"),
        ("importance", {"memory": 1}, "policy.options.memory = 1: give a number of at least 0 and below 1"),
    ],
)
def test_options_that_do_not_fit_are_one_error(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_policy(name, options, SETUP)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["greedy", "importance", "lyapunov"])
def test_gains_are_needed(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' needs to know what ranks are worth"):
        make_policy(name, {}, SETUP).choose(look(gains=None))
