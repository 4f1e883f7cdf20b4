"""What robust rules withstand when two of ten clients send sign-flipped or scaled updates, and that they are the rules named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.serverapp.strategy.multikrum import select_multikrum
from torch import Tensor

from cases import Case, draw
from fedlora.adapters import Tensors
from fedlora.aggregation import AGGREGATORS, Aggregator, GlobalState, Update
from fedlora.aggregation.robust import TrimmedMean
from fedlora.errors import AggregationError, ConfigError
from rounds import HEAD, adapters_of

FULL, RAVAN = Case("full", "zero"), Case("ravan", "random", (("unit", "heads"),))
CLIENTS, BAD = 10, 2
ATTACKS: dict[str, Callable[[Tensor], Tensor]] = {
    "sign-flipped": lambda change: -change,
    "flipped-and-scaled": lambda change: -10 * change,
    "scaled": lambda change: 100 * change,
}


def spread(case: Case, attack: str | None = None) -> tuple[list[Update], GlobalState, list[Tensors]]:
    """Return ten updates that agree but for some noise, two of them attacked, the state before, and the honest changes."""
    adapters = adapters_of(case)
    state = GlobalState([draw(adapter.state_shapes, 40 + index) for index, adapter in enumerate(adapters)], draw(HEAD, 1))
    common = draw({key: tuple(tensor.shape) for key, tensor in state.flat().items()}, 2)
    updates, honest = [], []
    for client in range(CLIENTS):
        noise = draw({key: tuple(tensor.shape) for key, tensor in common.items()}, 100 + client)
        change = {key: common[key] + 0.3 * noise[key] for key in common}
        honest.append(change)
        if attack and client < BAD:
            change = {key: ATTACKS[attack](tensor) for key, tensor in change.items()}
        sent = GlobalState.from_flat({key: state.flat()[key] + change[key] for key in change}, len(adapters))
        sites = [adapter.slice(site, adapter.select(adapter.cap)) for adapter, site in zip(adapters, sent.sites, strict=True)]
        updates.append(Update(client, 10, [adapter.cap for adapter in adapters], sites, sent.head))
    return updates, state, honest


def error(rule: Aggregator, case: Case, attack: str) -> float:
    """Return how far the aggregate is from the honest clients' mean, relative to the length of their change."""
    updates, state, honest = spread(case, attack)
    after, _ = rule.aggregate(updates, state, 1)
    found = torch.cat([(after.flat()[key] - state.flat()[key]).flatten() for key in honest[0]])
    wanted = torch.stack([torch.cat([change[key].flatten() for key in change]) for change in honest[BAD:]]).mean(dim=0)
    return float((found - wanted).norm() / wanted.norm())


# A fifth of the clients: mean, median, trimmed mean, Multi-Krum, norm bound.
WITHSTANDS = {
    "sign-flipped": {"mean": 0.4, "median": 0.2, "trimmed-mean": 0.2, "multi-krum": 1e-9, "norm-bound": 0.4},
    "flipped-and-scaled": {"mean": 2.2, "median": 0.2, "trimmed-mean": 0.2, "multi-krum": 1e-9, "norm-bound": 0.4},
    "scaled": {"mean": 19.8, "median": 0.2, "trimmed-mean": 0.2, "multi-krum": 1e-9, "norm-bound": 0.1},
}


@pytest.mark.parametrize("case", [FULL, RAVAN], ids=str)
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_each_rule_withstands(attack: str, case: Case) -> None:
    """The mean is dragged along as far as the attack reaches; the norm bound caps that reach, the others hardly notice."""
    errors = {name: error(AGGREGATORS.get(name)(adapters_of(case)), case, attack) for name in WITHSTANDS[attack]}
    for name, bound in WITHSTANDS[attack].items():
        if name == "mean" or (name == "norm-bound" and attack != "scaled"):
            assert errors[name] == pytest.approx(bound, rel=0.25), errors
        else:
            assert errors[name] < bound, errors


def test_without_attack_they_stay_near_the_mean() -> None:
    updates, state, _ = spread(FULL)
    mean, _ = AGGREGATORS.get("mean")(adapters_of(FULL)).aggregate(updates, state, 1)
    for name in ("median", "trimmed-mean", "multi-krum", "norm-bound"):
        after, coverage = AGGREGATORS.get(name)(adapters_of(FULL)).aggregate(updates, state, 1)
        assert coverage == [1.0, 1.0]
        for key, tensor in after.flat().items():
            assert float((tensor - mean.flat()[key]).norm() / (mean.flat()[key] - state.flat()[key]).norm()) < 0.2


def test_median_and_trimmed_mean_are_numpys_and_flowers() -> None:
    for clients in (9, 10):
        updates, state, _ = spread(FULL)
        updates = updates[:clients]
        stacked = {"0/W": np.stack([update.sites[0]["W"].numpy() for update in updates])}
        median, _ = AGGREGATORS.get("median")(adapters_of(FULL)).aggregate(updates, state, 1)
        assert np.allclose(median.sites[0]["W"], np.median(stacked["0/W"], axis=0), rtol=0, atol=1e-12)
        for share in (0.0, 0.2, 0.45):
            rule = AGGREGATORS.get("trimmed-mean")(adapters_of(FULL), share=share)
            trimmed, _ = rule.aggregate(updates, state, 1)
            assert np.allclose(trimmed.sites[0]["W"], trim_mean(stacked["0/W"], share), rtol=0, atol=1e-12)


@pytest.mark.parametrize("select", [None, 1, 3])
@pytest.mark.parametrize("attack", [None, "sign-flipped"])
def test_multi_krum_picks_whom_flower_picks(select: int | None, attack: str | None) -> None:
    updates, state, _ = spread(FULL, attack)
    after, _ = AGGREGATORS.get("multi-krum")(adapters_of(FULL), select=select).aggregate(updates, state, 1)
    contents = [
        RecordDict({"arrays": ArrayRecord({key: Array(t.numpy()) for key, t in GlobalState(u.sites, u.head).flat().items()})})
        for u in updates
    ]
    picked = select_multikrum(contents, BAD, select or CLIENTS - BAD)
    for key, tensor in after.flat().items():
        wanted = np.mean([content["arrays"][key].numpy() for content in picked], axis=0)
        assert np.allclose(tensor, wanted, rtol=0, atol=1e-12)


def colluding(rule: Aggregator, clients: int, attackers: int, length: float = 100.0) -> float:
    """Return how long the aggregate is, relative to what honest clients agree on, where attackers send one and the same."""
    updates, state, _ = spread(FULL)
    common = draw({key: tuple(tensor.shape) for key, tensor in state.flat().items()}, 2)
    sent = GlobalState.from_flat({key: state.flat()[key] - length * tensor for key, tensor in common.items()}, 2)
    evil = [Update(client, 10, [1, 1], sent.sites, sent.head) for client in range(attackers)]
    after, _ = rule.aggregate([*evil, *updates[attackers:clients]], state, 1)
    found, wanted = (
        torch.cat([tensor.flatten() for tensor in tensors])
        for tensors in ([after.flat()[key] - state.flat()[key] for key in common], list(common.values()))
    )
    return float(found.norm() / wanted.norm())


@pytest.mark.parametrize(
    ("clients", "malicious", "select", "words"),
    [
        (5, 0.4, None, "f = 2 of 5 clients may be malicious, and it takes at least 2 f + 3 = 7 clients to tell them from the"),
        (6, 0.2, None, "f = 2 of 6 clients may be malicious, and it takes at least 2 f + 3 = 7 clients"),
        (2, 0.2, None, "f = 1 of 2 clients may be malicious, and it takes at least 2 f + 3 = 5 clients"),
        (2, 0.0, None, "f = 0 of 2 clients may be malicious, and it takes at least 2 f + 3 = 3 clients"),
        (10, 0.2, 9, "aggregator.options.select = 9 is more than n - f = 8, the clients that are left where f = 2 of 10 may be"),
        (5, 0.2, None, ""),
        (7, 0.2, 5, ""),
        (3, 0.0, 3, ""),
        (25, 0.28, 18, ""),  # f is 7 and not 8: 0.28 x 25 is a hair above 7 in floating point
        (50, 0.14, 43, ""),
    ],
)
def test_multi_krum_refuses_what_colluding_attackers_would_win(
    clients: int, malicious: float, select: int | None, words: str
) -> None:
    rule = AGGREGATORS.get("multi-krum")(adapters_of(FULL), malicious=malicious, select=select)
    reason = rule.objection_to_count(clients)
    assert (words in reason) if words else reason == ""
    if not words:
        rule.check_count(clients)
        return
    with pytest.raises(ConfigError) as refused:
        rule.check_count(clients)
    assert str(refused.value).startswith(f"clients_per_round = {clients} does not fit aggregator.method = 'multi-krum': ")
    assert str(refused.value).endswith(". Raise clients_per_round or change aggregator.options")
    updates, state, _ = spread(FULL)
    with pytest.raises(AggregationError, match=r"aggregator.method = 'multi-krum' can make nothing of this round: .*clients"):
        rule.aggregate(updates[:clients], state, 1)


@pytest.mark.parametrize(("clients", "attackers", "malicious"), [(5, 1, 0.2), (7, 2, 0.2), (7, 2, 0.25), (10, 3, 0.3)])
def test_multi_krum_withstands_attackers_who_send_the_same(clients: int, attackers: int, malicious: float) -> None:
    rule = AGGREGATORS.get("multi-krum")(adapters_of(FULL), malicious=malicious)
    assert colluding(rule, clients, attackers) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("clients", [3, 4, 5])
def test_the_trimmed_mean_of_a_few_clients_still_leaves_one_attacker_out(clients: int) -> None:
    rule = AGGREGATORS.get("trimmed-mean")(adapters_of(FULL))
    assert rule.objection_to_count(clients) == "" and colluding(rule, clients, 1) == pytest.approx(1.0, abs=0.2)


def test_the_trimmed_mean_takes_three_clients_unless_it_is_to_be_the_mean() -> None:
    updates, state, _ = spread(FULL)
    rule = AGGREGATORS.get("trimmed-mean")(adapters_of(FULL), share=0.05)
    for clients, words in ((1, "there is 1"), (2, "there are 2")):
        with pytest.raises(ConfigError, match=rf"clients_per_round = {clients} does not fit .* takes 3 .*{words}\. Raise"):
            rule.check_count(clients)
        with pytest.raises(AggregationError, match=rf"can make nothing of this round: it cuts .*{words}$"):
            rule.aggregate(updates[:clients], state, 1)
    mean = AGGREGATORS.get("trimmed-mean")(adapters_of(FULL), share=0.0)
    mean.check_count(1)
    assert torch.equal(mean.aggregate(updates[:1], state, 1)[0].sites[0]["W"], updates[0].sites[0]["W"])


def test_the_trimmed_mean_counts_in_decimals() -> None:
    """0.29 of 100 clients are 29; int(0.29 * 100) is 28."""
    values = torch.arange(100.0).square()[:, None]
    rule = AGGREGATORS.get("trimmed-mean")(adapters_of(FULL), share=0.29)
    assert isinstance(rule, TrimmedMean)
    assert float(rule.combine({"x": values}, {"x": values[0]})["x"]) == pytest.approx(float(values[29:71].mean()))


@pytest.mark.parametrize(("clients", "attackers"), [(2, 1), (4, 2), (10, 5)])
def test_half_of_the_clients_cannot_lift_the_norm_bound(clients: int, attackers: int) -> None:
    """The lower one of the two lengths in the middle is an honest client's, however long the attackers' are."""
    rule = AGGREGATORS.get("norm-bound")(adapters_of(FULL))
    assert all(colluding(rule, clients, attackers, length) < 1.2 for length in (100.0, 1e6, 1e30))


def test_norm_bound_cuts_to_a_length() -> None:
    updates, state, honest = spread(FULL, "scaled")
    rule = AGGREGATORS.get("norm-bound")(adapters_of(FULL), bound=0.5)
    after, _ = rule.aggregate(updates[:1], state, 1)
    moved = torch.cat([(after.flat()[key] - state.flat()[key]).flatten() for key in honest[0]])
    assert float(moved.norm()) == pytest.approx(0.5, rel=1e-9)


def test_what_compares_clients_refuses_what_cannot_be_compared() -> None:
    lora = Case("lora", "kaiming")
    for name in ("median", "trimmed-mean", "multi-krum"):
        rule = AGGREGATORS.get(name)(adapters_of(lora))
        assert rule.objection_to(np.array([[3, 3], [3, 2]])) == "it compares clients entry by entry and cannot mix ranks"
        assert rule.objection_to(np.array([[3, 2], [3, 2]])) == rule.objection_to(np.array([[1, 0]])) == ""
        heads = AGGREGATORS.get(name)(adapters_of(RAVAN))
        assert "choose heads of their own" in heads.objection_to(np.array([[6, 6], [6, 6]]))
        assert heads.objection_to(np.array([[12, 12], [12, 12]])) == ""
        adapters = adapters_of(RAVAN)
        state = GlobalState([draw(adapter.state_shapes, 1) for adapter in adapters], draw(HEAD, 1))
        halves = [
            Update(
                c,
                1,
                [6, 6],
                [a.slice(s, a.select(6, torch.tensor(order))) for a, s in zip(adapters, state.sites, strict=True)],
                draw(HEAD, c),
            )
            for c, order in enumerate(([1.0, 2, 3, 4], [4.0, 3, 2, 1]))
        ]
        with pytest.raises(AggregationError, match="their updates cover different entries"):
            heads.aggregate([replace(half, client=client) for client, half in enumerate([*halves, *halves, halves[0]])], state, 1)
    mean = AGGREGATORS.get("fedavg-factors")(adapters_of(lora))
    assert mean.objection_to(np.array([[3, 3], [3, 2]])) == ""


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("trimmed-mean", {"share": 0.5}, "aggregator.options.share must be at least 0 and below 0.5, got 0.5"),
        ("trimmed-mean", {"share": True}, "aggregator.options.share must be at least 0 and below 0.5, got True"),
        ("multi-krum", {"malicious": -0.1}, "aggregator.options.malicious must be at least 0"),
        ("multi-krum", {"select": 0}, "aggregator.options.select must be a whole number of at least 1, got 0"),
        ("norm-bound", {"bound": 0}, "aggregator.options.bound must be a number above 0, got 0"),
        ("norm-bound", {"bound": "much"}, "aggregator.options.bound must be a number above 0, got 'much'"),
        ("hetlora", {"gamma": 1.0}, "aggregator.options.gamma must be above 0 and below 1, got 1.0"),
        ("hetlora", {"sparsity": -1}, "aggregator.options.sparsity must be a number >= 0, got -1"),
        ("hetlora", {"pruning": 1}, "aggregator.options.pruning must be true or false, got 1"),
        ("lora-fair", {"steps": 1.5}, "aggregator.options.steps must be a whole number, got 1.5"),
        ("lora-fair", {"lr": -1}, "aggregator.options.lr must be a number >= 0, got -1"),
    ],
)
def test_options_out_of_range_are_named(rule: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AGGREGATORS.get(rule)(adapters_of(Case("lora", "kaiming")), **options)
    assert str(caught.value).startswith(message)
