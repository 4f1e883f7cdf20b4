"""Link budget, resource blocks and uplink power against the standards' numbers and against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from fedlora.errors import ConfigError
from fedlora_envs.constants import constants
from fedlora_envs.radio import budget

SE = np.array(
    [0, 0.1523, 0.2344, 0.3770, 0.6016, 0.8770, 1.1758, 1.4766, 1.9141, 2.4063, 2.7305, 3.3223, 3.9023, 4.5234, 5.1152, 5.5547]
)
THRESHOLDS_DB = np.array([-7.9, -6.03, -3.97, -1.61, 0.51, 2.42, 4.29, 6.1, 8.12, 9.76, 11.78, 13.74, 15.64, 17.62, 19.66])


def shannon(snr):
    return np.log2(1 + snr)


def steps(snr):
    """Spectral efficiency of the best CQI whose threshold the SNR reaches."""
    return SE[np.searchsorted(10 ** (THRESHOLDS_DB / 10), snr, side="right")]


def by_brute_force(one, allowed, efficiency):
    counts = np.arange(1, allowed.max() + 1)[:, None]
    rates = np.where(counts <= allowed, counts * efficiency(one / counts), -1)
    return 1 + rates.argmax(axis=0)


def test_noise_and_snr():
    noise = budget.noise_dbm(np.array([1.0, 100e6]), 5)
    assert noise.tolist() == [-169, pytest.approx(-89)]
    assert budget.snr_db(23, 8, np.array([100.0, 120.0]), -110, 3).tolist() == [38, 18]
    assert budget.add_dbm(-100.0, -100.0) == pytest.approx(-100 + 10 * np.log10(2))
    assert budget.add_dbm(-100.0, np.array([-np.inf]))[0] == pytest.approx(-100)


def test_sinr_cap():
    evm = constants("budget")["sinr_cap"]
    best = 10 * np.log10(budget.sinr_cap(np.array([1e12]), evm["evm_64qam"]))[0]
    assert best == pytest.approx(21.94, abs=0.01)
    assert 10 * np.log10(budget.sinr_cap(np.array([1e12]), evm["evm_256qam"]))[0] == pytest.approx(29.12, abs=0.01)
    assert budget.sinr_cap(np.array([0.0, 2.0]), 0.5).tolist() == pytest.approx([0, 2 / 1.5])


def test_nr_peak_rate_is_the_standards():
    peak = budget.nr_rate_bps(8 * 948 / 1024, 273, 30, 0.14, layers=4)
    assert round(float(peak) / 1e6, 1) == 2337.0
    assert round(float(budget.nr_rate_bps(5.5547, 273, 30, 0.08)) / 1e6, 1) == 468.8
    shares = budget.nr_rate_bps(np.array([1.0, 2.0]), np.array([10, 20]), 15, 0.0, tdd_share=0.25)
    assert shares.tolist() == [12 * 10 * 14000 / 4, 2 * 12 * 20 * 14000 / 4]


def test_resource_blocks():
    assert [budget.prb_count(mhz * 1e6, 30) for mhz in (5, 20, 22, 25, 99.9, 100)] == [11, 51, 51, 65, 245, 273]
    assert budget.prb_count(20e6, 15) == 106
    assert budget.prb_count(100e6, 60) == 135
    assert budget.prb_count(400e6, 120) == 264
    for scs_khz, table in constants("budget")["prb"]["tables"].items():
        for mhz, count in table.items():
            assert 0.75 < budget.prb_hz(scs_khz) * count / (mhz * 1e6) < 1


@pytest.mark.parametrize("efficiency", [shannon, steps], ids=["shannon", "cqi"])
def test_prb_choice_is_brute_forces(efficiency):
    rng = np.random.default_rng(1)
    one = 10 ** (rng.uniform(-20, 50, 40_000) / 10)
    allowed = rng.integers(1, 274, 40_000)
    prb, snr = budget.choose_prb(one, allowed, efficiency)
    np.testing.assert_array_equal(prb, by_brute_force(one, allowed, efficiency))
    np.testing.assert_array_equal(snr, one / prb)


def test_weak_uplink_does_not_spread_over_100_mhz():
    # 23 dBm, 135 dB loss, 5 dB noise figure, 3 dB margin, blocks of 360 kHz.
    noise = budget.noise_dbm(budget.prb_hz(30), 5)
    one = 10 ** (budget.snr_db(23, 8, np.array([135.0, 80.0]), noise, 3) / 10)
    prb, snr = budget.choose_prb(one, budget.prb_count(100e6, 30), steps)
    assert prb[0] < 30
    assert 10 * np.log10(snr[0]) > THRESHOLDS_DB[0]
    assert prb[1] == 273
    assert steps(one / 273)[0] == 0 < steps(snr)[0]


def test_prb_choice_of_hopeless_and_perfect_links():
    prb, _ = budget.choose_prb(np.array([0.0, 1e-9, 1e9]), 100, steps)
    assert prb.tolist() == [1, 1, 100]
    assert budget.choose_prb(np.array([5.0]), np.array([1]), shannon)[0].tolist() == [1]
    assert budget.choose_prb(np.zeros(0), 5, shannon)[0].shape == (0,)


def test_open_loop_power():
    loss = np.array([80.0, 100.0, 140.0])
    power = budget.uplink_power_dbm(loss, 10, 30, 23.0, -90.0, 1.0)
    assert power.tolist() == pytest.approx([-90 + 10 * np.log10(20) + 80, 23.0, 23.0])
    fractional = constants("budget")["uplink_power_control"]["fractional"]
    power = budget.uplink_power_dbm(loss, 1, 15, 23.0, **fractional)
    assert power.tolist() == pytest.approx([-11, 5, 23])


def test_hexagon_interference():
    sites = budget.neighbour_sites(500.0)
    np.testing.assert_allclose(np.hypot(*sites.T), 500)
    np.testing.assert_allclose(np.hypot(*(sites - np.roll(sites, 1, axis=0)).T), 500)

    def loss(d2):
        return 30 + 40 * np.log10(d2)

    xy = np.array([[0.0, 0.0], [250.0, 0.0]])
    full = budget.hexagon_interference_dbm(xy, 500.0, 44.0, 1.0, loss)
    assert full[0] == pytest.approx(44 - loss(500.0) + 10 * np.log10(6))
    assert full[1] > 44 - loss(250.0)
    half = budget.hexagon_interference_dbm(xy, 500.0, 44.0, 0.5, loss)
    np.testing.assert_allclose(full - half, 10 * np.log10(2))
    assert budget.hexagon_interference_dbm(xy, 500.0, 44.0, 0.0, loss).tolist() == [-np.inf, -np.inf]


def test_refusals():
    with pytest.raises(ConfigError, match="a bandwidth of -5 Hz"):
        budget.noise_dbm(np.array([10.0, -5.0]), 5)
    with pytest.raises(ConfigError, match="no resource blocks of 45 kHz"):
        budget.prb_count(20e6, 45)
    for bandwidth_hz in (1e6, 200e6):
        with pytest.raises(ConfigError, match="NR has 5 to 100 MHz"):
            budget.prb_count(bandwidth_hz, 30)
    with pytest.raises(ConfigError, match="more links than blocks"):
        budget.choose_prb(np.ones(3), np.array([1, 0, 2]), shannon)
    with pytest.raises(ConfigError, match="share of time"):
        budget.hexagon_interference_dbm(np.zeros((1, 2)), 500.0, 44.0, 1.5, lambda d2: d2)
