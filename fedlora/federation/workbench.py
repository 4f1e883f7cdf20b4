"""Everything a process needs to take part in a run, built once from its configuration: model, data, partition, aggregator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from fedlora.adapters import ADAPTERS, Adapter, Tensors
from fedlora.aggregation import AGGREGATORS, Aggregator, GlobalState
from fedlora.config import RunConfig, parse_config
from fedlora.data.base import DataSet
from fedlora.data.features import read_corpus
from fedlora.data.load import load_data
from fedlora.data.partition import partition, split_client
from fedlora.errors import ConfigError
from fedlora.federation.policy import POLICIES
from fedlora.federation.world import check_world
from fedlora.models import load_model
from fedlora.registry import check_options, construct
from fedlora.streams import stream
from fedlora.training.backbone import Backbone
from fedlora.training.batches import Indices, Prepared, prepare
from fedlora.training.chunks import chunk_size
from fedlora.training.device import place
from fedlora.training.gradients import weight_gradients
from fedlora.training.local import Start
from fedlora.wire import decode, encode


@dataclass
class Workbench:
    """What a server or a client works with.

    Attributes:
        config: The run's configuration.
        dataset: Names and raw examples.
        train: Training examples, ready for the model.
        test: The server's held-out test set.
        parts: Per client, the examples it trains on.
        held: Per client, the examples it only measures on.
        chunk: Clients trained at once.
    """

    config: RunConfig
    dataset: DataSet
    backbone: Backbone
    aggregator: Aggregator
    train: Prepared
    test: Prepared
    parts: list[Indices]
    held: list[Indices]
    chunk: int
    _bases: tuple[bytes, list[Tensors]] | None = None

    @property
    def adapters(self) -> list[Adapter]:
        """The adapter of each site, in canonical order."""
        return self.backbone.adapters

    def adapters_at(self, round_number: int) -> list[Adapter]:
        """Return the adapters as they train in a round."""
        return [adapter.at(round_number) for adapter in self.adapters]

    @cached_property
    def surprisal(self) -> NDArray[np.float64]:
        """-log2 of each token's share of the training texts, 0 where it does not occur, `[vocabulary]`; empty for images."""
        encoded, texts, tokenizer = self.train.encoded, self.train.examples.texts, self.train.loaded.tokenizer
        if encoded is None or texts is None or tokenizer is None:
            return np.zeros(0)
        return read_corpus(encoded, texts[:1], tokenizer).surprisal  # the texts themselves are read for their words alone

    def initial(self) -> GlobalState:
        """Return the global state before the first round; where the adapter starts from gradients, the server takes them here.

        Bases are rounded as the wire rounds them, so that the server works with what its clients get.
        """
        head = self.backbone.initial_head()
        state = self.aggregator.initial(head)
        if not any(adapter.starts_from_gradients for adapter in self.adapters):
            return state
        sites, bases = self._gradient_start
        state = GlobalState([{**was, **new} for was, new in zip(state.sites, sites, strict=True)], head, bases)
        self.backbone.set_buffers(bases)
        return state

    @cached_property
    def _gradient_start(self) -> tuple[list[Tensors], list[Tensors]]:
        """First state and bases per site, from the gradient on a few training examples that the server has."""
        config = self.config
        trained = np.sort(np.concatenate(self.parts))  # not what clients hold back to measure on
        chosen = np.sort(stream(config.seed, "start examples").permutation(trained)[: config.adapter.start_examples])
        nothing = self.start(self.aggregator.initial(self.backbone.initial_head()), 1)
        gradients = weight_gradients(self.backbone, self.train, chosen, nothing, config.training.batch_size)
        pairs = [
            adapter.from_gradient(gradient, config.training.lr)
            for adapter, gradient in zip(self.adapters, gradients, strict=True)
        ]
        exact = GlobalState([], bases=[bases for _, bases in pairs]).flat_bases()
        sent = decode(encode(exact, config.wire.dtype), config.wire.dtype)
        return [site for site, _ in pairs], GlobalState.from_flat(sent, len(pairs)).bases

    def start(self, state: GlobalState, round_number: int) -> Start:
        """Return what training or evaluation starts from, given a global state."""
        pairs = [self.aggregator.start(index, site, round_number) for index, site in enumerate(state.sites)]
        return Start([site for site, _ in pairs], [merge for _, merge in pairs], state.head, state.bases or None)

    def bases_of(self, data: bytes) -> list[Tensors]:
        """Return encoded bases per site; clients that hold the same get the same object, decoded once."""
        if self._bases is None or self._bases[0] != data:
            self._bases = data, GlobalState.from_flat(decode(data, "fp32"), len(self.adapters)).bases
        return self._bases[1]

    def own_start(self, start: Start, ranks: Sequence[int], kept: Sequence[Tensors]) -> Start:
        """Return what one client starts from: with what it keeps for itself, its own components alone where the rule says so."""
        sites = []
        for adapter, site, rank, own in zip(self.adapters, start.sites, ranks, kept, strict=True):
            if self.aggregator.own_prefix:
                masks = adapter.state_masks(adapter.select(rank))
                sites.append(adapter.recall({name: torch.where(masks[name], tensor, 0.0) for name, tensor in site.items()}, own))
            else:
                sites.append(adapter.recall(site, own))
        return replace(start, sites=sites)

    def test_indices(self) -> Indices:
        """Return the whole server test set."""
        return np.arange(len(self.test.examples), dtype=np.int64)


def build(config: RunConfig) -> Workbench:
    """Load model and data and partition them.

    Raises:
        FedLoRAError: Whatever of the configuration cannot work, before any training.
    """
    check_run(config)
    dataset = load_data(config.data, config.seed, config.model.task)
    shares = partition(dataset.train, config.data, config.clients, config.seed)
    split = [split_client(part, config.data.client_test_fraction, config.seed, client) for client, part in enumerate(shares)]
    return assemble(config, dataset, [own for own, _ in split], [rest for _, rest in split], config.clients_per_round)


def assemble(config: RunConfig, dataset: DataSet, parts: list[Indices], held: list[Indices], together: int) -> Workbench:
    """Load the model for data that are there.

    Args:
        config: The run.
        dataset: The data.
        parts: Per client, the training examples it trains on.
        held: Per client, those it only measures on.
        together: Clients that may train at once.

    Raises:
        FedLoRAError: Whatever of the configuration cannot work, before any training.
    """
    placement = place(config.device, config.training.precision)
    loaded = load_model(config.model, "text" if dataset.train.images is None else "image", dataset.task, dataset.label_names)
    if loaded.max_tokens is not None and config.data.max_length > loaded.max_tokens:
        raise ConfigError(
            f"data.max_length = {config.data.max_length} is more than the {loaded.max_tokens} tokens that the model takes"
        )
    backbone = Backbone(loaded, config.adapter, config.seed, placement)
    rule = backbone.adapters[0].default_aggregator if config.aggregator.method == "auto" else config.aggregator.method
    factory, options = AGGREGATORS.get(rule), config.aggregator.options
    aggregator = construct("aggregator.method", rule, factory, backbone.adapters, config.aggregator.weighting, options=options)
    _check_parts(config, backbone.adapters, aggregator)
    train = prepare(dataset.train, loaded, config.data.max_length)
    return Workbench(
        config=config,
        dataset=dataset,
        backbone=backbone,
        aggregator=aggregator,
        train=train,
        test=prepare(dataset.test, loaded, config.data.max_length),
        parts=parts,
        held=held,
        chunk=chunk_size(backbone, train, config.training, together),
    )


def _check_parts(config: RunConfig, adapters: Sequence[Adapter], aggregator: Aggregator) -> None:
    """Refuse what adapter, aggregator, clients of a round, downlink and server optimiser cannot do together (ConfigError)."""
    aggregator.check_count(config.clients_per_round)
    if config.wire.downlink == "sliced" and not aggregator.sliced_downlink:
        raise ConfigError(f"wire.downlink = 'sliced' does not fit aggregator.method = '{aggregator.name}': use 'broadcast'")
    if config.wire.downlink == "sliced" and not all(adapter.sliceable for adapter in adapters):
        raise ConfigError(
            f"wire.downlink = 'sliced' does not fit adapter.method = '{config.adapter.method}', whose clients need what they do "
            "not train as well: use 'broadcast'"
        )
    if config.server.optimizer != "none" and not aggregator.steady:
        raise ConfigError(
            f"server.optimizer = '{config.server.optimizer}' does not fit aggregator.method = '{aggregator.name}', whose states "
            "are not steps from one another: use 'none'"
        )


def check_run(config: RunConfig) -> None:
    """Refuse what shows before anything is loaded: see `check_combination`, and a device that is not here (ConfigError)."""
    check_combination(config)
    place(config.device, config.training.precision)


def check_combination(config: RunConfig) -> None:
    """Refuse unknown names, options that these do not take, and what cannot work together (ConfigError).

    As far as the configuration alone tells: nothing is loaded for it.
    """
    adapter = ADAPTERS.get(config.adapter.method)
    check_options("policy.name", config.policy.name, POLICIES.get(config.policy.name), 1, config.policy.options)
    rule = adapter.default_aggregator if config.aggregator.method == "auto" else config.aggregator.method
    check_options("aggregator.method", rule, AGGREGATORS.get(rule), 2, config.aggregator.options)
    check_world(config)
    if config.engine == "ray" and find_spec("ray") is None:
        raise ConfigError("engine = 'ray' needs Ray: pip install 'fedlora[ray]', or use engine = 'batched'")
    if config.adapter.method == "ravan" and config.wire.downlink == "sliced":
        if config.adapter.unit == "svd":
            raise ConfigError(
                "adapter.unit = 'svd' compresses what goes up; wire.downlink = 'sliced' has nothing to cut. Use 'broadcast'"
            )
        if config.adapter.score == "gradient":
            raise ConfigError(
                "adapter.score = 'gradient' needs all heads at the client; with wire.downlink = 'sliced' the server picks them. "
                "Use score = 'random' or 'weight'"
            )


@lru_cache(maxsize=1)
def cached_workbench(config_json: str) -> Workbench:
    """Return the workbench of a configuration given as JSON, built once per process (Flower's Ray actors, edge trainers)."""
    return build(parse_config(json.loads(config_json)))
