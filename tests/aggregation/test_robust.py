"""What robust rules withstand when two of ten clients send sign-flipped or scaled updates, and that they are the rules named."""

from __future__ import annotations

from collections.abc import Callable

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
            heads.aggregate(halves, state, 1)
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
