"""airllm-plus by name: a trained chain, playing without dice."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora.federation.policy import Observation, PolicySetup, Ranks
from fedlora.ranks import Costs, Floats
from fedlora_policies.features import CLIENT_FEATURES, SITE_FEATURES, Features, Reader
from fedlora_policies.known import budget_of, costs_of
from fedlora_policies.plus.chain import Chain, ChainConfig
from fedlora_policies.plus.network import Denoiser, NetworkConfig
from fedlora_policies.plus.requests import ranks_of
from fedlora_policies.policy_file import PolicyFile, load_into, load_policy

NAME = "airllm-plus"


class Brain:
    """The network with its chain.

    Args:
        network: Sizes.
        chain: Constants of the chain.
        seed: Of the first weights.
    """

    def __init__(self, network: NetworkConfig, chain: ChainConfig, seed: int = 0) -> None:
        self.network, self.config = network, chain
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.denoiser = Denoiser(network)
        self.chain = Chain(self.denoiser, chain)

    def requests(self, features: Features) -> NDArray[np.float32]:
        """Return requests `[n, L + 1]`, without chance."""
        client, sites = torch.from_numpy(features.client), torch.from_numpy(features.sites)
        return np.asarray(self.chain.quiet(client, sites).numpy())

    def ranks(self, features: Features, costs: Costs, budget: Floats) -> Ranks:
        """Return the ranks chosen for these features, `[n, L]`."""
        return ranks_of(self.requests(features), costs, budget)

    def file(self, about: dict[str, Any]) -> PolicyFile:
        """Return it as a policy file."""
        names = {"client": list(CLIENT_FEATURES), "sites": list(SITE_FEATURES)}
        head = {"network": asdict(self.network), "chain": asdict(self.config), "features": names}
        return PolicyFile(NAME, about | head, dict(self.denoiser.state_dict()))

    @classmethod
    def load(cls, path: str | Path) -> Brain:
        """Read a policy file (ConfigError where it is none of this policy, or made by another version)."""
        found = load_policy(path, NAME)
        if found.about.get("features") != {"client": list(CLIENT_FEATURES), "sites": list(SITE_FEATURES)}:
            raise ConfigError(f"the policy file {path} was trained on other features than this version reads. Train it anew")
        try:
            brain = cls(NetworkConfig(**found.about["network"]), ChainConfig(**found.about["chain"]))
        except (KeyError, TypeError) as error:
            raise ConfigError(f"the policy file {path} is damaged: {error}. Train it anew") from None
        load_into(brain.denoiser, found.tensors, path)
        return brain


class AirllmPlusPolicy:
    """A trained policy of any number of sites and any ranks: a diffusion chain conditioned on the state, inside the budget.

    Args:
        setup: What is known for the whole run.
        file: The policy's file; default: the one that comes with the package (see its card).
    """

    summary = "trained: a diffusion chain over rank vectors, one network for all sites (options: file)"

    def __init__(self, setup: PolicySetup, file: str | Brain | None = None) -> None:
        self.brain = file if isinstance(file, Brain) else Brain.load(shipped() if file is None else file)
        self.reader = Reader(setup, NAME)

    def choose(self, observation: Observation) -> Ranks:
        """Return each client's ranks; equal observations get equal ranks."""
        return self.brain.ranks(self.reader(observation), costs_of(observation, NAME), budget_of(observation))


def shipped() -> Path:
    """Return the policy that comes with the package."""
    return Path(__file__).parents[1] / "data" / "airllm-plus.safetensors"
