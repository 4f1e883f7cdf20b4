"""What local training costs in floating-point operations, per unit that replies report as `tokens` (an image is one unit).

Counted: 4 operations per frozen number and token (2 forward, 2 for the activations' gradient) and 6 per trained number
(its own gradient besides), embedding tables not counted, attention maps neither. Measured: torch counts the products of one
real local step, attention maps and padding included.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedlora.config import TrainingConfig
from fedlora.training.backbone import Backbone
from fedlora.training.batches import Prepared
from fedlora.training.chunks import example_length
from fedlora.training.local import Job, train_clients


def counted_flops(backbone: Backbone, prepared: Prepared) -> float:
    """Return the operations per token (per image for images) of local training by the formula above."""
    products = [module for module in backbone.model.modules() if isinstance(module, nn.Linear | nn.Conv2d) or _is_conv1d(module)]
    frozen = sum(cast(Tensor, module.weight).numel() for module in products)
    per_token = 4.0 * frozen + 6.0 * backbone.layout.size
    return per_token if prepared.encoded is not None else per_token * example_length(backbone, prepared)


def measured_flops(backbone: Backbone, prepared: Prepared, job: Job, config: TrainingConfig) -> float:
    """Return the operations per token (per image) that torch counts in one local step of one client.

    Args:
        backbone: The model.
        prepared: The training examples.
        job: Any client's work; only its first local step is taken, nothing of it is kept.
        config: The `training` section of the run file.
    """
    probe = config.model_copy(update={"steps": 1, "epochs": None})
    with FlopCounterMode(display=False) as counter:
        outcome = train_clients(backbone, prepared, [job], probe)[0]
    return float(counter.get_total_flops()) / outcome.tokens


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"  # GPT-2's transposed linear layer
