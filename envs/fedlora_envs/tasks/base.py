"""The contract of a task: E fine-tunings side by side, each trained, cut and measured at rank vectors of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedlora.adapters import Adapter
from fedlora.errors import ConfigError

Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]
Chosen = NDArray[np.bool_]


@dataclass(frozen=True)
class Sites:
    """The adapted projections as a rank policy sees them, `[L]` each.

    Attributes:
        names: Their names, in canonical order.
        caps: Largest rank.
        numbers: Numbers on the air per unit of rank (P, E, Q: in + out + 1).
    """

    names: tuple[str, ...]
    caps: Ranks
    numbers: Ranks

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, adapters: Sequence[Adapter]) -> Sites:
        """Return the sites of adapters whose payload grows evenly with the rank (ConfigError for others)."""
        if any(adapter.unit != 1 for adapter in adapters):
            method = adapters[0].config.method
            raise ConfigError(f"adapter.method = '{method}' has no ranks in steps of one: use 'triplet' or 'lora'")
        numbers = [sum(int(np.prod(item.shape)) for item in adapter.spec(1).values()) for adapter in adapters]
        caps = [adapter.cap for adapter in adapters]
        return cls(tuple(adapter.site.name for adapter in adapters), np.array(caps, np.int64), np.array(numbers, np.int64))


def opt_1_3b(max_rank: int) -> Sites:
    """Return the 144 sites of OPT-1.3B that AirLLM adapts: q, k, v, out, fc1 and fc2 of 24 blocks, in P E Q form."""
    shapes = {name: (2048, 2048) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    shapes |= {"fc1": (8192, 2048), "fc2": (2048, 8192)}
    names = tuple(f"layers.{block}.{name}" for block in range(24) for name in shapes)
    numbers = np.tile([out + into + 1 for out, into in shapes.values()], 24)
    caps = np.tile([min(max_rank, out, into) for out, into in shapes.values()], 24)
    return Sites(names, caps.astype(np.int64), numbers.astype(np.int64))


class Task(Protocol):
    """E fine-tunings.

    Attributes:
        sites: Where ranks are chosen.
        episodes: E.
    """

    sites: Sites
    episodes: int

    def begin(self, which: Chosen, seeds: NDArray[np.uint64], numbers: NDArray[np.int64], fresh: bool) -> None:
        """Let the chosen episodes begin; draws are keyed by seed and episode number, `[E]` each.

        With `fresh` they start from an untrained adapter; else from where they are, as AirLLM's never ending fine-tune does.
        """
        ...

    def text(self) -> Floats:
        """Return token entropy, unigram surprisal and share of split words of the coming batch, `[E, 3]`, all in 0..1."""
        ...

    def train(self, ranks: Ranks, which: Chosen) -> Floats:
        """Take one step in the chosen episodes at `ranks` `[E, L]`; return the batch's loss before it, `[E]`, NaN elsewhere."""
        ...

    def measure(self, ranks: Ranks) -> tuple[Floats, Floats]:
        """Return held-out (loss, accuracy) with everything beyond `ranks` cut off, `[E]` each."""
        ...

    def gains(self) -> Floats:
        """Return an estimate of what each component adds where it stands, `[E, L, cap]`, >= 0, not rising along the last axis."""
        ...
