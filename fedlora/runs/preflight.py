"""What is installed, and what a run will need, found by building the run and timing a little of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
import torch

from fedlora.config import RunConfig
from fedlora.errors import TrainingError
from fedlora.federation.client import reply_spec
from fedlora.federation.strategy import RoundStrategy, ServerState
from fedlora.federation.workbench import Workbench, build
from fedlora.federation.world import make_world
from fedlora.runs.environment import environment
from fedlora.runs.progress import size
from fedlora.training.chunks import chunk_size, client_memory, example_length, train_in_chunks
from fedlora.training.device import has_fast_bf16
from fedlora.training.evaluation import evaluate
from fedlora.training.local import Job
from fedlora.wire import encoded_size


def installation() -> dict[str, Any]:
    """Return versions, devices and memory of this machine."""
    found = environment()
    packages = found.pop("packages")
    devices = ["cpu", *(f"cuda:{index} {name}" for index, name in enumerate(found["gpus"]))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    here = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    fast = [name for name in here if has_fast_bf16(torch.device(name))]
    return {
        **packages,
        "python": found["python"],
        "platform": found["platform"],
        "cpu": found["cpu"],
        "cores": found["cores"],
        "memory_gib": found["memory_gib"],
        "devices": ", ".join(devices),
        "fast_bf16_on": ", ".join(fast) or "none",
        "commit": found["commit"] or "installed package",
    }


def preflight(config: RunConfig) -> dict[str, Any]:
    """Build a run, train one client for one step, and return what the whole run will need.

    Raises:
        FedLoRAError: The run cannot work here; the message says why.
    """
    bench = build(config)
    chunk = chunk_size(bench.backbone, bench.train, config.training, config.clients_per_round)
    memory = client_memory(bench.backbone, config.training, example_length(bench.backbone, bench.train))
    free = _free_memory(bench)
    if memory > free:
        raise TrainingError(
            f"one client's local step needs about {size(memory)}, {size(free)} are free on {bench.backbone.placement.device}: "
            "lower training.batch_size or data.max_length"
        )
    up, mean_rank = _uplink(bench)
    state = bench.initial()
    # Sliced, a client receives what it will send: its own components and the head. Bases come on top, once for each client.
    plain, first = (encoded_size(state.spec(bases), config.wire.dtype) for bases in (False, True))
    down = (
        up + (first - plain) * config.clients_per_round if config.wire.downlink == "sliced" else first * config.clients_per_round
    )
    seconds = _seconds(bench)
    placement = bench.backbone.placement
    sizes = sorted(len(part) for part in bench.parts)
    frozen = sum(parameter.numel() for parameter in bench.backbone.model.parameters())
    slow = " (emulated here, slower than fp32)" if placement.emulated else ""
    return {
        "model": f"{bench.backbone.loaded.source} ({frozen / 1e6:.1f} M frozen)",
        "task": f"{bench.backbone.loaded.task}, {len(bench.dataset.label_names)} classes",
        "examples": f"{len(bench.train.examples)} to train, {len(bench.test.examples)} to test",
        "examples_per_client": f"{sizes[0]} to {sizes[-1]}, median {sizes[len(sizes) // 2]}",
        "sites": len(bench.adapters),
        "trainable_numbers_per_client": bench.backbone.layout.size,
        "mean_rank_in_round_1": round(mean_rank, 2),
        "uplink_bytes_in_round_1": up,
        "downlink_bytes_in_round_1": down,
        "device": f"{placement.device}, {placement.precision}{slow}",
        "clients_trained_at_once": chunk,
        "peak_memory_estimate": size(memory * chunk + _resident()),
        "seconds_per_round_estimate": round(seconds, 1),
        "seconds_in_all_estimate": round(seconds * config.rounds, 1),
    }


def _uplink(bench: Workbench) -> tuple[int, float]:
    """Return (bytes that the clients of round 1 will send, exactly; their mean rank), as the strategy would choose them."""
    roster = {client: (client + 1, len(part)) for client, part in enumerate(bench.parts)}
    state = ServerState(0, bench.initial(), np.zeros((len(bench.parts), len(bench.adapters)), np.int64))
    strategy = RoundStrategy(bench, roster, state, make_world(bench))
    ranks = strategy.ranks(1, strategy.draw(1))
    return sum(encoded_size(reply_spec(bench, own.tolist()), bench.config.wire.dtype) for own in ranks), float(ranks.mean())


def _seconds(bench: Workbench) -> float:
    """Return an estimate of one round's time from one local step of a chunk of clients and one evaluation batch."""
    config = bench.config
    start = bench.start(bench.initial(), 1)
    caps = [adapter.cap for adapter in bench.adapters]
    clients = range(min(bench.chunk, config.clients_per_round))
    probe = config.training.model_copy(update={"steps": 2, "epochs": None})
    jobs = [Job(client, 1, config.rounds, caps, bench.parts[client], start) for client in clients]
    train_in_chunks(bench.backbone, bench.train, jobs, probe, bench.chunk)  # warm-up
    began = time.perf_counter()
    train_in_chunks(bench.backbone, bench.train, jobs, probe, bench.chunk)
    step = (time.perf_counter() - began) / (2 * len(jobs))
    some = bench.test_indices()[: config.evaluation.batch_size]
    began = time.perf_counter()
    evaluate(bench.backbone, bench.test, some, start, config.evaluation.batch_size)
    per_example = (time.perf_counter() - began) / len(some)
    steps = _local_steps(config, [len(part) for part in bench.parts])
    return step * steps * config.clients_per_round + per_example * len(bench.test.examples) / config.evaluation.every


def _local_steps(config: RunConfig, examples: Sequence[int]) -> float:
    if config.training.steps is not None:
        return config.training.steps
    epochs, rows = config.training.epochs or 1.0, config.training.batch_size
    return float(np.mean([np.ceil(max(1, round(epochs * count)) / min(rows, count)) for count in examples]))


def _free_memory(bench: Workbench) -> int:
    device = bench.backbone.placement.device
    return int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)
