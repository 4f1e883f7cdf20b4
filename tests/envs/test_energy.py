"""Energy by phase, and batteries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlora.errors import ConfigError
from fedlora_envs.constants import constants
from fedlora_envs.energy import Battery, Radio, board_compute_j, cycles_compute_j, round_energy


def test_a_round_worked_by_hand() -> None:
    """0.2 W radiated at 40 %: the amplifier draws 0.5 W; circuits 0.1 W to send, 0.05 W to receive."""
    radio = Radio(0.2, pa_efficiency=0.4, circuit_tx_w=0.1, circuit_rx_w=0.05)
    found = round_energy(radio, np.array([2.0, 0.0]), board_compute_j(10.0, [3.0, 0.5]), np.array([4.0, 10.0]))
    assert found.downlink_j.tolist() == pytest.approx([0.1, 0.0])
    assert found.compute_j.tolist() == pytest.approx([30.0, 5.0])
    assert found.uplink_j.tolist() == pytest.approx([2.4, 6.0])
    assert found.total_j.tolist() == pytest.approx([32.5, 11.0])


def test_the_amplifier_is_off_outside_its_turns() -> None:
    radio = Radio([0.2, 0.4], pa_efficiency=0.5, circuit_tx_w=0.1, circuit_rx_w=0.0)
    found = round_energy(radio, np.zeros(2), np.zeros(2), np.full(2, 4.0), transmit_s=np.array([1.0, 0.5]))
    assert found.uplink_j.tolist() == pytest.approx([0.4 + 0.4, 0.4 + 0.4])


def test_defaults_are_those_of_the_data_file() -> None:
    radio = Radio(0.2)
    assert (radio.pa_efficiency, radio.circuit_tx_w, radio.circuit_rx_w) == (0.35, 0.1, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pa_efficiency": 0.0}, r"pa_efficiency must be in \(0, 1\], got 0"),
        ({"pa_efficiency": 1.2}, r"pa_efficiency must be in \(0, 1\], got 1.2"),
        ({"tx_w": -1.0}, "tx_w must be a finite power >= 0 W, got -1"),
        ({"circuit_rx_w": float("nan")}, "circuit_rx_w must be a finite power"),
    ],
)
def test_bad_radios_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Radio(**({"tx_w": 0.2} | change))


def test_cycles_model_of_yang2021() -> None:
    """kappa f^3 = 1e-28 (2e9)^3 = 0.8 W while it computes; E = kappa C D E f^2."""
    kappa, clock = constants("fl_papers")["yang2021"]["kappa"], 2e9
    seconds = 2e4 * 500 * 4 / clock
    assert cycles_compute_j(kappa, 2e4, 500, clock, epochs=4) == pytest.approx(0.8 * seconds)
    assert cycles_compute_j(kappa, [1e4, 3e4], 10, clock)[1] == pytest.approx(3e-28 * 1e4 * 10 * 4e18)


def test_batteries_give_what_they_have() -> None:
    battery = Battery([10.0, 10.0, 10.0, np.inf], left_j=[10.0, 2.0, 5.0, np.inf])
    given = battery.spend([3.0, 4.0, 1e6], np.array([0, 1, 3]))
    assert given.tolist() == [3.0, 2.0, 1e6]
    assert battery.left_j.tolist() == [7.0, 0.0, 5.0, np.inf]
    assert battery.empty.tolist() == [False, True, False, False]


def test_batteries_recharge_up_to_their_capacity() -> None:
    battery = Battery([10.0, 10.0], left_j=[0.0, 9.0], recharge_w=[0.1, 0.5])
    battery.recharge(10.0)
    assert battery.left_j.tolist() == pytest.approx([1.0, 10.0])
    still = Battery(10.0, left_j=3.0)
    still.recharge(1e6)
    assert still.left_j.tolist() == [3.0]


def test_a_battery_starts_full_and_leaves_the_callers_array_alone() -> None:
    capacity = np.array([5.0, 6.0])
    battery = Battery(capacity)
    battery.spend(1.0, np.array([0]))
    assert battery.left_j.tolist() == [4.0, 6.0] and capacity.tolist() == [5.0, 6.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"capacity_j": [1.0, 0.0]}, "capacity must be above 0 J, got 0"),
        ({"capacity_j": 5.0, "left_j": 6.0}, "left_j must lie between 0"),
        ({"capacity_j": 5.0, "left_j": -1.0}, "left_j must lie between 0"),
        ({"capacity_j": 5.0, "recharge_w": -1.0}, "recharge_w must be finite powers >= 0 W"),
    ],
)
def test_bad_batteries_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Battery(**values)
