"""A world as one typed tree: what a preset says, and what `world.options` may change. Units stand in the names."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from fedlora.config import ConfigSection


class CellConfig(ConfigSection):
    """Where clients are and what stands between them and the base station (links = "cell")."""

    scenario: Literal[
        "UMi", "UMa", "RMa", "InH", "InH-open", "InH-mixed", "InF-SL", "InF-DL", "InF-SH", "InF-DH", "literature"
    ] = Field("UMi", description="path loss and shadowing (TR 38.901; literature: 128.1 + 37.6 log10(d/km))")  # fmt: skip
    fc_ghz: float = Field(3.5, gt=0.5, le=100, description="carrier frequency")
    radius_m: float = Field(115.0, gt=0, description="cell radius; clients are spread evenly over its area")
    min_distance_m: float = Field(10.0, ge=0, description="no client comes nearer")
    area_m: float | None = Field(None, gt=0, description="side of a square with the station in its middle, in place of the disc")
    base_height_m: float = Field(10.0, gt=0, description="height of the base station's antenna")
    client_height_m: float = Field(1.5, gt=0, description="height of the clients' antennas")
    antenna_gain_db: float = Field(8.0, description="gain of both antennas together")
    indoor_fraction: float = Field(0.8, ge=0, le=1, description="share of clients inside buildings (UMi, UMa, RMa)")
    o2i: Literal["low", "high"] = Field("low", description="outdoor-to-indoor loss model")
    los: Literal["auto", "always", "never"] = Field("auto", description="line of sight by probability, or fixed")
    shadowing: bool = Field(True, description="correlated lognormal shadowing")
    interference_margin_db: float = Field(3.0, ge=0, description="rise of the noise floor by other cells")
    speed_kmh: float = Field(3.0, ge=0, description="speed of every client, for Doppler and movement")
    step_s: float = Field(
        10.0, gt=0, description="time between rounds for movement, shadowing and availability; fixed, so that no policy shifts it"
    )


class LevelsConfig(ConfigSection):
    """SNR drawn from a list, as AirLLM does (links = "levels")."""

    kind: Literal["iid", "markov"] = Field("iid", description="independent draws, or steps to neighbours")
    values_db: list[float] = Field([-5.0, 0.0, 5.0, 10.0, 15.0], min_length=1, description="the levels, rising")
    move: float = Field(0.2, ge=0, le=1, description="markov: probability of leaving a level in a round")


class FixedConfig(ConfigSection):
    """The same rates for everybody, always (links = "fixed")."""

    downlink_bps: float | None = Field(None, gt=0, description="unset: messages take no time")
    uplink_bps: float | None = Field(None, gt=0, description="unset: messages take no time")


class TraceConfig(ConfigSection):
    """Measured or generated rates over time (links = "trace"); each client plays one trace from a random moment on."""

    path: str | None = Field(None, description="trace file, or folder of them; unset: the small self-made samples")
    format: Literal["auto", "hsdpa", "ghent", "pensieve", "mahimahi", "csv"] = Field("auto", description="format of the files")
    uplink_share: float = Field(0.25, gt=0, le=1, description="uplink rate over the trace's (downlink) rate")


class DirectionConfig(ConfigSection):
    """One direction of the link."""

    bandwidth_hz: float = Field(20e6, gt=0, description="band of the cell")
    power_dbm: float = Field(23.0, description="transmit power")
    noise_figure_db: float = Field(5.0, ge=0, description="of the receiver")
    overhead: float = Field(0.0, ge=0, lt=1, description="share of resource elements that carry no data")
    tdd_share: float = Field(1.0, gt=0, le=1, description="share of time given to this direction")


class DownlinkConfig(DirectionConfig):
    """From the base station to the clients."""

    sharing: Literal["broadcast", "unicast"] = Field("broadcast", description="one transmission for all, or band shares")
    quantile: float = Field(1.0, gt=0, le=1, description="broadcast to this best share of clients, unicast to the others after")


class UplinkConfig(DirectionConfig):
    """From the clients to the base station."""

    sharing: Literal[
        "equal", "proportional", "min_max", "processor", "round_robin", "pf", "max_rate", "aircomp"
    ] = Field("equal", description="how the round's clients share the band")  # fmt: skip
    slot_s: float = Field(0.01, gt=0, description="decision interval of round_robin, pf and max_rate")


class FadingConfig(ConfigSection):
    """Small-scale fading."""

    model: Literal["none", "block", "gauss_markov", "clarke", "markov"] = Field("clarke", description="how gains move in time")
    transfer: Literal["quasi_static", "slotted", "ergodic"] = Field(
        "slotted", description="one gain per round, one per step while the bits run through, or the mean over all gains"
    )
    step_s: float | None = Field(None, gt=0, description="time that a gain holds; unset: 0.1 / Doppler (markov: 0.02)")
    rician: bool = Field(True, description="Rician K of the scenario on line of sight; false: Rayleigh everywhere")


class RateConfig(ConfigSection):
    """From SNR to bits."""

    model: Literal["cqi", "shannon", "shannon_gap", "truncated_shannon"] = Field("cqi", description="NR tables, or a formula")
    table: Literal["64qam", "256qam"] = Field("64qam", description="cqi: which table of TS 38.214")
    margin_db: float = Field(2.0, ge=0, description="cqi: what a real receiver loses against the AWGN thresholds")
    scs_khz: Literal[15, 30, 60, 120] = Field(30, description="cqi: subcarrier spacing")


class CsiConfig(ConfigSection):
    """What the server knows of the channel when it decides."""

    delay_rounds: int = Field(1, ge=0, description="age of what it knows")
    error_db: float = Field(0.0, ge=0, description="standard deviation of the estimate, of an SNR or a rate")


class DevicesConfig(ConfigSection):
    """Who computes, and how fast."""

    mix: dict[str, float] = Field({"raspberry_pi_5": 0.4, "phone_flagship_8gen3": 0.4, "jetson_orin_nano_super": 0.2},
                                  description="share of each tier of data/devices.yaml")  # fmt: skip
    jitter: float = Field(0.2, ge=0, description="spread of compute times: lognormal sigma, or mean excess")
    jitter_law: Literal["lognormal", "exponential"] = Field(
        "lognormal", description="its law; exponential adds to the fastest time"
    )
    flops: Literal["counted", "measured"] = Field("counted", description="by formula, or as torch counts a real step")
    flops_per_example: float | None = Field(None, gt=0, description="operations per example, for replies that report no tokens")
    cycles_per_example: list[float] | None = Field(
        None, min_length=2, max_length=2, description="least and most CPU cycles per example, in place of `mix` and operations"
    )
    frequency_hz: float = Field(2e9, gt=0, description="clock of the CPU that counts cycles")
    kappa: float = Field(1e-28, gt=0, description="its energy: kappa f^2 per cycle")
    check_memory: bool = Field(True, description="devices too small for the model drop out")


class AvailabilityConfig(ConfigSection):
    """Clients that come and go."""

    on_s: float | None = Field(None, gt=0, description="mean time online; unset: always")
    off_s: float = Field(1200.0, gt=0, description="mean time offline between")
    dropouts_per_s: float = Field(0.0, ge=0, description="hazard of dropping out while taking part in a round")


class EnergyConfig(ConfigSection):
    """What clients spend."""

    pa_efficiency: float = Field(0.35, gt=0, le=1, description="of the power amplifier")
    circuit_tx_w: float = Field(0.1, ge=0, description="transmit chain")
    circuit_rx_w: float = Field(0.1, ge=0, description="receive chain")
    battery_j: float | None = Field(None, gt=0, description="energy of a full battery; unset: mains")
    recharge_w: float = Field(0.0, ge=0, description="charging power between rounds")


class WorldConfig(ConfigSection):
    """A radio world."""

    summary: str = Field("", description="what it is, in a line")
    sources: str = Field("", description="where its numbers come from")
    clients: int | None = Field(None, ge=1, description="clients that the world holds; unset: as many as the run has")
    links: Literal["cell", "levels", "fixed", "trace"] = Field("cell", description="where rates come from")
    deadline_s: float | None = Field(None, gt=0, description="of a round; later replies are dropped. Unset: none")
    clock: Literal["auto", "event"] = Field("auto", description="auto: closed form for static shares; event: SimPy")
    cell: CellConfig = CellConfig()
    levels: LevelsConfig = LevelsConfig()
    fixed: FixedConfig = FixedConfig()
    trace: TraceConfig = TraceConfig()
    downlink: DownlinkConfig = DownlinkConfig(power_dbm=44, noise_figure_db=9, overhead=0.14, tdd_share=0.75)
    uplink: UplinkConfig = UplinkConfig(overhead=0.08, tdd_share=0.25)
    fading: FadingConfig = FadingConfig()
    rate: RateConfig = RateConfig()
    csi: CsiConfig = CsiConfig()
    devices: DevicesConfig = DevicesConfig()
    availability: AvailabilityConfig = AvailabilityConfig()
    energy: EnergyConfig = EnergyConfig()

    @model_validator(mode="after")
    def _consistent(self) -> WorldConfig:
        if self.links in ("fixed", "trace") and self.uplink.sharing != "equal":
            raise ValueError(
                f"uplink.sharing = '{self.uplink.sharing}' shares a band; links = '{self.links}' gives every client a rate of "
                "its own. Leave uplink.sharing at 'equal'"
            )
        if self.links == "levels" and self.uplink.sharing in ("min_max", "processor"):
            raise ValueError(
                f"uplink.sharing = '{self.uplink.sharing}' needs the power received from each client; links = 'levels' gives an "
                "SNR whatever the band. Use 'equal' or 'proportional', or links = 'cell'"
            )
        if self.levels.values_db != sorted(self.levels.values_db):
            raise ValueError(f"levels.values_db = {self.levels.values_db} does not rise")
        return self


def merge(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `tree` with `changes` laid over it, section by section; `mix` is replaced whole."""
    merged = dict(tree)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) and key != "mix" else value
    return merged
