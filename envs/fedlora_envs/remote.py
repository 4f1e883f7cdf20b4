"""AirLLM's problem (arXiv 2507.11515): a cloud fine-tunes, one link carries the adapter to one edge device, one rank per site.

As published (every switch off) a step is: an SNR and a bandwidth are drawn; the policy gives each site a rank; the message has
`bits * sum_l r_l (in_l + out_l + 1)` bits and costs `bits / (C tau)`. Up to a cost of 1 the task takes one optimiser step and the
reward is `-CE - lambda cost`, with the loss of the batch before the step; above it nothing is trained and the reward is
`-(penalty + lambda) cost`. Fifteen steps are an episode; the fine-tune goes on from episode to episode.

The switches each remove one weakness of that: a channel without memory, perfect knowledge of it, a reward on the last training
batch at whatever ranks were just tried, no limit over the episode, a fine-tune that never starts again.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fedlora.config import ConfigSection
from fedlora.errors import ConfigError
from fedlora.federation.policy import Allowance, Links, Observation
from fedlora.ranks import Costs
from fedlora_envs.rank_env import Flags, Floats, Ranks, Step, Truth
from fedlora_envs.remote_link import LevelLink, replaced
from fedlora_envs.tasks.base import Task


class RemoteConfig(ConfigSection):
    """Options of the environment; the defaults are AirLLM as published."""

    levels_db: list[float] = Field([-5.0, 0.0, 5.0, 10.0, 15.0], min_length=1, description="SNR levels, rising")
    bandwidths_hz: list[float] = Field([1e8], min_length=1, description="bandwidths, one drawn each step")
    latency_s: float = Field(1.0, gt=0, description="tau: airtime that one message may take")
    bits: int = Field(32, ge=8, multiple_of=8, description="bits per number")
    horizon: int = Field(15, ge=1, description="steps of an episode")
    min_rank: int = Field(1, ge=0, description="smallest rank of a site")
    cost_weight: float = Field(0.1, ge=0, description="lambda: price of a message that fills the slot")
    penalty: float = Field(10.0, ge=0, description="price of a message that does not fit, times how far it overfills")
    power_w: float = Field(0.0, ge=0, description="power drawn while the link is in use; AirLLM counts no energy")
    channel: Literal["iid", "markov"] = Field("iid", description="level drawn anew each step, or moving to neighbours")
    move: float = Field(0.2, gt=0, le=1, description="markov: probability to leave a level")
    csi_delay: int = Field(0, ge=0, description="age of the SNR that is known, steps")
    csi_error_db: float = Field(0.0, ge=0, description="standard deviation of the estimated SNR")
    evaluate: Literal["trained", "sent"] = Field(
        "trained", description="judge the ranks just trained, or all that the edge has received so far"
    )
    loss: Literal["train", "heldout"] = Field("train", description="data of the reward: the training batch, or held out")
    budget_s: float | None = Field(None, gt=0, description="airtime of a whole episode; unset: no limit")
    fresh: bool = Field(False, description="each episode starts from an untrained adapter")
    order: Literal["index", "importance"] = Field("index", description="which components a rank keeps: the task's own business")
    language: Literal["last", "coming"] = Field(
        "last", description="entropy of the batch before and no OOV words, or all text features of the coming batch"
    )
    observe: Literal["auto", "published", "full"] = Field("auto", description="features; auto: full once a switch is on")
    measure: Literal["end", "every", "never"] = Field("end", description="when the held-out accuracy is reported")

    @model_validator(mode="after")
    def _consistent(self) -> RemoteConfig:
        if self.levels_db != sorted(set(self.levels_db)):
            raise ValueError(f"levels_db = {self.levels_db} does not rise")
        if min(self.bandwidths_hz) <= 0:
            raise ValueError(f"bandwidths_hz = {self.bandwidths_hz}: a bandwidth is above 0")
        if self.evaluate == "sent" and self.loss == "train":
            raise ValueError("evaluate = 'sent' judges what the edge holds, on data held out: set loss = 'heldout' as well")
        return self

    @property
    def full_features(self) -> bool:
        """Whether the observation holds more than AirLLM's state."""
        switches = (self.channel, self.csi_delay, self.csi_error_db, self.evaluate, self.loss, self.budget_s, self.fresh)
        published = switches == ("iid", 0, 0.0, "trained", "train", None, False)
        published = published and (self.order, self.language) == ("index", "last")
        return self.observe == "full" or (self.observe == "auto" and not published)


class RemoteFineTuning:
    """E episodes of AirLLM's problem over any task (see `fedlora_envs.rank_env.RankEnv`); one rank vector per episode.

    Args:
        task: E fine-tunings.
        config: Options; default: as published.

    Attributes:
        floor: Smallest legal ranks, `[sites]`; `step` raises what lies below.
        feature_names: What each entry of `features` is.
        airtime_left_s: Airtime left in each episode, `[E]`; inf without a budget.

    Raises:
        ConfigError: Options that do not fit the task, or a budget that not even the smallest message fits into.
    """

    rows = 1

    def __init__(self, task: Task, config: RemoteConfig | None = None) -> None:
        self.config = config = config or RemoteConfig()
        self.task, self.sites, self.episodes, self.horizon = task, task.sites, task.episodes, config.horizon
        self.costs = Costs.linear(self.sites.numbers * config.bits // 8, self.sites.caps)
        self.floor = np.minimum(config.min_rank, self.sites.caps)
        self._weights = self.sites.numbers.astype(np.float64) * config.bits
        self._link = LevelLink(
            config.channel, config.levels_db, config.bandwidths_hz, move=config.move, delay=config.csi_delay,
            error_db=config.csi_error_db, episodes=self.episodes,
        )  # fmt: skip
        self._smallest_bits = float(self.floor @ self._weights)
        self._check()
        count, sites = self.episodes, len(self.sites)
        self._seeds, self._episode = np.arange(count, dtype=np.uint64), np.full(count, -1, np.int64)
        self._step, self._over = np.zeros(count, np.int64), np.ones(count, np.bool_)
        self._ranks, self._held = np.zeros((count, sites), np.int64), np.zeros((count, sites), np.int64)
        self.airtime_left_s = np.full(count, np.inf)
        self._coming = self._shown = np.zeros((count, 3))
        self._gains: Floats | None = None
        names = ["snr", "bandwidth", "entropy", "oov", *(f"rank {name}" for name in self.sites.names)]
        if config.full_features:
            names += ["surprisal", "split words", "csi age", "fits", "airtime left", "step"]
            names += [f"gain {name}" for name in self.sites.names]
        self.feature_names = tuple(names)

    def _check(self) -> None:
        config = self.config
        if config.min_rank > self.sites.caps.max():
            raise ConfigError(
                f"min_rank = {config.min_rank} is above {self.sites.caps.max()}, the largest rank of any site: lower it"
            )
        if config.order != getattr(self.task, "order", "index"):
            raise ConfigError(f"order = '{config.order}' is not how this task orders components: change it, or take another task")
        slot_s = min(config.latency_s, config.budget_s or np.inf)
        if config.budget_s is not None and self._smallest_bits > self._link.best_bps * slot_s:
            raise ConfigError(
                f"the smallest message ({self._smallest_bits:,.0f} bits at min_rank = {config.min_rank}) never fits: the best "
                f"link carries {self._link.best_bps * slot_s:,.0f} bits in {slot_s:g} s. Lower min_rank or bits, or raise "
                "latency_s, budget_s or bandwidths_hz"
            )

    def reset(self, which: Flags, seeds: NDArray[np.uint64] | None = None) -> Observation:
        """Begin new episodes where `which`; seeds begin a new run there: the first episode, and an untrained adapter."""
        self.restart(which, seeds)
        return self.observe()

    def step(self, ranks: Ranks) -> Step:
        """Take one step of all episodes (see `advance`, which also says what `info` holds)."""
        reward, terminated, truncated, info = self.advance(ranks)
        return Step(self.observe(), reward, terminated, truncated, info)

    def restart(self, which: Flags, seeds: NDArray[np.uint64] | None = None) -> None:
        """Do what `reset` does, without an observation: gathering one costs more than the step where the task is cheap."""
        config, at = self.config, np.flatnonzero(which)
        if seeds is None:
            self._episode = self._episode + which
        else:
            self._seeds, self._episode = np.where(which, seeds, self._seeds), np.where(which, 0, self._episode)
        anew = which & (config.fresh | (self._episode == 0))
        for chosen, fresh in ((anew, True), (which & ~anew, False)):
            if chosen.any():
                self.task.begin(chosen, self._seeds, self._episode, fresh)
        if config.evaluate == "sent":
            self._held = replaced(self._held, np.flatnonzero(anew), 0)
        self._ranks = replaced(self._ranks, at, np.maximum(self.floor, self.sites.caps // 2))
        self._step, self._over = replaced(self._step, at, 0), self._over & ~which
        self.airtime_left_s = replaced(self.airtime_left_s, at, np.inf if config.budget_s is None else config.budget_s)
        self._link.begin(at, self._seeds, self._episode)
        self._coming = self.task.text()
        self._shown = np.where(which[:, None], self._coming, self._shown)
        self._gains = None

    def advance(self, ranks: Ranks) -> tuple[Floats, Flags, Flags, dict[str, NDArray[np.generic]]]:
        """Send and train at `ranks` `[E, sites]`, raised to the floor and cut at the caps; ended episodes stand still.

        Raw terms in `info`, `[E]` each: `bits` that arrived, `latency_s` for which the link was in use (a message that does not
        fit holds it for its whole slot), `energy_j` = power times that, `cost` (slots by which the message was too long; 0: it
        fitted), `load` (AirLLM's cost, bits over C tau), `utility` (reward before the price of airtime), `feasible`, `snr_db`,
        and `loss` and `accuracy`, NaN where nothing was measured.
        """
        config, active = self.config, ~self._over
        ranks = np.clip(ranks, self.floor, self.sites.caps)
        bits = ranks.astype(np.float64) @ self._weights
        capacity, left_s, snr_db = self._link.rate_bps, self.airtime_left_s, self._link.snr_db
        load, airtime_s = bits / np.maximum(capacity * config.latency_s, 1.0), bits / capacity
        excess = np.maximum(np.maximum(load - 1.0, (airtime_s - left_s) / config.latency_s), 0.0)
        feasible = active & (excess == 0)
        train_loss = self.task.train(ranks, feasible)
        self._ranks = ranks if active.all() else np.where(active[:, None], ranks, self._ranks)
        if config.evaluate == "sent":
            # What is trained is sent at once and the rest does not move, so that no version the edge holds is ever outdated.
            self._held = np.maximum(self._held, ranks * feasible[:, None])
        used_s = np.where(feasible, airtime_s, np.minimum(config.latency_s, left_s)) * active
        self.airtime_left_s = np.maximum(left_s - used_s, 0.0)
        self._step = self._step + active
        truncated = active & (self._step >= self.horizon)
        terminated = active & (self._smallest_bits > self._link.best_bps * self.airtime_left_s)
        ended = truncated | terminated
        loss, accuracy = self._measured(train_loss, active, ended)
        utility = np.where(feasible, -loss, -config.penalty * (1.0 + excess))
        if terminated.any():
            # The steps that are left count at the loss reached: emptying the budget early must not spare them.
            reached = self.task.measure(self._held if config.evaluate == "sent" else self._ranks)[0]
            utility = np.where(terminated, utility - (self.horizon - self._step) * reached, utility)
        reward = np.where(active, utility - config.cost_weight * load, 0.0)
        info: dict[str, NDArray[np.generic]] = {
            "bits": np.where(feasible, bits, 0.0), "latency_s": used_s, "energy_j": used_s * config.power_w,
            "cost": excess * active, "load": load * active, "utility": np.where(active, utility, 0.0), "feasible": feasible,
            "loss": loss, "accuracy": accuracy, "snr_db": snr_db,
        }  # fmt: skip
        self._over = self._over | ended
        self._link.move(self._step)
        self._shown = np.where(feasible[:, None], self._coming, self._shown)
        self._coming, self._gains = self.task.text(), None
        return reward, terminated, truncated, info

    def truth(self) -> Truth:
        """Return the bytes that the coming channel really carries, and what levels really add, where the task knows (`worth`)."""
        worth = getattr(self.task, "worth", self.task.gains)
        return Truth(self._fits(self._link.rate_bps), worth())

    def features(self) -> Floats:
        """Return AirLLM's state, `[E, 4 + sites]` in [0, 1], and what a switch adds (`feature_names` lists both).

        AirLLM's: SNR and bandwidth between the least and the most (0.5 where there is one only), entropy, share of unknown words
        (always 0: no subword tokenizer has any), ranks over caps. The others: unigram surprisal and share of split words, age of
        the SNR over the horizon, bytes that fit over those of the full adapter, airtime and steps over the episode's, and per
        site the worth of all its components over that of the best site.
        """
        link, config, sites = self._link, self.config, len(self.sites)
        text, full = self._text(), config.full_features
        # Filled column by column: twice as fast as putting columns together.
        state = np.zeros((self.episodes, len(self.feature_names)))
        state[:, 0] = _scaled(link.known_snr_db, link.levels_db)
        state[:, 1] = _scaled(link.bandwidth_hz, link.bandwidths_hz)
        state[:, 2] = text[:, 0]
        np.multiply(self._ranks, 1.0 / self.sites.caps, out=state[:, 4 : 4 + sites])
        if full:
            more = state[:, 4 + sites :]
            more[:, 0], more[:, 1] = text[:, 1], text[:, 2]
            more[:, 2] = min(config.csi_delay / self.horizon, 1.0)
            more[:, 3] = np.minimum(self._fits(link.known_rate_bps) / self.costs.full, 1.0)
            more[:, 4] = 1.0 if config.budget_s is None else self.airtime_left_s / config.budget_s
            more[:, 5] = self._step / self.horizon
            gains = self._worth_seen()
            worth = gains @ np.ones(gains.shape[-1])
            best = np.maximum.reduce(np.ascontiguousarray(worth.T))  # three times as fast as along the short axis
            np.divide(worth, np.maximum(best, 1e-300)[:, None], out=more[:, 6:])
        return state

    def load(self, ranks: Ranks, snr_db: Floats, bandwidth_hz: float | None = None) -> Floats:
        """Return AirLLM's cost of `ranks` `[..., sites]` at an SNR `[...]`: bits over what the slot carries (1: just fits)."""
        bandwidth_hz = self.config.bandwidths_hz[0] if bandwidth_hz is None else bandwidth_hz
        capacity = bandwidth_hz * np.log2(1.0 + 10.0 ** (np.asarray(snr_db) / 10.0))
        return np.asarray(ranks @ self._weights / np.maximum(capacity * self.config.latency_s, 1.0))

    def _measured(self, train_loss: Floats, active: Flags, ended: Flags) -> tuple[Floats, Floats]:
        """Return the loss that counts and the accuracy where it is due, NaN elsewhere; measures no more than it has to."""
        heldout, measure = self.config.loss == "heldout", self.config.measure
        due = active if measure == "every" else ended if measure == "end" else np.zeros_like(active)
        nothing = np.full(self.episodes, np.nan)
        if not heldout and not due.any():
            return train_loss, nothing
        loss, accuracy = self.task.measure(self._held if self.config.evaluate == "sent" else self._ranks)
        accuracy = np.where(due, accuracy, nothing)
        return (np.where(active, loss, nothing) if heldout else train_loss), accuracy

    def _fits(self, rate_bps: Floats) -> Floats:
        """Return the bytes that a link of this rate carries in a slot, and in what is left of the episode's airtime."""
        fits: Floats = np.maximum(rate_bps * np.minimum(self.config.latency_s, self.airtime_left_s), 1.0) / 8.0
        return fits

    def _allowance(self) -> Allowance | None:
        """Return what is left of the episode's airtime."""
        if self.config.budget_s is None:
            return None
        left_s = np.maximum(self.airtime_left_s, 1e-12)
        return Allowance(self.airtime_left_s / self.config.budget_s, 8.0 / self._link.known_rate_bps / left_s)

    def _worth_seen(self) -> Floats:
        if self._gains is None:
            self._gains = self.task.gains()
        return self._gains

    def _text(self) -> Floats:
        return self._coming if self.config.language == "coming" else self._shown

    def observe(self) -> Observation:
        """Return what a policy sees. The one link is a downlink; policies look at an uplink, so both fields carry its rate."""
        config, link, count = self.config, self._link, self.episodes
        budget = self._fits(link.known_rate_bps)
        unlimited = np.full(count, np.inf)
        links = Links(
            uplink_snr_db=link.known_snr_db, uplink_bps=link.known_rate_bps, downlink_bps=link.known_rate_bps,
            age_rounds=np.full(count, config.csi_delay), outage=budget * 8.0 < self._smallest_bits, compute_bps=unlimited,
            energy_left_j=unlimited, deadline_s=config.latency_s, allowance=self._allowance(),
        )  # fmt: skip
        return Observation(
            round=int(min(self._step.max(initial=0) + 1, self.horizon)), rounds=self.horizon, clients=np.arange(count),
            examples=np.ones(count, np.int64), caps=self.sites.caps, units=self.costs.units, previous=self._ranks, links=links,
            costs=self.costs, budget_bytes=budget, gains=self._worth_seen(), text=self._text(),
        )  # fmt: skip


def _scaled(values: Floats, choices: Floats) -> Floats:
    """Return values between the least (0) and the most (1) of `choices`; 0.5 where there is but one."""
    low, high = float(choices.min()), float(choices.max())
    return np.clip((values - low) / (high - low), 0.0, 1.0) if high > low else np.full(len(values), 0.5)
