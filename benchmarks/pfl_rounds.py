"""Federated averaging of pfl-research (`pip install pfl`) in its simulated backend, over stock peft's model.

pfl runs its iterations itself (`FederatedAveraging.run`); here it is asked for one more at a time. Cohort, local steps, clipping,
model differences, weighting by examples and the central step (SGD of rate 1: FedAvg) are pfl's; the model, its local AdamW, the
data and the batches are those that the other contenders train with.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

# Read when pfl is imported: where the other contenders train.
os.environ.setdefault("PFL_PYTORCH_DEVICE", "cpu")

import torch
from contenders import PeftTrainer
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchDataDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor
from torch.utils.data import Subset


class Tuned(torch.nn.Module):
    """peft's model in the form that pfl asks for, with `loss` and `metrics`; keeps the losses that it was asked for."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Tensor] = []

    def loss(self, **batch: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        loss: Tensor = self.model(**batch).loss
        self.seen.append(loss.detach().clone())  # pfl scales what it gets in place
        return loss

    @torch.no_grad()
    def metrics(self, **batch: Tensor) -> dict[str, Any]:
        """Return the loss for pfl's evaluation, which it does in its first iteration however seldom it is told to."""
        rows = len(batch["labels"])
        return {"loss": Weighted(float(self.model(**batch).loss) * rows, rows)}


class PlannedBatches(PyTorchDataDataset):  # type: ignore[misc]
    """One client's examples, which come in the batches that were planned, whatever size pfl asks for."""

    def __init__(self, examples: Any, client: int, batches: Iterable[Any]) -> None:
        super().__init__(examples, user_id=str(client))
        self.batches = batches

    def iter(self, batch_size: int | None) -> Iterator[dict[str, Tensor]]:
        """Yield one batch after the other."""
        return (dict(batch) for batch in self.batches)


class PflRound:
    """One central iteration of pfl over all clients (see `contenders.Federation`).

    Args:
        trainer: Model, data and partition; shared with the peft contender, since each round starts from this one's own state.
        state: Adapter and head to start from, under peft's names.
        bucketing: Batches grouped by length, or shuffled.
    """

    def __init__(self, trainer: PeftTrainer, state: dict[str, Tensor], *, bucketing: bool) -> None:
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        self.trainer, self.bucketing = trainer, bucketing
        self._take, self._give = get_peft_model_state_dict, set_peft_model_state_dict
        self._state, self._losses = dict(state), dict[int, float]()
        self._number = self._iterations = 0
        training = trainer.config.training
        self.tuned = Tuned(trainer.model)
        central = torch.optim.SGD([own for own in self.tuned.parameters() if own.requires_grad], lr=1.0)
        self.model = PyTorchModel(self.tuned, self._optimiser, central)
        clients = range(trainer.config.clients)
        self.data = FederatedDataset(self._client, MinimizeReuseUserSampler(clients))
        self.backend = SimulatedBackend(self.data, self.data, [WeightByDatapoints()])
        self.algorithm = FederatedAveraging()
        self.local = NNTrainHyperParams(
            local_batch_size=training.batch_size,
            local_num_epochs=None,
            local_num_steps=training.steps,
            local_learning_rate=training.lr,
            local_max_grad_norm=training.clip,
        )
        self.evaluation = NNEvalHyperParams(local_batch_size=training.batch_size)
        self._asked: list[int] = []

    def _optimiser(self, parameters: Iterable[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
        trained = [own for own in parameters if own.requires_grad]
        return torch.optim.AdamW(trained, lr=lr, weight_decay=self.trainer.config.training.weight_decay)

    def _client(self, client: int) -> PlannedBatches:
        self._asked.append(client)
        examples = Subset[Any](cast(Any, self.trainer.examples), self.trainer.parts[client].tolist())
        return PlannedBatches(examples, client, self.trainer.loader(self._number, client, self.bucketing))

    def __call__(self, number: int) -> None:
        self._number, self._asked, self.tuned.seen = number, [], []
        self._iterations += 1
        self._give(self.trainer.model, self._state)
        params = NNAlgorithmParams(
            central_num_iterations=self._iterations,
            evaluation_frequency=2**31,
            train_cohort_size=self.trainer.config.clients,
            val_cohort_size=None,
        )
        with _event_loop():
            self.algorithm.run(params, self.backend, self.model, self.local, self.evaluation, [], send_metrics_to_platform=False)
        self._state = {key: tensor.detach().clone() for key, tensor in self._take(self.trainer.model).items()}

    def state(self) -> dict[str, Tensor]:
        return self._state

    def losses(self) -> dict[int, float]:
        steps = len(self.tuned.seen) // len(self._asked)
        means = torch.stack(self.tuned.seen).reshape(len(self._asked), steps).mean(dim=1)
        return dict(zip(self._asked, means.tolist(), strict=True))


@contextmanager
def _event_loop() -> Iterator[None]:
    """Give this thread an event loop: pfl waits for its backend in the current one, and Flower's server thread has none."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield
    finally:
        asyncio.set_event_loop(None)
        loop.close()
