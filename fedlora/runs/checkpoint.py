"""Checkpoints: one folder per round, written whole, verified before use, the newest few kept.

    checkpoints/round-00003/state.safetensors    global adapter, task head, bases, server optimiser's moments, previous ranks and
                                                 limits, what clients keep for themselves, the radio world's state, what the
                                                 policy remembers
    checkpoints/round-00003/state.json           round, lengths of the logs at that moment, clients trained at once, checksums

Logs are appended before the checkpoint is written; on resume they are cut back to the lengths that the checkpoint names, so
that a kill at any moment leaves nothing twice and nothing half.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedlora.aggregation import GlobalState
from fedlora.errors import RunFolderError
from fedlora.federation.strategy import ServerState
from fedlora.files import atomic_folder, disk_errors, remove_folder


@dataclass
class Checkpoint:
    """All that a run needs to go on.

    Attributes:
        state: The server's state.
        clients: Per node, the packed record of what the client keeps for itself.
        log_bytes: Length of each log when the round was complete.
        chunk: Clients trained at once; kept, because another number sums in another order.
        world: State of the radio world; empty where there is none.
        policy: What the policy remembers; empty where it is nothing.
    """

    state: ServerState
    clients: dict[int, bytes]
    log_bytes: dict[str, int]
    chunk: int
    world: dict[str, NDArray[Any]] = field(default_factory=dict)
    policy: dict[str, NDArray[Any]] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write a checkpoint to `folder` and drop all but the newest `keep`."""
    state = checkpoint.state
    tensors: dict[str, Tensor] = {f"adapter/{key}": tensor.contiguous().clone() for key, tensor in state.adapter.flat().items()}
    kept_here = {"bases": state.adapter.flat_bases(), "memory": state.adapter.memory}
    for part, own in kept_here.items():
        tensors |= {f"{part}/{key.removeprefix('bases/')}": tensor.contiguous().clone() for key, tensor in own.items()}
    for name, values in {"previous_ranks": state.previous, "rank_limits": state.limits, "holders": state.holders}.items():
        tensors[name] = torch.from_numpy(values)
    for part, arrays in (("world", checkpoint.world), ("policy", checkpoint.policy)):
        tensors |= {f"{part}/{name}": torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    for node, data in checkpoint.clients.items():
        tensors[f"client/{node}"] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    body = {
        "format": 1,
        "round": state.round,
        "sites": len(state.adapter.sites),
        "log_bytes": checkpoint.log_bytes,
        "chunk": checkpoint.chunk,
    }
    with atomic_folder(folder / f"round-{state.round:05d}") as temporary:
        # Not safetensors' save_file: a full disk has to be an OSError.
        data = save(tensors)
        (temporary / "state.safetensors").write_bytes(data)
        body["tensors_sha256"] = _sha256(data)
        (temporary / "state.json").write_text(json.dumps({"body": body, "sha256": _sha256(_canonical(body))}, indent=2) + "\n")
    prune(folder, keep)


def prune(folder: Path, keep: int) -> None:
    """Drop all checkpoints but the newest `keep`."""
    for old in list_checkpoints(folder)[:-keep]:
        with disk_errors(old):
            remove_folder(old)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return all checkpoints, oldest first."""
    found = {path: match for path in folder.glob("round-*") if (match := re.fullmatch(r"round-(\d+)", path.name))}
    return sorted((path for path in found if path.is_dir()), key=lambda path: int(found[path][1]))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        RunFolderError: A file is missing, cut short or altered; names it and says how to go on from an older one.
    """
    try:
        envelope = json.loads((path / "state.json").read_text(encoding="utf-8"))
        body: dict[str, Any] = envelope["body"]
        written = envelope["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"state.json cannot be read ({error})") from None
    if written != _sha256(_canonical(body)):
        raise _damaged(path, "state.json is not what was written (sha256 differs)")
    try:
        data = (path / "state.safetensors").read_bytes()
    except OSError as error:
        raise _damaged(path, f"state.safetensors cannot be read ({error})") from None
    if body["tensors_sha256"] != _sha256(data):
        raise _damaged(path, f"state.safetensors is not what was written (sha256 differs; {len(data)} bytes)")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise _damaged(path, f"state.safetensors cannot be read ({error})") from None
    adapter = {key.removeprefix("adapter/"): tensor for key, tensor in tensors.items() if key.startswith("adapter/")}
    kept = {key.removeprefix("client/"): tensor for key, tensor in tensors.items() if key.startswith("client/")}
    clients = {int(node): bytes(tensor.numpy()) for node, tensor in kept.items()}
    bases = {key: tensor for key, tensor in tensors.items() if key.startswith("bases/")}
    whole = GlobalState.from_flat({**_ordered(adapter), **bases}, body["sites"])
    whole.memory = {key.removeprefix("memory/"): tensor for key, tensor in tensors.items() if key.startswith("memory/")}
    # Runs from before clients could prune themselves have no limits, and no bases to hold.
    others = [tensors[name].numpy() for name in ("rank_limits", "holders") if name in tensors]
    state = ServerState(body["round"], whole, tensors["previous_ranks"].numpy().astype(np.int64), *others)
    world, policy = (
        {key.removeprefix(part): tensor.numpy() for key, tensor in tensors.items() if key.startswith(part)}
        for part in ("world/", "policy/")
    )
    return Checkpoint(state, clients, body["log_bytes"], body["chunk"], world, policy)


def _ordered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as `GlobalState.flat` orders them; safetensors stores them by name."""

    def key(item: str) -> tuple[int, int]:
        where, _, _ = item.partition("/")
        return (1, 0) if where == "head" else (0, int(where))

    return {name: tensors[name] for name in sorted(tensors, key=key)}


def _damaged(path: Path, what: str) -> RunFolderError:
    before = list_checkpoints(path.parent)
    older = before[: before.index(path)] if path in before else []
    hint = f"Remove it to go on from {older[-1].name}" if older else "There is no older one: start the run again"
    return RunFolderError(f"checkpoint {path} is damaged: {what}. {hint}")


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
