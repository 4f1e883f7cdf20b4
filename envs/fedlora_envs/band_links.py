"""Links that share a band: SNR from a cell or from a list of levels, then fading, link adaptation and bandwidth sharing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora.streams import fast_stream, stream
from fedlora_envs.aircomp import airtime_s
from fedlora_envs.cell import Cell
from fedlora_envs.config import DirectionConfig, WorldConfig
from fedlora_envs.links import Clients, Delivery, Floats, Upload
from fedlora_envs.medium import Medium, PowerLimitedSharing, ProcessorSharing
from fedlora_envs.radio.budget import choose_prb, noise_dbm, nr_rate_bps, prb_count, prb_hz
from fedlora_envs.radio.ergodic import ergodic, ergodic_worst
from fedlora_envs.radio.fading import Fading, doppler_hz, make_fading
from fedlora_envs.radio.levels import LevelChannel
from fedlora_envs.radio.rates import RateModel, Shannon, ShannonGap, make_rate_model
from fedlora_envs.radio.schedulers import SlotScheduler
from fedlora_envs.radio.sharing import allocate, quantile_broadcast, unicast_s
from fedlora_envs.radio.transfer import broadcast_s, transfer_s

OUTAGE_EFFICIENCY = 1e-3
"""A link that carries less than so many bit/s/Hz on average is in outage: nobody waits for it."""

SCHEDULED = ("round_robin", "pf", "max_rate")
_RESTING_STEP_S = 0.1  # how long a gain holds where nothing moves


class BandLinks:
    """The links of one cell.

    Args:
        config: The world.
        clients: N.
        seed: Root of the streams.
        number_bytes: Bytes of one number on the wire; analogue transmission sends a number, not bytes.

    Raises:
        ConfigError: Parameters outside a model's range.
    """

    def __init__(self, config: WorldConfig, clients: int, seed: int, number_bytes: int = 4) -> None:
        self.config, self.seed, self._number_bytes = config, seed, number_bytes
        self.cell = Cell(config.cell, clients, seed) if config.links == "cell" else None
        self._levels = LevelChannel(config.levels.kind, config.levels.values_db, config.levels.move)
        self._level = self._levels.first(clients, stream(seed, "levels"))
        rate = config.rate
        self._down, self._up = (
            make_rate_model(rate.model, margin_db=rate.margin_db, table=rate.table, direction=direction)
            for direction in ("dl", "ul")
        )
        self._prb = prb_count(config.uplink.bandwidth_hz, rate.scs_khz) if rate.model == "cqi" else 0
        self._doppler_hz = float(doppler_hz(config.cell.speed_kmh, config.cell.fc_ghz)) if self.cell else 0.0
        # A Doppler outside the fading model's range is refused here.
        self._fading(1, fast_stream(seed, "fading"), np.zeros(1))
        if config.uplink.sharing in SCHEDULED:
            try:
                self._fading(1, fast_stream(seed, "fading"), np.zeros(1), config.uplink.slot_s)
            except ConfigError as error:
                raise ConfigError(
                    f"world.options.uplink.slot_s = {config.uplink.slot_s:g} is the time step here: {error}"
                ) from None

    # -- state ---------------------------------------------------------------------------------------------------------

    def step(self, round_number: int) -> None:
        """Move on to a round."""
        if self.cell:
            self.cell.step(round_number)
        else:
            self._level = self._levels.next(self._level, stream(self.seed, "levels", round_number))

    def state(self) -> dict[str, NDArray[Any]]:
        """Return positions and fields, or levels."""
        return self.cell.state() if self.cell else {"level": self._level}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned."""
        if self.cell:
            self.cell.restore(state)
        else:
            self._level = state["level"].astype(np.intp)

    def measured(self) -> Floats:
        """Return the mean SNR in dB of downlink and uplink, each over its whole band, `[2, N]`."""
        if not self.cell:
            return np.repeat(self._levels.snr_db(self._level)[None], 2, axis=0)
        config, received = self.config, self.config.cell.antenna_gain_db - self.cell.loss_db
        return np.stack([self._snr_db(side, received) for side in (config.downlink, config.uplink)])

    def _snr_db(self, side: DirectionConfig, received_db: Floats) -> Floats:
        noise = noise_dbm(self._occupied_hz(side), side.noise_figure_db) + self.config.cell.interference_margin_db
        return side.power_dbm + received_db - noise

    def _occupied_hz(self, side: DirectionConfig) -> float:
        """Return the band that carries power: all of it, or its resource blocks."""
        scs = self.config.rate.scs_khz
        return prb_count(side.bandwidth_hz, scs) * prb_hz(scs) if self.config.rate.model == "cqi" else side.bandwidth_hz

    def _useful_hz(self, side: DirectionConfig, occupied_hz: Floats | float) -> Any:
        """Return the symbols per second of user data that a band has: less cyclic prefixes, overhead and the other direction."""
        if self.config.rate.model == "cqi":
            scs = self.config.rate.scs_khz
            return np.asarray(occupied_hz) / prb_hz(scs) * nr_rate_bps(1.0, 1, scs, side.overhead, tdd_share=side.tdd_share)
        return np.asarray(occupied_hz) * (1 - side.overhead) * side.tdd_share

    # -- fading --------------------------------------------------------------------------------------------------------

    def _fading(self, count: int, rng: np.random.Generator, k_factor: Floats, step_s: float | None = None) -> Fading | None:
        model = self.config.fading.model
        if model == "none":
            return None
        step_s = step_s or self.fading_step_s
        return make_fading(model, count, rng, doppler_hz=self._doppler_hz, step_s=step_s, k_factor=k_factor)

    @property
    def fading_step_s(self) -> float:
        """How long a gain holds: as configured, or a share of 1 / Doppler that the model can follow."""
        if self.config.fading.step_s is not None:
            return self.config.fading.step_s
        share = 0.02 if self.config.fading.model == "markov" else 0.1
        return share / self._doppler_hz if self._doppler_hz else _RESTING_STEP_S

    def _k_factor(self, clients: Clients) -> Floats:
        rician = self.config.fading.rician and self.config.fading.model != "markov"
        return self.cell.k_factor[clients] if self.cell and rician else np.zeros(len(clients))

    def _faded(
        self,
        name: str,
        round_number: int,
        clients: Clients,
        places: NDArray[np.intp],
        snr: Floats,
        step_s: float | None = None,
    ) -> tuple[Floats, Fading | None]:
        """Return (SNR, fading still to come) of the clients at `places`; one gain per round is in the SNR already."""
        process = self._fading(len(clients), fast_stream(self.seed, name, round_number), self._k_factor(clients), step_s)
        if process is None:
            return snr, None
        if self.config.fading.transfer == "quasi_static":
            return snr * process.step()[places].astype(np.float64), None
        process.keep(places)
        return snr, process

    def _efficiency(self, rate: RateModel, snr: Floats, fading: Fading | None) -> tuple[Floats, Floats]:
        """Return mean bit/s/Hz and share of retransmissions."""
        efficiency, repeated = ergodic(rate, snr, fading.k_factor) if fading else rate.both(snr)
        return np.asarray(efficiency, np.float64), np.asarray(repeated, np.float64)

    # -- what the server expects ---------------------------------------------------------------------------------------

    def expected(self, measured: Floats, sharing: int) -> tuple[Floats, Floats, Floats]:
        """Return the mean rates that SNRs `[2, N]` promise if `sharing` clients have an even part of the uplink each."""
        snr_down, snr_whole = 10 ** (measured / 10)
        config = self.config
        share_hz = np.full(measured.shape[1], self._occupied_hz(config.uplink) / max(1, sharing))
        occupied_hz, snr_up = self._portion(share_hz, snr_whole)
        down, up = self._promised(self._down, snr_down), self._promised(self._up, snr_up)
        down_bps = down * self._useful_hz(config.downlink, self._occupied_hz(config.downlink))
        up_bps = up * self._useful_hz(config.uplink, occupied_hz)
        return down_bps, up_bps, 10 * np.log10(np.maximum(snr_up, 1e-30))

    def _promised(self, rate: RateModel, snr: Floats) -> Floats:
        fades = self.config.fading.model != "none"
        return _unless_outage(ergodic(rate, snr)[0] if fades else np.asarray(rate.efficiency(snr), np.float64))

    def _portion(self, share_hz: Floats, snr_whole: Floats) -> tuple[Floats, Floats]:
        """Return (band really occupied, SNR over it) of clients that may have `share_hz` each, [n].

        A client's power is fixed, so a narrower band has a higher SNR; with resource blocks it takes as many of its share as
        carry most. Levels are the SNR of whatever band there is.
        """
        if not self.cell:
            return share_hz, snr_whole
        power_over_noise_hz = snr_whole * self._occupied_hz(self.config.uplink)
        if self.config.rate.model != "cqi":
            return np.asarray(share_hz, np.float64), np.asarray(power_over_noise_hz / np.maximum(share_hz, 1e-9), np.float64)
        block_hz = prb_hz(self.config.rate.scs_khz)
        allowed = np.clip(np.round(share_hz / block_hz, 9).astype(np.int64), 1, self._prb)
        blocks, snr = choose_prb(power_over_noise_hz / block_hz, allowed, self._mean_efficiency)
        # A share below one block is one block for part of the time.
        occupied_hz = np.asarray(blocks * block_hz * np.minimum(1.0, share_hz / block_hz), np.float64)
        return occupied_hz, np.asarray(snr, np.float64)

    def _efficiency_now(self, snr: Floats) -> Floats:
        return np.asarray(self._up.efficiency(snr), np.float64)

    def _mean_efficiency(self, snr: Floats) -> Floats:
        if self.config.fading.model == "none":
            return self._efficiency_now(snr)
        return ergodic(self._up, snr.ravel())[0].reshape(snr.shape)

    # -- an exchange ---------------------------------------------------------------------------------------------------

    def download(self, round_number: int, asked: Clients, places: NDArray[np.intp], sizes: NDArray[np.int64]) -> Delivery:
        """Return the downlink: a broadcast at the weakest listener's rate, or a part of the band each."""
        seconds, repeated = np.full(len(places), np.inf), np.zeros(len(places))
        snr_whole = 10 ** (self.measured()[0, asked[places]] / 10)
        snr, fading = self._faded("fading down", round_number, asked, places, snr_whole)
        efficiency, wasted = self._efficiency(self._down, snr, fading)
        heard = np.flatnonzero(efficiency >= OUTAGE_EFFICIENCY)
        if not heard.size:
            return Delivery(seconds, repeated)
        bits = np.asarray(8.0 * sizes[heard], np.float64)
        band_hz = float(self._useful_hz(self.config.downlink, self._occupied_hz(self.config.downlink)))
        repeated[heard] = wasted[heard]
        listens = np.zeros(heard.size, bool)
        first_s = 0.0
        if self.config.downlink.sharing == "broadcast":
            listens, _ = quantile_broadcast(efficiency[heard], self.config.downlink.quantile)
            if fading:
                # Among very many fading listeners somebody is in a deep fade at any time: then each alone is faster. One is
                # not; the worst of several is known to some 1/16 dB only.
                group = heard[listens]
                worst, _ = ergodic_worst(self._down, snr[group], fading.k_factor[group])
                alone_s = unicast_s(bits[listens], efficiency[group] * band_hz).max()
                listens &= bits[listens].max() <= 1.02 * alone_s * worst * band_hz
        if listens.any():
            if fading:
                fading.keep(heard[listens])
            through = broadcast_s(float(bits[listens].max()), band_hz, snr[heard[listens]], self._down, fading, self._mode())
            first_s = float(through.seconds[0])
            seconds[heard[listens]] = first_s
            repeated[heard[listens]] = through.retransmission_s[0] / first_s
        alone = ~listens
        if alone.any():
            seconds[heard[alone]] = first_s + unicast_s(bits[alone], efficiency[heard[alone]] * band_hz)
        return Delivery(seconds, repeated)

    def _mode(self) -> str:
        return self.config.fading.transfer

    def _gap(self) -> float:
        return float(10 ** (self._up.gap_db / 10)) if isinstance(self._up, ShannonGap) else 1.0

    def upload(
        self, round_number: int, asked: Clients, places: NDArray[np.intp], sizes: NDArray[np.int64], starts_s: Floats
    ) -> Upload:
        """Return the uplink under the world's rule for sharing the band."""
        sharing = self.config.uplink.sharing
        snr_whole = 10 ** (self.measured()[1, asked[places]] / 10)
        if sharing == "aircomp":
            return self._analogue(sizes, starts_s, snr_whole)
        if sharing in (*SCHEDULED, "processor"):
            return self._scheduled(round_number, asked, places, snr_whole)
        band_hz, bits = self._occupied_hz(self.config.uplink), np.asarray(8.0 * sizes, np.float64)
        # Nobody waits for a client in outage at an even share: min_max would give it nearly the whole band.
        _, even_snr = self._portion(np.full(len(places), band_hz / len(places)), snr_whole)
        waited_s = np.where(self._mean_efficiency(even_snr) >= OUTAGE_EFFICIENCY, starts_s, np.inf)
        # Overhead and the other direction make uploads longer, not what comes before them: min_max weighs the two.
        symbols = bits / float(self._useful_hz(self.config.uplink, 1.0))
        share_hz = allocate(sharing, symbols, snr_whole * band_hz, waited_s, band_hz, self._gap())
        occupied_hz, snr_mean = self._portion(share_hz, snr_whole)
        snr_mean = np.where(share_hz > 0, snr_mean, even_snr)
        snr, fading = self._faded("fading up", round_number, asked, places, snr_mean)
        efficiency, repeated = self._efficiency(self._up, snr, fading)
        sends = np.flatnonzero((efficiency >= OUTAGE_EFFICIENCY) & (share_hz > 0))
        rates_bps = np.zeros(len(places))
        if sends.size:
            if fading:
                fading.keep(sends)
            useful_hz = self._useful_hz(self.config.uplink, occupied_hz[sends])
            through = transfer_s(bits[sends], useful_hz, snr[sends], self._up, fading, self._mode())
            rates_bps[sends] = through.mean_bps
            repeated[sends] = through.retransmission_s / through.seconds
        return Upload(rates_bps, None, repeated, 10 * np.log10(snr_mean), np.full(len(places), np.nan))

    def _scheduled(self, round_number: int, asked: Clients, places: NDArray[np.intp], snr_whole: Floats) -> Upload:
        """Return an uplink whose rates depend on who is sending."""
        uplink, sharing = self.config.uplink, self.config.uplink.sharing
        useful_hz = float(self._useful_hz(uplink, self._occupied_hz(uplink)))
        step_s = uplink.slot_s if sharing in SCHEDULED else None
        snr, fading = self._faded("fading up", round_number, asked, places, snr_whole, step_s)
        efficiency, repeated = self._efficiency(self._up, snr, fading)
        rates_bps = _unless_outage(efficiency) * useful_hz
        medium: Medium
        if sharing in SCHEDULED:
            gains = fading or Still(len(places))
            medium = SlotScheduler(sharing, gains, snr, self._efficiency_now, useful_hz, uplink.slot_s)
        elif fading is None and isinstance(self._up, Shannon | ShannonGap):
            medium = PowerLimitedSharing(snr * useful_hz, useful_hz, self._gap())
        else:
            medium = ProcessorSharing(rates_bps)
        return Upload(rates_bps, medium, repeated, 10 * np.log10(snr_whole), np.full(len(places), np.nan))

    def _analogue(self, sizes: NDArray[np.int64], starts_s: Floats, snr_whole: Floats) -> Upload:
        """Return the uplink of AirComp: all send at once, from when the slowest in time is ready, a number per half symbol."""
        numbers = float(sizes.max()) / self._number_bytes
        airtime = airtime_s(numbers, float(self._useful_hz(self.config.uplink, self._occupied_hz(self.config.uplink))))
        # Nobody waits for those who cannot make the deadline.
        last_s = np.inf if self.config.deadline_s is None else self.config.deadline_s - airtime
        ready_s = starts_s[np.isfinite(starts_s) & (starts_s <= last_s)].max(initial=0.0)
        lasts = np.maximum(ready_s - starts_s, 0.0) + airtime
        count = len(sizes)
        return Upload(8.0 * sizes / lasts, None, np.zeros(count), 10 * np.log10(snr_whole), np.full(count, airtime))


class Still:
    """Gains of 1: fading that is in the mean already, or that there is none of.

    Args:
        count: Links.
    """

    def __init__(self, count: int) -> None:
        self._gains = np.ones(count, np.float32)

    def step(self) -> NDArray[np.float32]:
        """Return the gains."""
        return self._gains


def _unless_outage(efficiency: Floats) -> Floats:
    return np.where(efficiency >= OUTAGE_EFFICIENCY, efficiency, 0.0)
