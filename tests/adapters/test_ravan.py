"""Ravan beyond what every adapter promises: bases, heads and how clients pick them, squares of heads, error feedback."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cases import SITES, Case, cast, draw, draw_state
from fedlora.adapters import ADAPTERS, Adapter
from fedlora.adapters.base import numel
from fedlora.config import AdapterConfig, load_config
from fedlora.errors import ConfigError, PayloadError
from fedlora.methods import rank_for_budget
from fedlora.sites import Site
from fedlora.streams import stream
from rounds import relative

HEADS = Case("ravan", "random", (("unit", "heads"),))
BLOCK = Case("ravan", "random", (("unit", "block"),))
SVD = Case("ravan", "random", (("unit", "svd"),))
ORTHOGONAL = Case("ravan", "gram-schmidt", (("unit", "heads"),))


def scored(score: str) -> Adapter:
    return HEADS.make(score=score)


# -- the update --------------------------------------------------------------------------------------------------------


def test_the_update_is_the_papers_sum_over_heads() -> None:
    """arXiv 2506.05568, eq. 7, spelled out head by head."""
    adapter = HEADS.make("wide", alpha=6.0)
    params, buffers = draw(adapter.param_shapes, 1), adapter.buffers()
    expected = torch.zeros(12, 20, dtype=torch.float64)
    for head in range(4):
        columns = slice(3 * head, 3 * head + 3)
        b, a = buffers["B"][:, columns].double(), buffers["A"][columns].double()
        expected += 2.0 * params["s"][head] * b @ params["H"][head] @ a
    assert torch.allclose(adapter.delta_weight(adapter.state(params)), expected, rtol=0, atol=1e-12)


def test_every_round_starts_with_s_at_one_and_the_scale_inside_h() -> None:
    adapter = HEADS.make()
    trained = draw(adapter.param_shapes, 1)
    sent = adapter.state(trained)
    assert torch.equal(sent["H"], trained["s"][:, None, None] * trained["H"])
    again = adapter.params(sent)
    assert torch.equal(again["s"], torch.ones(4, dtype=torch.float64)) and torch.equal(again["H"], sent["H"])


def test_the_rank_of_the_update_is_heads_times_rank() -> None:
    adapter = ORTHOGONAL.make("tall")
    assert torch.linalg.matrix_rank(adapter.delta_weight(draw_state(adapter, 1))) == 12
    one = ORTHOGONAL.make("tall", heads=1)
    assert torch.linalg.matrix_rank(one.delta_weight(draw_state(one, 1))) == 3


def test_trained_and_sent_numbers() -> None:
    adapter = HEADS.make()
    assert adapter.trainable == 4 * 9 + 4
    assert [numel(adapter.spec(rank)) for rank in (0, 3, 6, 9, 12)] == [0, 9, 18, 27, 36]
    block = BLOCK.make()
    assert [numel(block.spec(rank)) for rank in (1, 2, 3, 4, 5, 6)] == [1, 4, 9, 10, 13, 18]


# -- bases -------------------------------------------------------------------------------------------------------------


def test_gram_schmidt_bases_are_orthonormal_across_heads() -> None:
    buffers = ORTHOGONAL.make("tall").buffers()
    b, a = buffers["B"].double(), buffers["A"].double()
    eye = torch.eye(12, dtype=torch.float64)
    assert (b.T @ b - eye).abs().max() < 1e-6
    assert (a @ a.T - eye).abs().max() < 1e-6


def test_random_bases_have_columns_of_unit_length_on_average() -> None:
    config = AdapterConfig(method="ravan", rank=32, heads=4, init="random")
    buffers = ADAPTERS.get("ravan")(Site("wide", 400, 300), config, 0, 0).buffers()
    assert float(buffers["B"].square().sum(dim=0).mean()) == pytest.approx(1.0, rel=0.03)
    assert float(buffers["A"].square().sum(dim=1).mean()) == pytest.approx(1.0, rel=0.03)
    assert not torch.allclose(buffers["B"][:, :32], buffers["B"][:, 32:64])  # heads are drawn independently


def heads_of(adapter: Adapter) -> tuple[Tensor, Tensor]:
    """Return the bases head by head: B `[heads, out, r]` and A `[heads, r, in]`, in float64."""
    buffers = cast(adapter.buffers())
    heads, rank = adapter.config.heads, adapter.rank
    return buffers["B"].unflatten(1, (heads, rank)).transpose(0, 1), buffers["A"].unflatten(0, (heads, rank))


def test_constant_bases_are_the_same_in_every_head() -> None:
    b, a = heads_of(HEADS.make("tall", init="constant"))
    assert all(torch.equal(b[head], b[0]) and torch.equal(a[head], a[0]) for head in range(1, 4))


def test_shared_bases_are_one_space_turned_differently_in_every_head() -> None:
    """B_i = M R_i and A_i = R_i N: C_i = pinv(B_0) B_i is inv(R_0) R_i, and A_i pinv(A_0) is R_i inv(R_0) of the same R."""
    b, a = heads_of(HEADS.make("tall", init="shared-subspace"))
    for head in range(1, 4):
        left, right = torch.linalg.pinv(b[0]) @ b[head], a[head] @ torch.linalg.pinv(a[0])
        assert relative(b[0] @ left, b[head]) < 1e-5 and relative(right @ a[0], a[head]) < 1e-5
        assert torch.allclose(left.trace(), right.trace(), rtol=1e-4)  # R_i inv(R_0) and inv(R_0) R_i are similar
        assert torch.linalg.matrix_rank(left) == 3 and relative(b[head], b[0]) > 0.1


@pytest.mark.parametrize("init", ["constant", "shared-subspace"])
def test_bases_of_the_controls_have_columns_of_unit_length_on_average_too(init: str) -> None:
    config = AdapterConfig(method="ravan", rank=32, heads=4, init=init)
    buffers = ADAPTERS.get("ravan")(Site("wide", 400, 300), config, 0, 0).buffers()
    assert float(buffers["B"].square().sum(dim=0).mean()) == pytest.approx(1.0, rel=0.05)
    assert float(buffers["A"].square().sum(dim=1).mean()) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(("init", "rank"), [("random", 12), ("gram-schmidt", 12), ("constant", 3), ("shared-subspace", 3)])
def test_the_controls_reach_the_rank_of_one_head_only(init: str, rank: int) -> None:
    adapter = HEADS.make("tall", init=init)
    singular = torch.linalg.svdvals(adapter.delta_weight(draw_state(adapter, 1)))
    assert int((singular > 1e-5 * singular[0]).sum()) == rank  # bases are float32: B M is in their span up to rounding


@pytest.mark.parametrize("heads", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("init", ["random", "gram-schmidt", "constant", "shared-subspace"])
def test_any_number_of_heads_buys_what_its_budget_pays_for(heads: int, init: str) -> None:
    site = Site("wide", 96, 96)
    rank = rank_for_budget("ravan", 576, 96, 96, heads)
    assert rank == int((576 / heads) ** 0.5)
    config = AdapterConfig(method="ravan", rank=rank, heads=heads, init=init)
    adapter = ADAPTERS.get("ravan")(site, config, 0, 0)
    assert adapter.trainable == heads * rank**2 + heads <= 576 + heads
    assert adapter.cap == heads * rank and adapter.buffers()["B"].shape == (96, heads * rank)
    state = draw_state(adapter, 1)
    sent = adapter.slice(state, adapter.select(rank, torch.arange(heads).float()))
    assert sent["heads"].tolist() == [heads - 1] and torch.equal(sent["H"][0], state["H"][-1])


# -- scales ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["heads", "block", "svd"])
def test_fixed_scales_are_not_there_to_train_or_to_send(unit: str) -> None:
    fixed, trained = HEADS.make(unit=unit, scales="fixed"), HEADS.make(unit=unit)
    assert list(fixed.param_shapes) == ["H"] and fixed.trainable == trained.trainable - 4
    assert list(fixed.param_masks(fixed.select(3))) == ["H"]
    state = draw_state(fixed, 1)
    assert torch.equal(fixed.state(fixed.params(state))["H"], state["H"])
    assert torch.equal(fixed.delta_weight(state), trained.delta_weight(state))  # s at 1 is no s
    assert all(fixed.spec(rank) == trained.spec(rank) for rank in range(13))  # s H travels: s itself never does


def test_a_fixed_scale_stays_one_through_training() -> None:
    """One step of gradient descent on H alone: what comes out is H, with no factor of s in it."""
    adapter = HEADS.make("square", scales="fixed")
    params = {name: tensor.requires_grad_() for name, tensor in draw(adapter.param_shapes, 1, 1).items()}
    x, y = draw({"x": (3, 12), "y": (3, 12)}, 2, 1).values()
    before = params["H"].detach().clone()
    adapter.add_to(y, x, params, cast(adapter.buffers())).square().sum().backward()
    assert params["H"].grad is not None
    stepped = adapter.state({"H": params["H"].detach() - 0.1 * params["H"].grad})["H"]
    assert torch.equal(stepped, before - 0.1 * params["H"].grad)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (
            "init=orthogonal",
            "adapter.init = 'orthogonal' is not known to ravan; it has random, gram-schmidt, constant",
        ),
        ("scales=free", "unknown value 'free' for adapter.scales. Known: fixed, trained."),
        ("scale=fixed", "unknown key 'adapter.scale'. Did you mean 'adapter.scales'?"),
    ],
)
def test_what_ravan_does_not_have_is_one_sentence(key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ADAPTERS.get("ravan")(SITES["tall"], load_config(overrides=["adapter.rank=3", f"adapter.{key}"]).adapter, 0, 0)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_more_orthogonal_columns_than_dimensions_are_refused_with_the_limit() -> None:
    message = r"x adapter.rank = 16 .*'block.up' \(20 x 12\): the Gram-Schmidt limit is 12. Lower rank to 3"
    with pytest.raises(ConfigError, match=message):
        ORTHOGONAL.make("tall", rank=4)
    assert HEADS.make("tall", rank=4).cap == 16


# -- picking heads -----------------------------------------------------------------------------------------------------


def test_the_best_scored_heads_are_taken_in_the_order_of_their_scores() -> None:
    selection = HEADS.make().select(7, torch.tensor([0.2, 0.9, 0.1, 0.5]))
    assert selection.rho == 6 and selection.heads.tolist() == [1, 3]
    partial = BLOCK.make().select(7, torch.tensor([0.2, 0.9, 0.1, 0.5]))
    assert partial.rho == 7 and partial.heads.tolist() == [1, 3, 0]
    mask = BLOCK.make().state_masks(partial)["H"]
    assert mask[[1, 3]].all() and mask[0, 0, 0] and mask[0].sum() == 1 and not mask[2].any()


def test_weight_and_gradient_scores_rank_by_norm() -> None:
    norms = torch.tensor([3.0, 1.0, 4.0, 2.0])
    tensors = {"H": norms[:, None, None] * torch.ones(4, 3, 3)}
    flat = {"H": torch.zeros(4, 3, 3)}
    for score, state, grads in (("weight", tensors, None), ("gradient", flat, tensors)):
        adapter = scored(score)
        found = adapter.head_scores(state, grads, stream(0, "test"))
        assert found is not None
        assert adapter.select(12, found).heads.tolist() == [2, 0, 3, 1]


@pytest.mark.parametrize("score", ["random", "weight", "gradient"])
def test_ties_are_broken_by_the_clients_own_stream(score: str) -> None:
    """In round 1 every H is zero: clients must spread over the heads, and repeat themselves."""
    adapter = scored(score)
    zero = {"H": torch.zeros(4, 3, 3)}

    def pick(client: int) -> int:
        found = adapter.head_scores(zero, zero, stream(0, "head choice", 1, client))
        return int(adapter.select(3, found).heads)

    picks = [pick(client) for client in range(40)]
    assert picks == [pick(client) for client in range(40)]
    assert set(picks) == {0, 1, 2, 3}


@pytest.mark.parametrize("heads", [[0, 4], [1, 1], [-1, 0]])
def test_heads_out_of_range_or_named_twice_are_refused(heads: list[int]) -> None:
    adapter = HEADS.make()
    sent = {"heads": torch.tensor(heads), "H": torch.zeros(2, 3, 3)}
    with pytest.raises(PayloadError, match="names heads") as caught:
        adapter.place(sent, 6, adapter.init_state())
    assert caught.value.reason == "schema"


def test_s_of_a_head_of_which_only_a_block_trains_stays_at_one() -> None:
    adapter = BLOCK.make()
    masks = adapter.param_masks(adapter.select(5, torch.tensor([0.0, 3.0, 2.0, 1.0])))
    assert masks["s"].tolist() == [False, True, False, False]
    assert masks["H"][1].all() and masks["H"][2].sum() == 4


# -- unit = svd --------------------------------------------------------------------------------------------------------


def compressed(adapter: Adapter, change: Tensor, rank: int) -> Tensor:
    """Return what the server adds to H for a client whose change this is."""
    zero = {"H": torch.zeros_like(change)}
    sent, _ = adapter.upload({"H": change}, zero, {}, adapter.select(rank))
    return adapter.place(sent, rank, zero)[0]["H"]


def test_svd_sends_the_best_approximation_of_each_head() -> None:
    adapter = SVD.make("tall", rank=8, heads=2, init="random")
    change = draw_state(adapter, 1)["H"]
    values = torch.linalg.svdvals(change)
    for rank in range(0, 17, 2):
        left = change - compressed(adapter, change, rank)
        expected = values[:, rank // 2 :].square().sum(dim=1).sqrt()
        if rank // 2 < 4:  # from rank 4 on, 2 r k + k >= r^2: the head travels whole
            assert torch.allclose(left.flatten(1).norm(dim=1), expected, rtol=0, atol=1e-10)
        else:
            assert not left.any()


def test_svd_never_costs_more_than_the_heads_themselves() -> None:
    adapter = SVD.make("tall", rank=8, heads=2)
    sizes = [numel(adapter.spec(rank)) for rank in range(17)]
    assert sizes[:5] == [0, 17, 34, 51, 68] and max(sizes) == 2 * 64
    assert all(size <= 2 * 64 for size in sizes)


def test_what_svd_leaves_out_is_kept_and_sent_later() -> None:
    """Error feedback: what arrived plus what is kept is exactly all change so far, and the kept part stays bounded."""
    adapter = SVD.make("tall", rank=8, heads=2)
    selection = adapter.select(4)
    residual: dict[str, Tensor] = {}
    arrived = torch.zeros(2, 8, 8, dtype=torch.float64)
    total = torch.zeros_like(arrived)
    for step in range(12):
        received = {"H": arrived.clone()}
        change = draw_state(adapter, step % 2)["H"]
        sent, residual = adapter.upload({"H": received["H"] + change}, received, residual, selection)
        arrived = adapter.place(sent, 4, received)[0]["H"]
        total = total + change
        assert torch.allclose(arrived + residual["H"], total, rtol=0, atol=1e-10)
    assert residual["H"].norm() < 0.5 * total.norm()


def test_svd_trains_all_heads_whatever_is_sent() -> None:
    masks = SVD.make().param_masks(SVD.make().select(2))
    assert masks["H"].all() and masks["s"].all()


def test_svd_payloads_of_several_clients_average_to_their_mean() -> None:
    adapter = SVD.make("tall", rank=8, heads=2)
    received = draw_state(adapter, 9)
    placed = []
    for client in range(3):
        sent, _ = adapter.upload(draw_state(adapter, client), received, {}, adapter.select(4))
        placed.append(adapter.place(sent, 4, received)[0])
    mean = {"H": torch.stack([values["H"] for values in placed]).mean(dim=0)}
    wanted = torch.stack([adapter.delta_weight(values) for values in placed]).mean(dim=0)
    assert torch.allclose(adapter.delta_weight(mean), wanted, rtol=0, atol=1e-12)


def test_a_score_is_a_rank_so_that_nan_norms_do_not_break_the_order() -> None:
    adapter = scored("gradient")
    grads = {"H": torch.zeros(4, 3, 3)}
    grads["H"][2] = float("nan")
    found = adapter.head_scores(adapter.init_state(), grads, stream(0, "test"))
    assert found is not None and sorted(found.tolist()) == [0.0, 1.0, 2.0, 3.0]
    assert np.isfinite(found.numpy()).all()
