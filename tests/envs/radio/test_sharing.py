"""Static shares of the uplink band, processor sharing in closed form, and the downlink."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora_envs.radio.sharing import (
    ALLOCATIONS,
    allocate,
    bandwidth_for_rate_hz,
    broadcast_bits,
    broadcast_s,
    processor_sharing_s,
    quantile_broadcast,
    quantile_broadcast_s,
    unicast_s,
    uplink_rate_bps,
)

Floats = NDArray[np.float64]
BAND = 20e6


def cell(clients: int, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Return (bits, a, arrivals) of a cell whose SNRs over the whole band are 10 +- 8 dB."""
    rng = np.random.default_rng(seed)
    a_hz = 10 ** ((10 + 8 * rng.standard_normal(clients)) / 10) * BAND
    return rng.uniform(1e6, 2e7, clients), a_hz, rng.uniform(0, 2, clients)


def finish_s(name: str, bits: Floats, a_hz: Floats, arrivals_s: Floats) -> Floats:
    return arrivals_s + bits / uplink_rate_bps(allocate(name, bits, a_hz, arrivals_s, BAND), a_hz)


@pytest.mark.parametrize("clients", [1, 2, 20, 100, 1000])
def test_min_max_all_finish_together_and_use_the_whole_band(clients: int) -> None:
    bits, a_hz, arrivals_s = cell(clients)
    shares_hz = allocate("min_max", bits, a_hz, arrivals_s, BAND)
    times = arrivals_s + bits / uplink_rate_bps(shares_hz, a_hz)
    assert np.ptp(times) <= 1e-12 * times.max()
    assert shares_hz.sum() == pytest.approx(BAND, rel=1e-12)
    assert (shares_hz > 0).all()


@pytest.mark.parametrize("clients", [20, 1000])
def test_min_max_is_faster_than_an_equal_split_and_than_a_proportional_one(clients: int) -> None:
    best, equal, proportional = (finish_s(name, *cell(clients)).max() for name in ("min_max", "equal", "proportional"))
    assert best < proportional < equal
    assert equal / best > 1.2  # 10.70 / 8.47 s for 20 clients in the design's cell


def test_min_max_is_a_minimum() -> None:
    """Moving band from any client to any other makes the round longer."""
    bits, a_hz, arrivals_s = cell(5)
    shares_hz = allocate("min_max", bits, a_hz, arrivals_s, BAND)
    best = (arrivals_s + bits / uplink_rate_bps(shares_hz, a_hz)).max()
    for giver in range(5):
        for taker in range(5):
            if giver != taker:
                moved = shares_hz.copy()
                moved[giver] *= 0.99
                moved[taker] += 0.01 * shares_hz[giver]
                assert (arrivals_s + bits / uplink_rate_bps(moved, a_hz)).max() > best * (1 + 1e-6)


def test_the_bandwidth_for_a_rate_gives_that_rate() -> None:
    """Residual of the closed form, from nearly no load to a rate next to a / ln 2."""
    load = np.concatenate([np.logspace(-12, -0.01, 400), 1 - np.logspace(-2, -9, 200)])
    a_hz = np.full(load.size, 3e6)
    rate_bps = load * a_hz / np.log(2)
    bandwidth_hz = bandwidth_for_rate_hz(rate_bps, a_hz)
    assert (np.diff(bandwidth_hz) > 0).all()
    np.testing.assert_allclose(uplink_rate_bps(bandwidth_hz, a_hz), rate_bps, rtol=1e-13)
    # The rate hardly depends on the band near load 1, so check the band itself against the series of ln(1 + x) / x there.
    room = 1 - load[-1]
    assert bandwidth_hz[-1] == pytest.approx(3e6 / (2 * room), rel=1e-6)


def test_no_bandwidth_is_enough_beyond_the_power_limit() -> None:
    limit = 2e6 / np.log(2)
    found = bandwidth_for_rate_hz(np.array([limit * 1.0001, 5.0, 0.0, 0.0]), np.array([2e6, 0.0, 2e6, 0.0]))
    assert found.tolist() == [np.inf, np.inf, 0.0, 0.0]


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
class TestEveryAllocation:
    def test_one_client_gets_all(self, name: str) -> None:
        assert allocate(name, np.array([1e6]), np.array([1e3]), np.array([5.0]), BAND).tolist() == [BAND]

    def test_those_that_cannot_send_are_left_out(self, name: str) -> None:
        """Nothing to send, no received power, never there: 0 Hz, and the rest as if they did not exist."""
        bits, a_hz, arrivals_s = cell(6)
        bits[1], a_hz[3], arrivals_s[4] = 0.0, 0.0, np.inf
        shares_hz = allocate(name, bits, a_hz, arrivals_s, BAND)
        rest = [0, 2, 5]
        assert shares_hz[[1, 3, 4]].tolist() == [0.0, 0.0, 0.0]
        np.testing.assert_array_equal(shares_hz[rest], allocate(name, bits[rest], a_hz[rest], arrivals_s[rest], BAND))

    def test_nobody_to_serve(self, name: str) -> None:
        assert allocate(name, np.zeros(3), np.ones(3), np.zeros(3), BAND).tolist() == [0.0, 0.0, 0.0]
        assert allocate(name, np.zeros(0), np.zeros(0), np.zeros(0), BAND).size == 0

    def test_a_hardly_reachable_client_breaks_nothing(self, name: str) -> None:
        bits, a_hz, arrivals_s = np.full(3, 1e6), np.array([1e-3, 1e9, 1e7]), np.zeros(3)
        shares_hz = allocate(name, bits, a_hz, arrivals_s, BAND)
        assert np.isfinite(shares_hz).all()
        assert (shares_hz > 0).all()
        assert shares_hz.sum() == pytest.approx(BAND, rel=1e-9)

    def test_an_snr_gap_is_less_power(self, name: str) -> None:
        bits, a_hz, arrivals_s = cell(5)
        np.testing.assert_array_equal(
            allocate(name, bits, a_hz, arrivals_s, BAND, gap=2.0), allocate(name, bits, a_hz / 2, arrivals_s, BAND)
        )

    @pytest.mark.parametrize("band", [0.0, -20e6, float("nan"), float("inf")])
    def test_a_band_that_is_none_is_refused(self, name: str, band: float) -> None:
        with pytest.raises(ConfigError, match="bandwidth_hz must be a finite number above 0"):
            allocate(name, *cell(2), band)


def test_equal_and_proportional_shares() -> None:
    bits, a_hz = np.array([1e6, 3e6, 3e6]), np.array([7.0, 7.0, 1.0]) * BAND / 3
    assert allocate("equal", bits, a_hz, np.zeros(3), BAND) == pytest.approx([BAND / 3] * 3)
    # Efficiencies at an equal share: 3, 3 and 1 bit/s/Hz, so needs of 1/3, 1 and 3.
    assert allocate("proportional", bits, a_hz, np.zeros(3), BAND) == pytest.approx(np.array([1, 3, 9]) * BAND / 13)


def test_an_unknown_allocation_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'min_max'"):
        allocate("minmax", *cell(2), BAND)


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_impossible_numbers_are_refused(position: int, value: float) -> None:
    arrays = list(cell(3))
    arrays[position][1] = value
    with pytest.raises(ConfigError, match=f"{['bits', 'a_hz', 'arrivals_s'][position]} must be"):
        allocate("equal", *arrays, BAND)


def test_arrays_of_different_lengths_and_a_gap_below_capacity_are_refused() -> None:
    with pytest.raises(ConfigError, match="3, 3 and 2 clients"):
        allocate("equal", *cell(3)[:2], np.zeros(2), BAND)
    with pytest.raises(ConfigError, match="SNR gap"):
        allocate("equal", *cell(3), BAND, gap=0.5)


def test_processor_sharing_adds_up() -> None:
    """Worked by hand: 1, 1 and 4 s alone. The first two end at 3 s (three share), the last has 3 s of work left."""
    bits, rates = np.array([4e6, 1e6, 0.0, 2e6, 5.0]), np.array([1e6, 1e6, 1e6, 2e6, 0.0])
    assert processor_sharing_s(bits, rates).tolist() == [6.0, 3.0, 0.0, 3.0, np.inf]


def test_one_broadcast_carries_the_largest_rank_at_the_worst_rate() -> None:
    bits, rates = np.array([4e6, 1e6, 0.0, 2e6]), np.array([8e6, 2e6, 1.0, 4e6])
    assert broadcast_bits(bits) == 4e6
    assert broadcast_s(bits, rates).tolist() == [2.0, 2.0, 0.0, 2.0]  # who gets nothing is not waited for
    assert broadcast_s(bits, np.array([8e6, 0.0, 1.0, 4e6])).tolist() == [np.inf, np.inf, 0.0, np.inf]
    assert broadcast_s(np.zeros(2), np.ones(2)).tolist() == [0.0, 0.0]


def test_unicast_sends_every_copy() -> None:
    """The last copy is through when the work of all is done, whatever their order."""
    bits, rates = np.full(10, 1e6), np.random.default_rng(3).uniform(1e6, 1e8, 10)
    assert unicast_s(bits, rates).max() == pytest.approx((bits / rates).sum(), rel=1e-12)


def test_a_quantile_broadcast_leaves_the_worst_to_unicast() -> None:
    bits, rates = np.array([4e6, 1e6, 2e6, 0.0]), np.array([8e6, 1e6, 4e6, 9e9])
    hears, rate = quantile_broadcast(rates[:3], 2 / 3)
    assert hears.tolist() == [True, False, True]
    assert rate == 4e6
    assert quantile_broadcast_s(bits, rates, 2 / 3).tolist() == [1.0, 2.0, 1.0, 0.0]
    np.testing.assert_array_equal(quantile_broadcast_s(bits, rates, 1.0), broadcast_s(bits, rates))
    np.testing.assert_array_equal(quantile_broadcast_s(bits, rates, 0.0), unicast_s(bits, rates))
    with pytest.raises(ConfigError, match="between 0 and 1"):
        quantile_broadcast(rates, 1.5)
