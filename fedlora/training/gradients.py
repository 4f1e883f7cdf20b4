"""Gradients of the frozen weights themselves, which no local training needs: what a first step of full fine-tuning would do."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from fedlora.training.backbone import Backbone
from fedlora.training.batches import Indices, Prepared
from fedlora.training.local import Start


def weight_gradients(backbone: Backbone, prepared: Prepared, indices: Indices, start: Start, batch_size: int) -> list[Tensor]:
    """Return the mean gradient of the loss by every site's weight, `[out, in]` each, float32 on the CPU.

    Args:
        backbone: The model; its weights are frozen again afterwards.
        prepared: Where the examples are.
        indices: The examples.
        start: Adapter state and head that stand while the gradient is taken.
        batch_size: Examples of a pass.
    """
    backbone.set_merge(start.merges)
    params = [adapter.params(site) for adapter, site in zip(backbone.adapters, start.sites, strict=True)]
    rows = backbone.layout.row(params, start.head).unsqueeze(0).to(backbone.placement.device, torch.float32)
    backbone.bind(*backbone.layout.views(rows))
    weights = [cast(nn.Parameter, layer.base.weight) for layer in backbone.layers]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with backbone.kernels():
            for at in range(0, len(indices), batch_size):
                part = np.asarray(indices[at : at + batch_size])
                scores = backbone.score(prepared.batch(part, backbone.placement.device))
                (scores.loss.sum() / len(indices)).backward()
        found = [cast(Tensor, weight.grad).detach().float().cpu() for weight in weights]
    finally:
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None
    return [grad.T.contiguous() if site.transposed else grad for grad, site in zip(found, backbone.sites, strict=True)]
