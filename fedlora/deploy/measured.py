"""What nodes measured, as a world: the observation that a simulated radio gives a policy, from real links and real clocks.

Nodes put their measurements into the metrics of their replies (`fedlora.deploy.link_meter` says which). What a node has not said
yet is taken to be as with the others; before anybody has said anything, nothing is taken to be a limit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Message, MessageType
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedlora.config import DeploymentConfig
from fedlora.errors import ConfigError
from fedlora.federation.forwarding_grid import ForwardingGrid
from fedlora.federation.policy import Allowance, Floats, Links
from fedlora.federation.workbench import Workbench
from fedlora.federation.world import World, WorldSetup, make_world, setup_of

REPORTED = {
    "up-bps": "rate_bps", "down-bps": "downlink_bps", "up-seconds": "uplink_s", "down-seconds": "downlink_s",
    "compute-seconds": "compute_s", "battery": "battery", "rssi-dbm": "rssi_dbm", "tokens": "tokens",
}  # fmt: skip
"""Metrics of a reply that are measurements, and the column of clients.jsonl that each becomes."""

# Numbers outside these are no measurements: a reply is not to steer a policy by saying that its link is infinitely fast.
_BOUNDS = {
    "up-bps": (1.0, 1e12), "down-bps": (1.0, 1e12), "up-seconds": (0.0, 1e6), "down-seconds": (0.0, 1e6),
    "compute-seconds": (0.0, 1e6), "battery": (0.0, 1.0), "rssi-dbm": (-200.0, 30.0), "tokens": (0.0, 1e12),
}  # fmt: skip
_KEPT = ("up-bps", "down-bps", "compute-seconds", "battery", "compute-bps", "per-byte")
_NEVER = -1


class MeasuredWorld:
    """The world of a real deployment.

    Args:
        config: The run's `deployment` section.
        setup: What a world is told about the run.

    Attributes:
        notes: What the user should know beforehand: nothing.
    """

    def __init__(self, config: DeploymentConfig, setup: WorldSetup) -> None:
        self.config, self.setup = config, setup
        self.notes: list[str] = []
        self.known = {name: np.full(setup.clients, np.nan) for name in _KEPT}
        self.heard = np.full(setup.clients, _NEVER, np.int64)  # round of the last measurement
        self.round, self.real_s = 0, 0.0
        self._rows: dict[int, dict[str, Any]] = {}

    def grid(self, inner: Grid, clients: Mapping[int, int]) -> Grid:
        """Return a grid that listens to the measurements in replies; `clients` maps node ids to client numbers."""
        return MeasuringGrid(inner, self, clients)

    def observe(self, round_number: int, clients: NDArray[np.int64]) -> Links:
        """Return what is known of these clients before the round."""
        up_bps, down_bps = self._filled("up-bps", clients, np.inf), self._filled("down-bps", clients, np.inf)
        heard = self.heard[clients]
        battery = self.known["battery"][clients]
        return Links(
            uplink_snr_db=equivalent_snr_db(up_bps, 1e6 * self.config.band_mhz),
            uplink_bps=up_bps,
            downlink_bps=down_bps,
            age_rounds=np.where(heard < 0, _NEVER, round_number - heard),
            outage=np.zeros(len(clients), np.bool_),
            compute_bps=self._filled("compute-bps", clients, np.inf),
            energy_left_j=np.full(len(clients), np.inf),
            deadline_s=self.config.round_timeout_s,
            compute_s=self._filled("compute-seconds", clients, 0.0),
            allowance=None if np.isnan(self.known["battery"]).all() else self._allowance(clients, battery),
        )

    def client_rows(self) -> dict[int, dict[str, Any]]:
        """Return what the clients of the last round measured, by client number."""
        return self._rows

    def round_row(self) -> dict[str, Any]:
        """Return how long the last round took in real seconds, and what its links gave."""
        rates = [row["rate_bps"] for row in self._rows.values() if "rate_bps" in row]
        return {
            "real_time_s": round(self.real_s, 3),
            "mean_rate_bps": round(float(np.mean(rates)), 3) if rates else None,
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that crosses a round."""
        return {**self.known, "heard": self.heard, "round": np.array([self.round]), "real_s": np.array([self.real_s])}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned."""
        self.known = {name: np.array(state[name], np.float64) for name in _KEPT}
        self.heard = np.array(state["heard"], np.int64)
        self.round, self.real_s = int(state["round"][0]), float(state["real_s"][0])

    def note(self, asked: Mapping[int, float], replies: Mapping[int, Mapping[str, Any]], seconds: float, number: int) -> None:
        """Take in a round: bytes sent by each client that was asked, and the metrics of those that replied.

        Args:
            asked: Client number -> bytes of its reply, 0 where there is none.
            replies: Client number -> metrics of its reply.
            seconds: Real seconds of the round.
            number: The round.
        """
        self.round, self.real_s = number, self.real_s + seconds
        self._rows = {}
        for client, metrics in replies.items():
            found = measurements(metrics)
            self._rows[client] = {REPORTED[name]: value for name, value in found.items() if name != "tokens"}
            if not found:
                continue
            self.heard[client] = number
            self._battery(client, found.get("battery"), asked[client])
            for name in ("up-bps", "down-bps", "compute-seconds"):
                if name in found:
                    self.known[name][client] = found[name]
            if found.get("tokens") and found.get("compute-seconds") and self.setup.flops_per_unit:
                self.known["compute-bps"][client] = found["tokens"] * self.setup.flops_per_unit / found["compute-seconds"]

    def _battery(self, client: int, share: float | None, sent: float) -> None:
        """Learn what a byte takes of what was left: all that a round drained, as nobody tells what for."""
        before = self.known["battery"][client]
        if share is None:
            return
        if np.isfinite(before) and before > share and sent > 0:
            self.known["per-byte"][client] = (before - share) / before / sent
        self.known["battery"][client] = share

    def _allowance(self, clients: NDArray[np.int64], battery: Floats) -> Allowance:
        # Whoever tells of no battery is on the mains, as far as anybody knows.
        return Allowance(np.where(np.isnan(battery), 1.0, battery), np.nan_to_num(self.known["per-byte"][clients], nan=0.0))

    def _filled(self, name: str, clients: NDArray[np.int64], nobody: float) -> Floats:
        """Return what these clients said last; the median of all who did for one who did not."""
        values = self.known[name]
        other = float(np.nanmedian(values)) if np.isfinite(values).any() else nobody
        return np.asarray(np.where(np.isnan(values[clients]), other, values[clients]))


def world_of(bench: Workbench) -> World | None:
    """Return the world of a run over real nodes: what they measured, or the simulated one that the run file names.

    Raises:
        ConfigError: The simulated world is asked for and none is named, or its options cannot work.
    """
    links, name = bench.config.deployment.links, bench.config.world.name
    if links == "simulated" and name is None:
        raise ConfigError("deployment.links = 'simulated' needs a world: name one by world.name, or use 'measured'")
    if links == "simulated" or (links == "auto" and name is not None):
        return make_world(bench)
    return MeasuredWorld(bench.config.deployment, setup_of(bench))


class MeasuringGrid(ForwardingGrid):
    """A grid that hands what replies measured to a `MeasuredWorld`; it changes nothing.

    Args:
        inner: The grid that carries the messages.
        world: Who is told.
        clients: Node id -> client number; grows where nodes come late.
    """

    def __init__(self, inner: Grid, world: MeasuredWorld, clients: Mapping[int, int]) -> None:
        super().__init__(inner)
        self.world, self.clients = world, clients

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies, having listened to those of training."""
        batch = list(messages)
        began = time.monotonic()
        replies = list(self.inner.send_and_receive(batch, timeout=timeout))
        train = [message for message in batch if message.metadata.message_type == MessageType.TRAIN]
        if train:
            self._listen(train, replies, time.monotonic() - began)
        return replies

    def _listen(self, train: list[Message], replies: list[Message], seconds: float) -> None:
        asked = {self.clients[message.metadata.dst_node_id]: 0.0 for message in train}
        said: dict[int, Mapping[str, Any]] = {}
        for reply in replies:
            client = self.clients.get(reply.metadata.src_node_id)
            if client not in asked or reply.has_error():
                continue
            said[client] = {key: value for record in reply.content.metric_records.values() for key, value in record.items()}
            arrays = (array for record in reply.content.array_records.values() for array in record.values())
            asked[client] = float(sum(len(array.data) for array in arrays))
        self.world.note(asked, said, seconds, int(train[0].metadata.group_id))


def measurements(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the measurements among a reply's metrics: single finite numbers inside what can be measured."""
    found = {}
    for name, (low, high) in _BOUNDS.items():
        value = metrics.get(name)
        if isinstance(value, int | float) and math.isfinite(value) and low <= value <= high:
            found[name] = float(value)
    return found


def equivalent_snr_db(rate_bps: Floats, band_hz: float) -> Floats:
    """Return the SNR at which Shannon's bound over a band is this rate, dB in -20..60, `[n]`.

    Policies that were trained on SNRs read it; where nobody measured a rate it is the best there is.
    """
    with np.errstate(over="ignore", divide="ignore"):
        linear = np.expm1(np.minimum(rate_bps / band_hz, 60.0) * math.log(2.0))
        return np.asarray(np.clip(10.0 * np.log10(np.maximum(linear, 1e-9)), -20.0, 60.0))
