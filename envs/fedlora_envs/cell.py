"""The large-scale state of a cell: where N clients are, what they see of the base station, and how both move on.

Every draw comes from a stream keyed by the seed and the round, so that the state of a round depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.streams import stream
from fedlora_envs.config import CellConfig
from fedlora_envs.radio.geometry import Walk, distances, drop, drop_square
from fedlora_envs.radio.pathloss import (
    breakpoint_m,
    decorrelation_m,
    indoor_depth_m,
    los_probability,
    o2i_loss_db,
    path_loss_db,
    rician_k_db,
    shadowing_sigma_db,
)
from fedlora_envs.radio.shadowing import correlated_normals, gudmundson, los_state

Floats = NDArray[np.float64]

# One field per state of a link, since links in different states are uncorrelated (TR 38.901 7.4.4), and one for the state itself.
_FIELDS = ("los", "nlos", "indoor", "los_state")


class Cell:
    """N clients around one base station.

    Args:
        config: The `cell` section of a world.
        clients: N.
        seed: Root of the streams.

    Attributes:
        walk: Positions and directions.
        indoor: Which clients are inside buildings, [N].
        los: Which clients see the base station, or would from outside their building, [N].
        loss_db: Path loss, shadowing and penetration together, [N].
        k_factor: Rician K, linear, [N]: of the scenario on line of sight out of doors, 0 (Rayleigh) elsewhere.
    """

    def __init__(self, config: CellConfig, clients: int, seed: int) -> None:
        self.config, self.clients, self.seed = config, clients, seed
        self._decorrelation = decorrelation_m(config.scenario)._asdict()
        rng = stream(seed, "topology")
        if config.area_m is not None:
            xy = drop_square(clients, config.area_m, rng)
        else:
            xy = drop(clients, config.radius_m, config.min_distance_m, rng)
        self.walk = Walk.start(xy, rng, config.min_distance_m)
        outdoor_only = config.scenario in ("InH-open", "InH-mixed", "literature") or config.scenario.startswith("InF")
        self.indoor = rng.random(clients) < (0.0 if outdoor_only else config.indoor_fraction)
        depth_m = indoor_depth_m(config.scenario, rng.random((2, clients)))
        self.depth_m: Floats = np.where(self.indoor, depth_m, 0.0)
        wall_db = o2i_loss_db(config.o2i, config.fc_ghz, self.depth_m, rng.standard_normal(clients))
        self.o2i_db: Floats = np.where(self.indoor, wall_db, 0.0)
        self._k_db = rician_k_db(config.scenario, rng.standard_normal(clients))
        shadowing = stream(seed, "shadowing", 0)
        self.fields = {name: correlated_normals(xy, self._decorrelation[name], shadowing) for name in _FIELDS}
        self.los: NDArray[np.bool_]
        self.loss_db: Floats
        self.k_factor: Floats
        self._look()

    def step(self, round_number: int) -> None:
        """Move on to `round_number`, `step_s` seconds after the round before."""
        config = self.config
        if config.speed_kmh == 0:
            return
        rng = stream(self.seed, "topology", round_number)
        reach = config.radius_m if config.area_m is None else config.area_m / np.sqrt(2)
        self.walk = self.walk.move(config.speed_kmh / 3.6, config.step_s, reach, rng)
        shadowing = stream(self.seed, "shadowing", round_number)
        for name in _FIELDS:
            innovation = correlated_normals(self.walk.xy, self._decorrelation[name], shadowing)
            self.fields[name] = gudmundson(self.fields[name], self.walk.moved_m, self._decorrelation[name], innovation)
        self._look()

    def _look(self) -> None:
        """Derive from positions and fields what the round sees."""
        config = self.config
        d2, _ = distances(self.walk.xy, config.base_height_m, config.client_height_m)
        if config.los == "auto":
            outdoors_m = np.maximum(d2 - self.depth_m, 0.0)
            share = los_probability(config.scenario, outdoors_m, config.client_height_m, config.base_height_m)
            self.los = los_state(self.fields["los_state"], share)
        else:
            self.los = np.full(self.clients, config.los == "always")
        loss = path_loss_db(config.scenario, d2, config.base_height_m, config.client_height_m, config.fc_ghz, self.los)
        if config.shadowing:
            far = d2 > breakpoint_m(config.scenario, config.base_height_m, config.client_height_m, config.fc_ghz)
            sigma = shadowing_sigma_db(config.scenario, self.los, self.indoor, far)
            field = np.where(self.indoor, self.fields["indoor"], np.where(self.los, self.fields["los"], self.fields["nlos"]))
            loss = loss + sigma * field
        self.loss_db = np.asarray(loss + self.o2i_db)
        self.k_factor = np.where(self.los & ~self.indoor, 10 ** (self._k_db / 10), 0.0)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what moves: positions, directions and fields."""
        fields = {f"field {name}": values for name, values in self.fields.items()}
        return {"xy": self.walk.xy, "heading": self.walk.heading_rad} | fields

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned."""
        self.walk = Walk(state["xy"], state["heading"], self.config.min_distance_m, moved_m=np.zeros(self.clients))
        self.fields = {name: state[f"field {name}"] for name in _FIELDS}
        self._look()
