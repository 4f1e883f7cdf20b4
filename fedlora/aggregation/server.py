"""Server optimisers: FedAvgM, FedAdam and FedYogi by the rules of Flower's strategies of these names, on what a rule aggregated.

The aggregate is taken for where the round points, and the server moves a step that way (Hsu et al. 2019, arXiv 1909.06335; Reddi
et al. 2020, arXiv 2003.00295). Moments live in `GlobalState.memory`, and so in every checkpoint. Entries that no client sent
neither move nor have their moments changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlora.adapters import Adapter, Tensors
from fedlora.aggregation.base import GlobalState, Update
from fedlora.config import ServerConfig

_LR = {"fedavgm": 1.0, "fedadam": 0.1, "fedyogi": 0.01}


def server_step(
    config: ServerConfig,
    adapters: Sequence[Adapter],
    old: GlobalState,
    merged: GlobalState,
    updates: Sequence[Update],
    round_number: int,
) -> GlobalState:
    """Return the next state.

    Args:
        config: The `server` section of the run file.
        adapters: The sites' adapters as they train in this round.
        old: The state before the round.
        merged: What the aggregation rule made of the round.
        updates: The updates that it was made of; they say which entries were sent.
        round_number: The round, from 1.
    """
    if config.optimizer == "none":
        return merged
    sent = _sent(adapters, old, updates)
    before, after, memory = old.flat(), merged.flat(), dict(old.memory)
    stepped: Tensors = {}
    for key, value in before.items():
        step, moments = _step(config, after[key] - value, {name: memory.get(f"{name}/{key}") for name in "mv"}, round_number)
        stepped[key] = torch.where(sent[key], value + step, value)
        for name, moment in moments.items():
            last = memory.get(f"{name}/{key}")
            memory[f"{name}/{key}"] = torch.where(sent[key], moment, torch.zeros_like(moment) if last is None else last)
    state = GlobalState.from_flat(stepped, len(old.sites))
    return GlobalState(state.sites, state.head, merged.bases, memory)


def _step(
    config: ServerConfig, change: Tensor, moments: dict[str, Tensor | None], round_number: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (step, new moments) of one tensor; moments that are not there yet are taken for zero."""
    lr = _LR[config.optimizer] if config.lr is None else config.lr
    beta1, beta2 = config.momentum, config.second_momentum
    m, v = (torch.zeros_like(change) if moment is None else moment for moment in (moments["m"], moments["v"]))
    if config.optimizer == "fedavgm":
        m = beta1 * m + change
        return lr * m, {"m": m}
    m = beta1 * m + (1 - beta1) * change
    square = change.square()
    if config.optimizer == "fedadam":
        v = beta2 * v + (1 - beta2) * square
        # Flower counts the first round as the second step of the bias correction.
        lr *= (1 - beta2 ** (round_number + 1.0)) ** 0.5 / (1 - beta1 ** (round_number + 1.0))
    else:
        v = v - (1 - beta2) * square * torch.sign(v - square)
    return lr * m / (v.sqrt() + config.tau), {"m": m, "v": v}


def _sent(adapters: Sequence[Adapter], old: GlobalState, updates: Sequence[Update]) -> Tensors:
    """Return, shaped as the flat state, which entries at least one client sent; the head always is."""
    masks = {f"head/{name}": torch.ones(tensor.shape, dtype=torch.bool) for name, tensor in old.head.items()}
    for index, adapter in enumerate(adapters):
        for update in updates:
            selection = adapter.selection_of(update.sites[index], update.ranks[index])
            for name, mask in adapter.state_masks(selection).items():
                key = f"{index}/{name}"
                masks[key] = mask | masks[key] if key in masks else mask
    return masks
