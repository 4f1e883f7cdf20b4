"""What nodes measured becomes the observation that simulated links give."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fedlora.config import DeploymentConfig
from fedlora.deploy.measured import MeasuredWorld, equivalent_snr_db, measurements
from fedlora.federation.budgets import budget_bytes
from fedlora.federation.world import WorldSetup

ALL = np.arange(4)


@pytest.fixture
def world() -> MeasuredWorld:
    return MeasuredWorld(DeploymentConfig(round_timeout_s=30.0), WorldSetup(0, 4, 2, flops_per_unit=1e6))


def report(**changes: Any) -> dict[str, Any]:
    return {"up-bps": 2e6, "down-bps": 8e6, "compute-seconds": 4.0, "tokens": 2000} | changes


def test_before_anybody_measured_nothing_limits(world: MeasuredWorld) -> None:
    links = world.observe(1, ALL)
    assert (links.age_rounds == -1).all() and not links.outage.any() and links.allowance is None
    assert np.isinf(budget_bytes(links, broadcast_bits=8e6)).all()


def test_what_was_measured_is_seen_and_the_others_are_taken_to_be_alike(world: MeasuredWorld) -> None:
    world.note({0: 1e5, 1: 1e5}, {0: report(), 1: report(**{"up-bps": 4e6, "compute-seconds": 2.0})}, 7.0, 3)
    links = world.observe(5, ALL)
    assert links.uplink_bps.tolist() == [2e6, 4e6, 3e6, 3e6] and links.downlink_bps.tolist() == [8e6] * 4
    assert links.age_rounds.tolist() == [2, 2, -1, -1]
    assert links.compute_s is not None and links.compute_s.tolist() == [4.0, 2.0, 3.0, 3.0]
    assert links.compute_bps.tolist() == [5e8, 1e9, 7.5e8, 7.5e8]
    # What fits: the deadline less computing and a download of 8 Mbit (1 s), at the measured rate.
    np.testing.assert_allclose(budget_bytes(links, 8e6), [25 * 2e6 / 8, 27 * 4e6 / 8, 26 * 3e6 / 8, 26 * 3e6 / 8])


def test_rows_say_what_was_measured(world: MeasuredWorld) -> None:
    world.note({0: 1e5, 1: 0.0}, {0: report(**{"rssi-dbm": -61.0, "up-seconds": 0.4})}, 7.25, 3)
    assert world.client_rows() == {
        0: {"rate_bps": 2e6, "downlink_bps": 8e6, "compute_s": 4.0, "rssi_dbm": -61.0, "uplink_s": 0.4}
    }  # fmt: skip
    assert world.round_row() == {"real_time_s": 7.25, "mean_rate_bps": 2e6}


def test_a_battery_becomes_an_allowance(world: MeasuredWorld) -> None:
    world.note({0: 1e5}, {0: report(battery=0.8)}, 1.0, 1)
    first = world.observe(2, ALL).allowance
    assert first is not None and first.left.tolist() == [0.8, 1.0, 1.0, 1.0] and not first.per_byte.any()
    world.note({0: 1e5}, {0: report(battery=0.6)}, 1.0, 2)
    then = world.observe(3, ALL).allowance
    assert then is not None and then.left[0] == 0.6
    np.testing.assert_allclose(then.per_byte, [0.25 / 1e5, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0, 0.0, 1e30, True, "fast", [2e6]])
def test_what_no_link_can_be_is_no_measurement(world: MeasuredWorld, wrong: Any) -> None:
    found = measurements({"up-bps": wrong, "down-bps": 8e6})
    # A flag counts as the number 1, the lowest rate there is; all else is left out.
    assert found == ({"up-bps": 1.0, "down-bps": 8e6} if wrong is True else {"down-bps": 8e6})


def test_state_goes_on(world: MeasuredWorld) -> None:
    world.note({0: 1e5, 2: 0.0}, {0: report(battery=0.5)}, 7.0, 3)
    other = MeasuredWorld(world.config, world.setup)
    # As a checkpoint gives it back: contiguous arrays, which none without a dimension survives as it was.
    other.restore({name: np.ascontiguousarray(value) for name, value in world.state().items()})
    for name, value in vars(world.observe(4, ALL)).items():
        if name != "allowance":
            np.testing.assert_array_equal(value, getattr(other.observe(4, ALL), name))
    assert other.real_s == 7.0 and other.round == 3


def test_the_equivalent_snr_is_shannons() -> None:
    rate = 5e6 * np.log2(1 + 10 ** (np.array([-10.0, 0.0, 12.0, 30.0]) / 10))
    np.testing.assert_allclose(equivalent_snr_db(rate, 5e6), [-10.0, 0.0, 12.0, 30.0], atol=1e-9)
    assert equivalent_snr_db(np.array([0.0, np.inf]), 5e6).tolist() == [-20.0, 60.0]
