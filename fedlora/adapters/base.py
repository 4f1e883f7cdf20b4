"""The contract of an adapter: one trainable parameterisation of the update of one projection, for many clients at once.

Three kinds of tensors belong to an adapter at a site:

* **buffers** are frozen and the same for every client. They are derived from the run's seed and never cross the air, unless the
  adapter starts from gradients (Fed-SB): then each client is sent them once;
* **state** is what the server keeps and what payloads are cut from (Ravan: H);
* **parameters** are what a client optimises (Ravan: H and s); `params` turns state into parameters, `state` turns them back.

Parameters carry a leading client axis `[K, ...]`; K = 1 is an ordinary adapter. State and buffers do not. What a client keeps for
itself (`personal` tensors, a compression residual) is part of its own state only, and stays in Flower's Context.state.
The meaning of a rank for bytes, training and aggregation is fixed by docs/ranks.md and checked by tests/adapters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedlora.config import AdapterConfig
from fedlora.errors import ConfigError, PayloadError
from fedlora.registry import Registry
from fedlora.sites import Site
from fedlora.streams import torch_stream
from fedlora.wire import TensorSpec

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Selection:
    """What one client trains and sends at one site.

    Attributes:
        rho: The rank, `0 <= rho <= cap`.
        heads: Chosen heads in the order in which the rank covers them, int64; empty where the adapter has none.
    """

    rho: int
    heads: Tensor


class Adapter(ABC):
    """One adapter method at one site.

    Args:
        site: The projection it adapts, `[out_features, in_features]`.
        config: The `adapter` section of the run file.
        seed: Seed of the run; buffers and first states are drawn from it.
        index: Position of the site in the canonical order; keys the random streams.
    """

    summary: ClassVar[str]
    trained: ClassVar[str]
    source: ClassVar[str]
    averages_exactly: ClassVar[bool]
    default_aggregator: ClassVar[str]
    noop_at_init: ClassVar[bool] = True
    inits: ClassVar[tuple[str, ...]]
    personal: ClassVar[tuple[str, ...]] = ()
    """Parameters that stay at the client; the server has no global update where there are any."""
    period: ClassVar[int] = 1
    """Rounds after which what trains repeats itself (see `at`)."""
    sliceable: ClassVar[bool] = True
    """Whether a client can start from its own slice alone (wire.downlink = "sliced")."""

    def __init__(self, site: Site, config: AdapterConfig, seed: int, index: int) -> None:
        self.site, self.config, self.seed, self.index = site, config, seed, index
        self.rank = config.rank
        self.init = self.inits[0] if config.init == "auto" else config.init
        self._buffers: Tensors | None = None
        self.check()
        self.scale = (self.rank if config.alpha is None else config.alpha) / self.rank

    def check(self) -> None:
        """Refuse a configuration that this site cannot carry (ConfigError)."""
        if self.init not in self.inits:
            raise ConfigError(
                f"adapter.init = '{self.init}' is not known to {self.config.method}; it has {', '.join(self.inits)}"
            )
        limit = min(self.site.in_features, self.site.out_features)
        if not 1 <= self.rank <= limit:
            raise ConfigError(
                f"adapter.rank = {self.rank} does not fit site '{self.site.name}' ({self.site.out_features} x "
                f"{self.site.in_features}): choose 1 to {limit}"
            )

    def generator(self, name: str, *keys: int) -> torch.Generator:
        """Return this site's own random stream of that name."""
        return torch_stream(self.seed, f"adapter.{name}", self.index, *keys)

    def at(self, round_number: int) -> Adapter:
        """Return the adapter as it trains in a round; shapes and state are the same in every round, what is sent may differ."""
        return self

    # -- shapes ------------------------------------------------------------------------------------------------------

    @property
    def cap(self) -> int:
        """Largest rank of the rank vector at this site."""
        return self.rank

    @property
    def unit(self) -> int:
        """Step between legal ranks; a request is rounded down to a multiple of it."""
        return 1

    @property
    @abstractmethod
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what the server keeps."""

    @property
    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what a client optimises, without the client axis."""
        return self.state_shapes

    @property
    def trainable(self) -> int:
        """Numbers that a client optimises at the cap."""
        return sum(int(np.prod(shape)) for shape in self.param_shapes.values())

    # -- values ------------------------------------------------------------------------------------------------------

    def buffers(self) -> Tensors:
        """Return the frozen tensors, float32 on the CPU, drawn from the seed or as they were installed."""
        return {}

    @property
    def starts_from_gradients(self) -> bool:
        """Whether buffers and first state follow from the gradient of the frozen weight (`from_gradient`)."""
        return False

    def from_gradient(self, gradient: Tensor, step: float) -> tuple[Tensors, Tensors]:
        """Return (first state, buffers) that a first step of full fine-tuning of this size asks for.

        Args:
            gradient: Of the loss by the frozen weight, `[out_features, in_features]`.
            step: Size of the step.
        """
        raise NotImplementedError

    def install(self, buffers: Tensors) -> None:
        """Take buffers that the server sent; PayloadError where their shapes are not this site's."""
        raise PayloadError("schema", f"site '{self.site.name}' takes no bases from the server")

    @abstractmethod
    def init_state(self, generation: int = 0) -> Tensors:
        """Return the first state; another `generation` gives an independent draw (methods that restart every round)."""

    def params(self, state: Tensors) -> Tensors:
        """Return the parameters that a client starts from (no client axis)."""
        return dict(state)

    def state(self, params: Tensors) -> Tensors:
        """Return the state that parameters amount to, personal tensors included; leading axes (clients) are kept."""
        return dict(params)

    @abstractmethod
    def add_to(self, y: Tensor, x: Tensor, params: Tensors, buffers: Tensors) -> Tensor:
        """Return y plus the adapter's output.

        Args:
            y: Output of the frozen projection, `[K, n, out_features]`.
            x: Its input, `[K, n, in_features]`.
            params: Parameters with client axis, `[K, ...]`.
            buffers: What `buffers()` returned, on the device and in the precision of the run.
        """

    @abstractmethod
    def factors(self, state: Tensors) -> tuple[Tensor, Tensor]:
        """Return (B, A), `[out, R]` and `[R, in]`, whose product is the weight update, the scale included in B."""

    def delta_weight(self, state: Tensors) -> Tensor:
        """Return the update of the projection's weight, `[out_features, in_features]`."""
        b, a = self.factors(state)
        return b @ a

    # -- ranks -------------------------------------------------------------------------------------------------------

    def snap(self, rho: int) -> int:
        """Return the largest legal rank that is not above `rho`."""
        return min(max(rho, 0), self.cap) // self.unit * self.unit

    def select(self, rho: int, scores: Tensor | None = None) -> Selection:
        """Return what a client with rank `rho` trains; `scores` `[heads]` orders the heads where there are any."""
        return Selection(self.snap(rho), torch.zeros(0, dtype=torch.int64))

    @abstractmethod
    def state_masks(self, selection: Selection) -> Tensors:
        """Return, shaped like the state, which entries the selection covers (bool)."""

    def param_masks(self, selection: Selection) -> Tensors:
        """Return, shaped like the parameters, which entries train (bool)."""
        return self.state_masks(selection)

    # -- payload -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def spec(self, rho: int) -> dict[str, TensorSpec]:
        """Return the schema of what a client with rank `rho` sends, known before anything is trained."""

    @abstractmethod
    def slice(self, state: Tensors, selection: Selection) -> Tensors:
        """Return the selected part of a state as it is sent."""

    @abstractmethod
    def place(self, tensors: Tensors, rho: int, received: Tensors) -> tuple[Tensors, Tensors]:
        """Undo `slice`: return (values, masks), both shaped like the state.

        Args:
            tensors: A decoded payload of this site.
            rho: The rank it was cut at.
            received: The global state that the client started from; entries outside the mask take its values.

        Raises:
            PayloadError: Other tensors or shapes than `spec(rho)` names, indices out of range or repeated.
        """

    def check_payload(self, tensors: Tensors, rho: int) -> None:
        """Refuse a payload that is not what `spec(rho)` says (PayloadError): assignment would broadcast what is too small."""
        spec = self.spec(rho)
        if tensors.keys() != spec.keys():
            raise PayloadError("schema", f"site '{self.site.name}' at rank {rho} has {sorted(tensors)}, expected {sorted(spec)}")
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != spec[name].shape:
                raise PayloadError(
                    "shape", f"'{name}' of site '{self.site.name}' is {list(tensor.shape)}, expected {list(spec[name].shape)}"
                )

    def recall(self, received: Tensors, kept: Tensors) -> Tensors:
        """Return the state that a client starts from, given what it received and what it kept (nothing at its first round)."""
        return received

    def upload(self, state: Tensors, received: Tensors, kept: Tensors, selection: Selection) -> tuple[Tensors, Tensors]:
        """Return (what the client sends, what it keeps for later); only lossy and personal methods keep something.

        Args:
            state: The client's own after training.
            received: What it started from.
            kept: What it kept last time.
            selection: What it trained.
        """
        return self.slice(state, selection), {}

    def selection_of(self, tensors: Tensors, rho: int) -> Selection:
        """Return the selection that a payload stands for."""
        return self.select(rho)

    def head_scores(self, state: Tensors, grads: Tensors | None, rng: np.random.Generator) -> Tensor | None:
        """Return a score per head by which a client picks, or None where there are no heads.

        Args:
            state: What the client received.
            grads: Gradients of the parameters on one mini-batch, without client axis (score = "gradient" only).
            rng: The client's own stream; breaks ties.
        """
        return None


def numel(spec: Mapping[str, TensorSpec]) -> int:
    """Return how many numbers a payload of this schema holds, indices not counted."""
    return sum(int(np.prod(item.shape)) for item in spec.values() if not item.index)


ADAPTERS: Registry[type[Adapter]] = Registry("adapter method", "fedlora.adapters")
