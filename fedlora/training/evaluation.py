"""Measure a global state on examples: large batches sorted by length, so that little is spent on padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedlora.training.backbone import Backbone
from fedlora.training.batches import Indices, Prepared
from fedlora.training.lanes import side_by_side
from fedlora.training.layers import SharedInputError
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


@dataclass(frozen=True)
class ManyScores:
    """Per start and example, `[K, n]` each: summed loss, correct predictions, predictions made."""

    loss: NDArray[np.float64]
    correct: NDArray[np.float64]
    count: NDArray[np.float64]

    def summary(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (accuracy, mean loss) of each start, `[K]` each; for a causal LM over tokens."""
        count = np.maximum(self.count.sum(axis=1), 1.0)
        return self.correct.sum(axis=1) / count, self.loss.sum(axis=1) / count


def evaluate(backbone: Backbone, prepared: Prepared, indices: Indices, start: Start, batch_size: int) -> PerExample:
    """Return the scores of the model with `start` on the examples at `indices`."""
    return PerExample(*_scores(backbone, prepared, indices, [start], batch_size)[:, 0])


def evaluate_many(
    backbone: Backbone, prepared: Prepared, indices: Indices, starts: Sequence[Start], batch_size: int
) -> ManyScores:
    """Return the scores of K starts on the same examples, in passes that all of them share.

    Args:
        backbone: The model.
        prepared: Where the examples are.
        indices: n of them.
        starts: K adapter states and heads; they must have the same merged update, since they share the frozen weights.
        batch_size: Rows of a pass, K for each example.
    """
    if not starts:
        return ManyScores(*np.zeros((3, 0, len(indices))))
    try:
        scores = _scores(backbone, prepared, indices, starts, max(1, batch_size // len(starts)))
    except SharedInputError:
        alone = [_scores(backbone, prepared, indices, [start], batch_size) for start in starts]
        scores = np.concatenate(alone, axis=1)
    return ManyScores(*scores)


def _scores(
    backbone: Backbone, prepared: Prepared, indices: Indices, starts: Sequence[Start], batch_size: int
) -> NDArray[np.float64]:
    """Return loss, correct predictions and predictions made, `[3, K, n]`, from passes over `batch_size` examples."""
    backbone.set_merge(starts[0].merges)
    backbone.set_buffers(starts[0].buffers)
    layout, adapters = backbone.layout, backbone.adapters
    rows = torch.stack([layout.row([a.params(s) for a, s in zip(adapters, own.sites, strict=True)], own.head) for own in starts])
    bound = layout.views(rows.to(backbone.placement.device, torch.float32))
    order = np.argsort(prepared.lengths[indices], kind="stable")
    parts = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]

    def measure(lane: Backbone, part: Indices) -> NDArray[np.float64]:
        lane.bind(*bound)
        with torch.inference_mode(), lane.kernels():
            scores = lane.score(prepared.batch(np.tile(indices[part], len(starts)), lane.placement.device))
            stacked = torch.stack([scores.loss, scores.correct, scores.count]).view(3, len(starts), len(part))
            return np.asarray(stacked.double().cpu().numpy())

    result = np.zeros((3, len(starts), len(indices)))
    # The longest first, so that no lane is left with a long batch at the end.
    for part, scores in zip(parts[::-1], side_by_side(backbone, parts[::-1], measure), strict=True):
        result[:, :, part] = scores
    return result
