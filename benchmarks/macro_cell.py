"""The cell of terminals.py, the same in fedlora and in mobile-env: terminals that walk around one station on a square."""

from __future__ import annotations

from typing import Any

SIDE_M = 200.0
BAND_HZ = 9e6
POWER_DBM = 30.0
NOISE_FIGURE_DB = 9.0
FC_GHZ = 2.5
BASE_HEIGHT_M, USER_HEIGHT_M = 50.0, 1.5
SPEED_MPS = 1.5
SCENARIO = "literature"
INTERCEPT_DB, SLOPE_DB, NEAREST_M = 128.1, 37.6, 10.0
"""Its law for mobile-env: 128.1 + 37.6 log10(d / km), and no nearer than 10 m."""
HORIZON = 100

OPTIONS: dict[str, Any] = {
    "world": "umi-indoor",
    "horizon": HORIZON,
    "deadline_s": 1e6,
    "energy_budget_j": "none",
    "world_options": {
        "cell": {
            "scenario": SCENARIO,
            "fc_ghz": FC_GHZ,
            "area_m": SIDE_M,
            "min_distance_m": 0.0,
            "base_height_m": BASE_HEIGHT_M,
            "client_height_m": USER_HEIGHT_M,
            "antenna_gain_db": 0.0,
            "indoor_fraction": 0.0,
            "shadowing": False,
            "interference_margin_db": 0.0,
            "speed_kmh": SPEED_MPS * 3.6,
            "step_s": 1.0,
        },
        "downlink": {
            "sharing": "unicast",
            "bandwidth_hz": BAND_HZ,
            "power_dbm": POWER_DBM,
            "noise_figure_db": NOISE_FIGURE_DB,
            "overhead": 0.0,
            "tdd_share": 1.0,
        },
        "fading": {"model": "none"},
        "rate": {"model": "shannon"},
        "csi": {"delay_rounds": 0},
    },
}
"""Options of `fedlora/FederatedRankAllocation-v0`."""
