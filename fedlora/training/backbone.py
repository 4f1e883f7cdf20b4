"""One frozen model with room for K clients: sites, adapters, task head, precision and device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedlora.adapters import ADAPTERS, Adapter, Tensors
from fedlora.config import AdapterConfig
from fedlora.models import LoadedModel
from fedlora.sites import find_sites
from fedlora.streams import torch_stream
from fedlora.training.device import Placement
from fedlora.training.layers import AdaptedLinear, ClientLinear
from fedlora.training.layout import Layout

Merge = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Batch:
    """A padded batch on the run's device.

    Attributes:
        inputs: Keyword arguments of the model: input_ids and attention_mask `[rows, T]`, or pixel_values `[rows, 3, S, S]`.
        labels: Classes `[rows]`, or next-token targets `[rows, T]` with -100 where there is none.
    """

    inputs: Tensors
    labels: Tensor


@dataclass(frozen=True)
class RowScores:
    """Per row `[rows]`: summed loss (with gradient), correct predictions, predictions made (1, or tokens for a causal LM)."""

    loss: Tensor
    correct: Tensor
    count: Tensor


class Backbone:
    """The model of a run, its weights frozen, with an adapter at every site and a stacked task head.

    Args:
        loaded: The model as loaded; its modules are replaced in place.
        config: The `adapter` section of the run file.
        seed: Seed of the run.
        placement: Device and precision.
    """

    def __init__(self, loaded: LoadedModel, config: AdapterConfig, seed: int, placement: Placement) -> None:
        self.loaded, self.placement, self.seed = loaded, placement, seed
        self.model: nn.Module = cast(nn.Module, loaded.model).to(placement.device)
        self.sites = find_sites(self.model, config.targets, exclude=loaded.head)
        method = ADAPTERS.get(config.method)
        self.adapters: list[Adapter] = [method(site, config, seed, index) for index, site in enumerate(self.sites)]
        self._head_start = self._initial_head()
        self._cast_frozen()
        self.layers = [self._adapt(adapter) for adapter in self.adapters]
        self.head_layers = {name: self._stack_head(name) for name in loaded.head}
        self.layout = Layout(self.adapters, {name: tuple(tensor.shape) for name, tensor in self._head_start.items()})
        self.on_step: Callable[[int], None] = _nothing
        """Called after every local step with the number of clients that took it."""
        self._frozen: dict[int, Tensor] = {}
        self._merged: list[Merge | None] = [None] * len(self.layers)
        self._installed: Sequence[Tensors] | None = None
        self._twins: list[Backbone] = []

    def twin(self) -> Backbone:
        """Return a backbone with parameters of its own to bind, on the same frozen weights: for work beside this one."""
        shared: dict[int, object] = {id(tensor): tensor for tensor in [*self.model.parameters(), *self.model.buffers()]}
        for layer in self.layers:
            shared |= {id(layer.adapter): layer.adapter, id(layer.buffers_): layer.buffers_}
        for bound in [*self.layers, *self.head_layers.values()]:
            bound.params = {}
        twin = copy.copy(self)
        twin.model = copy.deepcopy(self.model, shared)
        twin.layers = [cast(AdaptedLinear, twin.model.get_submodule(site.name)) for site in self.sites]
        twin.head_layers = {name: cast(ClientLinear, twin.model.get_submodule(name)) for name in self.head_layers}
        return twin

    def twins(self, count: int) -> list[Backbone]:
        """Return `count` backbones to work side by side, this one first; they are kept for the next time."""
        while len(self._twins) < count - 1:
            self._twins.append(self.twin())
        for twin in self._twins:
            twin.on_step = self.on_step
        return [self, *self._twins[: count - 1]]

    def initial_head(self) -> Tensors:
        """Return the task head before the first round, float32 on the CPU, by parameter name ("classifier.weight")."""
        return dict(self._head_start)

    def bind(self, sites: Sequence[Tensors], head: Tensors) -> None:
        """Give the layers the parameters of K clients, `[K, ...]` each."""
        for layer, params in zip(self.layers, sites, strict=True):
            layer.params = params
        for name, stacked in self.head_layers.items():
            stacked.params = {key: head[f"{name}.{key}"] for key in ("weight", "bias") if f"{name}.{key}" in head}

    def set_merge(self, merges: Sequence[Merge | None]) -> None:
        """Let each site's frozen weight be its own plus B A; None or empty factors give back the untouched weight, bit by bit."""
        for index, (layer, merge) in enumerate(zip(self.layers, merges, strict=True)):
            if merge is self._merged[index]:
                continue
            self._merged[index] = merge
            weight = cast(Tensor, layer.base.weight)
            if merge is None or merge[0].shape[1] == 0:
                if index in self._frozen:
                    weight.data.copy_(self._frozen.pop(index))
                continue
            if index not in self._frozen:
                self._frozen[index] = weight.data.clone()
            original = self._frozen[index]
            b, a = (factor.to(weight.device, torch.float32) for factor in merge)
            delta = (b @ a).T if self.sites[index].transposed else b @ a
            weight.data.copy_(original.float() + delta)

    def set_buffers(self, buffers: Sequence[Tensors] | None) -> None:
        """Let every site have these frozen tensors (bases that the server sent); None leaves what is there."""
        if buffers is None or buffers is self._installed:
            return
        dtype = torch.bfloat16 if self.placement.precision == "bf16" else torch.float32
        for layer, tensors in zip(self.layers, buffers, strict=True):
            layer.adapter.install(tensors)
            layer.buffers_.update({name: tensor.to(self.placement.device, dtype) for name, tensor in tensors.items()})
        self._installed = buffers

    def score(self, batch: Batch) -> RowScores:
        """Run the model on a batch of `K * b` rows, clients one after the other, K being that of the bound parameters."""
        with self.placement.autocast():
            logits: Tensor = self.model(**batch.inputs, **self.loaded.forward_kwargs).logits
        if self.loaded.task == "causal-lm":
            return _next_token_scores(logits, batch.labels)
        loss = torch.nn.functional.cross_entropy(logits.float(), batch.labels, reduction="none")
        correct = (logits.argmax(dim=-1) == batch.labels).float()
        return RowScores(loss, correct, torch.ones_like(correct))

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """Choose the attention kernel: on CPUs the fused kernel's bf16 backward pass is several times slower than plain maths."""
        with ExitStack() as stack:
            if self.placement.device.type == "cpu" and self.placement.precision == "bf16":
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield

    # -- construction ------------------------------------------------------------------------------------------------

    def _initial_head(self) -> Tensors:
        head: Tensors = {}
        for name in self.loaded.head:
            module = self.model.get_submodule(name)
            for key, tensor in module.named_parameters():
                start = tensor.detach().cpu().float().clone()
                if self.loaded.fresh_head:
                    generator = torch_stream(self.seed, f"head.{name}.{key}")
                    start = torch.randn(start.shape, generator=generator) * 0.02 if start.dim() > 1 else torch.zeros_like(start)
                head[f"{name}.{key}"] = start
        return head

    def _cast_frozen(self) -> None:
        """Store the frozen weights in the precision in which autocast would use them, instead of casting them at every step."""
        if self.placement.precision != "bf16":
            return
        for module in self.model.modules():
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
                # A new parameter: one that is tied to the embedding must leave the embedding, and with it all that is added up
                # from layer to layer, in float32.
                for name, weight in list(module.named_parameters(recurse=False)):
                    setattr(module, name, nn.Parameter(weight.to(torch.bfloat16), requires_grad=False))

    def _adapt(self, adapter: Adapter) -> AdaptedLinear:
        dtype = torch.bfloat16 if self.placement.precision == "bf16" else torch.float32
        buffers = {name: tensor.to(self.placement.device, dtype) for name, tensor in adapter.buffers().items()}
        layer = AdaptedLinear(self.model.get_submodule(adapter.site.name), adapter, buffers)
        self.model.set_submodule(adapter.site.name, layer)
        return layer

    def _stack_head(self, name: str) -> ClientLinear:
        layer = ClientLinear()
        self.model.set_submodule(name, layer)
        return layer


def _nothing(clients: int) -> None:
    """Tell nobody."""


def _next_token_scores(logits: Tensor, labels: Tensor) -> RowScores:
    targets = labels[:, 1:]
    logits = logits[:, :-1].float()
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=-100)
    valid = targets != -100
    correct = ((logits.argmax(dim=-1) == targets) & valid).float()
    return RowScores(loss.sum(dim=1), correct.sum(dim=1), valid.float().sum(dim=1))
