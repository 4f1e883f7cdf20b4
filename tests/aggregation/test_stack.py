"""FLoRA's stacked factors are exactly the weighted mean of the clients' updates, whatever their ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cases import Case, cast, draw
from fedlora.aggregation import AGGREGATORS, Aggregator, Update
from fedlora.aggregation.stack import recompress
from rounds import HEAD, adapters_of, client_states, make_update, relative

METHODS = [Case("lora", "kaiming"), Case("triplet", "gaussian")]
every_method = pytest.mark.parametrize("case", METHODS, ids=str)


def stack(case: Case) -> Aggregator:
    return AGGREGATORS.get("stack")(adapters_of(case))


def updates_of(rule: Aggregator, ranks: list[int], dtype: torch.dtype = torch.float64) -> list[Update]:
    return [
        make_update(rule.adapters, client, [rank, rank], examples=3 + client, dtype=dtype) for client, rank in enumerate(ranks)
    ]


def wanted_delta(rule: Aggregator, index: int, updates: list[Update]) -> Tensor:
    """Return the mean of the clients' own updates, weighted by examples; a client at rank 0 counts with a zero."""
    total = sum(update.examples for update in updates)
    delta = torch.zeros(rule.adapters[index].site.out_features, rule.adapters[index].site.in_features, dtype=torch.float64)
    for update in updates:
        b, a = rule.adapters[index].factors(client_states(rule.adapters, update.client)[index])
        rank = update.ranks[index]
        delta += update.examples / total * b[:, :rank] @ a[:rank]
    return delta


@every_method
@pytest.mark.parametrize("ranks", [[3, 3], [1, 3, 2], [0, 2], [3]], ids=str)
def test_the_product_is_the_weighted_mean_of_updates(case: Case, ranks: list[int]) -> None:
    rule = stack(case)
    updates = updates_of(rule, ranks)
    state, coverage = rule.aggregate(updates, rule.initial(draw(HEAD, 1)), 1)
    assert coverage == [max(ranks) / 3] * 2
    for index in range(2):
        b, a = rule.export_factors(index, state.sites[index])
        assert b.shape[1] == a.shape[0] == sum(ranks)  # nothing recompressed yet
        assert relative(b @ a, wanted_delta(rule, index, updates)) < 1e-12


@every_method
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
def test_rounds_accumulate_and_are_recompressed_without_loss(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    rule = stack(case)
    state = rule.initial(draw(HEAD, 1, dtype=dtype))
    total = [torch.zeros(20, 12, dtype=torch.float64), torch.zeros(24, 12, dtype=torch.float64)]
    for number, ranks in enumerate([[3, 3, 2], [1, 0, 3], [3, 3, 3], [2, 2, 2]], start=1):
        updates = updates_of(rule, ranks, dtype)
        state, _ = rule.aggregate(updates, state, number)
        for index in range(2):
            exact = updates if dtype == torch.float64 else updates_of(rule, ranks, torch.float64)
            if dtype == torch.float64:
                total[index] += wanted_delta(rule, index, exact)
            else:  # the clients' own tensors are float32: what counts is what the server adds to that
                total[index] += _sum_of(rule, index, updates)
            b, a = state.sites[index]["B"].double(), state.sites[index]["A"].double()
            assert b.shape[1] <= 12
            assert relative(b @ a, total[index]) < tolerance
    assert state.sites[0]["B"].dtype == dtype


def _sum_of(rule: Aggregator, index: int, updates: list[Update]) -> Tensor:
    total = sum(update.examples for update in updates)
    delta = torch.zeros(rule.adapters[index].site.out_features, rule.adapters[index].site.in_features, dtype=torch.float64)
    for update in updates:
        adapter, rank = rule.adapters[index], update.ranks[index]
        if rank:
            placed, _ = adapter.place(update.sites[index], rank, adapter.init_state())
            b, a = adapter.factors(cast(placed))
            delta += update.examples / total * b[:, :rank] @ a[:rank]
    return delta


@every_method
def test_a_client_at_rank_0_counts_in_the_divisor(case: Case) -> None:
    rule = stack(case)
    alone = updates_of(rule, [3])
    both = [alone[0], make_update(rule.adapters, 1, [0, 0], examples=alone[0].examples)]
    empty = rule.initial(draw(HEAD, 1))
    full, half = (rule.aggregate(updates, empty, 1)[0].sites[0] for updates in (alone, both))
    assert relative(2 * half["B"] @ half["A"], full["B"] @ full["A"]) < 1e-12


@every_method
def test_every_round_starts_from_a_fresh_adapter_on_top_of_the_merged_update(case: Case) -> None:
    rule = AGGREGATORS.get("stack")(adapters_of(case))
    state = rule.initial({})
    first, merge = rule.start(0, state.sites[0], 1)
    assert merge is not None and merge[0].shape == (20, 0) and merge[1].shape == (0, 12)
    again, _ = rule.start(0, state.sites[0], 1)
    later, _ = rule.start(0, state.sites[0], 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], later[name]) for name in first)
    assert not rule.adapters[0].delta_weight(later).any()  # what is merged is all there is
    assert not rule.sliced_downlink


@pytest.mark.parametrize("columns", [1, 11, 12, 13, 40])
def test_recompressing_keeps_the_product(columns: int) -> None:
    b, a = draw({"b": (20, columns), "a": (columns, 12)}, 1).values()
    left, right = recompress(b, a)
    assert left.shape == (20, min(columns, 12)) and right.shape == (min(columns, 12), 12)
    assert relative(left @ right, b @ a) < 1e-12
    if columns <= 12:
        assert torch.equal(left, b) and torch.equal(right, a)


def test_recompressing_takes_a_product_of_lower_rank_and_zero() -> None:
    b, a = draw({"b": (20, 2), "a": (2, 12)}, 1).values()
    left, right = recompress(b.repeat(1, 10), a.repeat(10, 1))
    assert relative(left @ right, 10 * b @ a) < 1e-12
    left, right = recompress(torch.zeros(20, 30), torch.zeros(30, 12))
    assert not (left @ right).any() and torch.isfinite(left).all() and torch.isfinite(right).all()
