"""Local training of many clients at once, as one stacked batch through one frozen model.

The sum over clients of each client's mean loss makes every gradient the client's own; optimiser, clipping and masks act row by
row. Clients are sorted by their number of steps, so that those still training are always a prefix and finished ones cost
nothing. K = 1 is ordinary training of one client: the same code serves a real device.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedlora.adapters import Selection, Tensors
from fedlora.config import TrainingConfig
from fedlora.streams import stream
from fedlora.training.backbone import Backbone, Merge
from fedlora.training.batches import Indices, Prepared, pad_rows, plan
from fedlora.training.optimisers import clip_rows, make_optimiser
from fedlora.training.schedule import learning_rates

# Gradients are views of one matrix with the parameters' own strides; torch would like them packed and says so once.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")


Penalty = Callable[[Sequence[Tensors], Tensor], Tensor | None]
"""(Parameters per site with client axis, rank vectors `[K, sites]`) -> what clients add to their mean losses, `[K]`, or None."""


@dataclass(frozen=True)
class Start:
    """What a client starts from: adapter state and update to merge per site, and the task head (float32, CPU, no client axis).

    `buffers` are frozen tensors per site that the server sent, or None where they come from the seed.
    """

    sites: list[Tensors]
    merges: list[Merge | None]
    head: Tensors
    buffers: list[Tensors] | None = None


@dataclass(frozen=True)
class Job:
    """One client's work in one round. Jobs that share a `Start` object share what is derived from it."""

    client: int
    round: int
    rounds: int
    ranks: Sequence[int]
    indices: Indices
    start: Start
    selections: Sequence[Selection] | None = None


@dataclass(frozen=True)
class Outcome:
    """What local training gave: state per site and head after training, what was selected, and how it went.

    `failure` says why the update must not be used ("non-finite loss at step 3"), or is empty.
    """

    client: int
    sites: list[Tensors]
    head: Tensors
    selections: list[Selection]
    steps: int
    examples: int
    tokens: int
    loss: float
    seconds: float
    failure: str


def train_clients(
    backbone: Backbone, prepared: Prepared, jobs: Sequence[Job], config: TrainingConfig, penalty: Penalty | None = None
) -> list[Outcome]:
    """Train all jobs at once and return their outcomes in the order of `jobs`.

    All jobs must have the same merged update and buffers, since they share the frozen weights.
    """
    began = time.perf_counter()
    plans = [plan(job.indices, prepared.lengths, config, backbone.seed, job.round, job.client) for job in jobs]
    order = sorted(range(len(jobs)), key=lambda index: -len(plans[index]))
    ordered, plans = [jobs[index] for index in order], [plans[index] for index in order]
    backbone.set_merge(ordered[0].start.merges)
    backbone.set_buffers(ordered[0].start.buffers)
    with backbone.kernels():
        session = _Session(backbone, prepared, ordered, plans, config, penalty)
        losses = session.run()
    outcomes = session.outcomes(losses, (time.perf_counter() - began) / len(jobs))
    return [outcome for _, outcome in sorted(zip(order, outcomes, strict=True), key=lambda pair: pair[0])]


class _Session:
    """The stacked state of one call of `train_clients`."""

    def __init__(
        self,
        backbone: Backbone,
        prepared: Prepared,
        jobs: list[Job],
        plans: list[Indices],
        config: TrainingConfig,
        penalty: Penalty | None = None,
    ) -> None:
        self.backbone, self.prepared, self.jobs, self.plans, self.config = backbone, prepared, jobs, plans, config
        self.penalty = penalty
        self.device = backbone.placement.device
        starts: dict[int, Tensor] = {}
        for job in jobs:
            if id(job.start) not in starts:
                params = [adapter.params(site) for adapter, site in zip(backbone.adapters, job.start.sites, strict=True)]
                starts[id(job.start)] = backbone.layout.row(params, job.start.head)
        self.rows = torch.stack([starts[id(job.start)] for job in jobs]).to(self.device, torch.float32)
        self.received = self.rows.clone() if config.proximal else self.rows
        self.ranks = torch.tensor([list(job.ranks) for job in jobs], device=self.device)
        self.grads = torch.zeros_like(self.rows)
        self.selections = [self._select(index) for index in range(len(jobs))]
        self.mask = self._mask()
        self.optimiser = make_optimiser(self.rows, self.mask, config)

    def run(self) -> Tensor:
        """Take all local steps; return each client's loss per step, `[steps, K]`, NaN after its last step."""
        steps = np.array([len(batches) for batches in self.plans])
        losses = torch.full((int(steps.max()), len(self.jobs)), float("nan"), device=self.device)
        bound = 0
        for step in range(int(steps.max())):
            active = int((steps > step).sum())
            if active != bound:
                self._bind(active)
                bound = active
            losses[step, :active] = self._backward(step, active)
            grads = self.grads[:active]
            if self.config.proximal:
                grads.add_(self.rows[:active] - self.received[:active], alpha=self.config.proximal)
            if self.mask is not None:
                grads.masked_fill_(~self.mask[:active], 0.0)
            clip_rows(grads, self.config.clip)
            rates = learning_rates(self.config, [(job.round, job.rounds) for job in self.jobs[:active]], steps[:active], step)
            self.optimiser.step(grads, self._per_entry(rates.to(self.device)), active)
            self.backbone.on_step(active)
        return losses.cpu()

    def outcomes(self, losses: Tensor, seconds: float) -> list[Outcome]:
        """Cut the trained rows back into one outcome per client."""
        rows = self.rows.cpu()
        sites, head = self.backbone.layout.views(rows)
        finite = torch.isfinite(rows).all(dim=1)
        states = [adapter.state(params) for adapter, params in zip(self.backbone.adapters, sites, strict=True)]
        lengths = self.prepared.lengths
        outcomes = []
        for index, (job, batches) in enumerate(zip(self.jobs, self.plans, strict=True)):
            own = losses[: len(batches), index]
            bad = (~torch.isfinite(own)).nonzero()
            failure = f"non-finite loss at local step {int(bad[0]) + 1}" if len(bad) else ""
            if not failure and not finite[index]:  # the last step's doing, which no loss has seen
                failure = f"non-finite parameters after local step {len(batches)}"
            outcomes.append(
                Outcome(
                    client=job.client,
                    sites=[{name: tensor[index] for name, tensor in state.items()} for state in states],
                    head={name: tensor[index] for name, tensor in head.items()},
                    selections=self.selections[index],
                    steps=len(batches),
                    examples=len(job.indices),
                    tokens=int(lengths[batches[batches >= 0]].sum()),
                    loss=float(own.mean()),
                    seconds=seconds,
                    failure=failure,
                )
            )
        return outcomes

    # -- one step ----------------------------------------------------------------------------------------------------

    def _bind(self, active: int) -> None:
        """Make the first `active` rows leaves of the graph, their gradients views of one matrix."""
        sites, head = self.backbone.layout.views(self.rows[:active])
        grad_sites, grad_head = self.backbone.layout.views(self.grads[:active])
        for tensors, grads in zip([*sites, head], [*grad_sites, grad_head], strict=True):
            for name, tensor in tensors.items():
                tensors[name] = tensor.detach().requires_grad_()
                tensors[name].grad = grads[name]
        self.backbone.bind(sites, head)

    def _backward(self, step: int, active: int) -> Tensor:
        """Fill `grads` for one step of the first `active` clients; return their mean losses `[active]`."""
        chosen = pad_rows(
            [batches[step] for batches in self.plans[:active]], max(batches.shape[1] for batches in self.plans[:active])
        )
        self.grads[:active].zero_()
        batch = self.prepared.batch(np.maximum(chosen, 0).reshape(-1), self.device)
        scores = self.backbone.score(batch)
        real = torch.from_numpy(chosen >= 0).to(self.device)
        loss = torch.where(real, scores.loss.view(active, -1), 0.0).sum(dim=1)
        count = torch.where(real, scores.count.view(active, -1), 0.0).sum(dim=1).clamp_min(1.0)
        mean = loss / count
        extra = self.penalty([layer.params for layer in self.backbone.layers], self.ranks[:active]) if self.penalty else None
        (mean.sum() if extra is None else mean.sum() + extra.sum()).backward()
        return mean.detach()

    def _per_entry(self, rates: Tensor) -> Tensor:
        """Return learning rates `[active, 1]`, or `[active, P]` where the head has one of its own."""
        rates = rates.unsqueeze(1)
        if self.config.head_lr is None:
            return rates
        factor = torch.ones(self.backbone.layout.size, device=self.device)
        factor[self.backbone.layout.head_start :] = self.config.head_lr / self.config.lr
        return rates * factor

    # -- what trains -------------------------------------------------------------------------------------------------

    def _select(self, index: int) -> list[Selection]:
        job = self.jobs[index]
        if job.selections is not None:
            return list(job.selections)
        rng = stream(self.backbone.seed, "head choice", job.round, job.client)
        partial = any(adapter.snap(rank) < adapter.cap for adapter, rank in zip(self.backbone.adapters, job.ranks, strict=True))
        grads = self._first_grads() if partial and self.backbone.adapters[0].config.score == "gradient" else None
        selections = []
        for site, (adapter, rank) in enumerate(zip(self.backbone.adapters, job.ranks, strict=True)):
            own = None if grads is None else {name: tensor[index] for name, tensor in grads[site].items()}
            selections.append(adapter.select(rank, adapter.head_scores(job.start.sites[site], own, rng)))
        return selections

    def _first_grads(self) -> list[Tensors]:
        """Return all clients' gradients on their first mini-batch, computed once for the whole session."""
        if not hasattr(self, "_probe"):
            self._bind(len(self.jobs))
            self._backward(0, len(self.jobs))
            self._probe = self.backbone.layout.views(self.grads.clone())[0]
        return self._probe

    def _mask(self) -> Tensor | None:
        """Return which entries train, bool `[K, P]`, or None where all do."""
        adapters = self.backbone.adapters
        whole = all(
            selection.rho == adapter.cap and adapter.period == 1
            for chosen in self.selections
            for adapter, selection in zip(adapters, chosen, strict=True)
        )
        if whole:
            return None
        mask = torch.ones(self.rows.shape, dtype=torch.bool)
        sites, _ = self.backbone.layout.views(mask)
        for client, (job, chosen) in enumerate(zip(self.jobs, self.selections, strict=True)):
            for site, adapter, selection in zip(sites, adapters, chosen, strict=True):
                for name, entries in adapter.at(job.round).param_masks(selection).items():
                    site[name][client] = entries
        return mask.to(self.device)
