"""Learning rates over the whole run: a client's local steps fill its round's share of the schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora.config import TrainingConfig


def learning_rates(config: TrainingConfig, rounds: Sequence[tuple[int, int]], steps: NDArray[np.int64], step: int) -> Tensor:
    """Return each client's learning rate at local step `step`, `[clients]`.

    Args:
        config: The `training` section of the run file.
        rounds: (round, rounds of the run) per client, rounds counted from 1.
        steps: Local steps per client in this round.
        step: Local step, from 0.
    """
    return torch.tensor(
        [config.lr * _factor(config, (now - 1 + step / own) / total) for (now, total), own in zip(rounds, steps, strict=True)]
    )


def _factor(config: TrainingConfig, progress: float) -> float:
    """Return the share of the peak learning rate at `progress` in [0, 1) of the run."""
    if progress < config.warmup:
        return progress / config.warmup
    if config.schedule == "constant":
        return 1.0
    left = (1.0 - progress) / (1.0 - config.warmup)
    return left if config.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)
