"""LoRA and triplet beyond what every adapter promises: scale of the draws, component by component, numbers on the air."""

from __future__ import annotations

import pytest
import torch

from cases import Case, draw_state
from fedlora.adapters.base import numel
from fedlora.config import AdapterConfig
from fedlora.sites import Site

LORA, TRIPLET = Case("lora", "kaiming"), Case("triplet", "gaussian")


def wide(case: Case, **changes: object) -> object:
    from fedlora.adapters import ADAPTERS

    section = {"method": case.method, "init": case.init, "rank": 64, **changes}
    return ADAPTERS.get(case.method)(Site("wide", 400, 300), AdapterConfig(**section), 0, 0)


def test_first_factors_have_the_variance_they_document() -> None:
    kaiming, gaussian = (wide(Case("lora", init)).init_state() for init in ("kaiming", "gaussian"))
    bound = 400**-0.5
    assert kaiming["A"].abs().max() <= bound and kaiming["A"].abs().max() > 0.99 * bound
    assert float(kaiming["A"].var()) == pytest.approx(bound**2 / 3, rel=0.03)
    assert float(gaussian["A"].var()) == pytest.approx(1 / 400, rel=0.03)
    assert not kaiming["B"].any() and not gaussian["B"].any()
    triplet = wide(TRIPLET).init_state()
    assert float(triplet["P"].var()) == pytest.approx(1 / 300, rel=0.03)
    assert float(triplet["Q"].var()) == pytest.approx(1 / 400, rel=0.03)
    assert not triplet["E"].any()


def test_a_restart_draws_anew() -> None:
    adapter = LORA.make()
    assert not torch.equal(adapter.init_state(1)["A"], adapter.init_state(2)["A"])


def test_lora_is_the_scaled_product_of_its_factors() -> None:
    adapter = LORA.make("wide", alpha=6.0)
    state = draw_state(adapter, 1)
    assert torch.allclose(adapter.delta_weight(state), 2.0 * state["B"] @ state["A"], rtol=0, atol=1e-12)


def test_triplet_is_the_scaled_product_of_its_factors() -> None:
    adapter = TRIPLET.make("wide", alpha=6.0)
    state = draw_state(adapter, 1)
    expected = 2.0 * state["P"] @ torch.diag(state["E"]) @ state["Q"]
    assert torch.allclose(adapter.delta_weight(state), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("case", "each"), [(LORA, 20 + 12), (TRIPLET, 20 + 12 + 1)], ids=str)
def test_a_component_costs_its_rows_and_columns(case: Case, each: int) -> None:
    adapter = case.make("tall")
    assert [numel(adapter.spec(rank)) for rank in range(4)] == [0, each, 2 * each, 3 * each]


@pytest.mark.parametrize("case", [LORA, TRIPLET], ids=str)
def test_the_kept_components_contribute_what_they_did(case: Case) -> None:
    """A prefix of rank k is the sum of the first k outer products, with the scale of the cap."""
    adapter = case.make()
    state = draw_state(adapter, 1)
    b, a = adapter.factors(state)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for rank in range(4):
        prefix, _ = adapter.place(adapter.slice(state, adapter.select(rank)), rank, zeros)
        assert torch.allclose(adapter.delta_weight(prefix), b[:, :rank] @ a[:rank], rtol=0, atol=1e-12)


def test_dropping_a_component_of_a_triplet_touches_one_number() -> None:
    adapter = TRIPLET.make()
    state = draw_state(adapter, 1)
    cut = {**state, "E": state["E"].clone()}
    cut["E"][2] = 0
    b, a = adapter.factors(state)
    assert torch.allclose(adapter.delta_weight(cut), b[:, :2] @ a[:2], rtol=0, atol=1e-12)
