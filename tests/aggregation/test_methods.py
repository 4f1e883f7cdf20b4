"""What the methods promise of their aggregates, in float64: exact where it says so, and off by what it says where not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cases import Case, cast, draw
from fedlora.adapters import Tensors
from fedlora.aggregation import AGGREGATORS, Aggregator, GlobalState, Update
from fedlora.aggregation.stack import factored_svd, recompress
from fedlora.errors import ConfigError, PayloadError
from rounds import HEAD, adapters_of, client_states, make_update, relative, start_state

LORA, TRIPLET = Case("lora", "kaiming"), Case("triplet", "gaussian")
RANKS = [[3, 3], [1, 2], [2, 0], [3, 1]]
HEADS = draw(HEAD, 1, dtype=torch.float32)
EXACT = {
    "ravan": ("ravan", Case("ravan", "random", (("unit", "heads"),)), 1),
    "ffa-lora": ("mean", Case("ffa-lora", "kaiming"), 1),
    "fed-sb": ("mean", Case("fed-sb", "random"), 1),
    "rolora-b": ("mean", Case("rolora", "kaiming"), 1),
    "rolora-a": ("mean", Case("rolora", "kaiming"), 2),
    "full": ("mean", Case("full", "zero"), 1),
    "fedex-lora": ("fedex", LORA, 1),
    "fedex-triplet": ("fedex", TRIPLET, 1),
}


def in_double(rule: Aggregator) -> Aggregator:
    """Let the rule's adapters start in float64, so that its own rounding can be told from float32's."""
    for adapter in rule.adapters:
        first = adapter.init_state
        adapter.init_state = lambda generation=0, first=first: cast(first(generation))  # type: ignore[method-assign]
    return rule


def middle(rule: Aggregator) -> GlobalState:
    """Return a state in the middle of a run, float64."""
    state = rule.initial(draw(HEAD, 1))
    own = start_state(rule.adapters)
    state.sites = [
        {**cast(was), **{name: new[name] for name in was if name in new}} for was, new in zip(state.sites, own, strict=True)
    ]
    return state


def update_of(rule: Aggregator, client: int, ranks: list[int], number: int, examples: int = 10) -> Update:
    return make_update(rule.at(number), client, ranks, examples)


def models(rule: Aggregator, state: GlobalState, updates: list[Update], number: int, index: int) -> list[Tensor]:
    """Return each client's whole change of the weight at a site: what was merged, and its own adapter."""
    received, merge = rule.start(index, state.sites[index], number)
    if rule.own_prefix:
        received = {name: torch.zeros_like(tensor) for name, tensor in received.items()}
    base = merge[0] @ merge[1] if merge else 0.0
    adapter = rule.at(number)[index]
    return [base + adapter.delta_weight(adapter.place(u.sites[index], u.ranks[index], received)[0]) for u in updates]


def product(rule: Aggregator, state: GlobalState, index: int) -> Tensor:
    b, a = rule.export_factors(index, state.sites[index])
    return b @ a


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_the_aggregate_is_the_mean_of_the_clients_updates(name: str, weighting: str) -> None:
    method, case, number = EXACT[name]
    rule = in_double(AGGREGATORS.get(method)(adapters_of(case), weighting))
    state, examples = middle(rule), [5, 20, 11]
    caps = [adapter.cap for adapter in rule.adapters]
    for step in (number, number + 2):  # once more on top of what was merged
        updates = [update_of(rule, 10 * step + client, caps, step, examples[client]) for client in range(3)]
        shares = torch.tensor([1.0] * 3 if weighting == "uniform" else examples, dtype=torch.float64)
        wanted = [
            sum(
                share * model
                for share, model in zip(shares / shares.sum(), models(rule, state, updates, step, index), strict=True)
            )
            for index in range(2)
        ]
        state, _ = rule.aggregate(updates, state, step)
        for index, mean in enumerate(wanted):
            assert relative(product(rule, state, index), mean) < 1e-12


def test_fedex_is_exact_for_mixed_ranks_too() -> None:
    rule = in_double(AGGREGATORS.get("fedex")(adapters_of(LORA)))
    state = middle(rule)
    for number in (1, 2, 3):
        updates = [update_of(rule, 10 * number + client, ranks, number) for client, ranks in enumerate(RANKS)]
        wanted = [torch.stack(models(rule, state, updates, number, index)).mean(dim=0) for index in range(2)]
        state, _ = rule.aggregate(updates, state, number)
        for index, mean in enumerate(wanted):
            assert relative(product(rule, state, index), mean) < 1e-12


def test_fedexs_rest_is_carried_in_as_few_columns_as_its_rank() -> None:
    rule = in_double(AGGREGATORS.get("fedex")(adapters_of(LORA)))
    state = middle(rule)
    state, _ = rule.aggregate([update_of(rule, client, [3, 3], 1) for client in range(3)], state, 1)
    assert [site["residual.B"].shape[1] for site in state.sites] == [6, 6]  # (K - 1) r
    for number in range(2, 5):
        state, _ = rule.aggregate([update_of(rule, 10 * number + client, [3, 3], number) for client in range(3)], state, number)
    assert [tuple(site["residual.B"].shape) for site in state.sites] == [(20, 12), (24, 12)]  # never more than the weight's rank


def test_fedits_error_is_what_fedex_carries_and_not_zero() -> None:
    fedit, fedex = (AGGREGATORS.get(name)(adapters_of(LORA), "uniform") for name in ("fedavg-factors", "fedex"))
    updates = [update_of(fedit, client, [3, 3], 1) for client in range(3)]
    state = middle(fedit)
    found, _ = fedit.aggregate(updates, state, 1)
    carried, _ = in_double(fedex).aggregate(updates, middle(fedex), 1)
    for index in range(2):
        mean = torch.stack(models(fedit, state, updates, 1, index)).mean(dim=0)
        error = mean - product(fedit, found, index)
        assert float(error.norm() / mean.norm()) > 0.1
        assert relative(carried.sites[index]["residual.B"] @ carried.sites[index]["residual.A"], error) < 1e-12


# -- redistribution by SVD ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [[[3, 3]] * 3, RANKS, [[1, 1], [1, 2]]], ids=["equal", "mixed", "below-the-cap"])
def test_flexlora_is_the_best_approximation_of_the_mean(ranks: list[list[int]]) -> None:
    """Eckart-Young: the error of every prefix is the root of the squared singular values that are left out."""
    rule = in_double(AGGREGATORS.get("flexlora")(adapters_of(LORA), "uniform"))
    state = middle(rule)
    updates = [update_of(rule, client, own, 1) for client, own in enumerate(ranks)]
    wanted = [torch.stack(models(rule, state, updates, 1, index)).mean(dim=0) for index in range(2)]
    after, _ = rule.aggregate(updates, state, 1)
    for index, mean in enumerate(wanted):
        values = torch.linalg.svdvals(mean)
        b, a = rule.export_factors(index, after.sites[index])
        for rank in range(4):
            error = float((mean - b[:, :rank] @ a[:rank]).norm())
            assert error == pytest.approx(float(values[rank:].square().sum().sqrt()), abs=1e-9)


def test_flexlora_leaves_no_component_that_can_never_train_again() -> None:
    rule = in_double(AGGREGATORS.get("flexlora")(adapters_of(LORA)))
    after, _ = rule.aggregate([update_of(rule, 1, [1, 2], 1)], middle(rule), 1)
    for site, rank in zip(after.sites, (1, 2), strict=True):
        assert not site["B"][:, rank:].any() and bool((site["A"].norm(dim=1) > 0.1).all())


def test_factored_singular_values_are_those_of_the_product() -> None:
    b, a = draw({"b": (20, 9), "a": (9, 12)}, 1).values()
    u, s, v = factored_svd(b, a)
    assert torch.allclose(s, torch.linalg.svdvals(b @ a)[: len(s)], rtol=0, atol=1e-10)
    assert relative((u * s) @ v, b @ a) < 1e-12
    left, right = recompress(torch.cat([b, b], dim=1), torch.cat([a, -a]), trim=True)
    assert left.shape[1] <= 12 and float((left @ right).abs().max()) < 1e-9


def test_rank_partition_keeps_components_that_few_clients_train() -> None:
    """The collapse: nine clients of rank 1 and one of rank 3 repeat the same update of rank 3, as far as each can carry it."""
    kept = {}
    for name in ("flexlora", "rank-partition"):
        rule = in_double(AGGREGATORS.get(name)(adapters_of(LORA, ["tall"]), "uniform"))
        state = rule.initial(draw(HEAD, 1))
        b, a = (torch.linalg.qr(tensor).Q for tensor in draw({"b": (20, 3), "a": (12, 3)}, 5).values())
        whole: Tensors = {"A": a.T.contiguous(), "B": b / rule.adapters[0].scale}
        for number in range(1, 6):
            updates = [
                Update(client, 1, [rank], [{"A": whole["A"][:rank], "B": whole["B"][:, :rank]}], draw(HEAD, 1))
                for client, rank in enumerate([3] + [1] * 9)
            ]
            state, _ = rule.aggregate(updates, state, number)
            whole = state.sites[0]  # clients send back what they got: training changes nothing
        kept[name] = torch.linalg.svdvals(product(rule, state, 0))[:3]
    assert kept["flexlora"].tolist() == pytest.approx([1.0, 1e-5, 1e-5], abs=1e-9)
    assert kept["rank-partition"].tolist() == pytest.approx([1.0, 1.0, 1.0], abs=1e-9)


# -- zero-padding, HetLoRA, LoRA-FAIR ----------------------------------------------------------------------------------


def test_zero_padding_divides_by_all_clients() -> None:
    rule = AGGREGATORS.get("zero-pad")(adapters_of(LORA, ["tall"]), "uniform")
    updates = [update_of(rule, client, [rank], 1) for client, rank in enumerate([1, 3])]
    after, coverage = rule.aggregate(updates, middle(rule), 1)
    first, second = (client_states(rule.adapters, client)[0] for client in range(2))
    assert torch.allclose(after.sites[0]["A"][0], (first["A"][0] + second["A"][0]) / 2, rtol=0, atol=1e-12)
    assert torch.allclose(after.sites[0]["A"][1:], second["A"][1:] / 2, rtol=0, atol=1e-12)
    assert coverage == [1.0]


def test_hetlora_weights_clients_by_the_norms_of_their_updates() -> None:
    rule = AGGREGATORS.get("hetlora")(adapters_of(LORA))
    updates = [update_of(rule, client, ranks, 1) for client, ranks in enumerate(RANKS)]
    state = middle(rule)
    norms = torch.stack([torch.stack(models(rule, state, updates, 1, index)) for index in range(1)])[0].flatten(1).norm(dim=1)
    second = torch.stack(models(rule, state, updates, 1, 1)).flatten(1).norm(dim=1)
    wanted = (norms.square() + second.square()).sqrt()
    assert rule.weights(updates) == pytest.approx(wanted.tolist(), rel=1e-12)
    after, _ = rule.aggregate(updates, state, 1)
    padded = torch.zeros(4, 3, 12, dtype=torch.float64)
    for client, ranks in enumerate(RANKS):
        padded[client, : ranks[0]] = updates[client].sites[0]["A"]
    shares = wanted / wanted.sum()
    assert torch.allclose(after.sites[0]["A"], (shares[:, None, None] * padded).sum(dim=0), rtol=0, atol=1e-12)
    nothing = [Update(u.client, 10, [0, 0], [{}, {}], u.head) for u in updates]
    assert rule.weights(nothing) == [1.0] * 4


def test_hetlora_penalises_and_drops_the_tail_of_each_clients_own_rank() -> None:
    rule = AGGREGATORS.get("hetlora")(adapters_of(LORA), gamma=0.6, sparsity=0.5)
    params = [draw({"A": (3, 12), "B": (out, 3)}, 2, 3) for out in (20, 24)]
    ranks = torch.tensor([[3, 2], [1, 0], [2, 3]])
    found = rule.penalty(params, ranks)
    assert found is not None
    for client, own in enumerate(ranks.tolist()):
        wanted = 0.0
        for site, rank in zip(params, own, strict=True):
            tail = slice(max(1, int(0.6 * rank)), rank)  # one component is never dropped, and so has no penalty
            wanted += 0.5 * float(site["B"][client][:, tail].norm() * site["A"][client][tail].norm())
        assert float(found[client]) == pytest.approx(wanted, rel=1e-6)
    zeros = [{name: torch.zeros_like(tensor).requires_grad_() for name, tensor in site.items()} for site in params]
    penalty = rule.penalty(zeros, ranks)
    assert penalty is not None
    penalty.sum().backward()
    assert all(torch.equal(tensor.grad, torch.zeros_like(tensor)) for site in zeros for tensor in site.values())
    start = {name: tensor[0] for name, tensor in params[0].items()}
    smaller = {name: 0.5 * tensor for name, tensor in start.items()}
    assert rule.settle(0, 3, start, smaller) == 1 and rule.settle(0, 3, start, start) == 3
    assert rule.settle(0, 1, start, smaller) == 1 and rule.settle(0, 0, start, smaller) == 0
    assert AGGREGATORS.get("hetlora")(adapters_of(LORA), pruning=False).settle(0, 3, start, smaller) == 3


@pytest.mark.parametrize(("gamma", "rank", "first"), [(0.7, 90, 63), (0.29, 100, 29), (0.58, 50, 29), (0.99, 1, 1), (0.3, 2, 1)])
def test_hetloras_penalty_lies_on_what_pruning_drops(gamma: float, rank: int, first: int) -> None:
    """The tail begins at floor(gamma r) of the decimal gamma, wherever floats round it to."""
    adapters = [LORA.make("square", rank=1)]
    adapters[0].rank = rank  # a small site will do: shapes of state and masks are all that is asked
    rule = AGGREGATORS.get("hetlora")(adapters, gamma=gamma, sparsity=1.0)
    params = [{"A": torch.ones(1, rank, 2, requires_grad=True), "B": torch.ones(1, 2, rank, requires_grad=True)}]
    penalty = rule.penalty(params, torch.tensor([[rank]]))
    assert penalty is not None
    penalty.sum().backward()
    penalised = (params[0]["A"].grad[0].norm(dim=1) > 0).nonzero().flatten().tolist()  # type: ignore[index]
    assert penalised == list(range(first, rank))
    start = {"A": torch.ones(rank, 2), "B": torch.ones(2, rank)}
    assert rule.settle(0, rank, start, {name: 0.5 * tensor for name, tensor in start.items()}) == first


def test_hetloras_weights_bear_the_largest_numbers_there_are() -> None:
    rule = AGGREGATORS.get("hetlora")(adapters_of(LORA))
    updates = [make_update(rule.adapters, client, [3, 3], dtype=torch.float32) for client in range(4)]
    most = torch.finfo(torch.float32).max
    for value in (1e20, 3e38, most):
        sites = [{name: torch.full_like(tensor, value) for name, tensor in site.items()} for site in updates[0].sites]
        updates[0] = Update(0, 10, [3, 3], sites, HEADS)
        weights = rule.weights(updates)
        assert all(0 < weight < float("inf") for weight in weights) and weights[0] / max(weights[1:]) > 1e30
        after, _ = rule.aggregate(updates, GlobalState(start_state(rule.adapters, torch.float32), HEADS), 1)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in after.flat().values())


def _cosine(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum() / one.norm() / other.norm())


def test_lora_fair_points_closer_to_the_mean_update_than_fedit() -> None:
    fedit, fair = (AGGREGATORS.get(name)(adapters_of(LORA), "uniform") for name in ("fedavg-factors", "lora-fair"))
    updates = [update_of(fedit, client, [3, 3], 1) for client in range(3)]
    state = middle(fedit)
    plain, corrected = (rule.aggregate(updates, state, 1)[0] for rule in (fedit, fair))
    for index in range(2):
        mean = torch.stack(models(fedit, state, updates, 1, index)).mean(dim=0)
        before, after = (_cosine(product(fedit, found, index), mean) for found in (plain, corrected))
        assert after > before + 0.01
        assert torch.equal(plain.sites[index]["A"], corrected.sites[index]["A"])
    unmoved, _ = AGGREGATORS.get("lora-fair")(adapters_of(LORA), "uniform", steps=0).aggregate(updates, state, 1)
    assert torch.equal(unmoved.sites[0]["B"], plain.sites[0]["B"])


def test_lora_fairs_gradient_is_autograds() -> None:
    """One step of the descent, against the loss as the paper writes it, on the dense matrices."""
    rule = AGGREGATORS.get("lora-fair")(adapters_of(LORA, ["tall"]), "uniform", steps=2, lr=0.1, regulariser=0.3)
    updates = [update_of(rule, client, [3], 1) for client in range(3)]
    state = middle(rule)
    mean = torch.stack(models(rule, state, updates, 1, 0)).mean(dim=0) / rule.adapters[0].scale
    plain, _ = AGGREGATORS.get("fedavg-factors")(adapters_of(LORA, ["tall"]), "uniform").aggregate(updates, state, 1)
    b, a = plain.sites[0]["B"], plain.sites[0]["A"]
    delta = torch.zeros_like(b, requires_grad=True)
    for _ in range(2):
        now = (b + delta) @ a
        loss = 1 - (now * mean).sum() / now.norm() / mean.norm() + 0.3 * delta.square().sum()
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = (delta - 0.1 * gradient).detach().requires_grad_()
    found, _ = rule.aggregate(updates, state, 1)
    assert torch.allclose(found.sites[0]["B"], (b + delta).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2, 1.0, 100.0])
def test_lora_fair_never_ends_worse_than_it_began(size: float) -> None:
    """The smaller B, the steeper the cosine: with a fixed step B grew until it was thousands of times too large."""
    fedit, fair = (AGGREGATORS.get(name)(adapters_of(LORA), "uniform") for name in ("fedavg-factors", "lora-fair"))
    updates = [update_of(fedit, client, [3, 3], 1) for client in range(3)]
    updates = [
        replace(update, sites=[{**site, "B": size * site["B"] / site["B"].norm()} for site in update.sites]) for update in updates
    ]
    state = middle(fedit)
    plain, corrected = (rule.aggregate(updates, state, 1)[0] for rule in (fedit, fair))
    for index in range(2):
        mean = torch.stack(models(fedit, state, updates, 1, index)).mean(dim=0)
        before, after = (_cosine(product(fedit, found, index), mean) for found in (plain, corrected))
        moved = corrected.sites[index]["B"] - plain.sites[index]["B"]
        assert 1 - after + 0.01 * float(moved.square().sum()) <= 1 - before
        assert float(moved.norm()) <= 2 * float(plain.sites[index]["B"].norm())


# -- what stands still, and what never broadcasts ----------------------------------------------------------------------


@pytest.mark.parametrize(("number", "frozen", "moved"), [(1, "A", "B"), (2, "B", "A")])
def test_rolora_sends_one_factor_and_leaves_the_other_to_the_bit(number: int, frozen: str, moved: str) -> None:
    rule = AGGREGATORS.get("mean")(adapters_of(Case("rolora", "kaiming")))
    state = middle(rule)
    updates = [update_of(rule, client, [3, 2], number) for client in range(3)]
    assert all(list(site) == [moved] for update in updates for site in update.sites)
    after, _ = rule.aggregate(updates, state, number)
    for old, new in zip(state.sites, after.sites, strict=True):
        assert torch.equal(new[frozen], old[frozen]) and not torch.equal(new[moved], old[moved])


def test_stock_flower_broadcasts_a_rank_1_array_over_eight_rows_and_we_do_not() -> None:
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    rows, thin = np.ones((8, 4)), np.full((1, 4), 3.0)
    contents = [
        RecordDict({"arrays": ArrayRecord({"A": Array(array)}), "metrics": MetricRecord({"num-examples": 1})})
        for array in (rows, thin)
    ]
    assert (aggregate_arrayrecords(contents, "num-examples")["A"].numpy() == 2.0).all()  # a wrong average, without a word
    case = Case("lora", "kaiming")
    for name in AGGREGATORS.names():
        adapters = [case.make("square", rank=8)]
        try:
            rule = AGGREGATORS.get(name)(adapters)
        except ConfigError:  # the rule has no use for lora
            continue
        state = rule.initial(draw(HEAD, 1, dtype=torch.float32))
        good = [make_update(adapters, client, [8], dtype=torch.float32) for client in range(1, 5)]
        bad = Update(5, 10, [8], [{"A": good[0].sites[0]["A"][:1], "B": good[0].sites[0]["B"]}], good[0].head)
        with pytest.raises(PayloadError, match=r"shape: 'A' of site 'block.query' is \[1, 12\], expected \[8, 12\]"):
            rule.aggregate([*good, bad], state, 1)
