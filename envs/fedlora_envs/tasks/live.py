"""The real model in the loop: E fine-tunings of it, trained side by side along the client axis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from fedlora.adapters import Adapter, Tensors
from fedlora.adapters.prefix import PrefixAdapter
from fedlora.config import DataConfig, RunConfig
from fedlora.data.features import Corpus, read_corpus, text_features
from fedlora.errors import ConfigError, TrainingError, suggest
from fedlora.federation.workbench import Workbench, build
from fedlora.streams import stream
from fedlora.training.batches import Indices, plan
from fedlora.training.chunks import chunk_size, train_in_chunks
from fedlora.training.evaluation import evaluate_many
from fedlora.training.local import Job, Start
from fedlora_envs.tasks.base import Chosen, Floats, Ranks, Sites
from fedlora_envs.tasks.worths import falling, with_prior

Order = Literal["index", "importance"]


class LiveTask:
    """E fine-tunings of the model that a run file names.

    In each step an episode takes `local_steps` mini-batches of its own order of the training examples. What lies beyond its ranks
    takes no part in the step, as in AirLLM: it neither acts in the forward pass nor moves, and is there again when a later rank
    covers it. The task head is always trained. The optimiser starts afresh in every step, so that nothing of a component that is
    left out lives on in it.

    All episodes begin with the same first adapter and head, those of `config.seed`.

    Args:
        config: The run: model, data, adapter (triplet or lora) and training. Its federation does not matter.
        episodes: E.
        local_steps: Mini-batches of one step.
        heldout: Examples that `measure` uses: training examples that are never trained on. The test set stays untouched.
        order: Which components a rank keeps: the first, as AirLLM does, or, with "importance", those that carry most: after each
            step the components of every site are put in the order of their norm, which changes nothing else.
        bench: Model and data of `alone(config, local_steps)` where they are loaded already. Tasks may share one; they take turns.

    Raises:
        FedLoRAError: Whatever of the configuration cannot work.
    """

    def __init__(
        self,
        config: RunConfig,
        episodes: int,
        local_steps: int = 5,
        heldout: int = 64,
        order: Order = "index",
        bench: Workbench | None = None,
    ) -> None:
        self.config = alone(config, local_steps)
        self.bench = bench or build(self.config)
        self.sites = Sites.of(self.bench.adapters)
        adapters = self.bench.adapters
        if not all(isinstance(own, PrefixAdapter) and own.period == 1 and not own.personal for own in adapters):
            raise ConfigError(f"adapter.method = '{config.adapter.method}' has no components to cut: use 'triplet' or 'lora'")
        self.episodes, self.order = episodes, order
        if order not in get_args(Order):
            raise ConfigError(f"order = '{order}' is unknown. {suggest(order, get_args(Order))}")
        held = self.bench.held[0]
        if len(held) < heldout:
            raise ConfigError(
                f"{heldout} held-out examples were asked for, but data.client_test_fraction = {config.data.client_test_fraction} "
                f"leaves {len(held)}: raise it, or ask for fewer"
            )
        self.heldout: Indices = stream(config.seed, "held-out examples").permutation(held)[:heldout]
        self._chunk = chunk_size(self.bench.backbone, self.bench.train, self.config.training, episodes)
        self._first = self.bench.start(self.bench.initial(), 1)
        self._starts = [self._first] * episodes
        self._keys = [0] * episodes
        self._taken = np.zeros(episodes, np.int64)
        # Per episode what `measure` found last: adapter, ranks, loss, accuracy.
        self._measured: list[tuple[Start | None, Ranks, float, float]] = [(None, np.zeros(0, np.int64), 0.0, 0.0)] * episodes
        self._corpus: Corpus | None = None

    def begin(self, which: Chosen, seeds: NDArray[np.uint64], numbers: NDArray[np.int64], fresh: bool) -> None:
        """Let the chosen episodes begin: `seeds` and `numbers` `[E]` are the key of their data order."""
        for episode in np.flatnonzero(which):
            self._keys[episode] = int(seeds[episode]) << 64 | int(numbers[episode])
            self._taken[episode] = 0
            if fresh:
                self._starts[episode] = self._first

    def text(self) -> Floats:
        """Return token entropy, unigram surprisal and share of split words of the coming batches, `[E, 3]`."""
        if self._corpus is None:
            train = self.bench.train
            if train.encoded is None or train.examples.texts is None:
                return np.zeros((self.episodes, 3))
            self._corpus = read_corpus(train.encoded, train.examples.texts, train.loaded.tokenizer)
        return text_features(self._corpus, [self.coming(episode) for episode in range(self.episodes)])

    def train(self, ranks: Ranks, which: Chosen) -> Floats:
        """Take one step in the chosen episodes at `ranks` `[E, L]`.

        Returns:
            `[E]`: the mean over the step's mini-batches of the loss before each was learnt from; NaN where no step was taken.

        Raises:
            TrainingError: A loss or parameter is no longer finite.
        """
        chosen = np.flatnonzero(which)
        losses = np.full(self.episodes, np.nan)
        if not len(chosen):
            return losses
        jobs = [self._job(int(episode), [int(rank) for rank in ranks[episode]]) for episode in chosen]
        backbone, training = self.bench.backbone, self.config.training
        for episode, outcome in zip(
            chosen, train_in_chunks(backbone, self.bench.train, jobs, training, self._chunk), strict=True
        ):
            if outcome.failure:
                raise TrainingError(f"episode {episode}: {outcome.failure}. Lower training.lr")
            before = self._starts[episode].sites
            after = [
                adapter.place(adapter.slice(state, adapter.select(int(rank))), int(rank), old)[0]
                for adapter, state, rank, old in zip(self.bench.adapters, outcome.sites, ranks[episode], before, strict=True)
            ]
            if self.order == "importance":
                after = [_by_norm(adapter, state) for adapter, state in zip(self.bench.adapters, after, strict=True)]
            self._starts[episode] = Start(after, self._first.merges, outcome.head)
            losses[episode] = outcome.loss
        self._taken[chosen] += 1
        return losses

    def measure(self, ranks: Ranks) -> tuple[Floats, Floats]:
        """Return held-out (loss, accuracy) with everything beyond `ranks` `[E, L]` cut off, `[E]` each."""
        # Over, or cut as before and not trained since: an evaluation costs as much as a third of a step.
        anew = [
            episode
            for episode, (start, own) in enumerate(zip(self._starts, ranks, strict=True))
            if self._measured[episode][0] is not start or not np.array_equal(self._measured[episode][1], own)
        ]
        cut = [self._cut(episode, [int(rank) for rank in ranks[episode]]) for episode in anew]
        backbone, batch_size = self.bench.backbone, self.config.evaluation.batch_size
        accuracy, loss = evaluate_many(backbone, self.bench.train, self.heldout, cut, batch_size).summary()
        for episode, *found in zip(anew, loss, accuracy, strict=True):
            self._measured[episode] = (self._starts[episode], ranks[episode].copy(), *found)
        return (
            np.array([found[2] for found in self._measured], np.float64),
            np.array([found[3] for found in self._measured], np.float64),
        )

    def gains(self) -> Floats:
        """Return the squared Frobenius norm of each component's update, `[E, L, cap]`.

        They are made not to rise along a site by isotonic regression, which keeps what a site's components hold together: a
        strong component behind weak ones can only be had with them. Every component has a small worth on top, falling with its
        position: an untrained adapter would otherwise be worth nothing anywhere.
        """
        energy = np.zeros((self.episodes, len(self.sites), int(self.sites.caps.max())))
        for episode, start in enumerate(self._starts):
            for site, (adapter, state) in enumerate(zip(self.bench.adapters, start.sites, strict=True)):
                energy[episode, site, : adapter.cap] = _energies(adapter, state)
        return with_prior(falling(energy, self.sites.caps), self.sites.caps)

    def coming(self, episode: int) -> Indices:
        """Return the training examples of an episode's next step."""
        lengths, backbone = self.bench.train.lengths, self.bench.backbone
        number = int(self._taken[episode]) + 1
        batches = plan(self.bench.parts[0], lengths, self.config.training, backbone.seed, number, self._keys[episode])
        return batches[batches >= 0]

    # -- pieces ------------------------------------------------------------------------------------------------------

    def _job(self, episode: int, ranks: list[int]) -> Job:
        number = int(self._taken[episode]) + 1
        return Job(self._keys[episode], number, number, ranks, self.bench.parts[0], self._cut(episode, ranks))

    def _cut(self, episode: int, ranks: list[int]) -> Start:
        """Return an episode's adapter with zeros beyond the ranks."""
        start = self._starts[episode]
        return Start(list(_prefixes(self.bench.adapters, start.sites, ranks)), start.merges, start.head)


def alone(config: RunConfig, local_steps: int) -> RunConfig:
    """Return the run as one client that has all the data and takes `local_steps` a round; the episodes are its many lives.

    What makes no difference to them is at its default, so that equal fine-tunings have equal configurations.
    """
    training = config.training
    if training.schedule != "constant" or training.warmup:
        raise ConfigError("training.schedule must be 'constant' and training.warmup 0 here: an episode has no planned end")
    kept = {name: getattr(config, name) for name in ("seed", "device", "model", "adapter")}
    data = config.data.model_copy(update={"partition": "iid", "alpha": DataConfig().alpha})
    steps = training.model_copy(update={"steps": local_steps, "epochs": None})
    return RunConfig(**kept, data=data, training=steps, clients=1, clients_per_round=1)


def _prefixes(adapters: list[Adapter], states: list[Tensors], ranks: list[int]) -> Iterator[Tensors]:
    for adapter, state, rank in zip(adapters, states, ranks, strict=True):
        if rank >= adapter.cap:
            yield state
        else:
            zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
            yield adapter.place(adapter.slice(state, adapter.select(rank)), rank, zeros)[0]


def _energies(adapter: Adapter, state: Tensors) -> Floats:
    """Return the squared Frobenius norm of each rank-one part of a site's update, `[cap]`."""
    b, a = adapter.factors(state)
    return np.asarray((b.square().sum(dim=0) * a.square().sum(dim=1)).double().numpy())


def _by_norm(adapter: Adapter, state: Tensors) -> Tensors:
    """Return the state with its components in the order of their norms, the largest first; equal ones stay as they are."""
    assert isinstance(adapter, PrefixAdapter)
    order = torch.from_numpy(np.argsort(-_energies(adapter, state), kind="stable"))
    return {name: tensor.index_select(adapter.component_axis[name], order) for name, tensor in state.items()}
