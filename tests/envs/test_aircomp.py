"""AirComp against its formulas: power, participation, error; and what it promises as an aggregation rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import exp1

from cases import Case, draw, draw_state
from fedlora.aggregation import AGGREGATORS, GlobalState, Update
from fedlora.config import AdapterConfig
from fedlora.errors import ConfigError
from fedlora.sites import Site
from fedlora_envs.aircomp import AirCompMean, airtime_s, eta, predicted_mse
from rounds import HEAD, adapters_of, make_update, start_state
from zscores import LIMIT, z_mean, z_share

LORA = Case("lora", "kaiming")
BLOCK = Case("ravan", "random", (("unit", "block"),))
INF = float("inf")
QUIET = {"snr_db": INF, "threshold": 0.0}


def state_of(case: Case, dtype: torch.dtype = torch.float64) -> GlobalState:
    return GlobalState(start_state(adapters_of(case), dtype), draw(HEAD, 1, dtype=dtype))


# -- formulas --------------------------------------------------------------------------------------------------------------


def test_truncated_inversion_spends_its_mean_power() -> None:
    """E[1/g; g > g0] = E1(g0) over Rayleigh fading, so eta E1(g0) = P; a share exp(-g0) takes part."""
    gains = np.random.default_rng(11).standard_exponential(1_000_000)
    spent = np.where(gains >= 0.1, 1 / gains, 0.0)
    assert exp1(0.1) == pytest.approx(1.8229, abs=5e-5)
    assert abs(z_mean(spent, float(exp1(0.1)))) <= LIMIT
    assert abs(z_mean(eta(2.0, 0.1) * spent, 2.0)) <= LIMIT
    assert abs(z_share(float((gains >= 0.1).sum()), gains.size, math.exp(-0.1))) <= LIMIT


def test_the_predicted_error_is_that_of_the_received_mean() -> None:
    """K = 20, g0 = 0.1, P = 1, noise 0.1: 0.00585 (design note: 0.00584), here with h, p and n as complex numbers."""
    clients, threshold, power, noise_power = 20, 0.1, 1.0, 0.1
    rng = np.random.default_rng(12)
    shape = (50_000, clients)
    h = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)
    x = rng.standard_normal(shape)
    taking_part = np.abs(h) ** 2 >= threshold
    level = eta(power, threshold)
    p = np.where(taking_part, np.sqrt(level) / h, 0)
    n = np.sqrt(noise_power / 2) * (rng.standard_normal(shape[0]) + 1j * rng.standard_normal(shape[0]))
    count = taking_part.sum(axis=1)
    assert count.min() > 0
    estimate = ((h * p * x).sum(axis=1) + n).real / (np.sqrt(level) * count)
    predicted = predicted_mse(clients, threshold, power, noise_power)
    assert predicted == pytest.approx(0.00584, abs=2e-5)
    assert abs(z_mean((estimate - x.mean(axis=1)) ** 2, predicted)) <= LIMIT


def test_the_predicted_error_at_its_ends() -> None:
    assert predicted_mse(1, 0.5, 3.0, 0.6) == pytest.approx(0.1 * float(exp1(0.5)))  # one client: only noise
    assert predicted_mse(1000, 0.1, 1.0, 0.0) == pytest.approx((math.exp(0.1) - 1) / 1000, rel=2e-3)
    assert predicted_mse(5, 1e-12, 1.0, 0.0) == pytest.approx(0.0, abs=1e-11)


def test_airtime_does_not_know_the_number_of_clients() -> None:
    assert airtime_s(4e6, 20e6) == 0.1
    for band in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="bandwidth_hz must be above 0"):
            airtime_s(1.0, band)


# -- the rule's error ------------------------------------------------------------------------------------------------------


def wide_round(ranks: list[int], rounds: int, **options: float) -> dict[int, torch.Tensor]:
    """Return error over scale of A's rows by how many clients sent them, from rounds of normal changes on a wide site."""
    config = AdapterConfig(method="lora", rank=max(ranks))
    adapters = [LORA_TYPE(Site("wide", 2000, max(ranks)), config, 3, 0)]
    state = GlobalState([draw_state(adapters[0], 5, torch.float64)], {})
    errors: dict[int, list[torch.Tensor]] = {}
    for number in range(1, rounds + 1):
        generator = torch.Generator().manual_seed(number)
        updates, changes = [], []
        for client, rank in enumerate(ranks):
            new = {key: value + 0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
                   for key, value in state.sites[0].items()}  # fmt: skip
            changes.append(new["A"] - state.sites[0]["A"])
            updates.append(Update(client, 10, [rank], [adapters[0].slice(new, adapters[0].select(rank))], {}))
        found, _ = AirCompMean(adapters, **options).aggregate(updates, state, number)
        for row in range(max(ranks)):
            senders = [change[row] for change, rank in zip(changes, ranks, strict=True) if rank > row]
            error = found.sites[0]["A"][row] - state.sites[0]["A"][row] - torch.stack(senders).mean(dim=0)
            errors.setdefault(len(senders), []).append(error / 0.3)
    return {count: torch.stack(found) for count, found in errors.items()}


LORA_TYPE = type(LORA.make())


@pytest.mark.parametrize("snr_db", [10.0, 0.0])
def test_the_error_of_mixed_ranks_is_that_of_each_slices_own_clients(snr_db: float) -> None:
    """Rows that 20, 12 and 6 clients sent, each against the formula with that number; a fade per symbol, 2 numbers in it."""
    ranks = [1] * 8 + [2] * 6 + [3] * 6
    errors = wide_round(ranks, 30, snr_db=snr_db, threshold=0.1, coherence_symbols=1)
    assert sorted(errors) == [6, 12, 20]
    for count, found in errors.items():
        # Two numbers share a symbol's power, so each has variance 1/2 on the air.
        expected = 2 * predicted_mse(count, 0.1, 1.0, 10 ** (-snr_db / 10), variance=0.5)
        # A symbol's two numbers share their fades, so that they are one sample.
        samples = found.square().reshape(found.shape[0], -1, 2).mean(dim=2)
        # The scalar is taken from this round's changes: 1/sqrt(2 * 90000) off in a round, far inside the error of the mean.
        assert abs(z_mean(samples.numpy(), expected)) <= LIMIT, count


def test_a_fade_lasts_as_long_as_its_coherence() -> None:
    """Without noise an entry's error tells who was silent: the same for all entries, or anew every 2 x 50 numbers."""
    ranks = [1] * 4
    for symbols, length in ((0, 2000), (50, 100)):
        errors = wide_round(ranks, 12, snr_db=INF, threshold=0.15, coherence_symbols=symbols)[4]
        silent = (errors.abs() > 1e-9).float()
        blocks = silent.reshape(12, -1, length)
        assert ((blocks.mean(dim=2) == 0) | (blocks.mean(dim=2) == 1)).all()
        assert 0 < blocks.mean() < 1
        if symbols:
            assert blocks[:, :, 0].std(dim=1).max() > 0


# -- the rule's promises ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "rule"), [(LORA, "fedavg-factors"), (BLOCK, "ravan")], ids=["lora", "ravan"])
@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_without_noise_and_fades_it_is_the_rule_that_it_stands_for(case: Case, rule: str, weighting: str) -> None:
    adapters, state = adapters_of(case), state_of(case)
    updates = [make_update(adapters, client, ranks, 5 + 9 * client) for client, ranks in enumerate([[3, 1], [1, 0], [2, 2]])]
    found, coverage = AirCompMean(adapters, weighting, **QUIET).aggregate(updates, state, 4)
    expected, covered = AGGREGATORS.get(rule)(adapters, weighting).aggregate(updates, state, 4)
    assert coverage == covered
    for key, tensor in expected.flat().items():
        torch.testing.assert_close(found.flat()[key], tensor, rtol=1e-12, atol=1e-12)


def test_what_nobody_sent_keeps_its_bits_and_the_head_is_noisy_too() -> None:
    adapters, state = adapters_of(LORA), state_of(LORA, torch.float32)
    updates = [make_update(adapters, client, [2, 0], dtype=torch.float32) for client in range(6)]
    found, coverage = AirCompMean(adapters, snr_db=5.0).aggregate(updates, state, 1)
    assert coverage == [pytest.approx(2 / 3), 0.0]
    assert torch.equal(found.sites[0]["A"][2:], state.sites[0]["A"][2:])
    assert torch.equal(found.sites[0]["B"][:, 2:], state.sites[0]["B"][:, 2:])
    assert all(torch.equal(found.sites[1][key], value) for key, value in state.sites[1].items())
    assert found.sites[0]["A"].dtype == torch.float32
    quiet, _ = AirCompMean(adapters, snr_db=INF).aggregate(updates, state, 1)
    for key in HEAD:
        assert not torch.equal(found.head[key], state.head[key])
        assert not torch.equal(found.head[key], quiet.head[key])


def test_a_round_in_which_everybody_is_silent_changes_nothing() -> None:
    adapters, state = adapters_of(LORA), state_of(LORA)
    found, coverage = AirCompMean(adapters, threshold=50.0).aggregate([make_update(adapters, 1, [3, 3])], state, 1)
    assert coverage == [0.0, 0.0]
    assert all(torch.equal(tensor, state.flat()[key]) for key, tensor in found.flat().items())


def test_no_change_carries_no_noise() -> None:
    """The scalar is the size of the changes, so that noise shrinks with them: here to nothing."""
    adapters, state = adapters_of(LORA), state_of(LORA)
    update = Update(1, 10, [3, 3], state.sites, state.head)
    found, _ = AirCompMean(adapters, snr_db=-10.0).aggregate([update, Update(2, 10, [3, 3], state.sites, state.head)], state, 1)
    assert all(torch.equal(tensor, state.flat()[key]) for key, tensor in found.flat().items())


def test_noise_and_fades_come_from_seed_round_and_client_alone() -> None:
    adapters, state = adapters_of(LORA), state_of(LORA)
    updates = [make_update(adapters, client, [3, 3]) for client in range(5)]
    rule = AirCompMean(adapters, coherence_symbols=3)
    first, again = (rule.aggregate(order, state, 7)[0].flat() for order in (updates, updates[::-1]))
    other = rule.aggregate(updates, state, 8)[0].flat()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)
    # Nobody in a fade: what differs between rounds is the noise alone.
    noisy = AirCompMean(adapters, threshold=1e-9)
    assert not torch.equal(noisy.aggregate(updates, state, 7)[0].head["classifier.bias"],
                           noisy.aggregate(updates, state, 8)[0].head["classifier.bias"])  # fmt: skip
    # Fewer ranks leave the same clients silent at the same numbers.
    fewer = [make_update(adapters, client, [1, 1]) for client in range(5)]
    part = AirCompMean(adapters, coherence_symbols=3, snr_db=INF, threshold=1.0)
    whole, cut = (part.aggregate(sent, state, 7)[0].sites[0]["A"][0] for sent in (updates, fewer))
    torch.testing.assert_close(whole, cut, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold must be above 0"),
        ({"threshold": -1.0}, "threshold must be above 0"),
        ({"threshold": INF}, "threshold must be above 0"),
        ({"snr_db": float("nan")}, "snr_db must be a number of dB"),
        ({"snr_db": "high"}, "snr_db must be a number, got 'high'"),
        ({"coherence_symbols": -1}, "coherence_symbols must be a whole number"),
        ({"coherence_symbols": 1.5}, "coherence_symbols must be a whole number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AirCompMean(adapters_of(LORA), **options)  # type: ignore[arg-type]
