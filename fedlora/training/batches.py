"""Examples ready for the model, and which of them each local step uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedlora.config import TrainingConfig
from fedlora.data.base import Examples
from fedlora.data.encode import Encoded, encode_texts
from fedlora.models import LoadedModel, pixels
from fedlora.streams import stream
from fedlora.training.backbone import Batch

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Prepared:
    """A set of examples in the form that batches are cut from: texts are tokenised once, images stay uint8.

    Attributes:
        examples: The examples.
        encoded: Their tokens (text only).
        loaded: The model they are prepared for.
    """

    examples: Examples
    encoded: Encoded | None
    loaded: LoadedModel

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Real length of each example: tokens, or 1 for an image."""
        return np.ones(len(self.examples), np.int64) if self.encoded is None else self.encoded.lengths.astype(np.int64)

    def batch(self, indices: Indices, device: torch.device) -> Batch:
        """Return the examples at `indices`, padded to the longest of them."""
        if self.encoded is None:
            assert self.examples.images is not None and self.loaded.image is not None
            images = pixels(self.examples.images[indices], self.loaded.image)
            return Batch({"pixel_values": images.to(device)}, torch.from_numpy(self.examples.labels[indices]).to(device))
        assert self.loaded.tokenizer is not None
        pad = self.loaded.tokenizer.pad_token_id or 0
        ids, mask = (torch.from_numpy(array) for array in self.encoded.padded(indices, pad))
        if self.loaded.task == "causal-lm":
            labels = torch.where(mask == 1, ids, -100)
        else:
            labels = torch.from_numpy(self.examples.labels[indices])
        return Batch({"input_ids": ids.to(device), "attention_mask": mask.to(device)}, labels.to(device))


def prepare(examples: Examples, loaded: LoadedModel, max_length: int) -> Prepared:
    """Tokenise texts, at most `max_length` tokens each; images are taken as they are."""
    encoded = None
    if loaded.kind == "text":
        assert examples.texts is not None and loaded.tokenizer is not None
        encoded = encode_texts(examples.texts, loaded.tokenizer, max_length)
    return Prepared(examples, encoded, loaded)


def plan(
    indices: Indices, lengths: NDArray[np.int64], config: TrainingConfig, seed: int, round_number: int, client: int
) -> Indices:
    """Return which examples each local step of one client uses, `[steps, rows]`; -1 fills a batch that is not full.

    Examples come in shuffled passes without replacement, as always. With `length_bucketing`, each pass is
    grouped into batches of similar length, and the batches are put into an order that all clients of the round share: at any
    step all clients hold batches of the same length quantile, so that hardly a number is spent on padding when they are trained
    together. What a client sees depends on its own examples, the seed and the round only, never on who else was drawn.
    """
    rng = stream(seed, "data order", round_number, client)
    rows = min(config.batch_size, len(indices))
    if config.steps is not None:
        steps, wanted = config.steps, config.steps * rows
    else:
        wanted = max(1, round((config.epochs or 1.0) * len(indices)))
        steps = -(-wanted // rows)
    passes = -(-wanted // len(indices))
    drawn = np.concatenate([rng.permutation(indices) for _ in range(passes)])[:wanted]
    filled = np.full(steps * rows, -1, np.int64)
    if config.length_bucketing:
        # Each pass by itself: sorted together, the copies of one example from several passes would end up in one batch.
        starts = list(range(len(indices), wanted, len(indices)))
        drawn = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in np.split(drawn, starts)])
    filled[:wanted] = drawn
    batches = filled.reshape(steps, rows)
    if config.length_bucketing:
        longest = np.where(batches >= 0, lengths[batches], 0).max(axis=1)
        batches = batches[np.argsort(longest, kind="stable")]
        batches = batches[stream(seed, "batch order", round_number, steps).permutation(steps)]
    return batches


def pad_rows(batches: Sequence[Indices], rows: int) -> Indices:
    """Stack one batch of each client, `[clients, rows]`, -1 where a client has fewer rows."""
    stacked = np.full((len(batches), rows), -1, np.int64)
    for index, batch in enumerate(batches):
        stacked[index, : len(batch)] = batch
    return stacked
