"""Who is compared: fedlora's round, central training with the same code, and clients trained by stock peft.

All train the same examples per client and step: `fedlora.training.batches.plan` chooses them for everybody. With length
bucketing it also groups them by length; without, batches are shuffled as a user's DataLoader would shuffle them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord
from torch import Tensor

from fedlora.aggregation import GlobalState
from fedlora.config import RunConfig, parse_config
from fedlora.data.load import load_data
from fedlora.data.partition import partition, split_client
from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.roll import call_roll
from fedlora.federation.strategy import RoundStrategy, ServerState
from fedlora.federation.workbench import Workbench
from fedlora.models.sources import find_source
from fedlora.training.batches import plan
from fedlora.training.chunks import train_in_chunks
from fedlora.training.local import Job


@dataclass(frozen=True)
class Case:
    """One comparison: K clients take `steps` local steps of `batch` examples a round, on `threads` cores."""

    title: str
    data: str
    clients: int
    steps: int
    method: str = "lora"
    precision: str = "fp32"
    threads: int = 2
    batch: int = 8
    model: str = "minilm-l6"

    def config(self) -> RunConfig:
        """Return the run that this case is part of."""
        adapter = {"method": "lora", "rank": 8} if self.method == "lora" else {"method": "ravan", "heads": 4, "rank": 32}
        return parse_config(
            {
                "clients": self.clients,
                "clients_per_round": self.clients,
                "rounds": 1000,
                "model": {"name": self.model},
                "data": {
                    "name": self.data,
                    "partition": "dirichlet",
                    "alpha": 0.3,
                    "max_length": 64,
                    "max_examples": 5000,
                    "max_test_examples": 100,
                },
                "adapter": adapter,
                "training": {"steps": self.steps, "batch_size": self.batch, "lr": 1e-3, "precision": self.precision},
                "evaluation": {"clients": False},
                "device": "cpu",
            }
        )


Round = Callable[[int], None]
"""Works one round, counted from 1."""


class Federation(Protocol):
    """A contender that trains clients from a global adapter and averages what they learned, weighted by their examples."""

    def __call__(self, number: int) -> None:
        """Work one round, counted from 1."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return the global adapter and head under the names that peft gives to their tensors."""
        ...

    def losses(self) -> dict[int, float]:
        """Return the mean training loss of each client in the last round."""
        ...


class FedloraRound:
    """fedlora's whole round: choose, encode, send, train, reply, validate, aggregate (see `Federation`).

    Args:
        bench: Model and data.
        bucketing: `training.length_bucketing`.
        chunk: Clients trained at once; default: what fedlora finds itself.
    """

    def __init__(self, bench: Workbench, *, bucketing: bool = True, chunk: int | None = None) -> None:
        config = with_bucketing(bench.config, bucketing)
        self.bench = replace(bench, config=config, chunk=chunk or bench.chunk)
        self.grid = BatchedGrid(self.bench)
        start = bench.aggregator.initial(bench.backbone.initial_head())
        ranks = np.zeros((config.clients, len(bench.adapters)), np.int64)
        self.strategy = RoundStrategy(self.bench, call_roll(self.grid, config.clients), ServerState(0, start, ranks))

    def __call__(self, number: int) -> None:
        messages = self.strategy.configure_train(number, ArrayRecord(), ConfigRecord(), self.grid)
        self.strategy.aggregate_train(number, self.grid.send_and_receive(messages))
        failed = [row for row in self.strategy.record.clients if row["status"] != "ok"]
        if failed:
            raise RuntimeError(f"fedlora: {failed[0]['status']}")

    def state(self) -> dict[str, Tensor]:
        return peft_state(self.bench, self.strategy.state.adapter)

    def losses(self) -> dict[int, float]:
        return {row["client"]: float(row["train_loss"]) for row in self.strategy.record.clients}


def central_round(bench: Workbench) -> Round:
    """Return central training: one adapter, K * b examples a step, as many steps; what federated training cannot beat."""
    training = bench.config.training.model_copy(update={"batch_size": bench.config.training.batch_size * bench.config.clients})
    start = bench.start(bench.aggregator.initial(bench.backbone.initial_head()), 1)
    caps = [adapter.cap for adapter in bench.adapters]
    everything = np.concatenate(bench.parts)

    def work(number: int) -> None:
        train_in_chunks(bench.backbone, bench.train, [Job(0, number, 1000, caps, everything, start)], training, 1)

    return work


def real_tokens(bench: Workbench, number: int) -> int:
    """Return the real tokens that the clients train on in one round."""
    lengths, config = bench.train.lengths, bench.config
    plans = [plan(part, lengths, config.training, config.seed, number, client) for client, part in enumerate(bench.parts)]
    return sum(int(lengths[batches[batches >= 0]].sum()) for batches in plans)


def central_tokens(bench: Workbench, number: int) -> int:
    """Return the real tokens of one round of central training, which draws from all examples alike."""
    training = bench.config.training.model_copy(update={"batch_size": bench.config.training.batch_size * bench.config.clients})
    return int(
        bench.train.lengths[plan(np.concatenate(bench.parts), bench.train.lengths, training, bench.config.seed, number, 0)].sum()
    )


class PeftTrainer:
    """A client as a user of stock peft writes it: one model, loaded once, its adapter overwritten by what the server sends.

    Args:
        config: The run; model, data, partition, adapter and training follow it.
    """

    def __init__(self, config: RunConfig) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

        self.config = config
        dataset = load_data(config.data, config.seed, config.model.task)
        folder = find_source(config.model.name).name
        tokenizer = AutoTokenizer.from_pretrained(folder)
        encoded = tokenizer(dataset.train.texts, truncation=True, max_length=config.data.max_length)
        self.examples = [
            {"input_ids": ids, "attention_mask": mask, "labels": label}
            for ids, mask, label in zip(
                encoded["input_ids"], encoded["attention_mask"], dataset.train.labels.tolist(), strict=True
            )
        ]
        self.lengths = np.array([len(example["input_ids"]) for example in self.examples])
        parts = partition(dataset.train, config.data, config.clients, config.seed)
        self.parts = [
            split_client(part, config.data.client_test_fraction, config.seed, client)[0] for client, part in enumerate(parts)
        ]
        self.collate = DataCollatorWithPadding(tokenizer)
        # Dropout off: fedlora trains without, and drawing masks is work that the others would not do.
        base = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(dataset.label_names),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            dtype=torch.float32,
        )
        rank = config.adapter.rank
        lora = LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=["query", "value"])
        self.model: Any = get_peft_model(base, lora)
        self.model.train()

    def loader(self, number: int, client: int, bucketing: bool) -> Iterable[Any]:
        """Return the batches of one client in a round, padded to the longest text of each by Hugging Face's collator."""
        config = with_bucketing(self.config, bucketing).training
        batches = plan(self.parts[client], self.lengths, config, self.config.seed, number, client)
        return torch.utils.data.DataLoader(
            cast(Any, self.examples), batch_sampler=[batch[batch >= 0].tolist() for batch in batches], collate_fn=self.collate
        )

    def train(self, state: dict[str, Tensor], number: int, client: int, bucketing: bool) -> tuple[dict[str, Tensor], float]:
        """Return (adapter and head after one round of local training from `state`, mean loss)."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        config = self.config.training
        set_peft_model_state_dict(self.model, state)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
        losses = []
        for batch in self.loader(number, client, bucketing):
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16) if config.precision == "bf16" else nullcontext():
                loss = self.model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, config.clip)
            optimiser.step()
            losses.append(loss.detach())
        after = {key: tensor.detach().clone() for key, tensor in get_peft_model_state_dict(self.model).items()}
        return after, float(torch.stack(losses).mean())


@lru_cache(maxsize=1)
def cached_trainer(config_json: str) -> PeftTrainer:
    """Return the trainer of a configuration given as JSON, built once per process."""
    return PeftTrainer(RunConfig.model_validate_json(config_json))


class PeftRound:
    """One-by-one training of all clients with stock peft, and the mean of what they learned (see `Federation`)."""

    def __init__(self, trainer: PeftTrainer, state: dict[str, Tensor], *, bucketing: bool) -> None:
        self.trainer, self.bucketing = trainer, bucketing
        self._state, self._losses = dict(state), dict[int, float]()
        examples = torch.tensor([len(part) for part in trainer.parts], dtype=torch.float32)
        self._weights = examples / examples.sum()

    def __call__(self, number: int) -> None:
        trained = [self.trainer.train(self._state, number, client, self.bucketing) for client in range(len(self._weights))]
        self._losses = {client: loss for client, (_, loss) in enumerate(trained)}
        self._state = {
            key: torch.tensordot(self._weights, torch.stack([own[key] for own, _ in trained]), dims=1) for key in self._state
        }

    def state(self) -> dict[str, Tensor]:
        return self._state

    def losses(self) -> dict[int, float]:
        return self._losses


def peft_state(bench: Workbench, state: GlobalState) -> dict[str, Tensor]:
    """Return a state of fedlora's lora adapter under the names that peft gives to its tensors."""
    named = {f"base_model.model.{name}": tensor for name, tensor in state.head.items()}
    for site, tensors in zip(bench.backbone.sites, state.sites, strict=True):
        named |= {f"base_model.model.{site.name}.lora_{name}.weight": tensor for name, tensor in tensors.items()}
    return named


def agreement(reference: Federation, other: Federation, start: dict[str, Tensor]) -> dict[str, float]:
    """Return how far two contenders are apart that trained the same batches from the same start.

    Args:
        reference: Whom to compare with.
        other: Who is compared.
        start: What both started from.

    Returns:
        The largest difference of a client's mean loss in the last round, the largest difference of a number of the global adapter
        or head, and how far the reference moved the number that it moved most.

    Raises:
        RuntimeError: They trained other clients or other tensors.
    """
    ours, theirs = reference.state(), other.state()
    our_losses, their_losses = reference.losses(), other.losses()
    for what, left, right in (("tensors", set(ours), set(theirs)), ("clients", set(our_losses), set(their_losses))):
        if left != right or not left:
            raise RuntimeError(f"contenders trained other {what}: {sorted(left ^ right, key=str)[:3]}")
    return {
        "loss": max(abs(our_losses[client] - their_losses[client]) for client in our_losses),
        "parameter": max(float((ours[key] - theirs[key]).abs().max()) for key in ours),
        "moved": max(float((ours[key] - start[key]).abs().max()) for key in ours),
    }


def with_bucketing(config: RunConfig, on: bool) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"length_bucketing": on})})
