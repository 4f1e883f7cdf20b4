"""Path loss and LOS probability as Sionna computes them, and the script that froze some as golden_pathloss.json.

`python tests/envs/radio/make_golden.py` writes the file anew; it needs the extra `radio-oracle`, the tests that read it do not.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

FC_GHZ = {"RMa": (0.7, 2.0, 28.0)}
HEIGHTS_M = {  # base station, client
    "UMi": [(10.0, 1.5), (10.0, 12.0)],
    "UMa": [(25.0, 1.5), (25.0, 12.0)],
    "RMa": [(35.0, 1.5)],
    "InH": [(3.0, 1.0)],
    "InF-SL": [(1.5, 1.0)],
    "InF-DL": [(1.5, 1.0)],
    "InF-SH": [(8.0, 1.5)],
    "InF-DH": [(8.0, 1.5)],
}
LOS_SCENARIOS = [*HEIGHTS_M, "InH-mixed"]


def scenario(name: str, fc_ghz: float) -> Any:
    """Return Sionna's scenario object for ours of that name, in double precision."""
    from sionna.phy.channel import tr38901

    antenna = tr38901.PanelArray(
        num_rows_per_panel=1,
        num_cols_per_panel=1,
        polarization="single",
        polarization_type="V",
        antenna_pattern="omni",
        carrier_frequency=fc_ghz * 1e9,
        precision="double",
    )
    common = {
        "carrier_frequency": fc_ghz * 1e9,
        "ut_array": antenna,
        "bs_array": antenna,
        "direction": "downlink",
        "precision": "double",
    }
    kind, _, variant = name.partition("-")
    if kind in ("UMi", "UMa"):
        return getattr(tr38901, f"{kind}Scenario")(o2i_model="low", **common)
    if kind == "InH":
        from sionna.phy.channel.tr38901.inh_scenario import InHScenario

        return InHScenario(indoor_scenario=variant or "open", **common)
    if kind == "InF":
        from sionna.phy.channel.tr38901.inf_scenario import InFScenario

        return InFScenario(factory_scenario=variant.lower(), **common)
    return tr38901.RMaScenario(**common)


def place(name: str, d2: NDArray[np.float64], h_bs_m: float, h_ut_m: float, fc_ghz: float, los: bool) -> Any:
    """Return the scenario with a base station at the origin and clients at `d2` [n] from it, indoors where the scenario is."""
    model = scenario(name, fc_ghz)
    n = len(d2)
    clients = torch.zeros(1, n, 3, dtype=torch.float64)
    clients[0, :, 0] = torch.from_numpy(d2)
    clients[0, :, 2] = h_ut_m
    site = torch.tensor([[[0.0, 0.0, h_bs_m]]], dtype=torch.float64)
    still = torch.zeros(1, n, 3, dtype=torch.float64)
    indoor = torch.full((1, n), name.startswith("In"), dtype=torch.bool)
    model.set_topology(clients, site, still, torch.zeros_like(site), still, indoor, los)
    return model


def path_loss_db(name: str, d2: NDArray[np.float64], h_bs_m: float, h_ut_m: float, fc_ghz: float, los: bool) -> NDArray[Any]:
    """Return Sionna's basic path loss [n]."""
    return np.asarray(place(name, d2, h_bs_m, h_ut_m, fc_ghz, los).basic_pathloss[0, 0].numpy())


def los_probability(name: str, d2: NDArray[np.float64], h_bs_m: float, h_ut_m: float) -> NDArray[Any]:
    """Return Sionna's LOS probability [n]."""
    return np.asarray(place(name, d2, h_bs_m, h_ut_m, 3.5, True).los_probability[0, 0].numpy())


def main() -> None:
    """Write the golden file: four distances of every scenario, height and LOS state, and five LOS probabilities."""
    losses, probabilities = [], []
    cases = [(name, *heights) for name, pairs in HEIGHTS_M.items() for heights in pairs]
    for name, h_bs_m, h_ut_m in cases:
        for los in (True, False):
            for index, d2 in enumerate((10.0, 47.0, 233.0, 1490.0)):
                fc_ghz = FC_GHZ.get(name, (2.0, 3.5, 28.0))[index % 3]
                loss = path_loss_db(name, np.array([d2]), h_bs_m, h_ut_m, fc_ghz, los)[0]
                losses.append([name, d2, h_bs_m, h_ut_m, fc_ghz, los, float(loss)])
    for name, h_bs_m, h_ut_m in [*cases, ("UMa", 25.0, 20.0), ("InH-mixed", 3.0, 1.0)]:
        d2s = np.array([1.0, 6.0, 19.0, 120.0, 700.0])
        for d2, probability in zip(d2s, los_probability(name, d2s, h_bs_m, h_ut_m), strict=True):
            probabilities.append([name, float(d2), h_bs_m, h_ut_m, float(probability)])
    rows = {
        "made with": f"sionna-no-rt {version('sionna-no-rt')}",
        "columns": "scenario, d2 [m], h_bs [m], h_ut [m], then fc [GHz], los, path loss [dB]; or LOS probability",
        "path_loss_db": losses,
        "los_probability": probabilities,
    }
    path = Path(__file__).with_name("golden_pathloss.json")
    lines = [f"{json.dumps(key)}: {_rows(value)}" for key, value in rows.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _rows(value: str | list[list[Any]]) -> str:
    """Return JSON with one row a line."""
    return json.dumps(value) if isinstance(value, str) else "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"


if __name__ == "__main__":
    main()
