"""How airllm-plus learns: from a clairvoyant's solutions first, then by policy gradients through the chain.

Many episodes share each channel: what differs between them is what they did. An action's advantage is its return less the mean
return of the others on the same channel from the same step on, which needs no value network, and the channel's luck cancels. The
objective is PPO's clipped one for every step of the denoising chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from fedlora.config import ConfigSection, parse_section
from fedlora.errors import ConfigError
from fedlora.federation.policy import Policy, PolicySetup
from fedlora.streams import stream
from fedlora_policies.features import Features, Reader
from fedlora_policies.known import budget_of
from fedlora_policies.learners import TRAIN_SEEDS, MakeCore, Say, refuse_bad_reward
from fedlora_policies.plus.chain import ChainConfig
from fedlora_policies.plus.network import Critic, NetworkConfig
from fedlora_policies.plus.policy import NAME, AirllmPlusPolicy, Brain
from fedlora_policies.plus.requests import ranks_of
from fedlora_policies.plus.teachers import TEACHERS, gather, imitate
from fedlora_policies.policy_file import PolicyFile
from fedlora_policies.rollout import Stage

Floats = NDArray[np.float64]


class PlusConfig(ConfigSection):
    """Options of the learner."""

    lessons: int = Field(
        256, ge=0, le=len(TRAIN_SEEDS), description="channels on which the teachers play first; 0: nothing is imitated"
    )
    teachers: dict[str, dict[str, list[float]]] = Field(TEACHERS, description="policies that teach, with all options to try")
    imitations: int = Field(800, ge=1, description="updates of imitation")
    batch: int = Field(256, ge=1, description="decisions of such an update")
    imitation_lr: float = Field(2e-3, gt=0, description="Adam's step size there, at its peak")
    hide: float = Field(0.1, ge=0, lt=1, description="share of examples without client features, where guidance is used")
    channels: int = Field(32, ge=1, le=len(TRAIN_SEEDS), description="channels (seeds) of an iteration")
    copies: int = Field(8, ge=2, description="episodes on each channel, of which one is judged by the others")
    width: int = Field(64, ge=4, description="hidden numbers per site")
    blocks: int = Field(2, ge=1, description="residual blocks of the network")
    steps: int = Field(5, ge=1, le=100, description="steps of the denoising chain")
    tuned: int = Field(1, ge=1, description="last steps of it that explore and are trained by policy gradients")
    eta: float = Field(1.0, ge=0, le=1, description="noise of such a step but the last, as a share of the stochastic sampler's")
    share_std: float = Field(0.04, gt=0, description="standard deviation with which shares are explored")
    total_std: float = Field(0.06, gt=0, description="standard deviation with which the bytes of all sites are explored")
    guidance: float = Field(1.0, ge=0, description="scale of classifier-free guidance; 1: none")
    lr: float = Field(1e-4, gt=0, description="Adam's step size")
    epochs: int = Field(3, ge=1, description="passes over an iteration's decisions")
    minibatch: int = Field(512, ge=8, description="decisions of an update")
    clip: float = Field(0.1, gt=0, description="PPO's clip of the likelihood ratio")
    trace: float = Field(0.95, ge=0, le=1, description="lambda of the advantage estimate")
    gamma: float = Field(1.0, ge=0, le=1, description="discount; 0: only the step's own reward counts")
    grad: float = Field(1.0, gt=0, description="gradient norm limit")
    infeasible: float = Field(0.005, ge=0, le=1, description="share of infeasible steps aimed at; a multiplier prices them")
    price_lr: float = Field(1.0, ge=0, description="how fast that price moves; 0: no price")
    shuffle: bool = Field(
        False, description="control: rewards, which teacher did best and what sites are worth to it are dealt out at random"
    )


@dataclass(frozen=True)
class Decisions:
    """What an iteration played, n decisions of K chain steps.

    Attributes:
        features: What was seen.
        states: States of the chain, `[K + 1, n, L + 1]`.
        likelihood: Log-likelihood of its steps then, `[K, n]`.
        advantage: How much better it went than for the others, `[n]`.
        gain: What was still gained from there on, `[n]`.
        reward: Mean return of an episode.
        infeasible: Share of steps that were infeasible.
        mean_rank: Mean rank.
    """

    features: Features
    states: Tensor
    likelihood: Tensor
    advantage: Tensor
    gain: Tensor
    reward: float
    infeasible: float
    mean_rank: float


class PlusLearner:
    """Trains a chain in an environment.

    Args:
        make: Returns the environment.
        seed: Of first weights, channels and exploration.
        options: Those of `PlusConfig`.

    Attributes:
        brain: What is trained.
        price: What an infeasible step costs on top of what the environment charges.
        iteration: Iterations done.
    """

    def __init__(self, make: MakeCore, seed: int, /, **options: Any) -> None:
        self.config = config = parse_section(PlusConfig, options, "learner.")
        self.seed, self.make = seed, make
        self.numbers: dict[str, Any] = {}
        self.stages = [Stage(make(config.channels * config.copies, variant)) for variant in range(make.variants)]
        self.readers = [Reader(stage.setup(seed), NAME) for stage in self.stages]
        network = NetworkConfig(width=config.width, blocks=config.blocks)
        if ChainConfig.train_steps % config.steps:
            raise ConfigError(f"learner.steps = {config.steps} is no divisor of the schedule's {ChainConfig.train_steps} steps")
        if config.tuned > config.steps:
            raise ConfigError(f"learner.tuned = {config.tuned} is more than the chain's learner.steps = {config.steps}")
        chain = ChainConfig(
            sample_steps=config.steps, tuned=config.tuned, eta=config.eta, share_std=config.share_std, total_std=config.total_std,
            guidance=config.guidance,
        )  # fmt: skip
        self.brain = Brain(network, chain, seed)
        self.optimiser = torch.optim.Adam(self.brain.denoiser.parameters(), lr=config.lr)
        self.hidden = config.hide if config.guidance != 1.0 else 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.critic = Critic(config.width)
        self.critic_optimiser = torch.optim.Adam(self.critic.parameters(), lr=1e-3)
        self.scale = (0.0, 1.0)
        self.price, self.iteration = 0.0, 0

    def prepare(self, say: Say) -> None:
        """Learn from the teachers."""
        config = self.config
        if not config.lessons:
            return
        if config.lessons < self.make.variants:
            raise ConfigError(f"learner.lessons = {config.lessons} for {self.make.variants} variants: every one needs a channel")
        seeds = stream(self.seed, "lessons").choice(len(TRAIN_SEEDS), config.lessons, replace=False).astype(np.uint64)
        control = stream(self.seed, "shuffled teachers") if config.shuffle else None
        parts, lessons = np.array_split(seeds, self.make.variants), []
        for variant, (own, reader) in enumerate(zip(parts, self.readers, strict=True)):
            lessons.append(gather(Stage(self.make(len(own), variant)), reader, own, say, config.teachers, control))
        count = sum(len(part.features) for part in lessons)
        if not all(len(part.features) for part in lessons):
            raise ConfigError("no teacher found ranks that fit: nothing can be learnt here. Look at the environment's options")
        say(f"imitating {count} decisions of teachers")
        loss = imitate(self.brain, lessons, config.imitations, config.batch, config.imitation_lr, self.hidden, self.seed)
        scores = [part.score for part in lessons]
        self.numbers |= {"lessons": count, "teachers_return": float(np.mean(scores)), "imitation_loss": loss}

    def iterate(self) -> dict[str, float]:
        """Play one episode on every channel, learn from it, and return numbers about it.

        Raises:
            TrainingError: A reward is not a finite number.
        """
        played = self.play()
        losses = self._learn(played)
        self.price = max(self.price + self.config.price_lr * (played.infeasible - self.config.infeasible), 0.0)
        self.iteration += 1
        return {
            "return": played.reward, "infeasible": played.infeasible, "mean_rank": played.mean_rank, "price": self.price,
            **losses,
        }  # fmt: skip

    def policy(self, setup: PolicySetup) -> Policy:
        """Return the policy as it stands."""
        return AirllmPlusPolicy(setup, self.brain)

    def file(self, about: dict[str, Any]) -> PolicyFile:
        """Return the policy as a file."""
        return self.brain.file(about)

    def state(self) -> dict[str, Any]:
        """Return networks, optimisers, the price and where it stands; randomness is keyed by the iteration."""
        modules = {"denoiser": self.brain.denoiser, "critic": self.critic}
        optimisers = {"optimiser": self.optimiser, "critic_optimiser": self.critic_optimiser}
        held = {name: item.state_dict() for name, item in (modules | optimisers).items()}
        return held | {"price": self.price, "iteration": self.iteration, "scale": list(self.scale), "numbers": self.numbers}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.brain.denoiser.load_state_dict(state["denoiser"])
        self.critic.load_state_dict(state["critic"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.critic_optimiser.load_state_dict(state["critic_optimiser"])
        self.price, self.iteration, self.numbers = state["price"], state["iteration"], state["numbers"]
        self.scale = (state["scale"][0], state["scale"][1])

    # -- playing -------------------------------------------------------------------------------------------------------

    def play(self) -> Decisions:
        """Play the coming iteration's episodes, exploring."""
        config, variant = self.config, self.iteration % len(self.stages)
        stage, reader = self.stages[variant], self.readers[variant]
        core = stage.core
        rng = stream(self.seed, "training channels", self.iteration)
        channels = rng.choice(len(TRAIN_SEEDS), core.episodes // config.copies, replace=False)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        seen = stage.reset(np.repeat(channels, config.copies).astype(np.uint64))
        alive = np.ones(core.episodes, np.bool_)
        features, states, likelihood, rewards, feasible, awake, ranks_sum = [], [], [], [], [], [], 0.0
        for step in range(core.horizon):
            looked = reader(seen)
            client, sites = torch.from_numpy(looked.client), torch.from_numpy(looked.sites)
            chain = self.brain.chain.explore(client, sites, generator)
            ranks = ranks_of(chain.states[-1].numpy(), stage.costs, budget_of(seen))
            taken = stage.step(ranks)
            refuse_bad_reward(taken.reward, self.iteration, step, np.repeat(channels, config.copies))
            features.append(looked)
            states.append(torch.stack(chain.states))
            likelihood.append(torch.stack(chain.likelihood))
            rewards.append(taken.reward * alive)
            feasible.append(np.where(alive, taken.info["feasible"], 1.0))
            awake.append(alive)
            ranks_sum += float(ranks.reshape(core.episodes, -1).mean(axis=1)[alive].sum())
            alive = alive & ~(taken.terminated | taken.truncated)
            seen = taken.observation
            if not alive.any():
                break
        reward, missed, there = np.stack(rewards), 1.0 - np.stack(feasible), np.stack(awake)
        priced = reward - self.price * missed
        if config.shuffle:
            priced = rng.permuted(priced, axis=1)
        rows = np.repeat(there, core.rows, axis=1).ravel()
        kept = np.flatnonzero(rows)
        all_features = Features(
            np.concatenate([item.client for item in features]), np.concatenate([item.sites for item in features])
        )
        value = self._values(all_features).reshape(len(reward), core.episodes, core.rows).mean(axis=2)
        advantage, gain = self._advantage(priced, there, value)
        at = torch.from_numpy(kept)
        return Decisions(
            all_features.take(kept),
            torch.cat(states, dim=1)[:, at],
            torch.cat(likelihood, dim=1)[:, at],
            torch.from_numpy(np.repeat(advantage, core.rows, axis=1).ravel()[kept].astype(np.float32)),
            torch.from_numpy(np.repeat(gain, core.rows, axis=1).ravel()[kept].astype(np.float32)),
            float(reward.sum(axis=0).mean()),
            float(missed[there].mean()),
            ranks_sum / float(there.sum()),
        )

    @torch.no_grad()
    def _values(self, features: Features) -> Floats:
        """Return what the critic expects to be gained, `[n]`."""
        found = self.critic(torch.from_numpy(features.client), torch.from_numpy(features.sites)).numpy()
        return np.asarray(found.astype(np.float64) * self.scale[1] + self.scale[0])

    def _advantage(self, reward: Floats, there: NDArray[np.bool_], value: Floats) -> tuple[Floats, Floats]:
        """Return each step's advantage over the others on its channel, in units of its spread, and the return from there on.

        The generalised advantage estimate (Schulman et al., arXiv 1506.02438), less the mean of the others' in the same step on
        the same channel; both `[T, E]`.
        """
        config = self.config
        gain, advantage = np.zeros_like(reward), np.zeros_like(reward)
        after, ahead, later = (np.zeros(reward.shape[1]) for _ in range(3))
        for step in reversed(range(len(reward))):
            after = gain[step] = reward[step] + config.gamma * after
            surprise = reward[step] + config.gamma * later - value[step]
            ahead = advantage[step] = (surprise + config.gamma * config.trace * ahead) * there[step]
            later = value[step] * there[step]
        groups = (len(reward), -1, config.copies)
        own, weight = advantage.reshape(groups), there.reshape(groups).astype(np.float64)
        others = weight.sum(axis=2, keepdims=True) - weight
        mean = ((own * weight).sum(axis=2, keepdims=True) - own * weight) / np.maximum(others, 1.0)
        found = np.where(others > 0, own - mean, 0.0).reshape(reward.shape) * there
        # Rare and large penalties must not drown everything else: the spread is a mean distance, and outliers are cut.
        spread = float(np.abs(found[there]).mean()) if there.any() else 1.0
        return np.asarray(np.clip(found / max(spread, 1e-8), -5.0, 5.0)), gain

    # -- learning ------------------------------------------------------------------------------------------------------

    def _learn(self, played: Decisions) -> dict[str, float]:
        """Take PPO's steps over an iteration's decisions; return their mean loss, and how far the policy moved."""
        config = self.config
        generator = torch.Generator().manual_seed(int(stream(self.seed, "minibatches", self.iteration).integers(2**62)))
        if self.iteration == 0:
            self.scale = (float(played.gain.mean()), max(float(played.gain.std()), 1e-6))
        losses, moved, wrong = [], [], []
        # In the first iteration the critic alone learns: what it says before would only push the policy about.
        for _ in range(config.epochs if self.iteration else 0):
            for rows in torch.randperm(len(played.features), generator=generator).split(config.minibatch):
                loss, distance = self._update(played, rows)
                losses.append(loss)
                moved.append(distance)
        for _ in range(3 * config.epochs):
            for rows in torch.randperm(len(played.features), generator=generator).split(256):
                wrong.append(self._judge(played, rows))
        mean = {"loss": float(np.mean(losses)), "kl": float(np.mean(moved))} if losses else {}
        return {**mean, "value_loss": float(np.mean(wrong))}

    def _judge(self, played: Decisions, rows: Tensor) -> float:
        """Let the critic learn what was gained; return its squared error in units of the spread."""
        looked = played.features.take(rows.numpy())
        found = self.critic(torch.from_numpy(looked.client), torch.from_numpy(looked.sites))
        loss = (found - (played.gain[rows] - self.scale[0]) / self.scale[1]).square().mean()
        self.critic_optimiser.zero_grad()
        loss.backward()
        self.critic_optimiser.step()
        return float(loss.detach())

    def _update(self, played: Decisions, rows: Tensor) -> tuple[float, float]:
        config, looked = self.config, played.features.take(rows.numpy())
        client, sites = torch.from_numpy(looked.client), torch.from_numpy(looked.sites)
        advantage = played.advantage[rows]
        loss, distance = torch.zeros(()), 0.0
        for index in range(len(played.likelihood)):
            before, after = played.states[index, rows], played.states[index + 1, rows]
            likelihood = self.brain.chain.log_prob(self.brain.chain.first + index, before, after, client, sites)
            ratio_log = likelihood - played.likelihood[index, rows]
            ratio = ratio_log.exp()
            bounded = ratio.clamp(1 - config.clip, 1 + config.clip)
            loss = loss - torch.minimum(ratio * advantage, bounded * advantage).mean()
            distance += float((ratio.detach() - 1 - ratio_log.detach()).mean())
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.brain.denoiser.parameters(), config.grad)
        self.optimiser.step()
        return float(loss.detach()), distance
