"""Measure a global state on examples: large batches sorted by length, so that little is spent on padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedlora.training.backbone import Backbone
from fedlora.training.batches import Indices, Prepared
from fedlora.training.lanes import side_by_side
from fedlora.training.local import Start


@dataclass(frozen=True)
class PerExample:
    """Per example, in the order asked for: summed loss, correct predictions, predictions made."""

    loss: NDArray[np.float64]
    correct: NDArray[np.float64]
    count: NDArray[np.float64]

    def summary(self, part: slice = slice(None)) -> tuple[float, float]:
        """Return (accuracy, mean loss) over a part of the examples; for a causal LM over tokens."""
        count = float(self.count[part].sum()) or 1.0
        return float(self.correct[part].sum()) / count, float(self.loss[part].sum()) / count


def evaluate(backbone: Backbone, prepared: Prepared, indices: Indices, start: Start, batch_size: int) -> PerExample:
    """Return the scores of the model with `start` on the examples at `indices`."""
    backbone.set_merge(start.merges)
    rows = backbone.layout.row([a.params(s) for a, s in zip(backbone.adapters, start.sites, strict=True)], start.head)
    bound = backbone.layout.views(rows.to(backbone.placement.device, torch.float32).unsqueeze(0))
    order = np.argsort(prepared.lengths[indices], kind="stable")
    parts = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]

    def measure(lane: Backbone, part: Indices) -> NDArray[np.float64]:
        lane.bind(*bound)
        with torch.inference_mode(), lane.kernels():
            scores = lane.score(prepared.batch(indices[part], lane.placement.device))
            return np.asarray(torch.stack([scores.loss, scores.correct, scores.count]).double().cpu().numpy())

    result = np.zeros((3, len(indices)))
    # The longest first, so that no lane is left with a long batch at the end.
    for part, scores in zip(parts[::-1], side_by_side(backbone, parts[::-1], measure), strict=True):
        result[:, part] = scores
    return PerExample(result[0], result[1], result[2])
