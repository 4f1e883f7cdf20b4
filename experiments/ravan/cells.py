"""One run of the Ravan study: what it is, how it becomes a run file, and what is kept of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedlora.config import RunConfig, load_config
from fedlora.federation.workbench import build
from fedlora.files import write_json
from fedlora.methods import METHODS, rank_for_budget
from fedlora.runs.checkpoint import list_checkpoints, load_checkpoint
from fedlora.runs.folder import RunFolder
from fedlora.runs.simulate import simulate
from fedlora.training.evaluation import evaluate

SPLITS = {"iid": ("data.partition=iid",), "dirichlet": ("data.partition=dirichlet", "data.alpha=0.3")}
BUDGETS = {"low": 16, "high": 32}
"""Rank of a LoRA of this budget; at 384 wide these are the shares of the matrix, 1/12 and 1/6, that the paper has at 768."""


@dataclass(frozen=True)
class Task:
    """A packaged data set and the first layers of a packaged model.

    Attributes:
        model: Packaged name (or the folder of a model).
        layers: How many of its layers, from the input on.
        width: Features in and out of the adapted projections.
        overrides: Keys of the run file.
    """

    model: str
    layers: int
    width: int
    overrides: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Name of the folder that these layers are saved in."""
        return f"{Path(self.model).name}-first-{self.layers}"


TASKS = {
    "text": Task("minilm-l3", 3, 384, ("data.name=trec-6", "data.max_length=32", "data.max_test_examples=500")),
    "image": Task(
        "vit-s14",
        4,
        384,
        ("data.name=fashion-mnist", "model.image_size=28", "data.max_examples=4400", "data.max_test_examples=500"),
    ),
}


@dataclass(frozen=True)
class Contender:
    """What is compared: a method with keys of its own.

    Attributes:
        method: As in `fedlora methods`.
        keys: Further keys.
        heads: Ravan's heads.
        tuned_as: The contender whose learning rate it takes; empty: it has a sweep of its own.
    """

    method: str
    keys: tuple[str, ...] = ()
    heads: int = 4
    tuned_as: str = ""


METHODS_ALL = {name: Contender(name) for name in METHODS.names()}
ABLATIONS = {
    "s fixed": Contender("ravan", ("adapter.scales=fixed",)),
    "gram-schmidt": Contender("ravan", ("adapter.init=gram-schmidt",)),
    "constant": Contender("ravan", ("adapter.init=constant",)),
    "shared-subspace": Contender("ravan", ("adapter.init=shared-subspace",)),
    **{f"h={heads}": Contender("ravan", heads=heads) for heads in (1, 2, 8, 16)},
}
MIXES = ("uniform", "bell", "skewed")


def _tiers(mix: str) -> tuple[str, str]:
    return ("policy.name=tiers", f"policy.options.mix={mix}")


TIERS = {
    **{
        f"ravan, {score}, {mix}": Contender("ravan", (f"adapter.score={score}", *_tiers(mix)), tuned_as="ravan")
        for mix in MIXES
        for score in ("random", "weight", "gradient")
    },
    **{f"{name}, {mix}": Contender(name, _tiers(mix), tuned_as=name) for mix in MIXES for name in ("hetlora", "flexlora")},
}
CONTENDERS = {**METHODS_ALL, **ABLATIONS, **TIERS}


@dataclass(frozen=True)
class Scale:
    """How much is done in a run; `quick` runs show that everything works, and nothing else."""

    rounds: int = 9
    per_round: int = 3
    clients: tuple[int, int] = (20, 50)
    keys: tuple[str, ...] = (
        "training.steps=20",
        "training.batch_size=4",
        "training.schedule=linear",
        "evaluation.every=3",
        "evaluation.batch_size=64",
    )
    grid: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    first: tuple[int, ...] = (2, 3, 4)
    """Positions in the grid that every sweep begins with."""
    tasks: dict[str, Task] = field(default_factory=lambda: dict(TASKS))
    contenders: tuple[str, ...] = tuple(CONTENDERS)


QUICK = Scale(
    rounds=2,
    per_round=2,
    clients=(4, 6),
    keys=("training.steps=2", "training.batch_size=4", "training.schedule=linear", "evaluation.batch_size=64"),
    grid=(1e-3, 1e-2),
    first=(0, 1),
    contenders=(
        *("fed-sb", "fedit", "fedsa-lora", "full", "hetlora", "ravan"),
        *("s fixed", "h=1", "ravan, random, uniform", "ravan, gradient, skewed", "hetlora, bell"),
    ),
    tasks={
        name: Task(task.model, 1, task.width, (*task.overrides, "data.max_examples=200", "data.max_test_examples=40"))
        for name, task in TASKS.items()
    },
)


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        part: Of the study; names the folder its outcome lies in.
        purpose: "sweep" (measured on validation examples) or "test".
    """

    part: str
    task: str
    split: str
    clients: int
    budget: str
    label: str
    seed: int
    lr: float
    purpose: str = "test"

    @cached_property
    def name(self) -> str:
        """Name of its files."""
        label = self.label.replace(", ", "-").replace(" ", "-").replace("=", "")
        return f"{self.task}-{self.split}-{self.clients}-{self.budget}-{label}-lr{self.lr:g}-seed{self.seed}"

    @property
    def contender(self) -> Contender:
        """What runs."""
        return CONTENDERS[self.label]

    def rank(self, task: Task) -> int | None:
        """Return the largest rank that the budget pays for, or None for full fine-tuning."""
        own = self.contender
        if own.method == "full":
            return None
        numbers = 2 * task.width * BUDGETS[self.budget]
        return rank_for_budget(own.method, numbers, task.width, task.width, own.heads)

    def overrides(self, scale: Scale, models: Path) -> list[str]:
        """Return the run as `key=value` strings."""
        own, task = self.contender, scale.tasks[self.task]
        rank = self.rank(task)
        keys = [
            f"seed={self.seed}",
            f"rounds={scale.rounds}",
            f"clients={self.clients}",
            f"clients_per_round={scale.per_round}",
            "device=cpu",
            "output.tensorboard=false",
            f"model.name={models / task.folder}",
            *task.overrides,
            *SPLITS[self.split],
            *scale.keys,
            f"method={own.method}",
            f"adapter.heads={own.heads}",
            f"training.lr={self.lr}",
            *([] if rank is None else [f"adapter.rank={rank}"]),
            *own.keys,
        ]
        if own.method != "hetlora":  # which weighs by norms; the paper's protocol is uniform for all
            keys.append("aggregator.weighting=uniform")
        # Where B stays at the clients, they alone can measure; one table has the others beside it.
        at_clients = own.method == "fedsa-lora" or self.part == "dirichlet"
        keys.append(f"evaluation.clients={str(at_clients).lower()}")
        if self.purpose == "sweep":  # the test set plays no part
            keys += [f"evaluation.every={scale.rounds}", "data.max_test_examples=1"]
        return keys


def stored(cell: Cell, scale: Scale, out: Path) -> dict[str, Any] | None:
    """Return a finished cell's outcome, or None where there is none of exactly this run."""
    path = out / "cells" / cell.part / f"{cell.name}.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if found["overrides"] == _portable(cell, scale) else None


def run_cell(cell: Cell, scale: Scale, out: Path) -> dict[str, Any]:
    """Return a cell's outcome, from disk where it is there; a cell that was cut off starts again."""
    if (there := stored(cell, scale, out)) is not None:
        return there
    config = load_config(None, cell.overrides(scale, out / "models"))
    folder = out / "work" / f"{cell.part}-{cell.name}"
    shutil.rmtree(folder, ignore_errors=True)
    rows = simulate(config, folder).rounds
    outcome = {**_summary(rows), "overrides": _portable(cell, scale)}
    if cell.purpose == "sweep":
        outcome["validation"] = _validation(config, folder, rows)
    path = out / "cells" / cell.part / f"{cell.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**_plain(cell), **outcome})
    shutil.rmtree(folder, ignore_errors=True)
    return {**_plain(cell), **outcome}


def sweep(cells_of: Callable[[float], list[Cell]], scale: Scale, out: Path) -> dict[float, float]:
    """Return validation accuracy by learning rate: the first three of the grid, and on until the best has worse on both sides.

    Args:
        cells_of: The runs of a rate, whose mean counts.
    """
    found = {lr: _score(cells_of(lr), scale, out) for lr in (scale.grid[index] for index in scale.first)}
    while True:
        at = scale.grid.index(best_of(found))
        fresh = [lr for lr in scale.grid[max(0, at - 1) : at + 2] if lr not in found]
        if not fresh:
            return dict(sorted(found.items()))
        found |= {lr: _score(cells_of(lr), scale, out) for lr in fresh}


def best_of(found: dict[float, float]) -> float:
    """Return the learning rate with the highest validation accuracy; of equals the smallest."""
    return max(sorted(found), key=lambda lr: found[lr])


def _score(cells: list[Cell], scale: Scale, out: Path) -> float:
    return float(np.mean([run_cell(cell, scale, out)["validation"] for cell in cells]))


def _plain(cell: Cell) -> dict[str, Any]:
    keys = ("part", "task", "split", "clients", "budget", "label", "seed", "lr")
    return {key: getattr(cell, key) for key in keys}


def _portable(cell: Cell, scale: Scale) -> list[str]:
    """Return the overrides as they are wherever the study lies, with the model named by what it is made of."""
    task = scale.tasks[cell.task]
    model = f"model.name={task.model}[:{task.layers}]"
    return [model if key.startswith("model.name=") else key for key in cell.overrides(scale, Path("models"))]


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the tables need: per measured round its number, accuracy, and bytes so far up and down."""
    up, down = (np.cumsum([row[f"{way}link_bytes"] for row in rows]) for way in ("up", "down"))
    last = rows[-1]["round"]
    measured = [index for index, row in enumerate(rows) if row["test_accuracy"] is not None or row["round"] == last]
    at_clients = [row["clients_accuracy"] for row in rows if row["clients_accuracy"] is not None]
    return {
        "rounds": [rows[index]["round"] for index in measured],
        "accuracy": [rows[index]["test_accuracy"] for index in measured],
        "loss": rows[-1]["test_loss"],
        # The last half: few clients measure in one round, and what they hold differs.
        "at_clients": float(np.mean(at_clients[-(len(rows) // 2) :])) if at_clients else None,
        "up": [int(up[index]) for index in measured],
        "down": [int(down[index]) for index in measured],
        "failed": int(sum(row["clients_failed"] for row in rows)),
        "seconds": round(sum(row["wall_time_s"] for row in rows), 1),
    }


def _validation(config: RunConfig, folder: Path, rows: Sequence[dict[str, Any]]) -> float:
    """Return the accuracy of the last state on all clients' held-out parts together, or what clients measured where they must."""
    if config.method == "fedsa-lora":
        return float(_summary(rows)["at_clients"])
    bench = build(config)
    state = load_checkpoint(list_checkpoints(RunFolder.open(folder).checkpoints)[-1]).state
    start = bench.start(state.adapter, config.rounds + 1)
    held = np.concatenate(bench.held)
    return evaluate(bench.backbone, bench.train, held, start, config.evaluation.batch_size).summary()[0]


def first_layers(task: Task, models: Path) -> None:
    """Save the first layers of a task's packaged model where they are not saved yet: bit for bit the packaged weights."""
    folder = models / task.folder
    if (folder / "config.json").exists():
        return
    from transformers import AutoModel, AutoTokenizer

    from fedlora.files import atomic_folder
    from fedlora.models.quiet import quiet
    from fedlora.models.sources import find_source

    source = find_source(task.model, None)
    with quiet():
        whole = AutoModel.from_pretrained(source.name)
        settings = whole.config.to_dict() | {"num_hidden_layers": task.layers}
        for key in ("stage_names", "out_features", "out_indices"):  # they follow from the number of layers
            settings.pop(key, None)
        part = type(whole)(type(whole.config)(**settings))
        missing = part.load_state_dict(whole.state_dict(), strict=False).missing_keys
        if missing:
            raise ValueError(f"{task.model} has no {missing}")
        with atomic_folder(folder) as temporary:
            part.save_pretrained(temporary)
            if (Path(source.name) / "tokenizer_config.json").exists():
                AutoTokenizer.from_pretrained(source.name).save_pretrained(temporary)
