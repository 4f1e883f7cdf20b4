"""Rank allocation over K clients of a radio world: a rank vector per client and round, under a deadline and an energy budget.

One step is one federated round. Every client that is there downloads the global adapter, trains, and sends what its ranks ask
for; whoever is through before the deadline counts. The round moves the global model as the response model says. The radio, the
devices and the clock are those of `fedlora simulate` (see `group_links` for what is left out), for E episodes at once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedlora.config import ConfigSection, parse_section
from fedlora.errors import ConfigError
from fedlora.federation.budgets import budget_bytes
from fedlora.federation.policy import Allowance, Links, Observation
from fedlora.federation.world import WORLDS
from fedlora.ranks import Costs
from fedlora_envs.clock import RoundPlan, RoundTimes, Status, closed_form
from fedlora_envs.config import WorldConfig, merge
from fedlora_envs.group_fleet import GroupFleet
from fedlora_envs.group_links import GroupLinks
from fedlora_envs.noise import normals
from fedlora_envs.rank_env import Flags, Floats, Ranks, Step, Truth
from fedlora_envs.tasks.response import Response, find
from fedlora_envs.tasks.rounds import RecordedRounds

_GROUP = ("round", "energy left", "loss")
_CLIENT = ("uplink snr", "uplink rate", "downlink rate", "csi age", "outage", "compute", "budget", "previous rank")


class FederatedConfig(ConfigSection):
    """Options of the environment."""

    world: str = Field("umi-indoor", description="preset of the radio: see `fedlora methods`")
    world_options: dict[str, Any] = Field({}, description="what to change in it, as in `world.options` of a run file")
    clients: int = Field(5, ge=1, description="K: clients of every round")
    response: str = Field("minilm-trec", description="response model, by name or file")
    round_steps: float = Field(
        1.0, gt=0, description="steps of the response model that a round is worth; beyond its horizon nothing is known"
    )
    participation: float = Field(
        0.5, ge=0, description="exponent a of (delivered / clients)^a: what a full round gains; not fitted"
    )
    horizon: int = Field(15, ge=1, description="rounds of an episode")
    deadline_s: float = Field(10.0, gt=0, description="of a round; later replies are lost")
    energy_budget_j: Annotated[float, Field(gt=0)] | Literal["none"] | None = Field(
        12.0, description="energy of all clients over an episode; 'none': no limit"
    )
    budget_of: Literal["radio", "all"] = Field(
        "radio", description="what the budget pays for: sending and receiving, or computing too, which no rank changes"
    )
    csi_delay: int | None = Field(None, ge=0, description="age in rounds of what is known of the links; unset: the world's")
    csi_error_db: float | None = Field(None, ge=0, description="standard deviation of the estimate; unset: the world's")
    flops: float = Field(6e10, ge=0, description="operations of one client's local training in a round")
    base_bytes: int = Field(2048, ge=1, description="bytes of a reply of rank 0 everywhere: task head, schema, checksum")
    number_bytes: int = Field(4, ge=1, description="bytes of one number on the wire")
    time_weight: float = Field(0.04, ge=0, description="price of a round that lasts until the deadline, in loss")
    energy_weight: float = Field(0.005, ge=0, description="price of a round's even share of the energy budget, in loss")
    energy_ref_j: float | None = Field(None, gt=0, description="energy that costs energy_weight; unset: budget / horizon, or 1 J")


class FederatedRankAllocation:
    """E episodes of rank allocation (see `fedlora_envs.rank_env.RankEnv`); rows are the K clients of each episode in turn.

    The energy budget is for all clients of an episode together. The round that would take more than is left is void: it uses up
    the rest, moves nothing, and ends the episode.

    Args:
        config: Options.
        episodes: E.
        response: How the global model answers; default: as `config.response` says.

    Attributes:
        links: The radio.
        fleet: The devices.
        models: The global models.
        energy_left_j: `[E]`; inf without a budget.
        feature_names: What each entry of `features` is.

    Raises:
        ConfigError: An unknown world, one without a closed form, or options that cannot work.
    """

    def __init__(self, config: FederatedConfig | None = None, episodes: int = 1, response: Response | None = None) -> None:
        self.config = config = config or FederatedConfig()
        self.episodes, self.rows, self.horizon = episodes, config.clients, config.horizon
        if response is None:
            response = find(config.response)
        self.models = RecordedRounds(response, episodes, config.clients, config.round_steps, config.participation)
        self.sites, self.world = self.models.sites, self._world()
        sites = self.sites
        self.costs = Costs.linear(sites.numbers * config.number_bytes, sites.caps, config.base_bytes)
        self.links = GroupLinks(self.world, episodes, config.clients)
        self.fleet = GroupFleet(self.world, episodes, config.clients, config.flops)
        self.delay, self._error_db = self.world.csi.delay_rounds, self.world.csi.error_db
        self._down_bits = 8.0 * self.costs.full
        budget_j = None if config.energy_budget_j == "none" else config.energy_budget_j
        self.budget_j = np.inf if budget_j is None else budget_j
        self._energy_ref_j = config.energy_ref_j or (1.0 if budget_j is None else budget_j / config.horizon)
        count = episodes * config.clients
        self._seeds, self._episode = np.arange(episodes, dtype=np.uint64), np.full(episodes, -1, np.int64)
        self._done, self._over = np.zeros(episodes, np.int64), np.ones(episodes, np.bool_)
        self.energy_left_j = np.full(episodes, self.budget_j)
        self._previous = np.zeros((count, len(sites)), np.int64)
        self._history = np.zeros((self.delay + 1, 2, count))
        self._seen = self._look()
        per_client = [f"{name} {client}" for client in range(config.clients) for name in _CLIENT]
        self.feature_names = (*_GROUP, *per_client, *(f"gain {name}" for name in sites.names))

    def _world(self) -> WorldConfig:
        """Return the world's tree with this environment's options laid over it."""
        config, preset = self.config, WORLDS.get(self.config.world)
        tree: dict[str, Any] | None = getattr(preset, "tree", None)
        if tree is None:
            raise ConfigError(
                f"world '{config.world}' is no preset of fedlora_envs: it has no closed form for many rounds at once"
            )
        csi = {"delay_rounds": config.csi_delay, "error_db": config.csi_error_db}
        own = {"deadline_s": config.deadline_s, "csi": {key: value for key, value in csi.items() if value is not None}}
        world = parse_section(WorldConfig, merge(merge(tree, config.world_options), own), "world_options.")
        if world.clients is not None and config.clients > world.clients:
            raise ConfigError(
                f"world '{config.world}' holds {world.clients} clients, {config.clients} were asked for: lower clients"
            )
        if world.energy.battery_j is not None:
            raise ConfigError(
                "world_options.energy.battery_j: batteries of single clients are not simulated here; use energy_budget_j"
            )
        return world

    # -- the protocol --------------------------------------------------------------------------------------------------

    def reset(self, which: Flags, seeds: NDArray[np.uint64] | None = None) -> Observation:
        """Begin new episodes where `which`: new places and devices, an untrained model, full budgets; it then is round 1."""
        if seeds is None:
            self._episode = self._episode + which
        else:
            self._seeds, self._episode = np.where(which, seeds, self._seeds), np.where(which, 0, self._episode)
        rows = np.repeat(which, self.rows)
        self._done, self._over = np.where(which, 0, self._done), self._over & ~which
        self.energy_left_j = np.where(which, self.budget_j, self.energy_left_j)
        self._previous = np.where(rows[:, None], 0, self._previous)
        self.models.begin(which, self._seeds, self._episode)
        self.fleet.begin(which, self._seeds, self._episode)
        self.links.begin(which, self._seeds, self._episode)
        self._history = np.where(rows, self.links.measured(), self._history)
        self._move(which)
        return self._observe()

    def step(self, ranks: Ranks) -> Step:
        """Play a round at `ranks` `[E * K, sites]`, cut at the caps; episodes that have ended stand still.

        Raw terms in `info`, `[E]` each: `bits` that were sent on the uplink, of use or not; `latency_s` of the round; `energy_j`
        of all clients; `paid_j`, what the budget paid of it; `cost`, the share of clients that were late; `utility`, by how much
        the held-out loss fell; `feasible`, the share of clients whose
        ranks were not too large: who is late although a message of rank 0 would have been in time has asked for too much, and so
        have all once the energy is gone; `delivered`, clients whose replies count; `loss` and
        `accuracy` after it.
        """
        active, groups = ~self._over, (self.episodes, self.rows)
        ranks = np.clip(ranks, 0, self.sites.caps)
        possible = self.truth().budget_bytes >= self.costs.base
        there, times, radio_j, compute_j = self._play(ranks)
        there &= np.repeat(active, self.rows)
        done = (there & (times.status == Status.DONE)).reshape(groups)
        missed = (there & (times.status == Status.LATE)).reshape(groups)
        late, too_much = missed.mean(axis=1), (missed & possible.reshape(groups)).mean(axis=1)
        counted_j = radio_j if self.config.budget_of == "radio" else radio_j + compute_j
        spent_j = np.where(there, counted_j, 0.0).reshape(groups).sum(axis=1)
        gone = active & (spent_j >= self.energy_left_j)
        done &= ~gone[:, None]
        used_j = np.minimum(spent_j, self.energy_left_j)
        self.energy_left_j = np.where(np.isfinite(self.energy_left_j), self.energy_left_j - used_j, self.energy_left_j)
        latency_s = self._lasted(there.reshape(groups), times)
        before = self.models.loss()
        self.models.advance(ranks.reshape(*groups, -1), done)
        loss = self.models.loss()
        utility = np.where(active, before - loss, 0.0)
        prices = self.config.time_weight * latency_s / self.config.deadline_s
        prices = prices + self.config.energy_weight * used_j / self._energy_ref_j
        self._done = self._done + active
        terminated, truncated = gone, active & (self._done >= self.horizon) & ~gone
        info: dict[str, NDArray[np.generic]] = {
            "bits": np.where(there, times.bits_sent, 0.0).reshape(groups).sum(axis=1),
            "latency_s": latency_s,
            "energy_j": np.where(there, radio_j + compute_j, 0.0).reshape(groups).sum(axis=1),
            "paid_j": used_j,
            "cost": late,
            "utility": utility,
            "feasible": np.where(active & ~gone, 1.0 - too_much, 0.0),
            "delivered": done.sum(axis=1),
            "loss": loss,
            "accuracy": self.models.accuracy(),
        }
        self._previous = np.where(np.repeat(active, self.rows)[:, None], ranks, self._previous)
        self._over = self._over | terminated | truncated
        self.fleet.pass_time(self._seeds, self._episode, self._done)
        self._move(active)
        return Step(self._observe(), utility - prices * active, terminated, truncated, info)

    def truth(self) -> Truth:
        """Return the bytes that really fit before the deadline or before a client leaves, and what each level adds."""
        there, leave_s, download_s, compute_s, rates_bps = self._round()
        left_s = np.minimum(leave_s, self.config.deadline_s) - download_s - compute_s
        fits = np.where(there & (rates_bps > 0), np.maximum(left_s, 0.0) * rates_bps / 8, 0.0)
        return Truth(fits, np.repeat(self.models.true_gains(), self.rows, axis=0))

    def features(self) -> Floats:
        """Return the observation as `[E, D]` in [-1, 1] (`feature_names`): the group's, each client's, each site's.

        Group: rounds and energy over the episode's, loss over the untrained model's. Client: uplink SNR over 40 dB, rates in
        decades about 1 Mbit/s, age of the estimate over the horizon, outage, computing over the deadline, bytes that fit over
        those of the full adapter, mean previous rank over cap. Site: worth of all its levels over that of the best site.
        """
        seen, groups = self._seen, (self.episodes, self.rows)
        links, budget = seen.links, seen.budget_bytes
        assert links is not None and budget is not None and links.compute_s is not None
        left = self.energy_left_j / self.budget_j if np.isfinite(self.budget_j) else np.ones(self.episodes)
        loss = self.models.loss() / self.models.response.untrained
        group = np.column_stack([self._done / self.horizon, left, loss])
        columns = [
            links.uplink_snr_db / 40, _decades(links.uplink_bps), _decades(links.downlink_bps), links.age_rounds / self.horizon,
            links.outage.astype(np.float64), links.compute_s / self.config.deadline_s, budget / self.costs.full,
            (self._previous / self.sites.caps).sum(axis=1) / len(self.sites),
        ]  # fmt: skip
        clients = np.stack(columns, axis=-1).reshape(groups[0], -1)
        assert seen.gains is not None
        worth = seen.gains[:: self.rows].sum(axis=2)
        worth = worth / np.maximum(worth.max(axis=1, keepdims=True), 1e-300)
        return np.asarray(np.clip(np.column_stack([group, clients, worth]), -1.0, 1.0), np.float64)

    # -- a round -------------------------------------------------------------------------------------------------------

    def _move(self, which: Flags) -> None:
        """Let links and availability come to the round that is next, and note what was measured."""
        self.links.move(which, self._seeds, self._episode, self._done + 1)
        newer = np.concatenate([self._history[1:], self.links.measured()[None]])
        self._history = np.where(np.repeat(which, self.rows), newer, self._history)

    def _round(self) -> tuple[Flags, Floats, Floats, Floats, Floats]:
        """Return who is there, when they leave, have the model, how long they compute, and their uplink rates, `[E * K]`."""
        key = (self._seeds, self._episode, self._done + 1)
        there, leave_s = self.fleet.there(), self.fleet.leave_s(*key)
        download_s = self.links.download_s(self._down_bits, there, self.links.gains("fading down", *key))
        rates_bps = self.links.upload_bps(self.links.gains("fading up", *key))
        return there, leave_s, download_s, self.fleet.compute_s(*key), rates_bps

    def _play(self, ranks: Ranks) -> tuple[Flags, RoundTimes, Floats, Floats]:
        """Return who was there, their times, and their energy for the radio and for computing, `[E * K]`."""
        there, leave_s, download_s, compute_s, rates_bps = self._round()
        bits = 8.0 * self.costs.bytes(ranks)
        # In one plan for all groups; only its `duration_s`, the deadline as soon as anybody misses it, is not of one group.
        times = closed_form(rates_bps, RoundPlan(download_s, compute_s, bits, leave_s, self.config.deadline_s))
        spent = self.fleet.energy(times.downlink_s, times.compute_s, times.uplink_s)
        return there, times, spent.downlink_j + spent.uplink_j, spent.compute_j

    def _lasted(self, there: Flags, times: RoundTimes) -> Floats:
        """Return how long each group's round was, `[E]`: until the last reply, or the deadline where one did not come."""
        finish = np.where(there, np.minimum(times.finish_s.reshape(there.shape), self.config.deadline_s), 0.0)
        lasted: Floats = finish.max(axis=1)
        return lasted

    # -- what is seen --------------------------------------------------------------------------------------------------

    def _observe(self) -> Observation:
        self._seen = self._look()
        return self._seen

    def _look(self) -> Observation:
        links, count, sites = self._links(), self.episodes * self.rows, self.sites
        gains = np.repeat(self.models.shown_gains(), self.rows, axis=0)
        return Observation(
            round=int(min(self._done.max(initial=0) + 1, self.horizon)), rounds=self.horizon,
            clients=np.tile(np.arange(self.rows), self.episodes), examples=np.ones(count, np.int64), caps=sites.caps,
            units=self.costs.units, previous=self._previous, links=links, costs=self.costs,
            budget_bytes=budget_bytes(links, self._down_bits, self.rows), gains=gains, text=self.models.text,
        )  # fmt: skip

    def _links(self) -> Links:
        known = self._history[0]
        if self._error_db:
            z = normals(self._seeds, "csi", self._episode, self._done + 1, 2 * self.rows)
            known = known + self._error_db * z.reshape(self.episodes, 2, self.rows).transpose(1, 0, 2).reshape(2, -1)
        down_bps, up_bps, snr_db = self.links.expected(known, self.rows)
        return Links(
            uplink_snr_db=snr_db, uplink_bps=up_bps, downlink_bps=down_bps,
            age_rounds=np.repeat(np.minimum(self._done + 1, self.delay), self.rows), outage=(up_bps <= 0) | (down_bps <= 0),
            compute_bps=self.fleet.flops, energy_left_j=np.repeat(self.energy_left_j / self.rows, self.rows),
            deadline_s=self.config.deadline_s, compute_s=self.fleet.expected_s(), allowance=self._allowance(up_bps),
        )  # fmt: skip

    def _allowance(self, up_bps: Floats) -> Allowance | None:
        """Return what is left of the energy budget; a client's part of it is an even one."""
        if not np.isfinite(self.budget_j):
            return None
        nothing = np.zeros(len(up_bps))
        with np.errstate(divide="ignore"):
            byte_j = self.fleet.energy(nothing, nothing, 8.0 / up_bps).uplink_j
        own_j = np.repeat(np.maximum(self.energy_left_j, 1e-12) / self.rows, self.rows)
        return Allowance(np.repeat(self.energy_left_j / self.budget_j, self.rows), byte_j / own_j)


def _decades(rate_bps: Floats) -> Floats:
    """Return rates as decades about 1 Mbit/s over 4, -1 for none."""
    return np.where(rate_bps > 0, np.log10(np.maximum(rate_bps, 1.0) / 1e6) / 4, -1.0)
