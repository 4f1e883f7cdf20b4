"""The radio of E rounds at once: E groups of K clients, each group alone in a cell of its own, arrays over all E x K links.

Physics and numbers are those of `Cell` and `BandLinks`; what differs is where randomness comes from and what is left out:

* every draw is a hash of the group's seed, its episode and the round (`fedlora_envs.noise`), so that group i of many gets what
  a group by itself with its seed gets, and groups share nothing;
* shadowing, LOS state and indoor walls are independent between clients (a world's are correlated over tens of metres);
* the uplink is shared evenly by the K clients of a group, and clients in outage keep their shares;
* how many resource blocks a client takes is decided at its mean SNR to 1/16 dB;
* transfers last as the mean rate over the fading says ("ergodic"), or as one gain per round says ("quasi_static").
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora_envs.band_links import OUTAGE_EFFICIENCY, BandLinks
from fedlora_envs.cell import Cell
from fedlora_envs.config import CellConfig, WorldConfig
from fedlora_envs.noise import normals, uniforms
from fedlora_envs.radio.budget import choose_prb, prb_hz
from fedlora_envs.radio.ergodic import ergodic
from fedlora_envs.radio.geometry import Walk
from fedlora_envs.radio.pathloss import indoor_depth_m, o2i_loss_db, rician_k_db
from fedlora_envs.radio.rates import RateModel
from fedlora_envs.radio.shadowing import gudmundson

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Seeds = NDArray[np.uint64]
Counts = NDArray[np.int64]

_STEP_DB = 1 / 16
_ONE_BLOCK_DB = (-60.0, 140.0)  # SNR with the whole power on one resource block: the range of the table of blocks


class GroupCell(Cell):
    """E groups of K clients, each around a base station of its own; arrays are flat, `[E * K]`, group by group.

    Args:
        config: The `cell` section of a world.
        groups: E.
        size: K.
    """

    def __init__(self, config: CellConfig, groups: int, size: int) -> None:
        super().__init__(config, 1, 0)
        self.clients, self.groups, self.size = groups * size, groups, size
        self.indoor = np.zeros(self.clients, np.bool_)
        self.depth_m, self.o2i_db, self._k_db = np.zeros((3, self.clients))
        far = np.tile([config.radius_m, 0.0], (self.clients, 1))
        self.walk = Walk(far, np.zeros(self.clients), config.min_distance_m, moved_m=np.zeros(self.clients))
        self.fields = {name: np.zeros(self.clients) for name in self.fields}
        self._look()

    def begin(self, which: Flags, seeds: Seeds, episode: Counts) -> None:
        """Place the clients of some groups `[E]` anew."""
        config, count = self.config, self.size
        start = np.zeros(self.groups, np.int64)
        u = self._flat(uniforms(seeds, "topology", episode, start, 6 * count), 6)
        z = self._flat(normals(seeds, "topology", episode, start, 2 * count), 2)
        new = np.repeat(which, count)
        if config.area_m is not None:
            xy = (u[:2].T - 0.5) * config.area_m
        else:
            if not config.min_distance_m < config.radius_m:
                raise ConfigError(f"cell.radius_m = {config.radius_m:g} leaves no room beyond {config.min_distance_m:g} m")
            r = np.sqrt(config.min_distance_m**2 + u[0] * (config.radius_m**2 - config.min_distance_m**2))
            xy = np.stack([r * np.cos(2 * np.pi * u[1]), r * np.sin(2 * np.pi * u[1])], axis=1)
        outdoor_only = config.scenario in ("InH-open", "InH-mixed", "literature") or config.scenario.startswith("InF")
        indoor = u[3] < (0.0 if outdoor_only else config.indoor_fraction)
        depth_m = np.where(indoor, indoor_depth_m(config.scenario, u[4:6]), 0.0)
        wall_db = np.where(indoor, o2i_loss_db(config.o2i, config.fc_ghz, depth_m, z[0]), 0.0)
        self.indoor = np.where(new, indoor, self.indoor)
        self.depth_m, self.o2i_db = np.where(new, depth_m, self.depth_m), np.where(new, wall_db, self.o2i_db)
        self._k_db = np.where(new, rician_k_db(config.scenario, z[1]), self._k_db)
        xy = np.where(new[:, None], xy, self.walk.xy)
        heading = np.where(new, 2 * np.pi * u[2], self.walk.heading_rad)
        self.walk = Walk(xy, heading, config.min_distance_m, moved_m=np.zeros(self.clients))
        drawn = self._flat(normals(seeds, "shadowing", episode, start, len(self.fields) * count), len(self.fields))
        self.fields = {name: np.where(new, field, old) for field, (name, old) in zip(drawn, self.fields.items(), strict=True)}
        self._look()

    def move(self, which: Flags, seeds: Seeds, episode: Counts, round_number: Counts) -> None:
        """Move some groups on to their round `[E]`."""
        config, count = self.config, self.size
        if config.speed_kmh == 0:
            return
        moving = np.repeat(which, count)
        reach = config.radius_m if config.area_m is None else config.area_m / np.sqrt(2)
        drift = self._flat(normals(seeds, "topology", episode, round_number, count), 1)[0]
        speed = np.where(moving, config.speed_kmh / 3.6, 0.0)
        given = cast("np.random.Generator", _Given(np.where(moving, drift, 0.0)))
        self.walk = self.walk.move(speed, config.step_s, reach, given)
        drawn = self._flat(normals(seeds, "shadowing", episode, round_number, len(self.fields) * count), len(self.fields))
        for innovation, (name, field) in zip(drawn, list(self.fields.items()), strict=True):
            self.fields[name] = gudmundson(field, self.walk.moved_m, self._decorrelation[name], innovation)
        self._look()

    def _flat(self, numbers: Floats, kinds: int) -> Floats:
        """Return `[E, kinds * K]` as `[kinds, E * K]`."""
        return numbers.reshape(self.groups, kinds, self.size).transpose(1, 0, 2).reshape(kinds, self.clients)


class GroupLinks(BandLinks):
    """The links of E groups of K clients.

    Args:
        config: The world; `links` is "cell" or "levels", `uplink.sharing` "equal".
        groups: E.
        size: K.

    Raises:
        ConfigError: A world whose links do not come in closed form.
    """

    def __init__(self, config: WorldConfig, groups: int, size: int) -> None:
        if config.links not in ("cell", "levels") or config.uplink.sharing != "equal":
            raise ConfigError(
                f"links = '{config.links}' with uplink.sharing = '{config.uplink.sharing}': many rounds at once need links = "
                "'cell' or 'levels' and uplink.sharing = 'equal'. Change them in world_options, or take another world"
            )
        if config.downlink.quantile != 1.0:
            raise ConfigError("downlink.quantile below 1 has no closed form for many rounds at once: leave it at 1")
        super().__init__(config, 1, 0)
        self.groups, self.size = groups, size
        self._still = config.fading.model == "none"
        self._quasi_static = not self._still and config.fading.transfer == "quasi_static"
        self._group_cell = GroupCell(config.cell, groups, size) if config.links == "cell" else None
        self.cell = self._group_cell
        self._level = np.zeros(groups * size, np.intp)
        self.share_hz = self._occupied_hz(config.uplink) / size
        self._blocks = self._table_of_blocks() if self.cell and config.rate.model == "cqi" else None

    # -- state ---------------------------------------------------------------------------------------------------------

    def begin(self, which: Flags, seeds: Seeds, episode: Counts) -> None:
        """Begin new episodes in some groups `[E]`, at round 0."""
        if self._group_cell:
            self._group_cell.begin(which, seeds, episode)
            return
        first = uniforms(seeds, "levels", episode, np.zeros(self.groups, np.int64), self.size).ravel()
        self._level = np.where(np.repeat(which, self.size), self._drawn(first), self._level)

    def move(self, which: Flags, seeds: Seeds, episode: Counts, round_number: Counts) -> None:
        """Move some groups on to their round `[E]`."""
        if self._group_cell:
            self._group_cell.move(which, seeds, episode, round_number)
            return
        uniform = uniforms(seeds, "levels", episode, round_number, self.size).ravel()
        if self._levels.kind == "iid":
            moved = self._drawn(uniform)
        else:
            half = self._levels.p / 2
            stepped = self._level + (uniform < half) - (uniform >= 1 - half)
            moved = np.clip(stepped, 0, self._levels.levels_db.size - 1)
        self._level = np.where(np.repeat(which, self.size), moved, self._level)

    def _drawn(self, uniform: Floats) -> NDArray[np.intp]:
        return (uniform * self._levels.levels_db.size).astype(np.intp)

    # -- a round -------------------------------------------------------------------------------------------------------

    def gains(self, name: str, seeds: Seeds, episode: Counts, round_number: Counts) -> Floats | None:
        """Return one fading gain per link of this round, `[E * K]`, mean 1; None where rates are means over the fading."""
        if not self._quasi_static:
            return None
        z = normals(seeds, name, episode, round_number, 2 * self.size).reshape(self.groups, 2, self.size)
        k = self._group_k()
        inphase = np.sqrt(k / (k + 1)) + z[:, 0].ravel() / np.sqrt(2 * (k + 1))
        return np.asarray(inphase**2 + z[:, 1].ravel() ** 2 / (2 * (k + 1)))

    def _group_k(self) -> Floats:
        return self._k_factor(np.arange(self.groups * self.size))

    def _mean_rate(self, rate: RateModel, snr: Floats, gains: Floats | None) -> Floats:
        """Return bit/s/Hz, 0 in outage."""
        if gains is not None or self._still:
            found = np.asarray(rate.efficiency(snr if gains is None else snr * gains), np.float64)
        else:
            found = ergodic(rate, snr, self._group_k())[0]
        return np.where(found >= OUTAGE_EFFICIENCY, found, 0.0)

    def upload_bps(self, gains: Floats | None) -> Floats:
        """Return the uplink rates of a round in which all K clients of a group have an even share, `[E * K]`."""
        occupied_hz, snr = self._portion(np.full(self.groups * self.size, self.share_hz), 10 ** (self.measured()[1] / 10))
        return np.asarray(self._mean_rate(self._up, snr, gains) * self._useful_hz(self.config.uplink, occupied_hz))

    def download_s(self, bits: float, listens: Flags, gains: Floats | None) -> Floats:
        """Return when each client has the message of a round, `[E * K]`; inf where it cannot be heard.

        A broadcast goes at the rate of the weakest listener of the group in every moment (the weakest of independent Rayleigh
        gains is an exponential with the harmonic mean; links with line of sight, which fade less, are counted like the others),
        or to each alone where that is faster, as in `BandLinks`.

        Args:
            bits: Its size.
            listens: Who is there to hear it, `[E * K]`.
            gains: As `gains` returned them for the downlink.
        """
        snr = 10 ** (self.measured()[0] / 10)
        band_hz = float(self._useful_hz(self.config.downlink, self._occupied_hz(self.config.downlink)))
        own = np.where(listens, self._mean_rate(self._down, snr, gains), 0.0)
        heard = (own > 0).reshape(self.groups, self.size)
        with np.errstate(divide="ignore"):
            alone_s = (bits / (own * band_hz)).reshape(heard.shape)
            apart_s = sharing_rows_s(alone_s)
            if self.config.downlink.sharing == "unicast":
                return apart_s.ravel()
            if gains is None and not self._still:
                weights = np.where(heard, (1.0 / snr).reshape(heard.shape), 0.0).sum(axis=1)
                worst = ergodic(self._down, 1.0 / weights)[0]
            else:
                worst = np.where(heard, own.reshape(heard.shape), np.inf).min(axis=1)
            together_s = bits / (worst * band_hz)
        last_s = np.where(heard, apart_s, 0.0).max(axis=1)
        return np.where(heard, np.where((together_s <= last_s)[:, None], together_s[:, None], apart_s), np.inf).ravel()

    # -- resource blocks -----------------------------------------------------------------------------------------------

    def _table_of_blocks(self) -> Counts:
        low, high = _ONE_BLOCK_DB
        one_block = 10 ** (np.arange(low, high + _STEP_DB, _STEP_DB) / 10)
        return choose_prb(one_block, self._allowed_blocks(), self._mean_efficiency)[0]

    def _allowed_blocks(self) -> int:
        return int(np.clip(round(self.share_hz / prb_hz(self.config.rate.scs_khz), 9), 1, self._prb))

    def _portion(self, share_hz: Floats, snr_whole: Floats) -> tuple[Floats, Floats]:
        """Return (band occupied, SNR over it) at an even share, by table (see `BandLinks`)."""
        if self._blocks is None:
            return super()._portion(share_hz, snr_whole)
        block_hz = prb_hz(self.config.rate.scs_khz)
        one_block = snr_whole * self._occupied_hz(self.config.uplink) / block_hz
        place = np.rint((10 * np.log10(one_block) - _ONE_BLOCK_DB[0]) / _STEP_DB)
        blocks = self._blocks[np.clip(place, 0, len(self._blocks) - 1).astype(np.intp)]
        occupied_hz = blocks * (block_hz * min(1.0, self.share_hz / block_hz))
        return np.asarray(occupied_hz, np.float64), one_block / blocks


def sharing_rows_s(alone_s: Floats) -> Floats:
    """Return when transfers that start together and share a band are through, row by row, `[E, K]` (see `processor_sharing_s`).

    Args:
        alone_s: Seconds that each would take alone; inf for one that cannot be served, which takes nothing from the others.
    """
    order = np.argsort(alone_s, axis=1, kind="stable")
    waits = np.take_along_axis(alone_s, order, axis=1)
    served = np.isfinite(waits)
    waits = np.where(served, waits, 0.0)
    left = served.sum(axis=1, keepdims=True) - np.arange(alone_s.shape[1])
    through = np.where(served, np.cumsum(np.diff(waits, axis=1, prepend=0.0) * np.maximum(left, 0), axis=1), np.inf)
    result = np.empty_like(alone_s)
    np.put_along_axis(result, order, through, axis=1)
    return result


class _Given:
    """Hands out normals that were drawn elsewhere, in place of a generator."""

    def __init__(self, numbers: Floats) -> None:
        self._numbers = numbers

    def standard_normal(self, size: int) -> Floats:
        """Return them."""
        assert size == len(self._numbers)
        return self._numbers
