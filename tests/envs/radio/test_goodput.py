"""CQI, block errors, HARQ and the lookup table that stands for them."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from fedlora.errors import ConfigError
from fedlora.streams import fast_stream
from fedlora_envs.constants import constants
from fedlora_envs.radio.goodput import (
    TABLES,
    DelayedGoodputTable,
    GoodputTable,
    LinkAdaptation,
    Olla,
    arq_expected,
    bler,
    chase_failure,
    choose_cqi,
    cqi_table,
    eesm,
    frequency_groups,
    goodput,
    harq_expected,
)
from zscores import LIMIT, z_mean, z_share

N = 1_000_000


def linear(snr_db: NDArray[np.float64]) -> NDArray[np.float32]:
    return (10 ** (snr_db / 10)).astype(np.float32)


# --- data -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_consistent_with_modulation_rate_and_curve(name: str) -> None:
    table, rows = cqi_table(name), constants("cqi_tables")[f"table_{name}"]["rows"]
    bits = np.array([{"QPSK": 2, "16QAM": 4, "64QAM": 6, "256QAM": 8}[row[0]] for row in rows])
    assert np.allclose(table.efficiency, bits * np.array([row[1] for row in rows]) / 1024, atol=6e-5)
    for values in (table.efficiency, table.mu_db, table.threshold_db):
        assert len(values) == 15 and np.all(np.diff(values) > 0)
    assert np.allclose(table.mu_db + norm.isf(0.1) * table.sigma_db, table.threshold_db, atol=0.0151)
    assert np.allclose(np.diagonal(bler(table.mu_db, table)), 0.5)
    gap_db = table.threshold_db - 10 * np.log10(2**table.efficiency - 1)
    assert np.all((gap_db > 1.1) & (gap_db < 3.3))


def test_repeated_codes_follow_from_the_rate_one_fifth() -> None:
    entry = constants("cqi_tables")["thresholds_repetition"]["codes"]
    for (mu, _, threshold), efficiency in zip(entry.values(), (0.1523, 0.2344, 0.3770), strict=True):
        repeated_db = 10 * np.log10(0.4 / efficiency)
        assert mu == pytest.approx(-4.00 - repeated_db, abs=0.006) and threshold == pytest.approx(-3.71 - repeated_db, abs=0.006)


@pytest.mark.sionna
def test_thresholds_lie_within_one_db_of_sionnas() -> None:
    pytest.importorskip("sionna")
    text = (files("sionna") / "sys" / "bler_tables" / "PDSCH_table1.json").read_text(encoding="utf-8")
    curves = json.loads(text)["category"]["1"]["index"]["1"]["MCS"]
    table, compared = cqi_table("64qam"), 0
    for cqi, mcs in enumerate(constants("eesm")["cqi_64qam"]["mcs"]):
        curve = curves.get(str(mcs))
        if curve is None:
            continue  # Sionna's tables start at MCS 3
        size = min(curve["CBS"], key=lambda number: abs(float(number) - 1000))
        errors, snr_db = np.array(curve["CBS"][size]["BLER"]), np.array(curve["SNR_db"])
        right = int(np.argmax(errors <= 0.1))
        high, low = np.log10(np.maximum(errors[right - 1 : right + 1], 1e-5))
        crossing = snr_db[right - 1] + (high + 1) / (high - low) * (snr_db[right] - snr_db[right - 1])
        assert abs(table.threshold_db[cqi] - crossing) <= 1.0, (cqi + 1, mcs, crossing)
        compared += 1
    assert compared == 12


# --- HARQ -------------------------------------------------------------------------------------------------------------------


def test_type_one_costs_what_independent_errors_cost() -> None:
    p, most = 0.1, 4
    cost = arq_expected(np.array([p]), most)
    failed = fast_stream(5, "harq").random((N, most)) < p
    attempts = 1 + np.cumprod(failed[:, :-1], axis=1).sum(axis=1)
    assert cost.transmissions[0] == pytest.approx((1 - p**4) / (1 - p))
    assert abs(z_mean(attempts, cost.transmissions[0])) <= LIMIT
    assert abs(z_share(np.count_nonzero(failed.all(axis=1)), N, cost.residual[0])) <= LIMIT
    hopeless = arq_expected(np.array([1.0]), most)
    assert hopeless.transmissions[0] == 4 and hopeless.residual[0] == 1


def test_chase_combining_fails_as_a_sum_of_rayleigh_fades_does() -> None:
    threshold, mean = 1.5, 1.0
    total = np.zeros(N)
    expected = [0.7769, 0.4422, 0.1912, 0.0656]
    rng = fast_stream(5, "chase")
    for k in range(1, 5):
        total += rng.standard_exponential(N)
        p = float(chase_failure(k, threshold, mean))
        assert p == pytest.approx(expected[k - 1], abs=6e-5)
        assert abs(z_share(np.count_nonzero(total < threshold), N, p)) <= LIMIT


def test_goodput_is_efficiency_net_of_errors_and_chase_beats_type_one() -> None:
    table = cqi_table("64qam")
    snr_db = np.array([table.threshold_db[7], table.mu_db[7]])
    cqi = np.array([8, 8])
    plain, again = goodput(snr_db, cqi, table)
    p = bler(snr_db, table)[:, 7]
    assert np.allclose(plain, table.efficiency[7] * (1 - p))
    assert np.allclose(again, 1 - (1 - p) / (1 - p**4))
    chased, chased_again = goodput(snr_db, cqi, table, "chase")
    assert np.all(chased > plain) and np.all(chased_again < again)
    # The second attempt at twice the SNR hardly ever fails: 1 + p transmissions.
    assert np.allclose(harq_expected(snr_db, table, "chase").transmissions[:, 7], 1 + p, atol=1e-9)
    assert goodput(np.array([30.0]), np.array([0]), table) == (np.array([0.0]), np.array([0.0]))


# --- CQI choice -------------------------------------------------------------------------------------------------------------


def test_the_target_rule_takes_the_highest_cqi_with_ten_percent_errors() -> None:
    table = cqi_table("64qam")
    exact = table.mu_db + norm.isf(0.1) * table.sigma_db
    assert choose_cqi(exact + 1e-6, table).tolist() == list(range(1, 16))
    assert choose_cqi(exact - 1e-6, table).tolist() == list(range(15))
    assert choose_cqi(exact - 1e-6, table, target=0.2).tolist() == list(range(1, 16))


def test_the_goodput_rule_is_never_worse() -> None:
    table, snr_db = cqi_table("256qam"), np.arange(-15, 35, 0.05)
    target = goodput(snr_db, choose_cqi(snr_db, table), table)[0]
    best = goodput(snr_db, choose_cqi(snr_db, table, "goodput"), table)[0]
    assert np.all(best >= target - 1e-12) and np.any(best > target + 0.01)


# --- tables -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptation", [LinkAdaptation(), LinkAdaptation("256qam", 0.0, "goodput", "chase")])
def test_the_lookup_table_agrees_with_the_curves(adaptation: LinkAdaptation) -> None:
    table = cqi_table(adaptation.table)
    snr_db = fast_stream(5, "snr").uniform(-30, 60, 200_000)
    shifted = snr_db - adaptation.margin_db
    exact = goodput(shifted, choose_cqi(shifted, table, adaptation.rule, harq=adaptation.harq), table, adaptation.harq)
    found = GoodputTable(adaptation).lookup(linear(snr_db))
    assert found.dtype == np.float32
    # No bias, and no error beyond half a CQI step, where a cell straddles a threshold.
    assert np.abs(found[:, 0].mean() - exact[0].mean()) < 1e-3
    assert np.abs(found[:, 0] - exact[0]).max() < 0.5
    assert np.quantile(np.abs(found[:, 0] - exact[0]), 0.95) < 0.03
    sent = snr_db > -10  # below, CQI 1 fails whatever the rule and its attempts are no use
    assert np.abs(found[sent, 1].mean() - exact[1][sent].mean()) < 2e-3


def test_the_lookup_table_guards_both_ends() -> None:
    snr = np.array([0.0, 1e-38, 1e-45, 1e-3, 1e6, 3e38, np.inf], np.float32)
    found = GoodputTable(LinkAdaptation()).lookup(snr)
    assert np.array_equal(found[:, 0] > 0, [False] * 4 + [True] * 3)
    assert np.allclose(found[4:, 0], 5.5547)
    assert np.all(found[:4] == 0)


def test_lookups_of_many_links_are_the_lookups_of_few() -> None:
    snr, table = fast_stream(5, "snr").standard_exponential(50_000, dtype=np.float32) * 10, GoodputTable(LinkAdaptation())
    out = np.empty((50_000, 2), np.float32)
    assert table.lookup(snr, out) is out
    assert np.array_equal(out[40_000:40_100], table.lookup(snr[40_000:40_100]))


def test_delayed_knowledge_picks_the_cqi_and_the_present_decides_the_errors() -> None:
    adaptation = LinkAdaptation(margin_db=0.0)
    delayed, table = DelayedGoodputTable(adaptation), cqi_table("64qam")
    snr_db = fast_stream(5, "snr").uniform(-7, 16, 20_000)  # where 3 dB more or less is another CQI
    ideal = GoodputTable(adaptation).lookup(linear(snr_db))
    known = delayed.lookup(linear(snr_db), linear(snr_db))
    assert np.abs(known[:, 0].mean() - ideal[:, 0].mean()) < 2e-3
    # Believing 3 dB too much nearly always fails; 3 dB too little costs efficiency but no errors.
    bold, shy = delayed.lookup(linear(snr_db + 3), linear(snr_db)), delayed.lookup(linear(snr_db - 3), linear(snr_db))
    assert bold[:, 0].mean() < 0.05 * ideal[:, 0].mean()
    assert 0.6 * ideal[:, 0].mean() < shy[:, 0].mean() < 0.9 * ideal[:, 0].mean()
    assert shy[:, 1].max() < 1e-3 and bold[:, 1].mean() > 0.6
    cqi = delayed.choose(linear(snr_db + 1))
    exact = goodput(snr_db, cqi, table)[0]
    # An error curve is about as wide as six cells: a cell's mean is not its value, but unbiased.
    assert np.abs(delayed.lookup(linear(snr_db + 1), linear(snr_db))[:, 0] - exact).mean() < 0.03
    zero = np.zeros(1, np.float32)
    assert delayed.lookup(zero, zero).tolist() == [[0.0, 0.0]] and delayed.error(delayed.choose(zero), zero) == 0


def test_olla_brings_errors_to_the_target_despite_biased_estimates() -> None:
    rng, delayed, n = fast_stream(5, "olla"), DelayedGoodputTable(LinkAdaptation(margin_db=0.0)), 4000
    loop = Olla(n, up_db=0.1)
    failures = 0
    for step in range(1200):
        snr_db = rng.uniform(0, 18, n)
        cqi = delayed.choose(linear(loop.adjust(snr_db + 1.5)))  # the receiver reports 1.5 dB too much
        failed = rng.random(n) < delayed.error(cqi, linear(snr_db))
        loop.update(failed, cqi > 0)
        failures += np.count_nonzero(failed) if step >= 600 else 0
    assert failures / (600 * n) == pytest.approx(0.1, abs=0.005)
    assert loop.offset_db.mean() > 1.0


def test_olla_stays_within_its_limit_and_skips_links_that_do_not_send() -> None:
    loop = Olla(2, limit_db=3.0)
    for _ in range(10):
        loop.update(np.array([True, True]), np.array([True, False]))
    assert loop.offset_db.tolist() == [3.0, 0.0]
    with pytest.raises(ConfigError, match=r"target 1\.5"):
        Olla(2, target=1.5)


# --- frequency selectivity --------------------------------------------------------------------------------------------------


def test_eesm_has_its_published_value_and_lies_between_worst_and_mean() -> None:
    assert eesm(np.array([1.0, 9.0]), 4.0) == pytest.approx(3.264877, abs=5e-7)
    gains = fast_stream(5, "eesm").standard_exponential((1000, 8)) * 100
    value = eesm(gains, 4.0)
    assert value.shape == (1000,) and np.all(value >= gains.min(axis=1)) and np.all(value <= gains.mean(axis=1))
    assert np.allclose(eesm(gains, 1e6), gains.mean(axis=1), rtol=1e-3)
    assert np.allclose(eesm(np.full((3, 5), 7.0), cqi_table("64qam").beta[[0, 7, 14]]), 7.0)
    assert np.isfinite(eesm(np.array([1e5, 1e6]), 1.6))  # every exponential underflows by itself


def test_frequency_groups_are_at_least_one() -> None:
    assert [frequency_groups(b, 2e6) for b in (1e5, 5.2e6, 100e6)] == [1, 3, 50]
    with pytest.raises(ConfigError, match="must both be positive"):
        frequency_groups(-1.0, 1e6)
