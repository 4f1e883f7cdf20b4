"""Who is compared: fedlora's round, central training with the same code, and clients trained by stock peft.

All train the same examples per client and step: `fedlora.training.batches.plan` chooses them for everybody. With length
bucketing it also groups them by length; without, batches are shuffled as a user's DataLoader would shuffle them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

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
from fedlora.models.packaged import MODELS
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

    def config(self) -> RunConfig:
        """Return the run that this case is part of."""
        adapter = {"method": "lora", "rank": 8} if self.method == "lora" else {"method": "ravan", "heads": 4, "rank": 32}
        return parse_config(
            {
                "clients": self.clients,
                "clients_per_round": self.clients,
                "rounds": 1000,
                "model": {"name": "minilm-l6"},
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


def fedlora_round(bench: Workbench, *, bucketing: bool = True, chunk: int | None = None) -> Round:
    """Return fedlora's whole round: choose, encode, send, train, reply, validate, aggregate.

    Args:
        bench: Model and data.
        bucketing: `training.length_bucketing`.
        chunk: Clients trained at once; default: what fedlora finds itself.
    """
    config = _with_bucketing(bench.config, bucketing)
    own = replace(bench, config=config, chunk=chunk or bench.chunk)
    grid = BatchedGrid(own)
    state = bench.aggregator.initial(bench.backbone.initial_head())
    ranks = np.zeros((config.clients, len(bench.adapters)), np.int64)
    strategy = RoundStrategy(own, call_roll(grid, config.clients), ServerState(0, state, ranks))

    def work(number: int) -> None:
        messages = strategy.configure_train(number, ArrayRecord(), ConfigRecord(), grid)
        strategy.aggregate_train(number, grid.send_and_receive(messages))
        failed = [row for row in strategy.record.clients if row["status"] != "ok"]
        if failed:
            raise RuntimeError(f"fedlora: {failed[0]['status']}")

    return work


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
        folder = MODELS.get(config.model.name).folder()
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

    def train(self, state: dict[str, Tensor], number: int, client: int, bucketing: bool) -> tuple[dict[str, Tensor], float]:
        """Return (adapter and head after one round of local training from `state`, mean loss)."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        config = _with_bucketing(self.config, bucketing).training
        set_peft_model_state_dict(self.model, state)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
        batches = plan(self.parts[client], self.lengths, config, self.config.seed, number, client)
        loader: Any = torch.utils.data.DataLoader(
            cast(Any, self.examples), batch_sampler=[batch[batch >= 0].tolist() for batch in batches], collate_fn=self.collate
        )
        losses = []
        for batch in loader:
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


def peft_round(trainer: PeftTrainer, state: dict[str, Tensor], *, bucketing: bool) -> Round:
    """Return one-by-one training of all clients with stock peft, and the mean of what they learned."""
    current = dict(state)

    def work(number: int) -> None:
        states = [trainer.train(current, number, client, bucketing)[0] for client in range(trainer.config.clients)]
        current.update({key: torch.stack([own[key] for own in states]).mean(dim=0) for key in current})

    return work


def peft_state(bench: Workbench, state: GlobalState) -> dict[str, Tensor]:
    """Return a state of fedlora's lora adapter under the names that peft gives to its tensors."""
    named = {f"base_model.model.{name}": tensor for name, tensor in state.head.items()}
    for site, tensors in zip(bench.backbone.sites, state.sites, strict=True):
        named |= {f"base_model.model.{site.name}.lora_{name}.weight": tensor for name, tensor in tensors.items()}
    return named


def agreement(bench: Workbench, trainer: PeftTrainer) -> dict[str, float]:
    """Train the clients of one round with fedlora and with peft on the same batches; return the largest differences."""
    state = bench.aggregator.initial(bench.backbone.initial_head())
    start, caps = bench.start(state, 1), [adapter.cap for adapter in bench.adapters]
    jobs = [Job(client, 1, 1000, caps, part, start) for client, part in enumerate(bench.parts)]
    outcomes = train_in_chunks(bench.backbone, bench.train, jobs, bench.config.training, bench.chunk)
    loss = parameter = moved = 0.0
    first = peft_state(bench, state)
    for outcome in outcomes:
        theirs, their_loss = trainer.train(first, 1, outcome.client, bucketing=True)
        ours = peft_state(bench, GlobalState(outcome.sites, outcome.head))
        if ours.keys() != theirs.keys():
            raise RuntimeError(f"peft trains other tensors than fedlora: {sorted(ours.keys() ^ theirs.keys())[:3]}")
        loss = max(loss, abs(outcome.loss - their_loss))
        parameter = max(parameter, *(float((ours[key] - theirs[key]).abs().max()) for key in ours))
        moved = max(moved, *(float((ours[key] - first[key]).abs().max()) for key in ours))
    return {"steps": bench.config.training.steps or 0, "loss": loss, "parameter": parameter, "moved": moved}


def _with_bucketing(config: RunConfig, on: bool) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"length_bucketing": on})})
