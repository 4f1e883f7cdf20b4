"""Means over the clients that sent an entry: Ravan's, exact, and FedIT's, which is not."""

from __future__ import annotations

import pytest
import torch

from cases import Case, draw, select
from fedlora.adapters import ADAPTERS
from fedlora.aggregation import AGGREGATORS, CoverageMean, GlobalState, Update
from rounds import HEAD, adapters_of, client_states, make_update, relative, start_state

HEADS = Case("ravan", "random", (("unit", "heads"),))
BLOCK = Case("ravan", "random", (("unit", "block"),))
LORA = Case("lora", "kaiming")


def aggregated(rule: str, case: Case, updates: list[Update], weighting: str = "auto") -> tuple[GlobalState, list[float]]:
    adapters = adapters_of(case)
    state = GlobalState(start_state(adapters), draw(HEAD, 1))
    return AGGREGATORS.get(rule)(adapters, weighting).aggregate(updates, state, 1)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("scales", ["trained", "fixed"])
@pytest.mark.parametrize("init", ADAPTERS.get("ravan").inits)
def test_ravans_mean_is_the_mean_of_the_clients_updates(init: str, scales: str, weighting: str) -> None:
    """Eq. 8 with all heads trained, in float64, whatever the bases and scales."""
    case = Case("ravan", init, (("unit", "heads"), ("scales", scales)))
    adapters, examples = adapters_of(case), [5, 20, 11]
    caps = [adapter.cap for adapter in adapters]
    updates = [make_update(adapters, client, caps, examples[client]) for client in range(3)]
    merged, _ = aggregated("ravan", case, updates, weighting)
    shares = torch.tensor([1.0, 1.0, 1.0] if weighting == "uniform" else examples, dtype=torch.float64)
    shares = shares / shares.sum()
    for index, adapter in enumerate(adapters):
        deltas = [adapter.delta_weight(client_states(adapters, client)[index]) for client in range(3)]
        wanted = sum(share * delta for share, delta in zip(shares, deltas, strict=True))
        assert relative(adapter.delta_weight(merged.sites[index]), wanted) < 1e-12


@pytest.mark.parametrize(("case", "chosen"), [(HEADS, [3, 6, 6, 0]), (BLOCK, [4, 5, 8, 0])], ids=["heads", "block"])
def test_ravan_averages_every_entry_over_the_clients_that_sent_it(case: Case, chosen: list[int]) -> None:
    """Worked out entry by entry: heads, and in block mode the leading square of the next head."""
    adapters = adapters_of(case, ["tall"])
    updates = [make_update(adapters, client, [rank]) for client, rank in enumerate(chosen)]
    old = start_state(adapters)[0]["H"]
    state = GlobalState([{"H": old}], draw(HEAD, 1))
    merged, coverage = AGGREGATORS.get("ravan")(adapters).aggregate(updates, state, 1)
    senders: dict[tuple[int, int, int], list[float]] = {}
    for client, rank in enumerate(chosen):
        own = client_states(adapters, client)[0]["H"]
        for position, entry in enumerate(select(adapters[0], rank, seed=7 * client).heads.tolist()):
            side = min(3, rank - 3 * position)
            for row in range(side):
                for column in range(side):
                    senders.setdefault((entry, row, column), []).append(float(own[entry, row, column]))
    for entry in torch.cartesian_prod(torch.arange(4), torch.arange(3), torch.arange(3)).tolist():
        values = senders.get(tuple(entry))
        found = float(merged.sites[0]["H"][tuple(entry)])
        if values is None:
            assert found == float(old[tuple(entry)])  # to the bit
        else:
            assert found == pytest.approx(sum(values) / len(values), rel=1e-12)
    assert coverage == [len(senders) / 36]
    assert 0 < len(senders) < 36 and max(map(len, senders.values())) > 1


def test_a_head_that_nobody_trained_keeps_every_bit() -> None:
    adapters = adapters_of(HEADS, ["tall"])
    old = {"H": torch.randn(4, 3, 3)}
    sent = {"heads": torch.tensor([2, 0]), "H": torch.randn(2, 3, 3)}
    updates = [Update(client, 1, [6], [sent], draw(HEAD, client, dtype=torch.float32)) for client in range(3)]
    state = GlobalState([old], draw(HEAD, 9, dtype=torch.float32))
    merged, _ = AGGREGATORS.get("ravan")(adapters).aggregate(updates, state, 1)
    assert torch.equal(merged.sites[0]["H"][[1, 3]], old["H"][[1, 3]])
    assert torch.allclose(merged.sites[0]["H"][[2, 0]], sent["H"], rtol=1e-6, atol=0)


def test_fedit_averages_factors_by_examples_and_so_misses_the_mean_update() -> None:
    adapters = adapters_of(LORA)
    caps = [adapter.cap for adapter in adapters]
    examples = [5, 20, 11]
    updates = [make_update(adapters, client, caps, examples[client]) for client in range(3)]
    merged, coverage = aggregated("fedavg-factors", LORA, updates)
    shares = torch.tensor(examples, dtype=torch.float64) / sum(examples)
    assert coverage == [1.0, 1.0]
    for index, adapter in enumerate(adapters):
        states = [client_states(adapters, client)[index] for client in range(3)]
        for name in ("A", "B"):
            wanted = sum(share * state[name] for share, state in zip(shares, states, strict=True))
            assert torch.allclose(merged.sites[index][name], wanted, rtol=0, atol=1e-12)
        mean = sum(share * adapter.delta_weight(state) for share, state in zip(shares, states, strict=True))
        assert relative(adapter.delta_weight(merged.sites[index]), mean) > 0.1


def test_mixed_ranks_average_each_component_over_those_that_sent_it() -> None:
    adapters = adapters_of(LORA, ["tall"])
    updates = [make_update(adapters, client, [rank], examples=rank + 1) for client, rank in enumerate([1, 2, 0])]
    state = GlobalState(start_state(adapters), draw(HEAD, 1))
    merged, coverage = AGGREGATORS.get("fedavg-factors")(adapters).aggregate(updates, state, 1)
    first, second = (client_states(adapters, client)[0] for client in range(2))
    b, a = merged.sites[0]["B"], merged.sites[0]["A"]
    assert torch.allclose(a[0], (2 * first["A"][0] + 3 * second["A"][0]) / 5, rtol=0, atol=1e-12)
    assert torch.allclose(b[:, 0], (2 * first["B"][:, 0] + 3 * second["B"][:, 0]) / 5, rtol=0, atol=1e-12)
    assert torch.allclose(a[1], second["A"][1], rtol=1e-12, atol=0)
    assert torch.equal(a[2], state.sites[0]["A"][2]) and torch.equal(b[:, 2], state.sites[0]["B"][:, 2])
    assert coverage == [pytest.approx(2 / 3)]


# -- the mean itself ---------------------------------------------------------------------------------------------------


def test_shapes_are_compared_and_never_broadcast() -> None:
    mean = CoverageMean({"A": torch.zeros(8, 4)})
    for shape in [(1, 4), (8, 1), (4,), (), (8, 4, 1)]:
        with pytest.raises(ValueError, match=r"tensor 'A' has shape .*, expected \(8, 4\)"):
            mean.add({"A": torch.ones(shape)}, None, 1.0)
    assert not mean.result()[0]["A"].any()


def test_masks_are_compared_as_well() -> None:
    mean = CoverageMean({"A": torch.zeros(8, 4)})
    with pytest.raises(ValueError, match="mask of 'A'"):
        mean.add({"A": torch.ones(8, 4)}, {"A": torch.ones(8, 1, dtype=torch.bool)}, 1.0)


def test_weights_are_renormalised_per_entry() -> None:
    mean = CoverageMean({"x": torch.full((3,), 7.0)})
    mean.add({"x": torch.tensor([1.0, 1.0, 1.0])}, {"x": torch.tensor([True, True, False])}, 1.0)
    mean.add({"x": torch.tensor([5.0, 5.0, 5.0])}, {"x": torch.tensor([True, False, False])}, 3.0)
    values, covered = mean.result()
    assert values["x"].tolist() == [4.0, 1.0, 7.0]
    assert covered == pytest.approx(2 / 3)


def test_names_are_compared_as_well() -> None:
    mean = CoverageMean({"A": torch.zeros(2), "B": torch.zeros(2)})
    for names in (["A"], ["A", "B", "C"], []):
        with pytest.raises(ValueError, match=r"there are tensors .*, expected \['A', 'B'\]"):
            mean.add({name: torch.ones(2) for name in names}, None, 1.0)


@pytest.mark.parametrize("weight", [1.0, 500.0, 1e60])
@pytest.mark.parametrize("sent", [None, [True, False]], ids=["whole", "part"])
def test_no_weight_makes_the_mean_of_float32_overflow(weight: float, sent: list[bool] | None) -> None:
    """Weights are counts of examples, or norms that a client can make as large as it likes."""
    most = torch.finfo(torch.float32).max
    mean = CoverageMean({"x": torch.zeros(2)})
    masks = None if sent is None else {"x": torch.tensor(sent)}
    for client_weight in (weight, weight, 1e-60):
        mean.add({"x": torch.full((2,), most)}, masks, client_weight)
    values, _ = mean.result()
    assert values["x"].dtype == torch.float32 and values["x"].tolist() == [most, 0.0 if sent else most]


def test_no_head_is_a_head_too() -> None:
    """A causal language model has no task head to average."""
    adapters = adapters_of(HEADS, ["tall"])
    update = make_update(adapters, 1, [12])
    bare = Update(1, 1, [12], update.sites, {})
    merged, _ = AGGREGATORS.get("ravan")(adapters).aggregate([bare], GlobalState(start_state(adapters)), 1)
    assert merged.head == {}
