"""Policies that go by the link alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlora.errors import ConfigError
from fedlora.federation.policy import POLICIES, make_policy
from fedlora_policies.feasible import LargestFeasiblePolicy, RandomFeasiblePolicy, SnrThresholdPolicy
from looks import CAPS, COSTS, SETUP, UNITS, links, look
from zscores import LIMIT, z_share

EVERYBODY = tuple(range(20))


def test_random_feasible_never_exceeds_the_budget_and_uses_it() -> None:
    policy = RandomFeasiblePolicy(SETUP)
    rng = np.random.default_rng(0)
    shares = []
    for number in range(1, 60):
        budget = rng.uniform(0, 1.2 * COSTS.full, 20)
        ranks = policy.choose(look(number, EVERYBODY, budget_bytes=budget))
        assert (ranks % UNITS == 0).all() and (ranks >= 0).all() and (ranks <= CAPS).all()
        assert ((COSTS.bytes(ranks) <= budget) | ~ranks.any(axis=1)).all()
        tight = (budget > 300) & (budget < 500)
        shares += (COSTS.bytes(ranks) / budget)[tight].tolist()
    assert np.mean(shares) > 0.6  # cut back to the budget, not to nothing


def test_random_feasible_without_a_limit_is_uniform_over_levels() -> None:
    policy = RandomFeasiblePolicy(SETUP)
    drawn = np.concatenate([policy.choose(look(number, EVERYBODY)) for number in range(1, 101)])
    for site, unit in enumerate(UNITS):
        counts = np.bincount(drawn[:, site] // unit, minlength=5)
        assert counts.sum() == 2000 and np.abs(counts - 400).max() < 4.5 * np.sqrt(2000 * 0.2 * 0.8)
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 4.5 / np.sqrt(2000)


def test_random_feasible_keeps_what_fits_in_a_random_order() -> None:
    """150 bytes are left: site 2 (200 a level) never fits; sites 1 (100) and 3 (50) fit together up to levels 1 and 1.

    Each is wanted 4 times in 5. Site 1 misses out where site 3 came first and took 2 levels or more (3 times in 5); site 3
    always finds its 50 bytes.
    """
    policy = RandomFeasiblePolicy(SETUP)
    budget = np.full(20, 40.0 + 150.0)
    sent = np.concatenate([policy.choose(look(number, EVERYBODY, budget_bytes=budget)) for number in range(1, 201)])
    assert sent.max(axis=0).tolist() == [1, 0, 6]
    assert abs(z_share(float((sent[:, 0] > 0).sum()), 4000, 0.8 * (1 - 0.5 * 0.6))) < LIMIT
    assert abs(z_share(float((sent[:, 2] > 0).sum()), 4000, 0.8)) < LIMIT


def test_random_feasible_is_keyed_by_round_and_client() -> None:
    first = RandomFeasiblePolicy(SETUP).choose(look(4, (2, 9, 11)))
    assert RandomFeasiblePolicy(SETUP).choose(look(4, (11, 2))).tolist() == first[[2, 0]].tolist()
    assert RandomFeasiblePolicy(SETUP).choose(look(5, (2, 9, 11))).tolist() != first.tolist()


def test_largest_feasible_by_hand() -> None:
    """Uniform rank 2 costs 40 + 200 + 400 + 50, rank 4 adds 200 + 400 + 50, rank 8 is the cap everywhere."""
    budget = np.array([39.0, 339.0, 340.0, 689.9, 690.0, 1340.0, 1440.0, np.inf])
    ranks = LargestFeasiblePolicy(SETUP).choose(look(1, tuple(range(8)), budget_bytes=budget))
    assert ranks.tolist() == [
        [0, 0, 0], [0, 0, 0], [1, 1, 0], [1, 1, 0], [2, 2, 2], [4, 4, 4], [4, 4, 8], [4, 4, 8],
    ]  # fmt: skip
    assert LargestFeasiblePolicy(SETUP, backoff=0.5).choose(look(budget_bytes=np.full(3, 690.0))).tolist() == [[1, 1, 0]] * 3
    assert LargestFeasiblePolicy(SETUP).choose(look(budget_bytes=None)).tolist() == [CAPS.tolist()] * 3


def test_snr_thresholds_by_hand() -> None:
    policy = SnrThresholdPolicy(SETUP, thresholds_db=[-5.0, 5.0], ranks=[2, 7])
    ranks = policy.choose(look(1, (0, 1, 2, 3), links=links([-5.1, -5.0, 4.9, 5.0])))
    assert ranks.tolist() == [[0, 0, 0], [2, 2, 2], [2, 2, 2], [4, 4, 6]]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("snr-threshold", {}, "missing a required argument: 'thresholds_db'"),
        ("snr-threshold", {"thresholds_db": [0, 5], "ranks": [1]}, "has not one rank for each of the 2 thresholds_db"),
        ("snr-threshold", {"thresholds_db": [5, 5], "ranks": [1, 2]}, "thresholds_db = [5, 5]: give a list of rising numbers"),
        ("snr-threshold", {"thresholds_db": [], "ranks": []}, "give a list of rising numbers"),
        ("snr-threshold", {"thresholds_db": 5, "ranks": 1}, "give a list of rising numbers"),
        ("snr-threshold", {"thresholds_db": [5], "ranks": [9]}, "policy.options.ranks = [9] is outside 0 to 8"),
        ("snr-threshold", {"thresholds_db": [5], "ranks": [-1]}, "outside 0 to 8"),
        ("snr-threshold", {"thresholds_db": [5], "ranks": [1.5]}, "give whole numbers"),
        ("snr-threshold", {"thresholds_db": ["x"], "ranks": [1]}, "give numbers"),
        ("random-feasible", {"low": 1}, "Its options: none"),
        ("largest-feasible", {"rank": 1}, "Its options: backoff"),
        ("largest-feasible", {"backoff": 0}, "policy.options.backoff = 0: give a number above 0 and at most 1"),
    ],
)
def test_options_that_do_not_fit_are_one_error(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_policy(name, options, SETUP)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_not_told_is_one_error() -> None:
    with pytest.raises(ConfigError, match="'largest-feasible' needs to know what ranks cost in bytes"):
        LargestFeasiblePolicy(SETUP).choose(look(costs=None))
    with pytest.raises(ConfigError, match=r"'snr-threshold' goes by the SNR, and no radio is simulated: set world\.name"):
        SnrThresholdPolicy(SETUP, [0.0], [1]).choose(look(links=None))


@pytest.mark.parametrize("name", ["random-feasible", "largest-feasible", "snr-threshold", "importance", "greedy", "lyapunov"])
def test_they_are_found_by_name(name: str) -> None:
    options: dict[str, Any] = {"thresholds_db": [0.0], "ranks": [2]} if name == "snr-threshold" else {}
    chosen = make_policy(name, options, SETUP).choose(look())
    assert chosen.shape == (3, 3) and chosen.dtype == np.int64 and (chosen <= CAPS).all() and (chosen >= 0).all()
    assert POLICIES.entry(name).summary
