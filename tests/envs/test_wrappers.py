"""Other action spaces: the projection keeps the budget and is the nearest choice; presets and moves say what they mean."""

from __future__ import annotations

from itertools import product
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from analytic import AnalyticTask, small_sites
from fedlora.errors import ConfigError
from fedlora.ranks import Costs
from fedlora_envs import gym_envs
from fedlora_envs.wrappers import (
    BudgetBox,
    RankMoves,
    UniformRank,
    VectorBudgetBox,
    VectorRankMoves,
    VectorUniformRank,
    project,
)


def task(episodes: int) -> AnalyticTask:
    """Return the analytic task at four sites."""
    return AnalyticTask(small_sites(4), episodes)


def one(**options: Any) -> gymnasium.Env[Any, Any]:
    """Return a single environment whose budget matters."""
    return gymnasium.make("fedlora/RemoteFineTuning-v0", task=task, **{"bandwidths_hz": [4e5], **options})


def many(count: int = 100, **options: Any) -> Any:
    """Return a vector of them."""
    return gymnasium.make_vec("fedlora/RemoteFineTuning-v0", count, task=task, **{"bandwidths_hz": [4e5], **options})


COSTS = Costs.linear(np.array([5, 3, 2]), np.array([3, 4, 2]), base=7)
WANTED = st.lists(st.floats(0, 4), min_size=3, max_size=3)


@given(wanted=WANTED, budget=st.floats(0, 60), floor=st.lists(st.integers(0, 2), min_size=3, max_size=3))
def test_the_projection_never_exceeds_the_budget(wanted: list[float], budget: float, floor: list[int]) -> None:
    least = np.array(floor)
    ranks = project(np.array([wanted]), COSTS, np.array([budget]), least)[0]
    assert (ranks >= least).all() and (ranks <= COSTS.caps).all()
    assert COSTS.bytes(ranks) <= max(budget, float(COSTS.bytes(least)))


@given(wanted=WANTED)
def test_without_a_limit_the_projection_rounds(wanted: list[float]) -> None:
    ranks = project(np.array([wanted]), COSTS, np.array([np.inf]))[0]
    assert (np.abs(ranks - np.minimum(wanted, COSTS.caps)) <= 0.5).all()


@given(wanted=WANTED, budget=st.floats(7, 60))
def test_the_projection_is_within_one_component_of_the_nearest_choice(wanted: list[float], budget: float) -> None:
    def distance(ranks: Any) -> float:
        return float(((np.asarray(ranks) - wanted) ** 2).sum())

    choices = [np.array(ranks) for ranks in product(range(4), range(5), range(3)) if COSTS.bytes(np.array(ranks)) <= budget]
    best = min(distance(ranks) for ranks in choices)
    got = distance(project(np.array([wanted]), COSTS, np.array([budget]))[0])
    # The component that did not fit is worth at most what the best first level of a site is worth.
    first = max(2 * want for want in wanted) + 1
    assert best - 1e-9 <= got <= best + first


def test_the_projection_is_the_nearest_choice_where_all_components_cost_the_same() -> None:
    rng, costs = np.random.default_rng(0), Costs.linear(np.array([3, 3, 3]), np.array([3, 4, 2]), base=7)
    for _ in range(200):
        wanted, budget = rng.uniform(0, 4, 3).clip(max=costs.caps), float(rng.uniform(7, 40))
        got = project(wanted[None], costs, np.array([budget]))[0]
        choices = [np.array(ranks) for ranks in product(range(4), range(5), range(3))]
        best = min(float(((ranks - wanted) ** 2).sum()) for ranks in choices if costs.bytes(ranks) <= budget)
        assert float(((got - wanted) ** 2).sum()) == pytest.approx(best)


def test_units_and_floors_are_kept() -> None:
    costs = Costs(10, np.array([[0, 5, 9, 12], [0, 7, 7, 7]]), np.array([2, 3]), np.array([6, 3]))
    wanted = np.array([[3.0, 1.0]])
    assert project(wanted, costs, np.array([np.inf])).tolist() == [[6, 3]]
    assert project(wanted, costs, np.array([22.0]), np.array([2, 0])).tolist() in ([[2, 3]], [[6, 0]])
    assert project(wanted, costs, np.array([0.0]), np.array([2, 3])).tolist() == [[2, 3]]
    assert project(wanted, costs, np.array([99.0]), np.array([6, 3])).tolist() == [[6, 3]]


def test_shares_in_a_box_always_fit_where_the_channel_is_known() -> None:
    vector = VectorBudgetBox(many(budget_s=3.0, min_rank=0))
    vector.reset(seed=0)
    vector.action_space.seed(0)
    sent = 0
    for _ in range(40):
        *_, info = vector.step(vector.action_space.sample())
        assert info["feasible"][info["latency_s"] > 0].all()
        sent += int((info["bits"] > 0).sum())
    assert sent > 500


def test_shares_mean_the_same_alone_and_in_a_vector() -> None:
    alone, vector = BudgetBox(one()), VectorBudgetBox(many(3))
    assert alone.action_space == vector.single_action_space == spaces.Box(0.0, 1.0, (4,), np.float32)
    alone.reset(seed=1)
    vector.reset(seed=0)
    shares = np.random.default_rng(0).random((3, 4), np.float32)
    reward = vector.step(shares)[1]
    assert alone.step(shares[1])[1] == reward[1]
    generous = BudgetBox(one(bandwidths_hz=[1e9]))
    generous.reset(seed=0)
    generous.step(np.array([0.0, 0.5, 0.99, 1.0], np.float32))
    assert generous.unwrapped.seen.previous.tolist() == [[1, 4, 8, 8]]  # type: ignore[attr-defined]


def test_one_rank_for_all_sites() -> None:
    alone = UniformRank(one(min_rank=2))
    assert alone.action_space == spaces.Discrete(7)
    alone.reset(seed=0)
    alone.step(3)
    assert alone.unwrapped.seen.previous.tolist() == [[5, 5, 5, 5]]  # type: ignore[attr-defined]
    vector = VectorUniformRank(many(3))
    vector.reset(seed=0)
    vector.step(np.array([0, 3, 7]))
    assert vector.unwrapped.seen.previous[:, 0].tolist() == [1, 4, 8]


def test_moves_go_one_level_and_stop_at_the_ends() -> None:
    vector = VectorRankMoves(many(2, horizon=50))
    vector.reset(seed=0)  # all at 4
    seen = []
    for _ in range(5):
        vector.step(np.array([[0, 1, 2, 2], [2, 2, 2, 0]]))
        seen.append(vector.unwrapped.seen.previous.tolist())
    assert seen[0] == [[3, 4, 5, 5], [5, 5, 5, 3]]
    assert seen[4] == [[1, 4, 8, 8], [8, 8, 8, 1]]
    alone = RankMoves(one())
    alone.reset(seed=0)
    alone.step(np.array([0, 1, 2, 2]))
    assert alone.unwrapped.seen.previous.tolist() == [[3, 4, 5, 5]]  # type: ignore[attr-defined]


def test_wrapped_environments_can_be_made_again_from_their_spec() -> None:
    spec = BudgetBox(one()).spec
    assert spec is not None
    again = gymnasium.make(spec)
    assert isinstance(again, BudgetBox)


def test_other_environments_are_refused() -> None:
    with pytest.raises(ConfigError, match="BudgetBox needs an environment of rank allocation"):
        BudgetBox(gymnasium.make("CartPole-v1"))
    with pytest.raises(ConfigError, match="vector environment of rank allocation"):
        VectorBudgetBox(gymnasium.make_vec("CartPole-v1", 2))
    with pytest.raises(gymnasium.error.ResetNeeded):
        VectorBudgetBox(gym_envs.RemoteFineTuningVectorEnv(2, task)).step(np.zeros((2, 4), np.float32))
