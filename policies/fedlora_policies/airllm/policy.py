"""airllm by name: the published method in any rank environment, and its trained policy in a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from fedlora.config import ConfigSection, parse_section
from fedlora.errors import ConfigError
from fedlora.federation.policy import Observation, Policy, PolicySetup, Ranks
from fedlora.streams import torch_stream
from fedlora_envs.rank_env import RankEnv
from fedlora_policies.airllm.coarse import Encoder, PpoConfig
from fedlora_policies.airllm.diffusion import Codec, DiffusionConfig, Refiner
from fedlora_policies.airllm.published import AirLLM
from fedlora_policies.known import links_of
from fedlora_policies.learners import MakeCore
from fedlora_policies.policy_file import PolicyFile, load_into, load_policy
from fedlora_policies.rollout import Stage
from fedlora_policies.sb3_env import Observed, RowsVecEnv
from fedlora_policies.sb3_learner import Sb3Learner, own_randomness, plain, training_channels

NAME = "airllm"
_P, _D = PpoConfig, DiffusionConfig


class AirllmConfig(ConfigSection):
    """Options of the learner; the defaults are the method as published."""

    episodes: int = Field(1, ge=1, description="episodes side by side")
    restart: bool = Field(False, description="each iteration begins on new channels; else one fine-tune goes on, as published")
    shuffle: bool = Field(False, description="control: rewards are dealt out at random")
    lr: float = Field(_P.lr, gt=0, description="Adam's step size of PPO")
    gamma: float = Field(_P.gamma, ge=0, le=1, description="discount; 0: only the step's own reward counts")
    gae: float = Field(_P.gae, ge=0, le=1, description="lambda of the advantage estimate")
    epochs: int = Field(_P.epochs, ge=1, description="PPO's passes over a rollout")
    clip: float = Field(_P.clip, gt=0, description="clip of the likelihood ratio")
    value: float = Field(_P.value, ge=0, description="weight of the value loss")
    entropy: float = Field(_P.entropy, ge=0, description="weight of the entropy")
    grad: float = Field(_P.grad, gt=0, description="gradient norm limit of PPO")
    width: int = Field(_P.width, ge=1, description="numbers of PPO's two hidden layers")
    coarse: int = Field(_D.condition, ge=1, description="numbers of the coarse action")
    refiner_width: int = Field(_D.width, ge=1, description="hidden numbers of the refiner")
    refiner_lr: float = Field(_D.lr, gt=0, description="Adam's step size of the refiner")
    refiner_batch: int = Field(_D.batch, ge=1, description="examples of a refiner's update")
    updates: int = Field(_D.updates, ge=0, description="refiner's updates per iteration")
    weight: float = Field(_D.weight, ge=0, description="how much a standardised reward shifts an example's weight")
    warm: int = Field(_D.warm, ge=1, description="examples needed before the refiner learns")
    sample_steps: int = Field(_D.sample_steps, ge=1, le=_D.train_steps, description="steps of the sampler")
    guidance: float = Field(_D.guidance, ge=0, description="scale of classifier-free guidance; 1: none")
    decode: str = Field(_D.decode, pattern="^(floor|round)$", description="numbers to ranks: floor, as published, or round")

    def ppo(self) -> PpoConfig:
        """Return PPO's constants."""
        return PpoConfig(**{item.name: getattr(self, item.name) for item in fields(PpoConfig) if hasattr(self, item.name)})

    def diffusion(self) -> DiffusionConfig:
        """Return the refiner's constants."""
        return DiffusionConfig(
            condition=self.coarse, width=self.refiner_width, lr=self.refiner_lr, batch=self.refiner_batch, updates=self.updates,
            weight=self.weight, warm=self.warm, sample_steps=self.sample_steps, guidance=self.guidance, decode=self.decode,
        )  # fmt: skip


@dataclass(frozen=True)
class State:
    """AirLLM's state: SNR and bandwidth between the least and the most, entropy of the text, unknown words, ranks over caps.

    Attributes:
        snr_db: The least and the most.
        bandwidth_hz: The least and the most; None: always 0.5.
    """

    snr_db: tuple[float, float]
    bandwidth_hz: tuple[float, float] | None

    @classmethod
    def of(cls, core: RankEnv) -> State:
        """Return the state of an environment with levels, as `RemoteFineTuning.features` has it; else SNR from -10 to 30 dB."""
        config = getattr(core, "config", None)
        levels, bands = getattr(config, "levels_db", None), getattr(config, "bandwidths_hz", None)
        if not levels or not bands:
            return cls((-10.0, 30.0), None)
        return cls((min(levels), max(levels)), (min(bands), max(bands)))

    def read(self, seen: Observation) -> Observed:
        """Return it, `[rows, 4 + sites]`; 0 unknown words, as published: no subword tokenizer has any."""
        links = links_of(seen, NAME, "the SNR")
        snr_db = np.nan_to_num(links.uplink_snr_db, neginf=-300.0, posinf=300.0)
        efficiency = np.log2(1.0 + 10.0 ** (snr_db / 10.0))
        nothing = np.zeros(len(seen.clients))
        bandwidth_hz = np.divide(links.uplink_bps, efficiency, out=nothing.copy(), where=efficiency > 0)
        text = nothing if seen.text is None else seen.text[:, 0]
        ranks = seen.previous * (1.0 / seen.caps)
        columns = [_between(snr_db, self.snr_db), _between(bandwidth_hz, self.bandwidth_hz), text, nothing, *ranks.T]
        return np.column_stack(columns).astype(np.float32)


class Coarse(nn.Module):
    """What is left of PPO's policy in play: the coarse action's mean and spread.

    Args:
        encoder: Hidden features.
        mean: From these to the mean.
        log_std: Logarithm of the standard deviation, `[condition]`.
    """

    def __init__(self, encoder: Encoder, mean: nn.Linear, log_std: Tensor) -> None:
        super().__init__()
        self.encoder, self.mean, self.log_std = encoder, mean, nn.Parameter(log_std.detach().clone())

    @torch.no_grad()
    def forward(self, state: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return coarse actions `[n, condition]` in -1..1: the mean, or drawn with a generator."""
        found: Tensor = self.mean(self.encoder(state))
        if generator is not None:
            found = found + self.log_std.exp() * torch.randn(found.shape, generator=generator)
        return found.tanh()


class AirllmLearner(Sb3Learner):
    """Trains the published method; an iteration is one episode, PPO's update and the refiner's.

    Args:
        make: Returns the environment.
        seed: Of first weights, channels, exploration and noise.
        options: Those of `AirllmConfig`.

    Attributes:
        method: The published method.
    """

    def __init__(self, make: MakeCore, seed: int, /, **options: Any) -> None:
        self.config = config = parse_section(AirllmConfig, options, "learner.")
        stage = Stage(make(config.episodes))
        self.setup, self.view = stage.setup(seed), State.of(stage.core)
        env = RowsVecEnv(stage, self.view.read, lambda at: training_channels(seed, at, config.episodes), config.shuffle)
        super().__init__(seed, env, config.restart)
        if np.ptp(env.actions.lowest):
            raise ConfigError(
                f"'{NAME}' has one smallest rank for all sites, and here it differs (the environment's min_rank is above the "
                "cap of some): lower min_rank"
            )
        with own_randomness(seed, 0):
            self.method = AirLLM(env, config.ppo(), config.diffusion(), seed)
        self.ppo = self.method.ppo

    def _learn(self) -> dict[str, float]:
        self.method.train(1)
        return {"refiner_loss": self.method.history.refiner_loss[-1]}

    def policy(self, setup: PolicySetup) -> Policy:
        """Return the policy as it stands."""
        return AirllmPolicy(setup, self.file({}))

    def file(self, about: dict[str, Any]) -> PolicyFile:
        """Return the policy as a file."""
        actions, known, trained = self.env.actions, self.method.refiner, self.ppo.policy
        encoder, mean = cast(Encoder, trained.features_extractor), cast(nn.Linear, trained.action_net)
        coarse = Coarse(encoder, mean, cast(Tensor, trained.log_std))
        own = {
            "diffusion": asdict(known.config), "state": asdict(self.view), "width": self.config.width,
            "low": known.codec.low, "levels": (actions.lowest + actions.counts - 1).tolist(),
            "units": self.env.core.costs.units.tolist(), "sites": list(self.setup.sites), "caps": self.setup.caps.tolist(),
        }  # fmt: skip
        tensors = {f"coarse.{name}": tensor for name, tensor in coarse.state_dict().items()}
        tensors |= {f"refiner.{name}": tensor for name, tensor in known.denoiser.state_dict().items()}
        return PolicyFile(NAME, about | own, plain(tensors))

    def state(self) -> dict[str, Any]:
        """Return also the refiner with its optimiser, generator and examples."""
        known = self.method.refiner
        return super().state() | {
            "refiner": known.denoiser.state_dict(), "refiner_optimiser": known.optimiser.state_dict(),
            "generator": known.generator.get_state(),
            "replay": known.replay.state(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        super().restore(state)
        known = self.method.refiner
        known.denoiser.load_state_dict(state["refiner"])
        known.optimiser.load_state_dict(state["refiner_optimiser"])
        known.generator.set_state(state["generator"])
        known.replay.restore(state["replay"])


class AirllmPolicy:
    """A trained policy of the published method, for the sites and caps that it was trained for.

    The coarse action is its mean. The refiner starts from noise, as published; the noise is that of the round, so that equal
    observations get equal ranks.

    Args:
        setup: What is known for the whole run.
        file: The policy's file.
        sample: Draw the coarse action too, as in training.
    """

    summary = "trained: AirLLM as published, PPO and a diffusion refiner, for the sites it was trained on (options: file, sample)"
    blind = True

    def __init__(self, setup: PolicySetup, file: str | PolicyFile, sample: bool = False) -> None:
        found = file if isinstance(file, PolicyFile) else load_policy(file, NAME)
        if not isinstance(sample, bool):
            raise ConfigError(f"policy.options.sample = {sample!r}: give true or false")
        found.refuse_other_sites(setup)
        about, where, count = found.about, "of this training" if isinstance(file, PolicyFile) else file, len(setup.caps)
        self.seed, self.sample = setup.seed, sample
        try:
            view, config = about["state"], DiffusionConfig(**about["diffusion"])
            bands = view["bandwidth_hz"]
            self.view = State(tuple(view["snr_db"]), None if bands is None else tuple(bands))
            self.units = np.asarray(about["units"], np.int64)
            codec = Codec(int(about["low"]), np.asarray(about["levels"], np.int64), config.decode)
            self.refiner = Refiner(count, codec, config, 0)
            with own_randomness(0):
                box = gymnasium.spaces.Box(-np.inf, np.inf, (4 + count,), np.float32)
                encoder = Encoder(box, about["width"])
                self.coarse = Coarse(encoder, nn.Linear(about["width"], config.condition), torch.zeros(config.condition))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the policy file {where} is damaged: {error}. Train it anew") from None
        for name, module in (("coarse.", self.coarse), ("refiner.", self.refiner.denoiser)):
            own = {key.removeprefix(name): tensor for key, tensor in found.tensors.items() if key.startswith(name)}
            load_into(module, own, where)

    def choose(self, observation: Observation) -> Ranks:
        """Return each client's ranks."""
        generator = torch_stream(self.seed, "airllm noise", observation.round)
        state = torch.from_numpy(self.view.read(observation))
        coarse = self.coarse(state, generator if self.sample else None)
        self.refiner.generator = generator
        return np.asarray(self.refiner.refine(coarse.numpy()) * self.units, np.int64)


def _between(values: NDArray[np.float64], ends: tuple[float, float] | None) -> NDArray[np.float64]:
    """Return where values lie between two ends, 0..1; 0.5 where there is but one."""
    if ends is None or ends[1] <= ends[0]:
        return np.full(len(values), 0.5)
    return np.clip((values - ends[0]) / (ends[1] - ends[0]), 0.0, 1.0)
