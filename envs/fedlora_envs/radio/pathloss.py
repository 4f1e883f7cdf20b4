"""Path loss, LOS probability, penetration and shadowing statistics of 3GPP TR 38.901, as functions of arrays.

Scenarios: "UMi" (street canyon), "UMa", "RMa", "InH" or "InH-open" (open office), "InH-mixed", "InF-SL", "InF-DL", "InF-SH",
"InF-DH" and "literature" (128.1 + 37.6 log10(d/km)). Constants with sources: `data/tr38901.yaml`.

Distances are horizontal (`d2`), in metres and [n]; losses are in dB and [n]. Below a model's shortest distance its value there
is returned; beyond its longest (5 km for UMi and UMa, 10 km for RMa's LOS and 5 km for its NLOS, 150 m for InH, 600 m for InF)
the formula is extrapolated.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError, UnknownNameError
from fedlora_envs.constants import constants

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SPEED_OF_LIGHT_MPS = 299792458.0
"""Exact; the TR writes 3.0e8, which differs by 0.006 dB beyond the breakpoint."""


class Decorrelation(NamedTuple):
    """Distances [m] over which the correlation of a quantity falls to 1/e (TR 38.901 7.4.4, Tables 7.5-6 and 7.6.3.1-2)."""

    los: float
    nlos: float
    indoor: float
    los_state: float
    rician_k: float


def scenarios() -> list[str]:
    """Return the names of all scenarios."""
    return [name for name, entry in constants("tr38901").items() if "fc_ghz" in entry] + ["InH-open"]


def path_loss_db(
    scenario: str,
    d2: Floats,
    h_bs_m: float,
    h_ut_m: Floats | float,
    fc_ghz: float,
    los: Bools,
    h_e_m: Floats | float = 1.0,
) -> Floats:
    """Return the basic path loss [n] in dB (TR 38.901 Table 7.4.1-1), without shadowing and penetration.

    Args:
        scenario: Name of the scenario.
        d2: Horizontal distances [n] in metres, indoor part included.
        h_bs_m: Height of the base station.
        h_ut_m: Height of the clients, one or [n].
        fc_ghz: Carrier frequency.
        los: Whether the link, or its outdoor part, has line of sight [n]. "literature" has no LOS state and ignores it.
        h_e_m: Effective height of the surroundings for UMi's and UMa's breakpoint: 1 m, except UMa above 13 m, see
            `environment_height_m`.

    Raises:
        UnknownNameError: Unknown scenario.
        ConfigError: A height or frequency outside the model's range.
    """
    entry = _entry(scenario)
    h_ut = np.asarray(h_ut_m, dtype=np.float64)
    _check_range(scenario, entry, h_bs_m, h_ut, fc_ghz)
    d2, d3 = _clamped(entry, d2, h_bs_m - h_ut)
    if "kilometre" in entry:
        return np.asarray(entry["kilometre"]["intercept"] + entry["kilometre"]["slope"] * np.log10(d2 / 1e3))
    if "rural" in entry:
        return _rural(entry, d2, d3, h_bs_m, h_ut, fc_ghz, los)
    line = _linear(entry["los"], d3, fc_ghz)
    if "breakpoint_db" in entry:
        beyond = breakpoint_m(scenario, h_bs_m, h_ut, fc_ghz, h_e_m)
        far = entry["los"] | {"slope": 40}
        far_db = _linear(far, d3, fc_ghz) - entry["breakpoint_db"] * np.log10(beyond**2 + (h_bs_m - h_ut) ** 2)
        line = np.where(d2 < beyond, line, far_db)
    blocked = np.maximum(line, _linear(entry["nlos"], d3, fc_ghz) - entry["nlos"].get("height", 0.0) * (h_ut - 1.5))
    if "above" in entry:
        blocked = np.maximum(blocked, _linear(_entry(entry["above"])["nlos"], d3, fc_ghz))
    return np.where(los, line, blocked)


def breakpoint_m(scenario: str, h_bs_m: float, h_ut_m: Floats | float, fc_ghz: float, h_e_m: Floats | float = 1.0) -> Floats:
    """Return the distance(s) beyond which LOS loss grows with the fourth power; infinite where a model has none."""
    entry = _entry(scenario)
    h_ut = np.asarray(h_ut_m, dtype=np.float64)
    wavelengths_per_m = fc_ghz * 1e9 / SPEED_OF_LIGHT_MPS
    if "rural" in entry:
        return np.asarray(2 * np.pi * h_bs_m * h_ut * wavelengths_per_m)
    if "breakpoint_db" in entry:
        return np.asarray(4 * (h_bs_m - h_e_m) * (h_ut - h_e_m) * wavelengths_per_m)
    return np.full_like(h_ut, np.inf)


def environment_height_m(d2: Floats, h_ut_m: Floats | float, uniforms: Floats) -> Floats:
    """Return UMa's effective height of the surroundings [n] in metres (TR 38.901 Table 7.4.1-1, note 1).

    1 m for clients up to 13 m; above, more and more often one of 12, 15, ..., h_ut - 1.5 m.

    Args:
        d2: Horizontal distances [n] in metres.
        h_ut_m: Height of the clients, one or [n].
        uniforms: [2, n], uniform on [0, 1).
    """
    h_ut = np.asarray(h_ut_m, dtype=np.float64)
    low = uniforms[0] < 1 / (1 + _tall(d2, h_ut))
    steps = np.maximum(np.floor((h_ut - 1.5 - 12) / 3) + 1, 1)
    return np.where(low, 1.0, 12 + 3 * np.floor(uniforms[1] * steps))


def los_probability(scenario: str, d2: Floats, h_ut_m: Floats | float, h_bs_m: float | None = None) -> Floats:
    """Return the probability of line of sight [n] (TR 38.901 Table 7.4.2-1).

    Args:
        scenario: Name of the scenario; "literature" has no line of sight and gets 0.
        d2: Horizontal distances [n] in metres; of an indoor client of UMi, UMa and RMa the outdoor part alone.
        h_ut_m: Height of the clients, one or [n]; read by UMa, InF-SH and InF-DH.
        h_bs_m: Height of the base station, read by InF-SH and InF-DH; the scenario's usual one if not given.

    Raises:
        UnknownNameError: Unknown scenario.
    """
    entry = _entry(scenario)
    law = entry.get("los_probability", {})
    d2 = np.asarray(d2, dtype=np.float64)
    h_ut = np.asarray(h_ut_m, dtype=np.float64)
    if "street" in law:
        near, decay = law["street"]["near_m"], law["street"]["decay_m"]
        far = np.maximum(d2, near)
        street: Floats = np.asarray(near / far + np.exp(-far / decay) * (1 - near / far))
        return street * (1 + _tall(d2, h_ut)) if law["street"].get("tall") else street
    if "factory" in law:
        clutter = law["factory"]
        decay = -clutter["size_m"] / np.log1p(-clutter["density"])
        if "height_m" in clutter:
            over = (entry["h_bs_m"] if h_bs_m is None else h_bs_m) - h_ut
            decay = decay * np.maximum(over, 1e-9) / np.maximum(clutter["height_m"] - h_ut, 1e-9)
        return np.asarray(np.exp(-d2 / decay))
    probability: Floats = np.ones_like(d2) if law else np.zeros_like(d2)
    for start, scale, decay in law.get("office", ()):
        probability = np.where(d2 > start, scale * np.exp(-(d2 - start) / decay), probability)
    return probability


def indoor_depth_m(scenario: str, uniforms: Floats) -> Floats:
    """Return how deep [n] in metres indoor clients sit (TR 38.901 7.4.3.1: the smaller of two uniform draws).

    Args:
        scenario: Name of the scenario; zero where everyone is indoors with the base station.
        uniforms: [2, n], uniform on [0, 1).
    """
    return np.asarray(_entry(scenario).get("indoor_depth_m", 0.0) * uniforms.min(axis=0))


def o2i_loss_db(kind: str, fc_ghz: float, depth_m: Floats, normals: Floats) -> Floats:
    """Return the penetration loss [n] in dB of indoor clients (TR 38.901 7.4.3).

    Args:
        kind: "low" or "high" (loss of the building), "car" or "car_metallised", "none".
        fc_ghz: Carrier frequency.
        depth_m: Distance [n] behind the outer wall; not read for cars.
        normals: [n], standard normal: the spread between buildings.

    Raises:
        UnknownNameError: Unknown kind.
    """
    if kind == "none":
        return np.zeros_like(normals)
    table = constants("tr38901")
    known = {name.removeprefix("o2i_"): entry for name, entry in table.items() if name.startswith("o2i_")}
    if kind not in known:
        raise UnknownNameError("outdoor-to-indoor loss", kind, [*known, "none"])
    entry = known[kind]
    if "mean_db" in entry:
        return np.asarray(entry["mean_db"] + entry["sigma_db"] * normals)
    passed = sum(
        share * 10 ** (-(table["materials"][material][0] + table["materials"][material][1] * fc_ghz) / 10)
        for material, share in entry["wall"].items()
    )
    wall_db = entry["oblique_db"] - 10 * np.log10(passed)
    return np.asarray(wall_db + entry["depth_db_per_m"] * depth_m + entry["sigma_db"] * normals)


def rician_k_db(scenario: str, normals: Floats) -> Floats:
    """Return the Rician K [n] in dB of LOS links, N(mean, sigma) of Table 7.5-6; -inf (Rayleigh) for "literature".

    Args:
        scenario: Name of the scenario.
        normals: [n], standard normal.
    """
    mean, sigma = _entry(scenario).get("rician_k_db", (-np.inf, 1.0))
    return np.asarray(mean + sigma * normals)


def shadowing_sigma_db(scenario: str, los: Bools, indoor: Bools, beyond_breakpoint: Bools | bool = False) -> Floats:
    """Return the standard deviation of shadowing [n] in dB (Tables 7.4.1-1 and 7.5-6).

    Args:
        scenario: Name of the scenario.
        los: LOS state of the links [n].
        indoor: Whether the client sits in a building [n]; no matter in InH, InF and "literature".
        beyond_breakpoint: Whether d2 exceeds `breakpoint_m` [n]; read by RMa alone (4 dB before, 6 dB beyond).
    """
    sigma = _entry(scenario)["sigma_db"]
    near, far = sigma["los"]
    outdoor = np.where(los, np.where(beyond_breakpoint, far, near), sigma["nlos"])
    return np.asarray(np.where(indoor, sigma["indoor"], outdoor) if "indoor" in sigma else outdoor)


def decorrelation_m(scenario: str) -> Decorrelation:
    """Return the decorrelation distances; where no one is outdoors, `indoor` is that of NLOS.

    Links in different states are uncorrelated: draw one field per state with its own distance, and read the one that applies.
    """
    distance = _entry(scenario)["decorrelation_m"]
    return Decorrelation(**({"indoor": distance["nlos"]} | distance))


def _entry(scenario: str) -> dict[str, Any]:
    table = constants("tr38901")
    name = "InH" if scenario == "InH-open" else scenario
    if "fc_ghz" not in table.get(name, ()):
        raise UnknownNameError("radio scenario", scenario, scenarios())
    return table[name]


def _check_range(scenario: str, entry: dict[str, Any], h_bs_m: float, h_ut: Floats, fc_ghz: float) -> None:
    low, high = entry["fc_ghz"]
    if not low <= fc_ghz <= high:
        raise ConfigError(f"{scenario}: a carrier of {fc_ghz:g} GHz is outside the model's {low} to {high} GHz")
    low, high = entry.get("h_ut_m", (0.0, np.inf))
    if not (np.all(h_ut >= low) and np.all(h_ut <= high)):
        raise ConfigError(f"{scenario}: client heights of {h_ut.min():g} to {h_ut.max():g} m leave the model's {low} to {high} m")
    if not h_bs_m > 1:
        raise ConfigError(f"{scenario}: a base station {h_bs_m:g} m high is below the model's surroundings; set more than 1 m")


def _clamped(entry: dict[str, Any], d2: Floats, climb: Floats) -> tuple[Floats, Floats]:
    d2 = np.maximum(d2, entry["nearest_m"].get("d2", 0.0))
    return d2, np.maximum(np.hypot(d2, climb), entry["nearest_m"].get("d3", 0.0))


def _linear(law: dict[str, float], d3: Floats, fc_ghz: float) -> Floats:
    return np.asarray(law["intercept"] + law["slope"] * np.log10(d3) + law["frequency"] * np.log10(fc_ghz))


def _rural(entry: dict[str, Any], d2: Floats, d3: Floats, h_bs_m: float, h_ut: Floats, fc_ghz: float, los: Bools) -> Floats:
    """Return RMa's loss; its height h of buildings and width W of streets are the entry's."""
    h, width = entry["rural"]["building_height_m"], entry["rural"]["street_width_m"]
    beyond = breakpoint_m("RMa", h_bs_m, h_ut, fc_ghz)
    near = np.minimum(d3, np.where(d2 < beyond, np.inf, beyond))
    line = (
        20 * np.log10(40 * np.pi * near * fc_ghz / 3)
        + min(0.03 * h**1.72, 10) * np.log10(near)
        - min(0.044 * h**1.72, 14.77)
        + 0.002 * np.log10(h) * near
        + 40 * np.log10(d3 / near)
    )
    log_bs = np.log10(h_bs_m)
    blocked = (
        161.04
        - 7.1 * np.log10(width)
        + 7.5 * np.log10(h)
        - (24.37 - 3.7 * (h / h_bs_m) ** 2) * log_bs
        + (43.42 - 3.1 * log_bs) * (np.log10(d3) - 3)
        + 20 * np.log10(fc_ghz)
        - (3.2 * np.log10(11.75 * h_ut) ** 2 - 4.97)
    )
    return np.asarray(np.where(los, line, np.maximum(line, blocked)))


def _tall(d2: Floats, h_ut: Floats) -> Floats:
    """Return C'(h_ut) 5/4 (d/100)^3 exp(-d/150): how much likelier UMa's LOS is for clients above 13 m."""
    height = (np.maximum(h_ut - 13, 0) / 10) ** 1.5
    return np.where(d2 > 18, height * 1.25 * (d2 / 100) ** 3 * np.exp(-d2 / 150), 0.0)
