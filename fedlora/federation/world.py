"""The interface of a simulated radio world: what the round asks of it, and what it is told about the run.

fedlora holds no world itself; the worlds of `fedlora_envs`, or of any other package, are found by entry point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedlora.config import RunConfig, TrainingConfig
from fedlora.errors import ConfigError
from fedlora.federation.policy import Links
from fedlora.registry import Registry, check_options, construct
from fedlora.training.batches import Indices
from fedlora.training.chunks import client_memory, example_length
from fedlora.training.flops import counted_flops, measured_flops
from fedlora.training.local import Job

if TYPE_CHECKING:
    from fedlora.federation.workbench import Workbench

CLIENT_DROPPED = 101
"""Error code of the reply of a client that the world lost; its reason begins with "dropped: "."""

CLIENT_LATE = 102
"""Error code of the reply of a client that missed the deadline; its reason begins with "late: "."""


@dataclass(frozen=True)
class WorldSetup:
    """What a world is told about the run.

    Attributes:
        seed: Root of the world's streams of randomness.
        clients: Clients that it must serve.
        per_round: Clients drawn each round.
        flops_per_unit: Operations of local training per token (or image), counted by formula.
        measure_flops: The same number as torch counts it in a real step; takes a moment.
        memory_bytes: Memory that local training needs at a client.
        aggregator: Name of the run's aggregation rule.
        number_bytes: Bytes of one number on the wire.
        units: Tokens (or images) that each client is expected to train on in a round, by client; empty: not known.
        examples: Training examples of each client; empty: not known.
    """

    seed: int
    clients: int
    per_round: int
    flops_per_unit: float = 0.0
    measure_flops: Callable[[], float] | None = None
    memory_bytes: int = 0
    aggregator: str = ""
    number_bytes: int = 4
    units: tuple[float, ...] = ()
    examples: tuple[int, ...] = ()


class World(Protocol):
    """A radio world as the round sees it. Its channels depend on the seed and the round alone, never on what is sent."""

    notes: list[str]
    """What the user should know before the first round, a sentence each."""

    def grid(self, inner: Grid, clients: Mapping[int, int]) -> Grid:
        """Return a grid that charges messages over `inner`; `clients` maps node ids to client numbers."""
        ...

    def observe(self, round_number: int, clients: NDArray[np.int64]) -> Links:
        """Return what the server knows of these clients' links before the round."""
        ...

    def client_rows(self) -> dict[int, dict[str, Any]]:
        """Return what the last round cost each client that was asked, by client number: columns of clients.jsonl."""
        ...

    def round_row(self) -> dict[str, Any]:
        """Return what the last round cost in all: columns of metrics.jsonl."""
        ...

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that crosses a round."""
        ...

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned."""
        ...


WORLDS: Registry[Callable[..., World]] = Registry("world", "fedlora.worlds")


def make_world(bench: Workbench) -> World | None:
    """Return the world of a run, or None where it has none (ConfigError for options that cannot work)."""
    config = bench.config
    check_world(config)
    if config.world.name is None:
        return None
    factory = WORLDS.get(config.world.name)
    return construct("world.name", config.world.name, factory, setup_of(bench), options=config.world.options)


def check_world(config: RunConfig) -> None:
    """Refuse an unknown world and options that it does not take, as far as that shows before there is a model (ConfigError)."""
    name, options = config.world.name, config.world.options
    if name is None:
        if options:
            raise ConfigError("world.options needs world.name, for example world.name=umi-indoor")
        return
    factory = WORLDS.get(name)
    if check := getattr(factory, "config", None):  # a world may say at once that its options cannot be
        check(**options)
    else:
        check_options("world.name", name, factory, 1, options)


def setup_of(bench: Workbench) -> WorldSetup:
    """Return what a world is told about a run."""
    config, backbone = bench.config, bench.backbone
    width = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}[config.wire.dtype]
    lengths = bench.train.lengths
    frozen = sum(tensor.numel() * tensor.element_size() for tensor in backbone.model.parameters())

    def measure() -> float:
        start = bench.start(bench.initial(), 1)
        caps = [adapter.cap for adapter in backbone.adapters]
        client = int(np.argmax([len(part) for part in bench.parts]))
        job = Job(client, 1, config.rounds, caps, bench.parts[client], start)
        return measured_flops(backbone, bench.train, job, config.training)

    return WorldSetup(
        seed=config.seed,
        clients=config.clients,
        per_round=config.clients_per_round,
        flops_per_unit=counted_flops(backbone, bench.train),
        measure_flops=measure,
        memory_bytes=frozen + client_memory(backbone, config.training, example_length(backbone, bench.train)),
        aggregator=bench.aggregator.name,
        number_bytes=width,
        units=tuple(expected_units(part, lengths, config.training) for part in bench.parts),
        examples=tuple(len(part) for part in bench.parts),
    )


def expected_units(indices: Indices, lengths: NDArray[np.int64], config: TrainingConfig) -> float:
    """Return how many tokens (or images) a client's local training takes in a round on average: examples x mean length.

    Args:
        indices: Examples it trains on.
        lengths: Length of every example.
        config: The `training` section of the run file.
    """
    if not len(indices):
        return 0.0
    rows = min(config.batch_size, len(indices))
    seen = config.steps * rows if config.steps is not None else max(1, round((config.epochs or 1.0) * len(indices)))
    return seen * float(lengths[indices].mean())
