"""Drops are even over the area; walks stay in the cell however long a step is."""

from __future__ import annotations

import numpy as np
import pytest

from fedlora.errors import ConfigError
from fedlora_envs.radio.geometry import Walk, distances, drop, drop_square
from zscores import LIMIT, z_mean, z_share


def radius(xy):
    return np.hypot(xy[:, 0], xy[:, 1])


def walked(xy, heading, length, cell):
    """The end of a straight walk mirrored at the circle, bounce by bounce."""
    xy, direction, left = np.array(xy, float), np.array([np.cos(heading), np.sin(heading)]), length
    while True:
        along = xy @ direction
        ahead = -along + np.sqrt(along**2 + cell**2 - xy @ xy)
        if ahead >= left:
            return xy + left * direction, direction
        xy = xy + ahead * direction
        normal = xy / np.hypot(*xy)
        xy = cell * normal
        direction = direction - 2 * (direction @ normal) * normal
        direction /= np.hypot(*direction)
        left -= ahead


def test_drop_is_even_over_the_ring():
    n = 1_000_000
    xy = drop(n, 100.0, 35.0, np.random.default_rng(1))
    r = radius(xy)
    assert r.min() >= 35
    assert r.max() <= 100
    assert abs(z_mean(r**2, (100**2 + 35**2) / 2)) <= LIMIT
    assert abs(z_share(int((r < 60).sum()), n, (60**2 - 35**2) / (100**2 - 35**2))) <= LIMIT
    assert abs(z_share(int((xy[:, 1] > xy[:, 0]).sum()), n, 0.5)) <= LIMIT


def test_drop_in_a_square():
    n = 1_000_000
    xy = drop_square(n, 500.0, np.random.default_rng(2))
    assert np.abs(xy).max() <= 250
    assert abs(z_mean(xy[:, 0] ** 2, 500**2 / 12)) <= LIMIT
    assert abs(z_mean(xy[:, 0] * xy[:, 1], 0)) <= LIMIT


def test_distances():
    d2, d3 = distances(np.array([[3.0, 4.0], [0.0, 5.0]]), 10.0, np.array([10.0, -2.0]))
    assert d2.tolist() == [5, 5]
    assert d3.tolist() == [5, 13]


@pytest.mark.parametrize("length", [0.0, 30.0, 150.0, 1234.5, 98765.4])
def test_reflection_is_that_of_a_mirror(length):
    rng = np.random.default_rng(3)
    start = Walk.start(drop(200, 100.0, 0.0, rng), rng)
    straight = Walk(start.xy, start.heading_rad, turn_rad_per_sqrt_s=0.0)
    end = straight.move(length / 10, 10.0, 100.0, rng)
    for i in range(200):
        xy, direction = walked(start.xy[i], start.heading_rad[i], length, 100.0)
        np.testing.assert_allclose(end.xy[i], xy, atol=1e-4)
        np.testing.assert_allclose([np.cos(end.heading_rad[i]), np.sin(end.heading_rad[i])], direction, atol=1e-5)


def test_an_undisturbed_step_is_speed_times_time():
    rng = np.random.default_rng(4)
    xy = drop(1000, 50.0, 0.0, rng)
    end = Walk.start(xy, rng).move(np.linspace(0, 3, 1000), 10.0, 100.0, rng)
    np.testing.assert_allclose(end.moved_m, np.linspace(0, 30, 1000), atol=1e-9)
    np.testing.assert_allclose(radius(end.xy - xy), end.moved_m)


def test_walks_stay_in_the_ring_and_even():
    rng = np.random.default_rng(5)
    n = 200_000
    walk = Walk.start(drop(n, 100.0, 1.0, rng), rng, min_distance_m=1.0)
    for dt in (1.0, 7.0, 60.0, 500.0, 1e5):
        walk = walk.move(rng.uniform(0, 30, n), dt, 100.0, rng)
        assert radius(walk.xy).min() >= 1
        assert radius(walk.xy).max() <= 100
    # A billiard keeps an even spread even; the rim around the base station is 1e-4 of the area.
    assert abs(z_mean(radius(walk.xy) ** 2, (100**2 + 1) / 2)) <= LIMIT
    assert abs(z_share(int((walk.xy[:, 0] > 0).sum()), n, 0.5)) <= LIMIT


def test_clients_on_the_rim_or_outside_come_back():
    xy = np.array([[100.0, 0.0], [0.0, -100.0], [130.0, 0.0], [0.0, 0.0]])
    walk = Walk(xy, np.array([0.0, 1e-9, 0.3, 0.0]), min_distance_m=5.0, turn_rad_per_sqrt_s=0.0)
    end = walk.move(2.0, 10.0, 100.0, np.random.default_rng(6))
    assert radius(end.xy).max() <= 100
    assert end.xy[0].tolist() == pytest.approx([80.0, 0.0], abs=1e-6)
    still = walk.move(0.0, 10.0, 100.0, np.random.default_rng(6))
    assert radius(still.xy).min() >= 5
    assert radius(still.xy)[2] == pytest.approx(100)


def test_headings_drift_with_time():
    rng = np.random.default_rng(7)
    n = 1_000_000
    walk = Walk(np.zeros((n, 2)), np.full(n, np.pi), turn_rad_per_sqrt_s=0.1)
    end = walk.move(0.1, 4.0, 100.0, rng)
    assert abs(z_mean((end.heading_rad - np.pi) ** 2, 0.1**2 * 4)) <= LIMIT


def test_draws_do_not_depend_on_values():
    states = []
    for speed, cell in ((0.0, 50.0), (1e4, 3000.0)):
        rng = np.random.default_rng(8)
        Walk.start(drop(100, cell, 1.0, rng), rng).move(speed, 9.0, cell, rng)
        states.append(rng.bit_generator.state)
    assert states[0] == states[1]


def test_refusals():
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="no client nearer than 35 m has no room"):
        drop(5, 20, 35, rng)
    with pytest.raises(ConfigError, match="at least one client, not 0"):
        drop(0, 20, 3, rng)
    with pytest.raises(ConfigError, match="side must be positive"):
        drop_square(3, 0, rng)
