"""How many clients are trained at once: as many as memory and caches like, found, not configured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psutil
import torch

from fedlora.config import TrainingConfig
from fedlora.errors import TrainingError
from fedlora.training.backbone import Backbone
from fedlora.training.batches import Prepared
from fedlora.training.lanes import lanes_of, side_by_side
from fedlora.training.layers import SharedInputError
from fedlora.training.local import Job, Outcome, Penalty, train_clients

# Beyond this many tokens a step, CPUs gain nothing from more clients and lose cache locality (measured, docs/performance.md).
_CPU_TOKENS = 512
_MEMORY_SHARE = 0.5


def client_memory(backbone: Backbone, config: TrainingConfig, length: int) -> int:
    """Return an upper estimate of the bytes that one client's local step keeps: activations, logits, parameters, optimiser.

    Args:
        backbone: The model.
        config: The `training` section of the run file.
        length: Tokens (or patches) per example.
    """
    model: Any = backbone.loaded.model.config
    hidden = int(getattr(model, "hidden_size", getattr(model, "n_embd", getattr(model, "dim", 768))))
    layers = int(getattr(model, "num_hidden_layers", getattr(model, "n_layer", getattr(model, "n_layers", 12))))
    heads = int(getattr(model, "num_attention_heads", getattr(model, "n_head", getattr(model, "n_heads", 12))))
    inner = int(getattr(model, "intermediate_size", 4 * hidden) or 4 * hidden)
    tokens = config.batch_size * length
    # Kept for the backward pass per token and layer: about 10 vectors of the hidden and 3 of the inner size, two attention maps.
    kept = layers * (10 * hidden + 3 * inner + 2 * heads * length)
    kept += sum(2 * adapter.cap + adapter.site.out_features for adapter in backbone.adapters)
    if backbone.loaded.task == "causal-lm":
        kept += 3 * int(model.vocab_size)
    return 4 * (tokens * kept + 6 * backbone.layout.size)


def example_length(backbone: Backbone, prepared: Prepared) -> int:
    """Return the tokens of the longest example, or the patches of an image."""
    if prepared.encoded is not None:
        return int(prepared.lengths.max())
    assert backbone.loaded.image is not None
    return (backbone.loaded.image.size // int(getattr(backbone.loaded.model.config, "patch_size", 16) or 16)) ** 2 + 1


def chunk_size(backbone: Backbone, prepared: Prepared, config: TrainingConfig, clients: int) -> int:
    """Return how many of `clients` to train at once on this machine, at least 1."""
    length = example_length(backbone, prepared)
    device = backbone.placement.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    fit = int(_MEMORY_SHARE * free) // client_memory(backbone, config, length)
    if device.type == "cpu":
        typical = int(prepared.lengths.mean()) if prepared.encoded is not None else length
        lanes = lanes_of(backbone)
        fit = min(fit // lanes, _CPU_TOKENS // (config.batch_size * typical), -(-clients // lanes))
    return max(1, min(clients, fit))


def train_in_chunks(
    backbone: Backbone,
    prepared: Prepared,
    jobs: Sequence[Job],
    config: TrainingConfig,
    size: int,
    penalty: Penalty | None = None,
) -> list[Outcome]:
    """Train all jobs, `size` at a time; a chunk that does not fit a GPU's memory is halved and tried again.

    Models that apply a projection to something without a client axis are trained one client at a time.

    Raises:
        TrainingError: Not even one client fits.
    """
    parts = [jobs[at : at + size] for at in range(0, len(jobs), size)]
    backbone.set_merge(jobs[0].start.merges)
    backbone.set_buffers(jobs[0].start.buffers)
    try:
        done = side_by_side(backbone, parts, lambda lane, part: train_clients(lane, prepared, part, config, penalty))
    except (SharedInputError, torch.OutOfMemoryError) as error:
        if size == 1:
            raise TrainingError("one client's local step does not fit this device's memory: lower training.batch_size") from None
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        smaller = 1 if isinstance(error, SharedInputError) else size // 2
        return train_in_chunks(backbone, prepared, jobs, config, smaller, penalty)
    return [outcome for part in done for outcome in part]
