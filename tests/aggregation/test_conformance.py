"""What every aggregation rule promises, for every adapter that it accepts."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from cases import CASES, Case, draw, legal_ranks
from fedlora.aggregation import AGGREGATORS, Aggregator, GlobalState, Update
from fedlora.errors import AggregationError, ConfigError, PayloadError
from rounds import HEAD, adapters_of, make_update, start_state


def pairs() -> Iterator[tuple[str, Case]]:
    """Yield every rule with every adapter variant that it does not refuse."""
    for rule, case in itertools.product(AGGREGATORS.names(), CASES):
        if case.round > 1:  # a rule asks the adapters for the round's own
            continue
        try:
            AGGREGATORS.get(rule)(adapters_of(case))
        except ConfigError:
            continue
        yield rule, case


PAIRS = list(pairs())
every_pair = pytest.mark.parametrize(("rule", "case"), PAIRS, ids=str)


# A channel without noise and fades: what a rule promises cannot be seen through others.
# Rules whose head is the weighted mean; with a bound of the norms or among a few, it is not.
MEANS_OF_HEADS = set(AGGREGATORS.names()) - {"median", "trimmed-mean", "multi-krum", "norm-bound", "hetlora"}

OPTIONS: dict[str, dict[str, float]] = {"aircomp": {"snr_db": float("inf"), "threshold": 0.0}}


def setup(rule: str, case: Case, weighting: str = "auto") -> tuple[Aggregator, GlobalState]:
    """Return the rule and a state in the middle of a run, in float32 as on a real server."""
    aggregator = AGGREGATORS.get(rule)(adapters_of(case), weighting, **OPTIONS.get(rule, {}))
    state = aggregator.initial(draw(HEAD, 1, dtype=torch.float32))
    if all(site.keys() == adapter.state_shapes.keys() for site, adapter in zip(state.sites, aggregator.adapters, strict=True)):
        own = start_state(aggregator.adapters, torch.float32)
        state.sites = [{name: site[name] for name in was} for site, was in zip(own, state.sites, strict=True)]
    if rule in ("stack", "fedex"):
        state, _ = aggregator.aggregate(updates(aggregator, [9, 8], 0, round_number=1), state, 1)
    return aggregator, state


def sent_by(
    aggregator: Aggregator, client: int, ranks: list[int], examples: int = 10, dtype: torch.dtype = torch.float32, number: int = 2
) -> Update:
    """Return the update of a client in a round; rules that work with own prefixes get none that reaches beyond."""
    return make_update(aggregator.at(number), client, ranks, examples, dtype)


def updates(aggregator: Aggregator, clients: list[int], shift: int = 1, round_number: int = 2) -> list[Update]:
    """Return updates of mixed ranks, some of them 0; all at the cap where the rule cannot mix them."""
    ranks = [list(legal_ranks(adapter)) if aggregator.mixed_ranks else [adapter.cap] for adapter in aggregator.adapters]
    return [
        sent_by(
            aggregator,
            client,
            [own[(client + shift * index) % len(own)] for index, own in enumerate(ranks)],
            examples=10 + client,
            number=round_number,
        )
        for client in clients
    ]


def alone(aggregator: Aggregator, update: Update) -> list[Update]:
    """Return the update by itself, or from as many clients as the rule takes at least."""
    least = next(count for count in itertools.count(1) if not aggregator.objection_to_count(count))
    return [replace(update, client=client) for client in range(least)]


def same(left: GlobalState, right: GlobalState) -> bool:
    ours, theirs = left.flat(), right.flat()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@every_pair
def test_the_order_of_arrival_does_not_matter_by_a_bit(rule: str, case: Case) -> None:
    aggregator, state = setup(rule, case)
    replies = updates(aggregator, [3, 1, 4, 2, 5])
    expected, coverage = aggregator.aggregate(replies, state, 2)
    assert not same(expected, state)
    for order in itertools.islice(itertools.permutations(replies), 1, None, 25):
        found, theirs = aggregator.aggregate(order, state, 2)
        assert same(found, expected) and theirs == coverage


@every_pair
def test_without_any_update_there_is_nothing_to_aggregate(rule: str, case: Case) -> None:
    aggregator, state = setup(rule, case)
    with pytest.raises(AggregationError, match="there is nothing to aggregate: no update has come"):
        aggregator.aggregate([], state, 2)


@every_pair
def test_state_and_updates_are_left_as_they_were(rule: str, case: Case) -> None:
    aggregator, state = setup(rule, case)
    replies = updates(aggregator, [1, 2, 3, 4, 5])
    before = {key: tensor.clone() for key, tensor in state.flat().items()}
    sent = [[{key: tensor.clone() for key, tensor in site.items()} for site in reply.sites] for reply in replies]
    aggregator.aggregate(replies, state, 2)
    assert all(torch.equal(tensor, before[key]) for key, tensor in state.flat().items())
    for reply, copies in zip(replies, sent, strict=True):
        for site, copy in zip(reply.sites, copies, strict=True):
            assert all(torch.equal(tensor, copy[key]) for key, tensor in site.items())


@every_pair
def test_clients_that_send_no_component_leave_the_adapter_as_it_is(rule: str, case: Case) -> None:
    aggregator, state = setup(rule, case)
    none = [sent_by(aggregator, client, [0, 0]) for client in range(1, 6)]
    found, coverage = aggregator.aggregate(none, state, 2)
    assert coverage == [0.0, 0.0]
    assert same(GlobalState(found.sites), GlobalState(state.sites))
    assert not torch.equal(found.head["classifier.bias"], state.head["classifier.bias"])  # the head always travels


@every_pair
def test_coverage_is_the_share_that_somebody_sent(rule: str, case: Case) -> None:
    aggregator, state = setup(rule, case)
    caps = [adapter.cap for adapter in aggregator.adapters]
    # RoLoRA: one factor of two, A in round 2, of sites 20 x 12 and 24 x 12.
    whole = [12 / 32, 12 / 36] if case.method == "rolora" else [1.0, 1.0]
    assert aggregator.aggregate(alone(aggregator, sent_by(aggregator, 1, caps)), state, 2)[1] == pytest.approx(whole)
    ranks = [list(legal_ranks(adapter))[1] for adapter in aggregator.adapters]
    if ranks == caps:  # all or nothing
        return
    part = aggregator.aggregate(alone(aggregator, sent_by(aggregator, 1, ranks)), state, 2)[1]
    assert all(0.0 < share < most for share, most in zip(part, whole, strict=True))


@every_pair
def test_one_client_at_the_cap_is_taken_over_as_it_is(rule: str, case: Case) -> None:
    aggregator, state = setup(rule, case)
    caps = [adapter.cap for adapter in aggregator.adapters]
    update = sent_by(aggregator, 1, caps)
    found, _ = aggregator.aggregate(alone(aggregator, update), state, 2)
    assert all(torch.allclose(found.head[key], update.head[key], rtol=1e-6, atol=0) for key in found.head)
    for index, adapter in enumerate(aggregator.adapters):
        received, merge = aggregator.start(index, state.sites[index], 2)
        own, _ = adapter.at(2).place(update.sites[index], adapter.cap, received)
        wanted = adapter.delta_weight(own) + (merge[0] @ merge[1] if merge else 0)
        b, a = aggregator.export_factors(index, found.sites[index])
        assert torch.allclose(b @ a, wanted, rtol=0, atol=1e-4)


@every_pair
@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_weighting_can_be_chosen(rule: str, case: Case, weighting: str) -> None:
    if weighting not in AGGREGATORS.get(rule).weightings:
        with pytest.raises(ConfigError, match=rf"aggregator.weighting = '{weighting}' does not fit aggregator.method = '{rule}'"):
            setup(rule, case, weighting)
        return
    aggregator, state = setup(rule, case, weighting)
    caps = [adapter.cap for adapter in aggregator.adapters]
    count = 2 if not aggregator.objection_to_count(2) else 5
    light = [sent_by(aggregator, client, caps, 10) for client in range(1, count + 1)]
    heavy = [replace(update, examples=90 if update.client == 2 else 10) for update in light]
    equal = same(aggregator.aggregate(light, state, 2)[0], aggregator.aggregate(heavy, state, 2)[0])
    assert equal == (weighting == "uniform")
    if rule not in MEANS_OF_HEADS:
        return
    head = aggregator.aggregate(heavy, state, 2)[0].head["classifier.bias"]
    shares = (0.5, 0.5) if weighting == "uniform" else (0.1, 0.9)
    wanted = sum(share * update.head["classifier.bias"] for share, update in zip(shares, heavy, strict=True))
    assert torch.allclose(head, wanted, rtol=1e-5, atol=1e-6)


def misshapen(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return tensors of other shapes, most of which would broadcast against this one without a word."""
    thin = [tensor.narrow(axis, 0, 1) for axis in range(tensor.dim()) if tensor.shape[axis] > 1]
    short = [tensor.narrow(axis, 0, tensor.shape[axis] - 1) for axis in range(tensor.dim())]
    turned = [tensor.mT] if tensor.dim() > 1 and tensor.shape[-1] != tensor.shape[-2] else []
    return [*thin, *short, *turned, tensor.reshape(-1)[0], tensor[:1].squeeze(0), tensor.unsqueeze(0), tensor[None, :0]]


@every_pair
def test_a_payload_of_another_shape_is_never_broadcast(rule: str, case: Case) -> None:
    """Every tensor that is sent, by a client alone and beside one whose shapes are right: refused by name."""
    aggregator, state = setup(rule, case)
    caps = [adapter.cap for adapter in aggregator.adapters]
    update, good = sent_by(aggregator, 1, caps), sent_by(aggregator, 2, caps)
    tried = 0
    for name, item in aggregator.at(2)[0].spec(caps[0]).items():
        for wrong in misshapen(update.sites[0][name]):
            if tuple(wrong.shape) == item.shape:
                continue
            bad = Update(1, 10, caps, [{**update.sites[0], name: wrong}, update.sites[1]], update.head)
            words = re.escape(f"shape: '{name}' of site 'block.up' is {list(wrong.shape)}, expected {list(item.shape)}")
            beside = [replace(good, client=client) for client in range(2, 6)]
            for replies in (alone(aggregator, bad), [bad, *beside]):
                with pytest.raises(PayloadError, match=words):
                    aggregator.aggregate(replies, state, 2)
            tried += 1
    assert tried >= 4
    with pytest.raises(ValueError, match=r"tensor 'classifier.bias' has shape \(1,\), expected \(3,\)"):
        head = {**update.head, "classifier.bias": torch.zeros(1)}
        aggregator.aggregate(alone(aggregator, replace(update, head=head)), state, 2)


@every_pair
def test_a_head_or_a_payload_that_is_not_what_was_agreed_on_is_refused(rule: str, case: Case) -> None:
    """A head without one of its tensors, and all of a site from a client that was asked for a part of it."""
    aggregator, state = setup(rule, case)
    caps = [adapter.cap for adapter in aggregator.adapters]
    update = sent_by(aggregator, 1, caps)
    bias = {"classifier.bias": update.head["classifier.bias"]}
    with pytest.raises((ValueError, KeyError), match=r"classifier\.weight"):
        aggregator.aggregate(alone(aggregator, replace(update, head=bias)), state, 2)
    ranks = [adapter.unit if adapter.cap > adapter.unit else 0 for adapter in aggregator.adapters]
    with pytest.raises(PayloadError, match=r"^(shape|schema): "):
        aggregator.aggregate(alone(aggregator, replace(update, ranks=ranks)), state, 2)


@every_pair
def test_a_client_that_sends_the_largest_numbers_there_are_is_no_crash(rule: str, case: Case) -> None:
    """Finite numbers pass the checks of the wire. The round may be worth nothing then, and the rule says so in its own words."""
    aggregator, state = setup(rule, case)
    caps = [adapter.cap for adapter in aggregator.adapters]
    huge = sent_by(aggregator, 1, caps)
    most = torch.finfo(torch.float32).max
    for site in huge.sites:
        site |= {name: torch.full_like(tensor, most) for name, tensor in site.items() if tensor.is_floating_point()}
    replies = [huge, *(sent_by(aggregator, client, caps, examples=500) for client in range(2, 6))]
    try:
        found, _ = aggregator.aggregate(replies, state, 2)
    except AggregationError as error:
        assert "cannot be decomposed" in str(error)
        assert rule in ("flexlora", "rank-partition", "fedex", "stack")
        return
    if rule not in ("stack", "fedex", "flexlora", "rank-partition", "lora-fair", "aircomp"):
        assert all(bool(torch.isfinite(tensor).all()) for tensor in found.flat().values())
    if rule in ("median", "trimmed-mean", "multi-krum"):
        assert all(float(tensor.abs().max()) < 100 for tensor in found.flat().values())


@pytest.mark.parametrize("rule", ["fedavg-factors", "stack", "flexlora", "rank-partition", "fedex", "lora-fair", "zero-pad"])
def test_clients_without_examples_have_no_weight_to_aggregate_by(rule: str) -> None:
    aggregator, state = setup(rule, next(case for case in CASES if case.method == "lora"), "examples")
    none = [sent_by(aggregator, client, [3, 3], examples=0) for client in (1, 2)]
    with pytest.raises(AggregationError, match="the clients of the round have no examples to be weighted by"):
        aggregator.aggregate(none, state, 2)


def test_a_weighting_that_does_not_fit_names_those_that_a_run_file_can_ask_for() -> None:
    lora = next(case for case in CASES if case.method == "lora")
    for rule, wanted, fits in (("hetlora", "uniform", "'auto'"), ("median", "examples", "'auto' or 'uniform'")):
        with pytest.raises(ConfigError, match=rf"in its own way: use {fits}$"):
            AGGREGATORS.get(rule)(adapters_of(lora), wanted)


@pytest.mark.parametrize("rule", AGGREGATORS.names())
def test_registered_rules_say_what_they_are_and_fit_some_adapter(rule: str) -> None:
    aggregator = AGGREGATORS.get(rule)
    assert not inspect.isabstract(aggregator) and issubclass(aggregator, Aggregator)
    assert aggregator.name == rule and AGGREGATORS.entry(rule).summary == aggregator.summary
    assert aggregator.default_weighting in aggregator.weightings
    assert any(own == rule for own, _ in PAIRS)


@pytest.mark.parametrize(
    ("rule", "method", "reason"),
    [
        ("ravan", "lora", "the mean of its factors is not the mean of its updates. Use 'fedavg-factors'"),
        ("ravan", "triplet", "the mean of its factors is not the mean of its updates. Use 'fedavg-factors'"),
        ("ravan", "ffa-lora", "it averages heads, of which there are none. Use 'mean'"),
        ("mean", "lora", "the mean of its factors is not the mean of its updates. Use 'fedavg-factors'"),
        ("mean", "fedsa-lora", "the mean of its factors is not the mean of its updates. Use 'fedavg-factors'"),
        ("stack", "ffa-lora", "its mean is exact already and stacking would only add bytes. Use 'mean'"),
        ("stack", "fedsa-lora", "its clients keep a factor for themselves"),
        ("fedex", "fedsa-lora", "its clients keep a factor for themselves"),
        ("fedex", "rolora", "its mean is exact already. Use 'mean'"),
        ("flexlora", "triplet", "it works on the factors A and B of a LoRA. Use adapter.method = 'lora'"),
        ("hetlora", "ravan", "its mean is exact already. Use 'ravan'"),
        ("lora-fair", "full", "its mean is exact already. Use 'mean'"),
        ("fedavg-factors", "ravan", "it has no trained factors to average. Use 'ravan'"),
        ("stack", "ravan", "its mean is exact already and stacking would only add bytes. Use 'ravan'"),
    ],
)
def test_a_rule_that_makes_no_sense_says_why_and_what_does(rule: str, method: str, reason: str) -> None:
    case = next(case for case in CASES if case.method == method)
    with pytest.raises(ConfigError) as caught:
        AGGREGATORS.get(rule)(adapters_of(case))
    assert str(caught.value).startswith(f"aggregator.method = '{rule}' does not fit adapter.method = '{method}': {reason}")
