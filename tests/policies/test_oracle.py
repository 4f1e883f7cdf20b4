"""The clairvoyant: the best of all choices where these can be counted out, and a bound above it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from fedlora.errors import ConfigError
from fedlora.federation.policy import POLICIES, make_policy
from fedlora.ranks import Costs, Floats, Ranks, greedy_ranks
from fedlora_policies.knapsack import best_ranks, knapsack
from fedlora_policies.oracle import ClairvoyantSetup, OraclePolicy
from fedlora_policies.rollout import play
from looks import CAPS, COSTS, SETUP, UNITS
from rank_problem import RankProblem

SEEDS = np.arange(20_000, 20_040, dtype=np.uint64)


def problem_of(rng: np.random.Generator) -> tuple[Floats, Costs]:
    """Return a few rows of any shape: uneven steps, caps below the rest, units, gains that rise and fall, some zero."""
    sites, levels = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    caps = np.minimum(rng.integers(1, levels + 1, sites), levels)
    caps[0] = levels
    steps = rng.integers(0, 30, (sites, levels)) * (np.arange(levels) < caps[:, None])
    table = np.concatenate([np.zeros((sites, 1), np.int64), np.cumsum(steps, axis=1)], axis=1)
    units = rng.integers(1, 4, sites)
    gains = rng.exponential(1, (4, sites, levels)) * (rng.random((4, sites, levels)) < 0.8)
    return gains, Costs(int(rng.integers(0, 10)), table, units, caps * units)


def value(gains: Floats, costs: Costs, ranks: Ranks, price: float) -> float:
    """Return the worth of one choice, less the price of its bytes beyond the base."""
    levels = ranks // costs.units
    gained = sum(float(gains[site, :level].sum()) for site, level in enumerate(levels))
    return gained - price * float(costs.bytes(ranks) - costs.base)


def best_by_hand(gains: Floats, costs: Costs, budget: float, price: float) -> float:
    found = 0.0
    for levels in product(*(range(int(count) + 1) for count in costs.levels)):
        ranks = np.array(levels) * costs.units
        if costs.bytes(ranks) <= budget:
            found = max(found, value(gains, costs, ranks, price))
    return found


@pytest.mark.parametrize("price", [0.0, 0.03])
def test_the_best_of_all_choices(price: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        gains, costs = problem_of(rng)
        budget = rng.uniform(-5, 1.1 * costs.full, 4)
        ranks, found, bound = best_ranks(gains, costs, budget, price)
        assert ((costs.bytes(ranks) <= budget) | ~ranks.any(axis=1)).all()
        for row in range(4):
            assert found[row] == pytest.approx(best_by_hand(gains[row], costs, budget[row], price), abs=1e-9)
            assert value(gains[row], costs, ranks[row], price) == pytest.approx(found[row], abs=1e-9)
            assert bound[row] == pytest.approx(found[row], abs=1e-9)  # proven


def test_as_dynamic_programming_over_bytes() -> None:
    """The textbook recursion, one byte at a time, on 24 sites of 6 levels."""
    rng = np.random.default_rng(2)
    gains = np.sort(rng.exponential(1, (1, 24, 6)), axis=2)[:, :, ::-1]
    costs = Costs.linear(rng.integers(3, 40, 24), np.full(24, 6, np.int64), base=11)
    for share in (0.1, 0.35, 0.7):
        left = int(share * costs.full) - costs.base
        table = np.zeros(left + 1)
        for site in range(24):
            total, new = 0.0, table.copy()
            for level in range(1, 7):
                total += gains[0, site, level - 1]
                size = int(costs.table[site, level])
                if size <= left:
                    new[size:] = np.maximum(new[size:], table[: left + 1 - size] + total)
            table = new
        found = best_ranks(gains, costs, np.array([left + costs.base + 0.5]))[1]
        assert found[0] == pytest.approx(table[-1], rel=1e-12)


def test_bound_above_oracle_above_anything() -> None:
    rng = np.random.default_rng(3)
    gains = np.sort(rng.exponential(1, (12, 60, 8)), axis=2)[:, :, ::-1].copy()
    costs = Costs.linear(np.where(np.arange(60) % 2, 1153, 769), np.full(60, 8, np.int64), base=500)
    budget = rng.uniform(0.1, 0.9, 12) * costs.full
    problem = knapsack(gains, costs, budget)
    ranks, found, bound = best_ranks(gains, costs, budget)
    assert (costs.bytes(ranks) <= budget).all() and (found <= bound * (1 + 1e-12)).all()
    assert (bound <= problem.bound * (1 + 1e-12)).all() and (problem.bound < 1.01 * found).all()
    others = [greedy_ranks(gains, costs, budget), *(np.full((12, 60), rank) for rank in range(9))]
    others += [rng.integers(0, 9, (12, 60)) for _ in range(20)]
    for other in others:
        fits = costs.bytes(other) <= budget
        assert (problem.worth(other)[fits] <= found[fits] * (1 + 1e-12)).all()


def test_a_narrow_search_is_honest_about_it() -> None:
    """With too little room to prove the best the bound stays above, and greedy's choice is never lost."""
    rng = np.random.default_rng(4)
    gains = np.sort(rng.exponential(1, (6, 60, 8)), axis=2)[:, :, ::-1].copy()
    costs = Costs.linear(rng.integers(700, 1300, 60), np.full(60, 8, np.int64))
    budget = np.full(6, 0.3 * costs.full)
    _, best, _ = best_ranks(gains, costs, budget, width=50_000)
    ranks, found, bound = best_ranks(gains, costs, budget, width=3)
    own = knapsack(gains, costs, budget)
    assert (own.worth(greedy_ranks(gains, costs, budget)) <= found + 1e-12).all() and (found <= best + 1e-9).all()
    assert (bound >= best - 1e-9).all() and (bound > found).any()
    assert own.worth(ranks) == pytest.approx(found)


def test_it_is_refused_in_a_run_with_one_sentence() -> None:
    assert "compare" in POLICIES.entry("oracle").summary
    with pytest.raises(ConfigError, match=r"'oracle' sees what no policy can know beforehand: .* `fedlora compare`") as caught:
        make_policy("oracle", {}, SETUP)
    assert "\n" not in str(caught.value)


def test_it_looks_at_the_truth_and_nothing_else() -> None:
    """Two steps behind the channel, every other policy overshoots; the oracle never does, and nobody gains more."""
    core = RankProblem(len(SEEDS), delay=2)
    oracle = play(core, "oracle", {}, SEEDS)
    assert (oracle.feasible == 1).all()
    for name, options in (("greedy", {}), ("greedy", {"backoff": 0.5}), ("fixed", {"rank": 1}), ("random-feasible", {})):
        other = play(core, name, options, SEEDS)
        assert (other.returns <= oracle.returns + 1e-9).all(), name


def test_share_and_price_make_it_save() -> None:
    core = RankProblem(len(SEEDS))
    everything = play(core, "oracle", {}, SEEDS).sums["bytes"]
    assert (play(core, "oracle", {"share": 0.2}, SEEDS).sums["bytes"] <= 8 * (100 + 0.2 * (core.costs.full - 100))).all()
    assert (play(core, "oracle", {"price": 1.0}, SEEDS).sums["bytes"] <= everything).all()
    assert play(core, "oracle", {"price": 1.0}, SEEDS).sums["bytes"].sum() < 0.9 * everything.sum()


@pytest.mark.parametrize("options", [{"price": -1}, {"share": 0}, {"width": 0}])
def test_options_that_do_not_fit_are_one_error(options: dict[str, float]) -> None:
    setup = ClairvoyantSetup(0, 1, CAPS, UNITS, COSTS, truth=RankProblem(1).truth)
    assert isinstance(make_policy("oracle", {}, setup), OraclePolicy)
    with pytest.raises(ConfigError, match=f"policy.options.{next(iter(options))} = "):
        make_policy("oracle", options, setup)
