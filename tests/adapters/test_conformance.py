"""What every adapter promises, checked for every registered one, in every variant, on projections of every shape."""

from __future__ import annotations

import inspect
import itertools

import pytest
import torch
from torch import Tensor

from cases import CASES, LOSSLESS, SITES, Case, base_layer, cast, draw, draw_state, legal_ranks, select
from fedlora.adapters import ADAPTERS, Adapter, Selection, Tensors
from fedlora.adapters.base import numel
from fedlora.aggregation import AGGREGATORS, CoverageMean, GlobalState
from fedlora.config import TrainingConfig
from fedlora.errors import ConfigError, PayloadError
from fedlora.training.layers import AdaptedLinear
from fedlora.training.layout import Layout
from fedlora.training.optimisers import make_optimiser
from fedlora.wire import decode, encode, encoded_size

DTYPES = ("fp32", "bf16", "fp16", "int8")

every = pytest.mark.parametrize("case", CASES, ids=str)
lossless = pytest.mark.parametrize("case", LOSSLESS, ids=str)
shapes = pytest.mark.parametrize("shape", SITES)


def adapted(adapter: Adapter, params: Tensors, dtype: torch.dtype = torch.float64) -> AdaptedLinear:
    layer = AdaptedLinear(base_layer(adapter.site, dtype), adapter, cast(adapter.buffers(), dtype))
    layer.params = params
    return layer


def equal(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# -- the function ------------------------------------------------------------------------------------------------------


@every
@shapes
def test_starts_as_the_frozen_projection_exactly_where_it_says_so(case: Case, shape: str) -> None:
    adapter = case.make(shape)
    params = {name: tensor.unsqueeze(0) for name, tensor in adapter.params(adapter.init_state()).items()}
    layer = adapted(adapter, params, torch.float32)
    x = torch.randn(4, 5, adapter.site.in_features)
    same = torch.equal(layer(x), layer.base(x))
    assert same == adapter.noop_at_init
    moved = adapted(adapter, draw(adapter.param_shapes, 1, 1, dtype=torch.float32), torch.float32)
    assert not torch.allclose(moved(x), moved.base(x))


@every
@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_gradients_are_those_of_the_function(case: Case, shape: str) -> None:
    adapter = case.make(shape)
    buffers, names = cast(adapter.buffers()), list(adapter.param_shapes)
    params = draw(adapter.param_shapes, 1, 2)
    x, y = draw({"x": (3, adapter.site.in_features), "y": (3, adapter.site.out_features)}, 2, 2).values()

    def function(y: Tensor, x: Tensor, *values: Tensor) -> Tensor:
        return adapter.add_to(y, x, dict(zip(names, values, strict=True)), buffers)

    inputs = [tensor.requires_grad_() for tensor in (y, x, *params.values())]
    assert torch.autograd.gradcheck(function, inputs)


@every
@shapes
def test_merged_weight_gives_the_same_output(case: Case, shape: str) -> None:
    adapter = case.make(shape)
    params = draw(adapter.param_shapes, 1, 1)
    layer = adapted(adapter, params)
    x = draw({"x": (2, 3, adapter.site.in_features)}, 2)["x"]
    expected = layer(x)
    state = adapter.state({name: tensor[0] for name, tensor in params.items()})
    delta = adapter.delta_weight(state)
    assert delta.shape == (adapter.site.out_features, adapter.site.in_features)
    b, a = adapter.factors(state)
    assert torch.allclose(b @ a, delta, rtol=0, atol=1e-12)
    layer.base.weight += delta.T if adapter.site.transposed else delta
    assert (layer.base(x) - expected).abs().max() < 1e-10


@every
@shapes
def test_stacked_clients_equal_separate_ones_forward_and_backward(case: Case, shape: str) -> None:
    adapter, clients, rows = case.make(shape), 3, 2
    params = {name: tensor.requires_grad_() for name, tensor in draw(adapter.param_shapes, 1, clients).items()}
    x = draw({"x": (clients * rows, 3, adapter.site.in_features)}, 2)["x"].requires_grad_()
    layer = adapted(adapter, params)
    y = layer(x)
    target = draw({"y": tuple(y.shape)}, 3)["y"]
    (y * target).sum().backward()
    for client in range(clients):
        part = slice(client * rows, (client + 1) * rows)
        own = {name: tensor.detach()[client : client + 1].requires_grad_() for name, tensor in params.items()}
        layer.params = own
        own_x = x.detach()[part].requires_grad_()
        own_y = layer(own_x)
        (own_y * target[part]).sum().backward()
        assert torch.allclose(own_y, y[part], rtol=0, atol=1e-12)
        assert torch.allclose(own_x.grad, x.grad[part], rtol=0, atol=1e-12)
        for name, tensor in own.items():
            assert torch.allclose(tensor.grad[0], params[name].grad[client], rtol=0, atol=1e-11), name


# -- state and parameters ----------------------------------------------------------------------------------------------


@every
@shapes
def test_values_have_the_declared_shapes_and_come_from_the_seed_alone(case: Case, shape: str) -> None:
    adapter = case.make(shape)
    state, params = adapter.init_state(), adapter.params(adapter.init_state())
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == adapter.state_shapes
    assert {name: tuple(tensor.shape) for name, tensor in params.items()} == adapter.param_shapes
    assert adapter.trainable == sum(tensor.numel() for tensor in params.values())
    assert all(tensor.dtype == torch.float32 for tensor in (*state.values(), *params.values(), *adapter.buffers().values()))
    torch.manual_seed(99)  # the global generator has no say
    again, other = case.make(shape), case.make(shape, seed=1)
    elsewhere = case.make(shape, index=1)
    assert equal(state, again.init_state()) and equal(adapter.buffers(), again.buffers())
    assert equal(adapter.init_state(2), again.init_state(2))
    drawn = {**adapter.buffers(), **state}
    for different in (other, elsewhere):
        theirs = {**different.buffers(), **different.init_state()}
        assert any(not torch.equal(drawn[name], theirs[name]) for name in drawn) or case.method == "full"  # draws nothing


@every
def test_parameters_and_state_are_two_views_of_the_same_update(case: Case) -> None:
    adapter = case.make()
    state = draw_state(adapter, 1)
    assert equal(adapter.state(adapter.params(state)), state)
    assert state.keys() == adapter.state_shapes.keys() | set(adapter.personal)
    stacked = draw(adapter.param_shapes, 2, 3)
    together = adapter.state(stacked)
    for client in range(3):
        own = adapter.state({name: tensor[client] for name, tensor in stacked.items()})
        assert equal(own, {name: tensor[client] for name, tensor in together.items()})


@every
def test_state_survives_the_way_into_a_checkpoint_and_back(case: Case) -> None:
    adapters = [case.make(shape, index=index) for index, shape in enumerate(SITES)]
    head = {"classifier.weight": torch.randn(3, 4), "classifier.bias": torch.randn(3)}
    state = GlobalState([draw_state(adapter, index, torch.float32) for index, adapter in enumerate(adapters)], head)
    spec = state.spec()
    data = encode(state.flat(), "fp32", tag=3)
    back = GlobalState.from_flat(decode(data, "fp32", expect=spec, tag=3), len(adapters))
    assert len(data) == encoded_size(spec, "fp32")
    assert equal(back.head, head)
    assert all(equal(found, own) for found, own in zip(back.sites, state.sites, strict=True))


# -- ranks -------------------------------------------------------------------------------------------------------------


@every
@shapes
def test_any_request_becomes_the_largest_legal_rank_below_it(case: Case, shape: str) -> None:
    adapter = case.make(shape)
    ranks = list(legal_ranks(adapter))
    assert ranks[-1] == adapter.cap
    for request in range(-3, adapter.cap + 4):
        legal = max((rank for rank in ranks if rank <= request), default=0)
        assert adapter.snap(request) == legal
        assert adapter.select(request).rho == legal
        assert adapter.spec(request) == adapter.spec(legal)
    assert adapter.spec(0) == {} and not any(mask.any() for mask in adapter.state_masks(adapter.select(0)).values())
    sizes = [numel(adapter.spec(rank)) for rank in ranks]
    assert sizes == sorted(sizes) and sizes[1] > 0


@every
@shapes
@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_are_known_before_anything_is_trained(case: Case, shape: str, dtype: str) -> None:
    adapter = case.make(shape)
    state = draw_state(adapter, 1, torch.float32)
    for rank in legal_ranks(adapter):
        sent = adapter.slice(state, select(adapter, rank))
        spec = adapter.spec(rank)
        assert {name: tuple(tensor.shape) for name, tensor in sent.items()} == {name: item.shape for name, item in spec.items()}
        data = encode(sent, dtype)
        assert len(data) == encoded_size(spec, dtype)
        assert decode(data, dtype, expect=spec).keys() == sent.keys()


@lossless
@shapes
def test_what_is_sent_arrives_bit_by_bit_at_every_rank(case: Case, shape: str) -> None:
    adapter = case.make(shape)
    state, received = draw_state(adapter, 1, torch.float32), draw_state(adapter, 2, torch.float32)
    for rank in legal_ranks(adapter):
        selection = select(adapter, rank, seed=rank)
        sent, kept = adapter.upload(state, received, {}, selection)
        assert kept.keys() == (set(adapter.personal) if rank else set())
        assert numel(adapter.spec(rank)) == sum(int(mask.sum()) for mask in adapter.state_masks(selection).values())
        arrived = decode(encode(sent, "fp32"), "fp32", expect=adapter.spec(rank))
        found = adapter.selection_of(arrived, rank)
        assert found.rho == rank and torch.equal(found.heads, selection.heads)
        values, masks = adapter.place(arrived, rank, received)
        assert equal(masks, adapter.state_masks(selection))
        # On the mask what was sent, off it what had been received: no rank rescales what is kept.
        assert equal(values, {name: torch.where(masks[name], state[name], received[name]) for name in masks})


@lossless
def test_a_higher_rank_covers_all_that_a_lower_one_does(case: Case) -> None:
    adapter = case.make()
    covered = [adapter.state_masks(select(adapter, rank)) for rank in legal_ranks(adapter)]
    for lower, higher in itertools.pairwise(covered):
        assert all(bool((higher[name] | ~lower[name]).all()) for name in lower)
    # What stands still in this round is not sent at any rank; all the rest is at the cap.
    assert all(bool(mask.all()) == bool(mask.any()) for mask in covered[-1].values())
    assert any(mask.all() for mask in covered[-1].values())


@every
def test_the_scale_is_fixed_by_the_cap(case: Case) -> None:
    if case.method == "full":
        with pytest.raises(ConfigError, match=r"adapter.alpha has no meaning for adapter.method = 'full'"):
            case.make(alpha=3.0)
        return
    small, large, default = case.make(alpha=3.0), case.make(alpha=6.0), case.make(alpha=None)
    state = draw_state(small, 1)
    assert torch.allclose(2 * small.delta_weight(state), large.delta_weight(state), rtol=0, atol=1e-12)
    assert torch.allclose(small.delta_weight(state), default.delta_weight(state), rtol=0, atol=1e-12)  # alpha = rank = 3


@every
@pytest.mark.parametrize(("fault", "reason"), [("missing", "schema"), ("extra", "schema"), ("short", "shape"), ("flat", "shape")])
def test_a_payload_of_another_shape_is_refused_and_never_broadcast(case: Case, fault: str, reason: str) -> None:
    adapter = case.make()
    state = draw_state(adapter, 1, torch.float32)
    sent = dict(adapter.slice(state, adapter.select(adapter.cap)))
    name = next(name for name, item in adapter.spec(adapter.cap).items() if not item.index)
    wrong = {
        "missing": {key: tensor for key, tensor in sent.items() if key != name},
        "extra": {**sent, "more": torch.zeros(1)},
        "short": {**sent, name: sent[name][:1]},
        "flat": {**sent, name: sent[name].reshape(-1)[:1]},
    }[fault]
    with pytest.raises(PayloadError) as caught:
        adapter.place(wrong, adapter.cap, state)
    assert caught.value.reason == reason


# -- aggregation -------------------------------------------------------------------------------------------------------


def mean_of(adapter: Adapter, states: list[Tensors], rank: int) -> tuple[list[Tensors], Tensors]:
    """Return (what each client's payload stands for, their aggregated state), all clients at the same rank."""
    old = draw_state(adapter, 100)
    mean, placed = CoverageMean({name: old[name] for name in adapter.state_shapes}), []
    for state in states:
        sent, _ = adapter.upload(state, old, {}, adapter.select(rank))
        values, masks = adapter.place(sent, rank, old)
        mean.add(values, masks, 1.0)
        placed.append(values)
    return placed, mean.result()[0]


@every
@shapes
def test_averages_exactly_is_what_it_declares(case: Case, shape: str) -> None:
    adapter = case.make(shape)
    if adapter.personal:  # the server knows no update of the whole
        assert not adapter.averages_exactly
        return
    placed, merged = mean_of(adapter, [draw_state(adapter, seed) for seed in range(3)], adapter.cap)
    wanted = torch.stack([adapter.delta_weight(values) for values in placed]).mean(dim=0)
    error = float((adapter.delta_weight(merged) - wanted).norm() / wanted.norm())
    assert (error < 1e-10) if adapter.averages_exactly else (error > 1e-3)


@every
def test_a_lower_rank_in_the_next_round_loses_nothing(case: Case) -> None:
    adapter = case.make()
    old = draw_state(adapter, 1, torch.float32)
    for rank in legal_ranks(adapter):
        mean, covered = CoverageMean({name: old[name] for name in adapter.state_shapes}), None
        for client in range(2):
            selection = select(adapter, rank, seed=client)
            sent, _ = adapter.upload(draw_state(adapter, 10 + client, torch.float32), old, {}, selection)
            values, masks = adapter.place(sent, rank, old)
            mean.add(values, masks, 1.0)
            covered = masks if covered is None else {name: covered[name] | masks[name] for name in masks}
        merged, _ = mean.result()
        assert covered is not None
        for name, mask in covered.items():
            assert torch.equal(merged[name][~mask], old[name][~mask])
            assert not mask.any() or not torch.equal(merged[name][mask], old[name][mask])


# -- training ----------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_what_is_masked_does_not_move_by_a_bit(case: Case, optimizer: str) -> None:
    adapter = case.make()
    layout = Layout([adapter], {"classifier.bias": (3,)})
    ranks = list(legal_ranks(adapter))
    rows = torch.randn(len(ranks), layout.size)
    before, mask = rows.clone(), torch.ones(rows.shape, dtype=torch.bool)
    for client, rank in enumerate(ranks):
        for name, entries in adapter.param_masks(select(adapter, rank, seed=client)).items():
            layout.views(mask)[0][0][name][client] = entries
    config = TrainingConfig(steps=1, optimizer=optimizer, weight_decay=0.1)
    optimiser = make_optimiser(rows, mask, config)
    for _ in range(4):
        grads = torch.randn(rows.shape).masked_fill_(~mask, 0.0)
        optimiser.step(grads, torch.full((len(ranks), 1), 0.1), len(ranks))
    assert torch.equal(rows[~mask], before[~mask])
    assert bool((rows[mask] != before[mask]).all()) and mask[-1].any()
    if case.lossless:  # the first client has rank 0
        assert not any(entries[0].any() for entries in layout.views(mask)[0][0].values())


@lossless
def test_state_that_is_not_sent_is_not_trained_either(case: Case) -> None:
    """After training under `param_masks`, the state may differ only where the payload covers it."""
    adapter = case.make()
    for rank in legal_ranks(adapter):
        selection: Selection = select(adapter, rank, seed=rank)
        start = draw_state(adapter, 1, torch.float32)
        params = adapter.params(start)
        masks = adapter.param_masks(selection)
        trained = {name: torch.where(masks[name], tensor + 1, tensor) for name, tensor in params.items()}
        after, covered = adapter.state(trained), adapter.state_masks(selection)
        assert all(torch.equal(after[name][~covered[name]], start[name][~covered[name]]) for name in covered)


# -- the contract ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ADAPTERS.names())
def test_registered_adapters_say_what_they_are(method: str) -> None:
    adapter = ADAPTERS.get(method)
    assert not inspect.isabstract(adapter) and issubclass(adapter, Adapter)
    assert ADAPTERS.entry(method).summary == adapter.summary
    assert all(text and "\n" not in text for text in (adapter.summary, adapter.trained, adapter.source))
    made = next(case for case in CASES if case.method == method).make()
    AGGREGATORS.get(adapter.default_aggregator)([made])


@pytest.mark.parametrize("method", ADAPTERS.names())
def test_what_a_site_cannot_carry_is_refused_with_the_limit(method: str) -> None:
    case = next(case for case in CASES if case.method == method)
    for rank in () if method == "full" else (0, -1, 13):
        with pytest.raises(ConfigError, match=r"adapter.rank = .* does not fit site 'block.up' \(20 x 12\): choose 1 to 12"):
            case.make("tall", rank=rank, heads=1)
    with pytest.raises(ConfigError, match=rf"adapter.init = 'kaming' is not known to {method}; it has {case.init}"):
        case.make(init="kaming")
    assert case.make(init="auto").init == case.init
