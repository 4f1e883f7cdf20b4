"""A radio world: N clients with links and devices, a virtual clock, and what one exchange of messages costs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from flwr.app import Message, MessageType
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora.federation.policy import Allowance
from fedlora.federation.policy import Links as LinkView
from fedlora.federation.world import WorldSetup
from fedlora.streams import stream
from fedlora_envs.availability import OnOff
from fedlora_envs.band_links import BandLinks
from fedlora_envs.config import WorldConfig
from fedlora_envs.energy import Battery, round_energy
from fedlora_envs.exchange import Exchange, Replies
from fedlora_envs.links import Links
from fedlora_envs.outcome import Fate, Outcome
from fedlora_envs.radio.csi import DelayedCsi, estimated_snr_db
from fedlora_envs.rate_links import FixedLinks, TraceLinks
from fedlora_envs.wireless_grid import WirelessGrid
from fedlora_envs.workers import Workers

Floats = NDArray[np.float64]
Clients = NDArray[np.int64]


class RadioWorld:
    """The world of one run.

    An exchange is one round trip of messages: `begin` says which clients get theirs, `play` charges the replies. Channels,
    availability and jitter of exchange number n depend on the seed and n alone; only the clock and batteries know what was sent.

    Args:
        name: What the user called it.
        config: What it is made of.
        setup: What it is told about the run.

    Raises:
        ConfigError: Parameters that cannot work, or a world for fewer clients than the run has.
    """

    def __init__(self, name: str, config: WorldConfig, setup: WorldSetup) -> None:
        if config.clients is not None and setup.clients > config.clients:
            raise ConfigError(
                f"world '{name}' holds {config.clients} clients, {setup.clients} were asked for: "
                "lower the number of clients or raise world.options.clients"
            )
        if setup.aggregator and (config.uplink.sharing == "aircomp") != (setup.aggregator == "aircomp"):
            raise ConfigError(
                f"world.options.uplink.sharing = '{config.uplink.sharing}' and aggregator.method = '{setup.aggregator}' do not "
                "fit: analogue transmission needs 'aircomp' in both places"
            )
        self.name, self.config, self.setup = name, config, setup
        self.clients = config.clients or setup.clients
        self.links = self._make_links()
        self.workers = Workers(config, self.clients, setup)
        self.notes = self.workers.notes()
        self.round, self.now_s = 0, 0.0
        self._prepared = 0
        capacity_j = np.inf if config.energy.battery_j is None else config.energy.battery_j
        self.battery = Battery(np.full(self.clients, capacity_j), recharge_w=config.energy.recharge_w)
        self._presence = self._make_presence()
        self._csi = DelayedCsi(config.csi.delay_rounds)
        self._csi.push(self.links.measured())
        self.outcome = Outcome.of(0, np.zeros(0, np.int64))
        self._exchange: Exchange | None = None

    def _make_links(self) -> Links:
        if self.config.links == "fixed":
            return FixedLinks(self.config, self.clients)
        if self.config.links == "trace":
            return TraceLinks(self.config, self.clients, self.setup.seed)
        return BandLinks(self.config, self.clients, self.setup.seed, self.setup.number_bytes)

    def _make_presence(self) -> OnOff | None:
        availability = self.config.availability
        if availability.on_s is None:
            return None
        return OnOff(availability.on_s, availability.off_s, stream(self.setup.seed, "availability").random(self.clients))

    @property
    def deadline_s(self) -> float:
        """Deadline of a round; inf for none."""
        return np.inf if self.config.deadline_s is None else self.config.deadline_s

    # -- what the round sees -------------------------------------------------------------------------------------------

    def grid(self, inner: Grid, clients: Mapping[int, int]) -> Grid:
        """Return a grid that charges messages over `inner`; `clients` maps node ids to client numbers."""
        return WirelessGrid(inner, self, clients)

    def observe(self, round_number: int, clients: Clients) -> LinkView:
        """Return what the server knows of these clients before the round: measurements of earlier rounds, with an error."""
        self._prepare(round_number)
        known = self._csi.read()
        error_db = self.config.csi.error_db
        if error_db:
            normals = stream(self.setup.seed, "csi", round_number).standard_normal(known.shape)
            if self.config.links in ("cell", "levels"):
                known = estimated_snr_db(known, error_db, normals)
            else:
                known = known * 10 ** (error_db * normals / 10)  # rates, not SNRs
        down_bps, up_bps, snr_db = self.links.expected(known[:, clients], self.setup.per_round)
        return LinkView(
            uplink_snr_db=snr_db,
            uplink_bps=up_bps,
            downlink_bps=down_bps,
            age_rounds=np.full(len(clients), self._csi.age, np.int64),
            outage=(up_bps <= 0) | (down_bps <= 0),
            compute_bps=self.workers.speed()[clients],
            energy_left_j=self.battery.left_j[clients],
            deadline_s=self.deadline_s,
            compute_s=self.workers.expected_s(clients),
            allowance=self._allowance(clients, up_bps),
        )

    def _allowance(self, clients: Clients, up_bps: Floats) -> Allowance | None:
        """Return what is left of the batteries, and what a byte of the uplink takes of it; None on the mains."""
        if self.config.energy.battery_j is None:
            return None
        left_j, nothing = self.battery.left_j[clients], np.zeros(len(clients))
        with np.errstate(divide="ignore"):
            sending_s = 8.0 / up_bps
        spent = round_energy(self.workers.radio, nothing, nothing, sending_s, sending_s * self.config.uplink.tdd_share)
        return Allowance(left_j / self.battery.capacity_j[clients], spent.uplink_j / np.maximum(left_j, 1e-12))

    def client_rows(self) -> dict[int, dict[str, Any]]:
        """Return the columns of clients.jsonl for the last exchange."""
        rows = self.outcome.rows()
        for client, row in rows.items():
            row["device"] = self.workers.device(client)
        return rows

    def round_row(self) -> dict[str, Any]:
        """Return the columns of metrics.jsonl for the last exchange."""
        rates = self.outcome.rate_bps[np.isfinite(self.outcome.rate_bps)]
        return {
            "virtual_time_s": round(self.now_s, 9),
            "energy_j": round(float(self.outcome.energy_j.sum()), 9),
            "clients_dropped": self.outcome.count(late=False),
            "clients_late": self.outcome.count(late=True),
            "mean_rate_bps": round(float(rates.mean()), 3) if rates.size else None,
            "void": self.outcome.void or None,
        }

    # -- an exchange ---------------------------------------------------------------------------------------------------

    def begin(self, clients: Clients, sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Begin the next exchange: messages of `sizes` bytes to `clients`, [K]; return who gets theirs, [K].

        Raises:
            ConfigError: A client that the world does not hold, one that is asked twice, or an empty message.
        """
        self._check(clients, sizes)
        self._prepare(self.round + 1)
        self.outcome = Outcome.of(self.round + 1, clients)
        away = ~self._presence.on[clients] if self._presence is not None else np.zeros(len(clients), bool)
        self.outcome.fate[away] = Fate.OFFLINE
        self.outcome.fate[self.battery.empty[clients]] = Fate.BATTERY
        self.outcome.fate[~self.workers.fits()[clients]] = Fate.MEMORY
        self.outcome.away[:] = self.outcome.fate != Fate.NO_REPLY
        self._exchange = Exchange(self.outcome, self.links, self.workers, sizes, self.deadline_s, self.config.clock)
        return self._exchange.reached

    def play(self, clients: Clients, work: Floats, sizes: NDArray[np.int64]) -> Outcome:
        """End the exchange; return what became of all its clients.

        Args:
            clients: Those whose replies are sound, [n].
            work: What the replies took them: operations, or examples where the world counts cycles, [n].
            sizes: Bytes of the replies, [n].

        Raises:
            ConfigError: An empty reply.
        """
        assert self._exchange is not None
        self._check(clients, sizes)
        count = len(self.outcome.clients)
        replies = Replies(np.zeros(count, bool), np.zeros(count), np.zeros(count, np.int64))
        order = np.argsort(self.outcome.clients, kind="stable")
        places = order[np.searchsorted(self.outcome.clients, clients, sorter=order)]
        replies.there[places], replies.work[places], replies.sizes[places] = True, work, sizes
        outcome = self._exchange.finish(replies, self.battery)
        self._exchange = None
        self.round += 1
        self.now_s += outcome.duration_s
        self.battery.spend(outcome.energy_j, outcome.clients)
        self.battery.recharge(outcome.duration_s)
        return outcome

    def work(self, reply: Message) -> float:
        """Return what a reply took its client: operations, or examples where the world counts cycles.

        From the metrics `tokens` (times the run's operations per token) or `num-examples` (times `devices.flops_per_example`);
        half of it for an evaluation.

        Raises:
            ConfigError: The reply says neither, or nobody said what an example costs.
        """
        metrics = {key: value for record in reply.content.metric_records.values() for key, value in record.items()}
        examples, tokens = (cast("float | None", metrics.get(key)) for key in ("num-examples", "tokens"))
        devices = self.config.devices
        # Of the four operations per number that training takes, the forward pass takes two.
        share = 0.5 if reply.metadata.message_type == MessageType.EVALUATE else 1.0
        if devices.cycles_per_example is not None and examples is not None:
            return share * float(examples)
        if tokens is not None and self.workers.flops_per_unit:
            return share * float(tokens) * self.workers.flops_per_unit
        if examples is not None and devices.flops_per_example is not None:
            return share * float(examples) * devices.flops_per_example
        raise ConfigError(
            f"what training cost node {reply.metadata.src_node_id} is unknown: set world.options.devices.flops_per_example and "
            "let replies report the metric 'num-examples', or give WirelessGrid a function `work`"
        )

    def _check(self, clients: Clients, sizes: NDArray[np.int64]) -> None:
        if len(clients) and not 0 <= clients.min() <= clients.max() < self.clients:
            raise ConfigError(
                f"world '{self.name}' holds {self.clients} clients, numbered from 0; client {clients.max()} was asked. "
                "Raise world.options.clients"
            )
        if len(np.unique(clients)) != len(clients):
            raise ConfigError("a client was sent two messages in one exchange; send them one after the other")
        if (sizes <= 0).any():
            raise ConfigError(f"the message of client {clients[np.argmin(sizes)]} has 0 bytes: there is nothing to send")

    # -- what crosses a round ------------------------------------------------------------------------------------------

    def _prepare(self, round_number: int) -> None:
        """Move links and availability on to the next round, once."""
        if round_number == self._prepared:
            return
        if round_number != self._prepared + 1:
            raise ConfigError(f"the world stands at round {self._prepared}; round {round_number} is not the next one")
        self._prepared = round_number
        self.links.step(round_number)
        self._csi.push(self.links.measured())
        if self._presence is not None:
            uniforms = stream(self.setup.seed, "availability", round_number).random(self.clients)
            self._presence.step(self.config.cell.step_s, uniforms)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that crosses a round: the clock, batteries, who is there, measurements, and what moves."""
        numbers = {
            "now_s": np.array([self.now_s]),
            "round": np.array([self.round, self._prepared]),
            "battery": self.battery.left_j,
            "csi": self._csi.state(),
        }
        present = {} if self._presence is None else {"present": self._presence.on}
        return numbers | present | {f"links/{name}": array for name, array in self.links.state().items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned."""
        self.now_s = float(state["now_s"][0])
        self.round, self._prepared = (int(number) for number in state["round"])
        self.battery.left_j = state["battery"].copy()
        self._csi.restore(state["csi"])
        if self._presence is not None:
            self._presence.on = state["present"].astype(bool)
        links = {name.removeprefix("links/"): array for name, array in state.items() if name.startswith("links/")}
        self.links.restore(links)
