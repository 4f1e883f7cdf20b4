"""Files of learned policies: tensors and what they are, in one safetensors file; nothing in it is ever run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedlora.errors import ConfigError
from fedlora.federation.policy import PolicySetup
from fedlora.files import write_atomic

FORMAT = 1
_KEY = "fedlora-policy"
_REMEDY = "Give the policy.safetensors that `fedlora train-policy` wrote"


@dataclass(frozen=True)
class PolicyFile:
    """A learned policy.

    Attributes:
        policy: Name of the policy that reads it.
        about: What it needs to be rebuilt, and where it comes from: sizes, sites, caps, training, scores.
        tensors: Its parameters.
    """

    policy: str
    about: dict[str, Any]
    tensors: dict[str, Tensor]

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        head = {"format": FORMAT, "policy": self.policy, "about": self.about}
        tensors = {name: tensor.detach().contiguous().clone() for name, tensor in self.tensors.items()}
        write_atomic(path, save(tensors, {_KEY: json.dumps(head)}))

    def refuse_other_sites(self, setup: PolicySetup) -> None:
        """Raise ConfigError unless sites and caps are those that it was trained for."""
        trained, here = self.about["caps"], setup.caps.tolist()
        if trained != here:
            differs = " in another order" if _sites(trained) == _sites(here) else ""
            raise ConfigError(
                f"this '{self.policy}' was trained for {_sites(trained)}, and here are {_sites(here)}{differs}: it cannot carry "
                "over. Train one for these, or use 'airllm-plus', which any sites and ranks suit"
            )


def load_policy(path: str | Path, policy: str) -> PolicyFile:
    """Read the file of a learned policy.

    Args:
        path: The file.
        policy: Name of the policy that it has to be of.

    Raises:
        ConfigError: No such file, one that is damaged, or of another policy or format.
    """
    if not isinstance(path, str | Path):
        raise ConfigError(f"policy.options.file = {path!r}: give the path of a file")
    try:
        with safe_open(str(path), framework="pt") as file:
            head = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except FileNotFoundError:
        raise ConfigError(f"there is no policy file {path}. {_REMEDY}") from None
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise ConfigError(f"the policy file {path} cannot be read: {error}. {_REMEDY}") from None
    if not isinstance(head, dict) or "policy" not in head or not isinstance(head.get("about"), dict):
        raise ConfigError(f"the policy file {path} cannot be read: it tells of no policy. {_REMEDY}")
    if head.get("format") != FORMAT:
        raise ConfigError(f"the policy file {path} has format {head.get('format')}; this version reads {FORMAT}. Train it anew")
    if head["policy"] != policy:
        raise ConfigError(f"{path} holds a policy '{head['policy']}', and policy.name is '{policy}'. {_REMEDY}")
    found = PolicyFile(policy, head["about"], tensors)
    if any(not torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point()):
        raise ConfigError(f"the policy file {path} holds numbers that are not finite. {_REMEDY}")
    return found


def load_into(module: torch.nn.Module, tensors: dict[str, Tensor], path: str | Path) -> None:
    """Put a file's tensors into a module (ConfigError where they do not fit it)."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ConfigError(f"the policy file {path} is damaged: {str(error).splitlines()[-1].strip()}. {_REMEDY}") from None


def _sites(caps: list[int]) -> str:
    """Return how many sites of which caps, in words."""
    kinds = sorted(set(caps))
    return f"{len(caps)} sites of rank up to {', '.join(map(str, kinds))}"
