"""The client's side of a round: read the message, train at the ranks it names, write the reply.

One code path serves every engine. `answer` takes any number of messages; Flower's ClientApp hands it one, BatchedGrid all of a
round, which are then trained as one stacked batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedlora.adapters import Selection, Tensors
from fedlora.aggregation import GlobalState
from fedlora.config import RunConfig
from fedlora.data.encode import Encoded
from fedlora.data.features import read_corpus, text_features
from fedlora.errors import FedLoRAError, TrainingError
from fedlora.federation.workbench import Workbench, cached_workbench
from fedlora.streams import stream
from fedlora.training.chunks import train_in_chunks
from fedlora.training.evaluation import evaluate
from fedlora.training.local import Job, Outcome, Start
from fedlora.wire import TensorSpec, decode, encode, from_record, to_record

CLIENT_FAILED = 100
"""Error code of a reply that says why a client has no update to give."""

TEXT_METRICS = ("text-entropy", "text-surprisal", "text-split")
"""What a client says of its texts when it introduces itself; the metrics' names are part of the protocol."""

KEPT = "kept"
"""Record of Context.state with what a client keeps for itself: compression residuals, factors that are its own."""

BASES = "bases"
"""Record of Context.state with what the server sends each client once."""

_TEXTS = 256


def make_client_app(config: RunConfig) -> ClientApp:
    """Return the ClientApp of a run; model and data are loaded once per process, at the first message."""
    app = ClientApp()
    text = config.model_dump_json()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(cached_workbench(text), [message], [context])[0]

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return introduce(cached_workbench(text), message, context)

    return app


def introduce(bench: Workbench, message: Message, context: Context) -> Message:
    """Answer the server's question who stands behind a node: client number, examples it holds, and what its texts are like."""
    client = client_of(context)
    counts = {"client": client, "num-examples": len(bench.parts[client]), "held-examples": len(bench.held[client])}
    metrics = MetricRecord({**counts, **_text_metrics(bench, client)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _text_metrics(bench: Workbench, client: int) -> dict[str, float]:
    """Return what a client's training texts are like (see `fedlora.data.features`); nothing for images.

    At most `_TEXTS` of them are looked at: the three numbers are shares and means, and the roll is called at every start.
    """
    encoded, texts, tokenizer = bench.train.encoded, bench.train.examples.texts, bench.train.loaded.tokenizer
    part = bench.parts[client]
    if encoded is None or texts is None or tokenizer is None or not len(part):
        return {}
    rows = np.sort(stream(bench.config.seed, "text features", client).permutation(part)[:_TEXTS])
    sequences = encoded.rows(rows)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(encoded.lengths[rows])])
    own = read_corpus(Encoded(np.concatenate(sequences), offsets), [texts[row] for row in rows.tolist()], tokenizer)
    corpus = replace(own, surprisal=bench.surprisal)
    values = text_features(corpus, [np.arange(len(rows))])[0]
    return dict(zip(TEXT_METRICS, values.tolist(), strict=True))


def answer(bench: Workbench, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
    """Train what the messages ask for and return one reply each, in order.

    A client that cannot train replies with an error that says why; the others are not affected.
    """
    replies: dict[int, Message] = {}
    jobs: list[tuple[int, Job]] = []
    starts: dict[int, Start] = {}
    for index, (message, context) in enumerate(zip(messages, contexts, strict=True)):
        try:
            jobs.append((index, _read(bench, message, context, starts)))
        except FedLoRAError as error:
            replies[index] = _failed(message, str(error))
    if not jobs:
        return [replies[index] for index in range(len(messages))]
    measured = _measure(bench, [job for _, job in jobs])
    penalty = bench.aggregator.penalty
    outcomes = train_in_chunks(bench.backbone, bench.train, [job for _, job in jobs], bench.config.training, bench.chunk, penalty)
    for (index, job), outcome, metrics in zip(jobs, outcomes, measured, strict=True):
        replies[index] = _write(bench, messages[index], contexts[index], job, outcome, metrics)
    return [replies[index] for index in range(len(messages))]


def client_of(context: Context) -> int:
    """Return which client of the partition a node stands for."""
    return int(cast(int, context.node_config["partition-id"]))


def _read(bench: Workbench, message: Message, context: Context, starts: dict[Any, Start]) -> Job:
    """Decode one message; messages that carry the same broadcast share the decoded start."""
    config, client = cast(ConfigRecord, message.content["config"]), client_of(context)
    round_number, ranks = int(cast(int, config["round"])), [int(rank) for rank in cast(list[int], config["ranks"])]
    data = from_record(message.content.array_records["arrays"])
    selections = None
    if bench.config.wire.downlink == "sliced":
        received = GlobalState.from_flat(decode(data, bench.config.wire.dtype, tag=round_number), len(bench.adapters))
        selections = _place_slices(bench, received, ranks, round_number)
        start = bench.start(received, round_number)
    else:
        if id(data) not in starts:
            tensors = decode(data, bench.config.wire.dtype, tag=round_number)
            starts[id(data)] = bench.start(GlobalState.from_flat(tensors, len(bench.adapters)), round_number)
        start = starts[id(data)]
    start = _with_bases(bench, start, context)
    if bench.aggregator.own_prefix or any(adapter.personal for adapter in bench.adapters):
        start = bench.own_start(start, ranks, _read_kept(bench, context))
    return Job(client, round_number, bench.config.rounds, ranks, bench.parts[client], start, selections)


def _place_slices(bench: Workbench, received: GlobalState, ranks: list[int], round_number: int) -> list[Selection]:
    """Turn a client's own slices into whole states, in place; components that were not sent are zero. Return what it trains."""
    selections = []
    for index, (adapter, rank) in enumerate(zip(bench.adapters_at(round_number), ranks, strict=True)):
        zeros = {name: torch.zeros(shape) for name, shape in adapter.state_shapes.items()}
        selections.append(adapter.selection_of(received.sites[index], rank))
        received.sites[index] = adapter.place(received.sites[index], rank, zeros)[0]
    return selections


def _with_bases(bench: Workbench, start: Start, context: Context) -> Start:
    """Keep the bases that came with a message, or take those that came with an earlier one (TrainingError: none ever came)."""
    if not any(adapter.starts_from_gradients for adapter in bench.adapters):
        return start
    if start.buffers is not None:
        data = encode(GlobalState([], bases=start.buffers).flat_bases(), "fp32")
        context.state[BASES] = to_record(data)
    elif BASES in context.state:
        data = from_record(context.state.array_records[BASES])
    else:
        raise TrainingError("this client has not got the bases that the adapter works with; the server sends them again")
    return replace(start, buffers=bench.bases_of(data))


def _measure(bench: Workbench, jobs: list[Job]) -> list[dict[str, float | int]]:
    """Measure what each client received on its own held-out part; clients that share a start are measured in one pass."""
    if not bench.config.evaluation.clients:
        return [{} for _ in jobs]
    results: list[dict[str, float | int]] = [{} for _ in jobs]
    for start in {id(job.start): job.start for job in jobs}.values():
        group = [index for index, job in enumerate(jobs) if job.start is start and len(bench.held[job.client])]
        if not group:
            continue
        indices = np.concatenate([bench.held[jobs[index].client] for index in group])
        scores = evaluate(bench.backbone, bench.train, indices, start, bench.config.evaluation.batch_size)
        at = 0
        for index in group:
            count = len(bench.held[jobs[index].client])
            accuracy, loss = scores.summary(slice(at, at + count))
            results[index] = {"held-accuracy": accuracy, "held-loss": loss, "held-examples": count}
            at += count
    return results


def _write(
    bench: Workbench, message: Message, context: Context, job: Job, outcome: Outcome, measured: dict[str, float | int]
) -> Message:
    if outcome.failure:
        return _failed(message, outcome.failure)
    before = _read_kept(bench, context)
    tensors: Tensors = {f"head/{name}": tensor for name, tensor in outcome.head.items()}
    kept: Tensors = {}
    ranks = []
    for index, adapter in enumerate(bench.adapters_at(job.round)):
        start, trained, selection = job.start.sites[index], outcome.sites[index], outcome.selections[index]
        rank = bench.aggregator.settle(index, selection.rho, start, trained)
        if rank < selection.rho:
            selection = adapter.select(rank)
        sent, left = adapter.upload(trained, start, before[index], selection)
        tensors |= {f"{index}/{name}": tensor for name, tensor in sent.items()}
        kept |= {f"{index}/{name}": tensor for name, tensor in left.items()}
        ranks.append(rank)
    if kept:
        context.state[KEPT] = to_record(encode(kept, "fp32"))
    metrics: dict[str, float | int | list[int]] = {
        "client": job.client,
        "num-examples": outcome.examples,
        "train-loss": outcome.loss,
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "seconds": outcome.seconds,
    }
    if bench.aggregator.prunes:
        metrics["ranks"] = ranks
    content = RecordDict(
        {
            "arrays": to_record(encode(tensors, bench.config.wire.dtype, tag=job.round)),
            "metrics": MetricRecord(cast(dict[str, Any], {**metrics, **measured})),
        }
    )
    return Message(content, reply_to=message)


def _read_kept(bench: Workbench, context: Context) -> list[Tensors]:
    """Return what the client kept for itself in earlier rounds, per site; empty where there is nothing."""
    tensors = decode(from_record(context.state.array_records[KEPT]), "fp32") if KEPT in context.state else {}
    return GlobalState.from_flat(tensors, len(bench.adapters)).sites


def _failed(message: Message, reason: str) -> Message:
    return Message(Error(CLIENT_FAILED, reason), reply_to=message)


def reply_spec(bench: Workbench, ranks: Sequence[int], round_number: int = 1) -> dict[str, TensorSpec]:
    """Return the schema of the reply of a client with these ranks in a round, head first, as `_write` orders it."""
    spec = {f"head/{name}": TensorSpec(tuple(tensor.shape)) for name, tensor in bench.backbone.initial_head().items()}
    for index, (adapter, rank) in enumerate(zip(bench.adapters_at(round_number), ranks, strict=True)):
        spec |= {f"{index}/{name}": item for name, item in adapter.spec(rank).items()}
    return spec


__all__ = ["BASES", "CLIENT_FAILED", "KEPT", "MessageType", "answer", "client_of", "introduce", "make_client_app", "reply_spec"]
