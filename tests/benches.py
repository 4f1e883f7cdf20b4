"""A tiny model with adapters and a few examples, ready for local training, and jobs for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlora.adapters import Tensors
from fedlora.config import AdapterConfig, ModelConfig
from fedlora.data.base import Examples
from fedlora.models import load_model
from fedlora.streams import torch_stream
from fedlora.training.backbone import Backbone, Merge
from fedlora.training.batches import Prepared, prepare
from fedlora.training.device import place
from fedlora.training.local import Job, Outcome, Start
from tiny import tiny_image_model, tiny_text_model

EXAMPLES = 80
LABELS = ["a", "b", "c"]
# Where the tests of a machine can compute.
DEVICES = [
    "cpu",
    *(["cuda"] if torch.cuda.is_available() else []),
    *(["mps"] if torch.backends.mps.is_available() else []),
]
IMAGES = {"vit", "dinov2"}
LANGUAGE = {"gpt2-lm": "gpt2", "llama-lm": "llama"}


Maker = Callable[..., "Bench"]
"""Makes a bench: see the fixture in training/conftest.py."""


@dataclass(frozen=True)
class Bench:
    """A backbone and examples prepared for it."""

    backbone: Backbone
    prepared: Prepared
    folder: Path

    def start(self, seed: int = 0, scale: float = 0.3, merges: Sequence[Merge | None] | None = None) -> Start:
        """Return a global state in the middle of a run: random, so that every trained number has a gradient."""
        generator = torch_stream(seed, "test.start")

        def noise(shape: Sequence[int]) -> Tensor:
            return scale * torch.randn(list(shape), generator=generator)

        sites = [
            {name: noise(shape) / shape[-1] ** 0.5 for name, shape in adapter.state_shapes.items()}
            for adapter in self.backbone.adapters
        ]
        head = {name: noise(tensor.shape) for name, tensor in self.backbone.initial_head().items()}
        return Start(sites, list(merges) if merges else [None] * len(sites), head)

    def job(self, client: int, start: Start, ranks: Sequence[int] | None = None, rows: int = 10, **changes: Any) -> Job:
        """Return the work of one client, whose examples are `rows` in a row; ranks default to the caps."""
        caps = [adapter.cap for adapter in self.backbone.adapters]
        own = np.arange(rows, dtype=np.int64) + 11 * client
        return Job(client, 2, 5, caps if ranks is None else list(ranks), own % EXAMPLES, start, **changes)


def make_bench(
    folder: Path, architecture: str, adapter: AdapterConfig, device: str = "cpu", precision: str = "fp32", **changes: Any
) -> Bench:
    """Return a bench; "gpt2-lm" and "llama-lm" are causal language models, other names classifiers.

    The model is saved under `folder` at the first call.
    """
    kind = "image" if architecture in IMAGES else "text"
    task = "causal-lm" if architecture in LANGUAGE else "classification"
    if not folder.exists():
        if kind == "image":
            tiny_image_model(folder, architecture, layers=2, **changes)
        else:
            tiny_text_model(folder, LANGUAGE.get(architecture, architecture), layers=2, task=task, **changes)
    loaded = load_model(ModelConfig(name=str(folder)), kind, task, LABELS)
    backbone = Backbone(loaded, adapter, 0, place(device, precision))  # type: ignore[arg-type]
    return Bench(backbone, prepare(examples(kind), loaded, 16), folder)


def examples(kind: str) -> Examples:
    """Return 80 random examples: texts of 2 to 11 words, or grey 16 x 16 images."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(LABELS), EXAMPLES)
    if kind == "image":
        return Examples(None, rng.integers(0, 256, (EXAMPLES, 16, 16), dtype=np.uint8), labels)
    lengths = rng.integers(2, 12, EXAMPLES)
    return Examples([" ".join(f"w{word}" for word in rng.integers(0, 100, length)) for length in lengths], None, labels)


def tensors_of(outcome: Outcome) -> Tensors:
    """Return all that a client has after training, by name."""
    named = {f"{index}/{name}": tensor for index, site in enumerate(outcome.sites) for name, tensor in site.items()}
    return named | outcome.head


def difference(left: Outcome, right: Outcome) -> float:
    """Return the largest absolute difference between what two clients have after training."""
    ours, theirs = tensors_of(left), tensors_of(right)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def identical(left: Outcome, right: Outcome) -> bool:
    """Return whether two clients have the same after training, bit by bit."""
    ours, theirs = tensors_of(left), tensors_of(right)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
