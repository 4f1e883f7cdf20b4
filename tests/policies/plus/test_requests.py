"""Requests: every rank vector has one that comes back as it was, and none ever asks for more than fits."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedlora.ranks import Costs, Ranks
from fedlora_policies.plus.requests import ranks_of, requests_for


@st.composite
def costs(draw: Any, sites: int = 5, levels: int = 6, largest: int = 10_000) -> Costs:
    """Return costs of ragged caps, units above 1, uneven steps, and lowest levels that may be free (sent anyway)."""
    count = draw(st.integers(1, sites))
    reach = [draw(st.integers(1, levels)) for _ in range(count)]
    free = [draw(st.integers(0, most)) for most in reach]
    size = st.integers(1, largest)
    table = np.zeros((count, max(reach) + 1), np.int64)
    for site, (most, floor) in enumerate(zip(reach, free, strict=True)):
        steps = [0 if level <= floor else draw(size) for level in range(1, most + 1)]
        table[site, 1 : most + 1] = np.cumsum(steps)
        table[site, most + 1 :] = table[site, most]
    units = np.array([draw(st.integers(1, 4)) for _ in range(count)])
    return Costs(draw(st.integers(0, 5000)), table, units, np.array(reach) * units)


def free_ranks(known: Costs) -> Ranks:
    """Return the ranks that cost nothing, `[sites]`."""
    return np.asarray((known.table == 0).sum(axis=1).clip(max=known.levels + 1) - 1) * known.units


@st.composite
def cases(draw: Any) -> tuple[Costs, Ranks]:
    """Return costs and legal ranks, several rows of them."""
    known = draw(costs())
    rows = draw(st.integers(1, 3))
    levels = [[draw(st.integers(0, int(most))) for most in known.levels] for _ in range(rows)]
    return known, np.array(levels) * known.units


@settings(max_examples=150, deadline=None)
@given(case=cases(), spare=st.sampled_from([0, 1, 700, 10**6, np.inf]))
def test_ranks_come_back_as_they_were(case: tuple[Costs, Ranks], spare: float) -> None:
    """Also through float32, which is what networks learn; levels that are sent anyway come back as taken."""
    known, ranks = case
    budget = known.bytes(ranks) + spare
    wanted = np.maximum(ranks, free_ranks(known))
    asked = requests_for(ranks, known, budget)
    assert asked.shape == (len(ranks), len(known.caps) + 1) and (np.abs(asked) <= 1).all()
    for request in (asked, asked.astype(np.float32)):
        assert ranks_of(request, known, budget).tolist() == wanted.tolist()


@pytest.mark.parametrize("cap", [8, 64, 768])
def test_every_rank_of_a_site_beside_one_that_gets_nothing(cap: int) -> None:
    known = Costs.linear(np.array([770, 1540, 3080]), np.array([cap, cap, cap]), base=64)
    ranks = np.stack([np.arange(cap + 1), np.full(cap + 1, cap), np.zeros(cap + 1, np.int64)], axis=1)
    asked = requests_for(ranks, known, np.full(cap + 1, np.inf)).astype(np.float32)
    assert (ranks_of(asked, known, np.full(cap + 1, np.inf)) == ranks).all()


@st.composite
def requests(draw: Any) -> tuple[Costs, np.ndarray[Any, np.dtype[np.float64]]]:
    """Return costs and a request, which may lie beyond its bounds."""
    known = draw(costs())
    number = st.floats(-1.5, 1.5)
    return known, np.array([draw(number) for _ in range(len(known.caps) + 1)])


@settings(max_examples=150, deadline=None)
@given(case=requests(), share=st.floats(0, 1.2))
def test_never_more_than_fits_and_legal(case: tuple[Costs, Any], share: float) -> None:
    known, request = case
    budget = np.array([share * known.full])
    ranks = ranks_of(request[None], known, budget)
    assert ((ranks >= 0) & (ranks <= known.caps) & (ranks % known.units == 0)).all()
    assert (known.bytes(ranks) <= budget).all() or not ranks.any()


@settings(max_examples=60, deadline=None)
@given(case=requests(), share=st.floats(0, 1.2))
def test_bytes_rise_with_the_total(case: tuple[Costs, Any], share: float) -> None:
    known, request = case
    totals = np.linspace(-1, 1, 41)
    rows = np.column_stack([np.tile(request[:-1], (41, 1)), totals])
    ranks = ranks_of(rows, known, np.full(41, share * known.full))
    size = known.bytes(ranks)
    assert (np.diff(size) >= 0).all()
    least = known.table[known.table > 0].min(initial=10**9)
    # At the top nothing more fits: everything is taken, or what is left is less than some step.
    if share >= 1:
        assert size[-1] == known.full
    elif size[-1] > known.base + least:
        assert size[-1] > size[0]


def one_by_one(shares: list[int], known: Costs, spend: int) -> list[int]:
    """The rule, slowly: of all next levels that fit, take the one whose (level - 1/2) over its share is smallest."""
    left, taken = spend - known.base, [0] * len(shares)
    while True:
        best = None
        for site, level in enumerate(taken):
            step = int(known.table[site, level + 1] - known.table[site, level]) if level < known.levels[site] else left + 1
            when = Fraction(2 * level + 1, shares[site] * int(known.levels[site]))
            if step <= left and (best is None or when < best[0]):
                best = when, site, step
        if best is None:
            return [int(level * unit) for level, unit in zip(taken, known.units, strict=True)]
        taken[best[1]] += 1
        left -= best[2]


@settings(max_examples=120, deadline=None)
@given(known=costs(sites=4, levels=4, largest=300), data=st.data(), total=st.integers(0, 64))
def test_as_the_rule_says_one_level_at_a_time(known: Costs, data: Any, total: int) -> None:
    shares = [data.draw(st.integers(1, 64)) for _ in known.caps]
    due = [Fraction(2 * j + 1, s * int(n)) for s, n in zip(shares, known.levels, strict=True) for j in range(int(n))]
    assume(len(set(due)) == len(due) and known.full > known.base)
    steps = np.diff(known.table, axis=1)
    fits = known.full - data.draw(st.integers(0, known.full - known.base))
    slack = Fraction(int(steps[steps > 0].min()), 2)
    spend = int(min(known.base + Fraction(total, 64) * (fits - known.base) + slack, fits))
    request = np.array([*shares, total]) / 32.0 - 1.0
    assert ranks_of(request[None], known, np.array([fits])).tolist() == [one_by_one(shares, known, spend)]


def test_by_hand() -> None:
    """Shares 1 and 1/2 of four levels each: the first site's levels come at 1/8, 3/8, 5/8, 7/8, the other's at 1/4, 3/4, ..."""
    known = Costs.linear(np.array([10, 10]), np.array([4, 4]), base=5)
    request = np.array([[1.0, 0.0, 1.0]])
    grown = {4: [0, 0], 5: [0, 0], 15: [1, 0], 25: [1, 1], 35: [2, 1], 45: [3, 1], 55: [3, 2], 65: [4, 2], 75: [4, 3], 85: [4, 4]}
    for budget, ranks in grown.items():
        assert ranks_of(request, known, np.array([budget])).tolist() == [ranks]
    # With shares 1 and 0.35, the other's first level, at 0.5 / 0.35 = 1.43, still comes before the first site's second, at 1.5.
    assert ranks_of(np.array([[1.0, -0.3, 1.0]]), known, np.array([25.0])).tolist() == [[1, 1]]
    assert ranks_of(np.array([[1.0, 0.0, 0.0]]), known, np.array([np.inf])).tolist() == [[3, 1]]
    assert ranks_of(np.array([[1.0, 0.0, -1.0]]), known, np.array([np.inf])).tolist() == [[0, 0]]
    assert requests_for(np.array([[4, 2]]), known, np.array([np.inf])).tolist() == [[1.0, 0.0, 0.5]]
    assert requests_for(np.array([[0, 0]]), known, np.array([4.0])).tolist() == [[1.0, 1.0, -1.0]]
