"""Policies without a model: what they choose, and which options they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlora.errors import ConfigError, UnknownNameError
from fedlora.federation.policy import POLICIES, FullPolicy, Observation, PolicySetup, Ranks, legal, make_policy, steady_ranks
from fedlora.federation.workbench import build
from fedlora_policies.simple import FixedPolicy, RandomPolicy, TieredPolicy
from tiny_run import Ground

CAPS, UNITS = np.array([16, 16, 8]), np.array([4, 4, 1])
SETUP = PolicySetup(seed=3, clients=20, caps=CAPS, units=UNITS)


def _look(round_number: int = 1, clients: tuple[int, ...] = (0, 5, 19)) -> Observation:
    return Observation(
        round=round_number,
        rounds=10,
        clients=np.array(clients),
        examples=np.full(len(clients), 10),
        caps=CAPS,
        units=UNITS,
        previous=np.zeros((len(clients), 3), np.int64),
    )


def test_full_is_the_cap_for_everybody() -> None:
    assert FullPolicy(SETUP).choose(_look()).tolist() == [CAPS.tolist()] * 3


@pytest.mark.parametrize(("rank", "row"), [(4, [4, 4, 4]), ([16, 0, 3], [16, 0, 3]), (0, [0, 0, 0]), (8, [8, 8, 8])])
def test_fixed_gives_one_rank_or_one_vector(rank: Any, row: list[int]) -> None:
    assert FixedPolicy(SETUP, rank).choose(_look()).tolist() == [row] * 3


def test_tiers_have_exact_shares_that_stay_for_the_whole_run() -> None:
    policy = TieredPolicy(SETUP, fractions=[0.25, 0.5, 1.0], weights=[1, 1, 2])
    everybody = tuple(range(20))
    ranks = policy.choose(_look(1, everybody))
    assert sorted(ranks[:, 0].tolist()) == [4] * 5 + [8] * 5 + [16] * 10
    assert (ranks[:, 2] * 2 == ranks[:, 0]).all()  # the same share of each site's cap
    assert policy.choose(_look(7, everybody)).tolist() == ranks.tolist()
    assert policy.choose(_look(7, (5, 0))).tolist() == ranks[[5, 0]].tolist()
    other = TieredPolicy(PolicySetup(4, 20, CAPS, UNITS), fractions=[0.25, 0.5, 1.0]).choose(_look(1, everybody))
    assert other[:, 0].tolist() != ranks[:, 0].tolist()


def test_the_default_tiers_are_quarters() -> None:
    ranks = TieredPolicy(SETUP).choose(_look(1, tuple(range(20))))
    assert sorted(ranks[:, 0].tolist()) == [4] * 5 + [8] * 5 + [12] * 5 + [16] * 5


@pytest.mark.parametrize(
    ("mix", "counts"), [("uniform", [5, 5, 5, 5]), ("bell", [2, 8, 8, 2]), ("skewed", [10, 5, 3, 2])], ids=str
)
def test_mixes_of_tiers(mix: str, counts: list[int]) -> None:
    ranks = TieredPolicy(SETUP, mix=mix).choose(_look(1, tuple(range(20))))
    assert [int((ranks[:, 0] == rank).sum()) for rank in (4, 8, 12, 16)] == counts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": "bel"}, "policy.options.mix = 'bel' is unknown. Did you mean 'bell'?"),
        ({"mix": "bell", "weights": [1, 1, 1, 1]}, "policy.options: give either weights or mix, not both"),
        ({"mix": "bell", "fractions": [0.5, 1.0]}, "policy.options.mix is for 4 tiers, fractions has 2: give weights instead"),
        (
            {"fractions": [0.2, 1.0]},
            "policy.options.fractions: 0.2 of the cap 16 is less than 4, the smallest step of a rank there",
        ),
    ],
)
def test_tiers_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TieredPolicy(SETUP, **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "options", "steady"),
    [
        ("full", {}, True),
        ("fixed", {"rank": [16, 4, 3]}, True),
        ("tiers", {"fractions": [0.25, 1.0]}, True),
        ("random", {}, False),
    ],
)
def test_they_say_which_ranks_each_client_always_gets(name: str, options: dict[str, Any], steady: bool) -> None:
    policy = make_policy(name, options, SETUP)
    said = steady_ranks(policy, 20, 3)
    assert (said is not None) == steady
    for number in (1, 2) if said is not None else ():
        assert policy.choose(_look(number, (0, 5, 19))).tolist() == said[[0, 5, 19]].tolist()


def test_steady_ranks_of_another_shape_are_one_error() -> None:
    policy = FullPolicy(SETUP)
    policy.steady_ranks = CAPS
    with pytest.raises(
        ConfigError, match=r"steady_ranks are of type int64, shape \[3\]; they are whole numbers of shape \[20, 3\]"
    ):
        steady_ranks(policy, 20, 3)


def test_random_ranks_are_legal_spread_and_keyed_by_round_and_client() -> None:
    policy = RandomPolicy(SETUP)
    drawn = np.concatenate([policy.choose(_look(number, tuple(range(20)))) for number in range(1, 21)])
    assert set(drawn[:, 0]) == {0, 4, 8, 12, 16} and set(drawn[:, 2]) == set(range(9))
    counts = np.bincount(drawn[:, 2])
    assert counts.min() > 20  # of 400 draws, 44 expected
    again = RandomPolicy(SETUP).choose(_look(20, (19, 3)))
    assert again.tolist() == drawn[-20:][[19, 3]].tolist()  # whoever else is drawn, and in whatever order


def test_random_ranks_keep_above_low() -> None:
    ranks = RandomPolicy(SETUP, low=0.6).choose(_look(1, tuple(range(20))))
    assert set(ranks[:, 0]) == {12, 16} and set(ranks[:, 2]) == {5, 6, 7, 8}
    assert (RandomPolicy(SETUP, low=1).choose(_look()) == CAPS).all()


@pytest.mark.parametrize("name", ["fixed", "tiers", "random", "full"])
def test_they_are_found_by_name(name: str) -> None:
    policy = make_policy(name, {"rank": 4} if name == "fixed" else {}, SETUP)
    chosen = policy.choose(_look())
    assert chosen.shape == (3, 3) and (chosen <= CAPS).all() and (chosen >= 0).all()
    assert POLICIES.entry(name).summary and POLICIES.get(name) is type(policy)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fixed", {}, "'fixed': missing a required argument: 'rank'. Its options: rank"),
        ("fixed", {"ranks": 4}, "policy.options do not fit policy.name = 'fixed': "),
        ("fixed", {"rank": 4, "more": 1}, "unexpected keyword argument 'more'. Its options: rank"),
        ("fixed", {"rank": 17}, "policy.options.rank = 17 is outside 0 to 16"),
        ("fixed", {"rank": [16, 16, 9]}, "outside 0 to"),
        ("fixed", {"rank": -1}, "outside 0 to 16"),
        ("fixed", {"rank": 3}, "policy.options.rank: 3 is less than 4, the smallest step of a rank there (for ravan one head)"),
        ("fixed", {"rank": [16, 3, 8]}, "policy.options.rank: 3 is less than 4, the smallest step"),
        ("fixed", {"rank": 2.5}, "policy.options.rank = 2.5: give whole numbers"),
        ("fixed", {"rank": "big"}, "policy.options.rank = 'big': give whole numbers"),
        ("fixed", {"rank": True}, "policy.options.rank = True: give whole numbers"),
        ("fixed", {"rank": 10**30}, "give whole numbers"),
        ("fixed", {"rank": [4, 4]}, "give one rank, or one for each of the 3 sites"),
        ("fixed", {"rank": [[4], [4, 4]]}, "give whole numbers"),
        ("fixed", {"rank": []}, "give one rank, or one for each of the 3 sites"),
        ("tiers", {"fractions": []}, "policy.options.fractions = []: give a list of numbers above 0 and at most 1"),
        ("tiers", {"fractions": 0.5}, "give a list of numbers above 0"),
        ("tiers", {"fractions": [0, 1]}, "above 0"),
        ("tiers", {"fractions": [2]}, "at most 1"),
        ("tiers", {"fractions": [float("nan")]}, "policy.options.fractions = [nan]: give numbers"),
        ("tiers", {"fractions": ["half"]}, "give numbers"),
        ("tiers", {"weights": [1]}, "policy.options.weights = [1]: give one share per fraction"),
        ("tiers", {"fractions": [0.5, 1.0], "weights": [0, 0]}, "not all zero"),
        ("tiers", {"fractions": [0.5, 1.0], "weights": [-1, 2]}, "none negative"),
        ("tiers", {"fractions": [0.5, 1.0], "weights": ["a", "b"]}, "policy.options.weights = ['a', 'b']: give numbers"),
        ("random", {"low": 1.5}, "policy.options.low = 1.5: give a number from 0 to 1"),
        ("random", {"low": "none"}, "policy.options.low = 'none': give numbers"),
        ("random", {"low": [0.5]}, "give a number from 0 to 1"),
        ("full", {"rank": 4}, "unexpected keyword argument 'rank'. Its options: none"),
    ],
)
def test_options_that_do_not_fit_are_one_error(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_policy(name, options, SETUP)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_policy_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"^unknown policy 'fixd'\. Did you mean 'fixed'\?$"):
        make_policy("fixd", {}, SETUP)


def test_whatever_is_asked_becomes_legal(ground: Ground) -> None:
    adapters = build(ground.config("adapter.rank=4", "adapter.heads=4")).adapters
    asked: Ranks = np.array([[-3, 3, 4, 100], [7, 8, 15, 16]])
    assert legal(asked, adapters).tolist() == [[0, 0, 4, 16], [4, 8, 12, 16]]
