"""Media with constant rates between events."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora_envs.medium import FixedRates, Medium, PowerLimitedSharing, ProcessorSharing

INF = float("inf")
Floats = NDArray[np.float64]


def finish_times(medium: Medium, bits: Floats, now: float = 0.0) -> Floats:
    """Run all transfers to their ends and return when each was through."""
    times = np.where(bits > 0, np.nan, now)
    for _ in range(bits.size + 1):
        if not (bits > 0).any():
            break
        now, after = medium.serve(now, INF, bits)
        times[(bits > 0) & (after == 0)] = now
        bits = after
    return times


@pytest.mark.parametrize("clients", [1, 2, 7, 200])
def test_processor_sharing_follows_its_closed_form(clients: int) -> None:
    """T_(j) = sum_{i <= j} (w_i - w_{i-1}) (K - i + 1) / B, and the makespan is sum w / B."""
    work = np.random.default_rng(clients).lognormal(15, 1, clients)
    rate = 3e6
    ordered = np.sort(work)
    steps = np.diff(ordered, prepend=0.0) * np.arange(clients, 0, -1) / rate
    expected = np.empty(clients)
    expected[np.argsort(work)] = np.cumsum(steps)
    times = finish_times(ProcessorSharing(np.full(clients, rate)), work)
    np.testing.assert_allclose(times, expected, rtol=1e-12)
    assert times.max() == pytest.approx(work.sum() / rate, rel=1e-12)


def test_two_under_way_halve_each_others_rate_until_one_is_through() -> None:
    medium = ProcessorSharing(np.array([2.0, 4.0]))
    time, left = medium.serve(10.0, INF, np.array([3.0, 8.0]))
    assert (time, left.tolist()) == (13.0, [0.0, 2.0])
    time, left = medium.serve(time, INF, left)
    assert (time, left.tolist()) == (13.5, [0.0, 0.0])


def test_fixed_rates_do_not_depend_on_who_else_sends() -> None:
    rates, bits = np.array([1.0, 2.0, 5.0]), np.array([4.0, 1.0, 5.0])
    np.testing.assert_allclose(finish_times(FixedRates(rates), bits, now=2.0), 2.0 + bits / rates, rtol=1e-15)


def test_a_narrower_band_costs_less_than_its_share() -> None:
    """Two of equal a in half the band each: b log2(1 + a / b) with b = B / 2, more than half the rate alone."""
    a_hz, band = np.array([5e6, 5e6]), 1e6
    both, _ = PowerLimitedSharing(a_hz, band).serve(0.0, INF, np.array([1e6, 1e6]))
    assert both == pytest.approx(1e6 / (0.5e6 * np.log2(11.0)), rel=1e-14)
    alone, _ = PowerLimitedSharing(a_hz, band).serve(0.0, INF, np.array([1e6, 0.0]))
    assert alone < both < 2 * alone
    gap, _ = PowerLimitedSharing(a_hz, band, gap=2.0).serve(0.0, INF, np.array([1e6, 0.0]))
    assert gap == pytest.approx(1.0 / np.log2(1 + 5 / 2), rel=1e-14)


@pytest.mark.parametrize(
    "medium",
    [FixedRates(np.array([3.0, 0.0])), ProcessorSharing(np.array([3.0, 0.0])), PowerLimitedSharing(np.array([3.0, 0.0]), 1.0)],
    ids=lambda medium: type(medium).__name__,
)
class TestEveryMedium:
    def test_stops_at_until_and_leaves_the_rest(self, medium: Medium) -> None:
        bits = np.array([30.0, 0.0])
        alone, _ = medium.serve(0.0, INF, bits)
        time, left = medium.serve(0.0, alone / 4, bits)
        assert time == alone / 4
        assert left[0] == pytest.approx(22.5)
        assert bits[0] == 30.0  # the caller's array is not touched
        time, left = medium.serve(time, INF, left)
        assert time == pytest.approx(alone)
        assert left[0] == 0

    def test_a_transfer_that_ends_at_until_is_through(self, medium: Medium) -> None:
        alone, _ = medium.serve(0.0, INF, np.array([30.0, 0.0]))
        time, left = medium.serve(0.0, alone, np.array([30.0, 0.0]))
        assert time == alone
        assert left[0] == 0

    def test_nobody_ever_through(self, medium: Medium) -> None:
        bits = np.array([0.0, 7.0])  # the second has no rate
        time, left = medium.serve(1.0, INF, bits)
        assert time == INF
        assert left.tolist() == [0.0, 7.0]
        assert medium.serve(1.0, 5.0, bits)[0] == 5.0
        assert medium.serve(1.0, 5.0, bits)[1].tolist() == [0.0, 7.0]

    def test_nothing_to_serve(self, medium: Medium) -> None:
        assert medium.serve(1.0, 4.0, np.zeros(2))[0] == 4.0
        assert medium.serve(1.0, INF, np.zeros(2))[0] == INF

    def test_ends_even_where_time_has_no_digits_left_for_the_rest(self, medium: Medium) -> None:
        time, left = medium.serve(1e15, INF, np.array([1e-9, 0.0]))
        assert time == 1e15
        assert left[0] == 0


@pytest.mark.parametrize("rates", [[-1.0], [float("nan")], [INF], [[1.0]]])
def test_impossible_rates_are_refused(rates: list[float]) -> None:
    with pytest.raises(ConfigError, match="rates_bps must be one finite number >= 0 per transfer"):
        FixedRates(np.array(rates))


@pytest.mark.parametrize("band", [0.0, -1e6, float("nan")])
def test_a_band_that_is_none_is_refused(band: float) -> None:
    with pytest.raises(ConfigError, match="bandwidth_hz must be above 0"):
        PowerLimitedSharing(np.array([1.0]), band)
