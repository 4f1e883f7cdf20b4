"""Path loss and LOS against golden values and Sionna; penetration, K and shadowing statistics against the standard's numbers."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from fedlora.errors import ConfigError, UnknownNameError
from fedlora_envs.radio import pathloss
from zscores import LIMIT, z_mean, z_share

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden_pathloss.json").read_text(encoding="utf-8"))


def one(scenario: str, d2: float, h_bs: float, h_ut: float, fc: float, los: bool) -> float:
    return float(pathloss.path_loss_db(scenario, np.array([d2]), h_bs, h_ut, fc, np.array([los]))[0])


@pytest.mark.parametrize("row", GOLDEN["path_loss_db"], ids=lambda row: "-".join(map(str, row[:6])))
def test_golden_path_loss(row):
    *case, expected = row
    assert one(*case) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("row", GOLDEN["los_probability"], ids=lambda row: "-".join(map(str, row[:4])))
def test_golden_los_probability(row):
    scenario, d2, h_bs, h_ut, expected = row
    assert pathloss.los_probability(scenario, np.array([d2]), h_ut, h_bs)[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.sionna
@pytest.mark.parametrize("los", [True, False], ids=["los", "nlos"])
@pytest.mark.parametrize("scenario", ["UMi", "UMa", "RMa", "InH", "InF-SL", "InF-DL", "InF-SH", "InF-DH"])
def test_path_loss_against_sionna(scenario, los):
    pytest.importorskip("sionna")
    oracle = runpy.run_path(str(HERE / "make_golden.py"))
    d2 = np.geomspace(10, 5000, 60)
    for h_bs, h_ut in oracle["HEIGHTS_M"][scenario]:
        for fc in oracle["FC_GHZ"].get(scenario, (2.0, 3.5, 28.0)):
            ours = pathloss.path_loss_db(scenario, d2, h_bs, h_ut, fc, np.full(60, los))
            np.testing.assert_allclose(ours, oracle["path_loss_db"](scenario, d2, h_bs, h_ut, fc, los), rtol=0, atol=1e-9)


@pytest.mark.sionna
@pytest.mark.parametrize("scenario", ["UMi", "UMa", "RMa", "InH", "InH-mixed", "InF-SL", "InF-DL", "InF-SH", "InF-DH"])
def test_los_probability_against_sionna(scenario):
    pytest.importorskip("sionna")
    oracle = runpy.run_path(str(HERE / "make_golden.py"))
    d2 = np.geomspace(1, 2000, 60)
    h_bs = 8.0 if scenario in ("InF-SH", "InF-DH") else 3.0
    for h_ut in (1.5, 20.0) if scenario == "UMa" else (1.5,):
        ours = pathloss.los_probability(scenario, d2, h_ut, h_bs)
        np.testing.assert_allclose(ours, oracle["los_probability"](scenario, d2, h_bs, h_ut), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scenario", ["UMi", "UMa", "RMa"])
def test_los_loss_is_continuous_at_the_breakpoint(scenario):
    distance = float(pathloss.breakpoint_m(scenario, 30.0, 1.6, 3.5))
    d2 = distance * np.array([1 - 1e-9, 1 + 1e-9])
    before, beyond = pathloss.path_loss_db(scenario, d2, 30.0, 1.6, 3.5, np.full(2, True))
    assert before == pytest.approx(beyond, abs=0.01)
    assert pathloss.breakpoint_m("InH", 3.0, 1.0, 3.5) == np.inf


@pytest.mark.parametrize("scenario", pathloss.scenarios())
def test_loss_grows_with_distance_and_is_clamped_nearby(scenario):
    d2 = np.geomspace(0.001, 4000, 200)
    for los in (True, False):
        loss = pathloss.path_loss_db(scenario, d2, 20.0, 1.5, 3.5, np.full(200, los))
        assert np.all(np.diff(loss) >= 0)
        assert loss[0] == pytest.approx(loss[1], abs=1e-3)
        assert loss[0] > 20
        assert loss[-1] > loss[0] + 40


def test_nlos_is_never_below_los():
    d2 = np.geomspace(1, 5000, 100)
    for scenario in pathloss.scenarios():
        sight, blocked = (pathloss.path_loss_db(scenario, d2, 20.0, 1.5, 3.5, np.full(100, los)) for los in (True, False))
        assert np.all(blocked >= sight)


def test_literature_is_the_papers_formula():
    assert one("literature", 1000.0, 25.0, 1.5, 2.0, True) == pytest.approx(128.1)
    assert one("literature", 100.0, 25.0, 1.5, 2.0, False) == pytest.approx(128.1 - 37.6)
    assert pathloss.los_probability("literature", np.array([1.0, 50.0]), 1.5).tolist() == [0, 0]
    assert pathloss.rician_k_db("literature", np.zeros(1))[0] == -np.inf


def test_heights_may_differ_between_clients():
    d2, h_ut, los = np.array([80.0, 80.0]), np.array([1.5, 10.0]), np.array([False, False])
    assert pathloss.path_loss_db("UMa", d2, 25.0, h_ut, 3.5, los).tolist() == pytest.approx(
        [one("UMa", 80.0, 25.0, 1.5, 3.5, False), one("UMa", 80.0, 25.0, 10.0, 3.5, False)]
    )


def test_surroundings_of_tall_clients():
    rng = np.random.default_rng(1)
    n = 1_000_000
    heights = pathloss.environment_height_m(np.full(n, 120.0), 20.0, rng.random((2, n)))
    c = 0.7**1.5 * 1.25 * 1.2**3 * np.exp(-120 / 150)
    assert abs(z_share(int((heights == 1).sum()), n, 1 / (1 + c))) <= LIMIT
    assert set(np.unique(heights)) == {1.0, 12.0, 15.0, 18.0}
    tall = heights[heights > 1]
    assert abs(z_share(int((tall == 15).sum()), tall.size, 1 / 3)) <= LIMIT
    assert np.all(pathloss.environment_height_m(np.full(9, 120.0), 13.0, rng.random((2, 9))) == 1)


# Worked by hand from Table 7.4.3-2: 5 - 10 log10(0.3 10^-0.27 + 0.7 10^-1.9) and so on.
@pytest.mark.parametrize(
    ("kind", "fc_ghz", "wall_db"), [("low", 3.5, 12.697), ("low", 28.0, 17.829), ("high", 3.5, 27.499), ("high", 28.0, 35.029)]
)
def test_building_loss(kind, fc_ghz, wall_db):
    loss = pathloss.o2i_loss_db(kind, fc_ghz, np.array([0.0, 10.0, 10.0]), np.array([0.0, 0.0, 1.0]))
    sigma = {"low": 4.4, "high": 6.5}[kind]
    assert loss.tolist() == pytest.approx([wall_db, wall_db + 5, wall_db + 5 + sigma], abs=0.001)


def test_cars_and_no_loss():
    normals = np.array([0.0, -1.0])
    depth = np.array([3.0, 3.0])
    assert pathloss.o2i_loss_db("car", 3.5, depth, normals).tolist() == [9, 4]
    assert pathloss.o2i_loss_db("car_metallised", 3.5, depth, normals).tolist() == [20, 15]
    assert pathloss.o2i_loss_db("none", 3.5, depth, normals).tolist() == [0, 0]
    with pytest.raises(UnknownNameError, match="Did you mean 'high'"):
        pathloss.o2i_loss_db("hihg", 3.5, depth, normals)


def test_depth_is_the_smaller_of_two_draws():
    depth = pathloss.indoor_depth_m("UMi", np.random.default_rng(2).random((2, 1_000_000)))
    assert abs(z_mean(depth, 25 / 3)) <= LIMIT
    assert depth.min() >= 0
    assert depth.max() <= 25
    assert not pathloss.indoor_depth_m("InH", np.full((2, 3), 0.5)).any()


def test_rician_k_of_each_scenario():
    normals = np.random.default_rng(3).standard_normal(1_000_000)
    for scenario, mean, sigma in (("UMi", 9, 5), ("UMa", 9, 3.5), ("InH", 7, 4), ("RMa", 7, 4), ("InF-SL", 7, 8)):
        k = pathloss.rician_k_db(scenario, normals)
        assert abs(z_mean(k, mean)) <= LIMIT
        assert abs(z_mean((k - mean) ** 2, sigma**2)) <= LIMIT


def test_shadowing_of_each_state():
    los, indoor = np.array([True, False, True, False]), np.array([False, False, True, True])
    assert pathloss.shadowing_sigma_db("UMi", los, indoor).tolist() == [4, 7.82, 7, 7]
    assert pathloss.shadowing_sigma_db("UMa", los, indoor).tolist() == [4, 6, 7, 7]
    assert pathloss.shadowing_sigma_db("InH", los, indoor).tolist() == [3, 8.03, 3, 8.03]
    assert pathloss.shadowing_sigma_db("RMa", los, ~los & indoor, np.array([True, True, False, False])).tolist() == [6, 8, 4, 8]
    assert pathloss.decorrelation_m("UMa") == (37, 50, 7, 50, 12)
    assert pathloss.decorrelation_m("InH").indoor == pathloss.decorrelation_m("InH").nlos == 6


def test_refusals():
    with pytest.raises(UnknownNameError, match=r"unknown radio scenario 'umi'\. Did you mean 'UMi'"):
        pathloss.los_probability("umi", np.ones(1), 1.5)
    with pytest.raises(UnknownNameError, match="radio scenario"):
        one("o2i_low", 50.0, 10.0, 1.5, 3.5, True)
    with pytest.raises(ConfigError, match=r"a carrier of 40 GHz is outside the model's 0\.5 to 30 GHz"):
        one("RMa", 50.0, 35.0, 1.5, 40.0, True)
    with pytest.raises(ConfigError, match="client heights of 1 to 1 m"):
        one("UMi", 50.0, 10.0, 1.0, 3.5, True)
    with pytest.raises(ConfigError, match=r"base station 0\.5 m high"):
        one("UMi", 50.0, 0.5, 1.5, 3.5, True)
