"""Ravan beside the methods it was measured against, at equal budgets, every method with a learning rate of its own.

    python experiments/ravan/study.py                    # all of it, two cells at a time; goes on where it was stopped
    python experiments/ravan/study.py --parts tiers      # some parts; --list names them with their cells
    python experiments/ravan/study.py --report           # tables and plots of what there is, nothing is run
    python experiments/ravan/study.py --quick            # every part in tiny runs that mean nothing

Every finished run is one small JSON file below `--out`; what is there is not repeated. Learning rates are chosen on examples that
nobody trains on (the clients' held-out parts) under seeds of their own; the test set plays no part in the choice. Writes
results.json, the plots and the tables of README.md beside this file (`--quick`: into `--out`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Before torch is loaded: threads inside operations this short wait for one another, and two cells run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.common import lean, write_rows
from experiments.ravan.cells import (
    ABLATIONS,
    CONTENDERS,
    METHODS_ALL,
    QUICK,
    TIERS,
    Cell,
    Scale,
    best_of,
    first_layers,
    run_cell,
    stored,
    sweep,
)
from experiments.ravan.report import SECTIONS, report
from experiments.ravan.results import summary
from fedlora.errors import FedLoRAError
from fedlora.files import write_atomic, write_json
from fedlora.runs.environment import environment

HERE = Path(__file__).parent
RUNS = Path("runs/ravan-study")
SWEEP_SEEDS = (1000, 1001, 1002)
"""Under one seed alone a rate can look best that makes another seed diverge."""


@dataclass(frozen=True)
class Part:
    """A part of the study.

    Attributes:
        name: As on the command line.
        split: IID or not.
        contenders: Labels.
        crowd: Position in `Scale.clients`: 0 the fewer, 1 the more.
        budget: "low" or "high".
        sweeps: Whether it chooses learning rates, rather than using them.
    """

    name: str
    split: str
    contenders: tuple[str, ...]
    crowd: int = 0
    budget: str = "low"
    sweeps: bool = False


# The most useful first: a study that is stopped early has whole tables of what it had time for.
PARTS = (
    Part("sweep-dirichlet", "dirichlet", tuple(METHODS_ALL), sweeps=True),
    Part("dirichlet", "dirichlet", tuple(METHODS_ALL)),
    Part("sweep-iid", "iid", tuple(METHODS_ALL), sweeps=True),
    Part("iid", "iid", tuple(METHODS_ALL)),
    Part("sweep-ablations", "dirichlet", tuple(ABLATIONS), sweeps=True),
    Part("ablations", "dirichlet", tuple(ABLATIONS)),
    Part("tiers", "dirichlet", tuple(TIERS)),
    Part("sweep-dirichlet-high", "dirichlet", tuple(METHODS_ALL), budget="high", sweeps=True),
    Part("dirichlet-high", "dirichlet", tuple(METHODS_ALL), budget="high"),
    Part("dirichlet-crowd", "dirichlet", tuple(METHODS_ALL), crowd=1),
    Part("iid-crowd", "iid", tuple(METHODS_ALL), crowd=1),
    Part("sweep-iid-high", "iid", tuple(METHODS_ALL), budget="high", sweeps=True),
    Part("iid-high", "iid", tuple(METHODS_ALL), budget="high"),
    Part("dirichlet-crowd-high", "dirichlet", tuple(METHODS_ALL), crowd=1, budget="high"),
    Part("iid-crowd-high", "iid", tuple(METHODS_ALL), crowd=1, budget="high"),
)


@dataclass(frozen=True)
class Sweep:
    """The choice of one learning rate, which is several cells one after the other."""

    cell: Cell

    def run(self, scale: Scale, out: Path) -> str:
        """Choose; return what was found in one line."""
        found = sweep(lambda lr: [replace(self.cell, lr=lr, seed=seed) for seed in SWEEP_SEEDS], scale, out)
        best = best_of(found)
        path = rate_file(out, self.cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        tried = {f"{lr:g}": value for lr, value in found.items()}
        setting = {key: getattr(self.cell, key) for key in ("task", "split", "budget", "label")}
        write_json(path, {**setting, "lr": best, "tried": tried})
        return f"lr {best:g} of {', '.join(f'{lr}: {value:.3f}' for lr, value in tried.items())}"


@dataclass(frozen=True)
class Single:
    """One cell, at the learning rate that was chosen for its contender."""

    cell: Cell

    def run(self, scale: Scale, out: Path) -> str:
        """Run; return what came out in one line."""
        found = run_cell(self.cell, scale, out)
        score = found["accuracy"][-1]
        measured = f"{score:.3f}" if score is not None else f"{found['at_clients']:.3f} at clients"
        return f"{measured} ({found['seconds']:.0f} s)"


def rate_file(out: Path, cell: Cell) -> Path:
    """Return where the learning rate for this cell's contender, task, split and budget is kept."""
    label = CONTENDERS[cell.label].tuned_as or cell.label
    return out / "lr" / f"{replace(cell, label=label, seed=0, lr=1.0, clients=0).name}.json"


def rate_of(out: Path, cell: Cell, part: str) -> float:
    """Return the learning rate that a sweep chose (FedLoRAError where none has)."""
    path = rate_file(out, cell)
    if not path.exists():
        raise FedLoRAError(
            f"part '{part}' needs a learning rate for {cell.label} on {cell.task}, {cell.split}, {cell.budget} budget, and no "
            "sweep has chosen one: run the parts in their order, sweeps first"
        )
    return float(json.loads(path.read_text(encoding="utf-8"))["lr"])


def units(part: Part, scale: Scale, out: Path, seeds: Sequence[int]) -> Iterator[Sweep | Single]:
    """Return what a part has to do, all contenders of the first seed first."""
    for seed in SWEEP_SEEDS[:1] if part.sweeps else seeds:
        for task in scale.tasks:
            for label in part.contenders:
                if label not in scale.contenders or (CONTENDERS[label].method == "full" and part.budget == "high"):
                    continue  # full fine-tuning has no budget
                cell = Cell(part.name, task, part.split, scale.clients[part.crowd], part.budget, label, seed, 1.0)
                if part.sweeps:
                    yield Sweep(replace(cell, purpose="sweep"))
                else:
                    yield Single(replace(cell, lr=rate_of(out, cell, part.name)))


def end_with(parent: int) -> None:
    """Let a worker process have one thread, and end when the process that started it is gone, killed or not."""
    import torch

    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_parts(parts: Iterable[Part], scale: Scale, out: Path, seeds: Sequence[int], jobs: int) -> list[str]:
    """Run what is not there yet, part after part; return one line for each unit that failed."""
    for task in scale.tasks.values():
        first_layers(task, out / "models")
    failures: list[str] = []
    with workers(jobs) as pool:
        for part in parts:
            began, todo = time.monotonic(), list(units(part, scale, out, seeds))
            todo = [unit for unit in todo if isinstance(unit, Sweep) or stored(unit.cell, scale, out) is None]
            print(f"{part.name}: {len(todo)} to do", flush=True)
            for done, (unit, said, failed) in enumerate(outcomes(pool, todo, scale, out), 1):
                cell = unit.cell
                seed = "" if isinstance(unit, Sweep) else f", seed {cell.seed}"
                what = f"{cell.task} {cell.split} {cell.clients} {cell.budget}, {cell.label}{seed}"
                failures += [f"{part.name}: {what}: {said}"] if failed else []
                print(f"[{part.name} {done}/{len(todo)}] {'failed: ' * failed}{what}: {said}", flush=True)
            print(f"{part.name}: done in {time.monotonic() - began:.0f} s", flush=True)
    return failures


def workers(jobs: int) -> contextlib.AbstractContextManager[ProcessPoolExecutor | None]:
    """Return processes to work in, or None for one job, which is done in this process."""
    if jobs == 1:
        return contextlib.nullcontext()
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), end_with, (os.getpid(),))


def outcomes(
    pool: ProcessPoolExecutor | None, todo: Sequence[Sweep | Single], scale: Scale, out: Path
) -> Iterator[tuple[Sweep | Single, str, bool]]:
    """Yield each unit with what came of it in one line, and whether it failed, as they finish."""
    if pool is None:
        for unit in todo:
            yield unit, *work(unit, scale, out)
        return
    futures = {pool.submit(work, unit, scale, out): unit for unit in todo}
    try:
        for future in as_completed(futures):
            yield futures[future], *future.result()
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def work(unit: Sweep | Single, scale: Scale, out: Path) -> tuple[str, bool]:
    """Do one unit of work; return what came of it, and whether it failed."""
    try:
        return unit.run(scale, out), False
    except FedLoRAError as error:
        return str(error), True


def collect(scale: Scale, out: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Return everything there is, as plain data."""
    rates = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / "lr").glob("*.json"))]
    cells = []
    for part in PARTS:
        if part.sweeps:
            continue
        try:
            todo = list(units(part, scale, out, seeds))
        except FedLoRAError:
            continue  # its sweep has not been done
        found = (stored(unit.cell, scale, out) for unit in todo)
        cells += [lean(item, drop=("overrides",)) for item in found if item is not None]
    spent = [json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in (out / "cells").glob("*/*.json")]
    settings = {"rounds": scale.rounds, "per_round": scale.per_round, "clients": list(scale.clients), "keys": list(scale.keys)}
    settings["tasks"] = {name: [f"{task.model}[:{task.layers}]", *task.overrides] for name, task in scale.tasks.items()}
    return {
        "environment": environment(),
        "settings": settings,
        "spent": {"runs": len(spent), "seconds": round(sum(spent))},
        "rates": [lean(item) for item in rates],
        "cells": cells,
    }


def seeds_there(out: Path) -> list[int]:
    """Return the seeds that test cells have been run with; 0 was looked at while the study was made, and counts nowhere."""
    cells = (path for path in (out / "cells").glob("*/*.json") if not path.parent.name.startswith("sweep"))
    return sorted({int(path.stem.rpartition("seed")[2]) for path in cells} - {0})


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help=f"where outcomes of runs lie; default: {RUNS}")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="default: all, in this order")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="to run; tables take all there are. Default: 1 2 3"
    )
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, one thread each; default: 2")
    parser.add_argument("--quick", action="store_true", help="tiny runs, to see that all of it works")
    parser.add_argument("--list", action="store_true", help="name the parts")
    parser.add_argument("--report", action="store_true", help="run nothing; write tables and plots of what there is")
    given = parser.parse_args(arguments)
    scale = QUICK if given.quick else Scale()
    out = given.out or (RUNS.with_name("ravan-quick") if given.quick else RUNS)
    parts = [part for part in PARTS if given.parts is None or part.name in given.parts]
    if given.list:
        for part in parts:
            print(f"{part.name}: {len(part.contenders)} contenders x {len(scale.tasks)} tasks")
        return 0
    failures = [] if given.report else study(parts, scale, out, given.seeds, given.jobs)
    where = HERE
    if given.quick:
        where = out
        write_atomic(out / "README.md", "".join(f"<!-- {name} -->\n<!-- /{name} -->\n\n" for name in SECTIONS))
    if not given.report or (out / "cells").exists():
        found = collect(scale, out, seeds_there(out))
        write_rows(where / "results.json", {"summary": summary(found), **found})
    report(json.loads((where / "results.json").read_text(encoding="utf-8")), where)
    for line in failures:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failures else 0


def study(parts: Iterable[Part], scale: Scale, out: Path, seeds: Sequence[int], jobs: int) -> list[str]:
    """Run the parts; what cannot go on is said in one line."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        return run_parts(parts, scale, out, seeds, jobs)
    except FedLoRAError as error:
        return [str(error)]
    except KeyboardInterrupt:
        return ["stopped; the same command goes on from here"]


if __name__ == "__main__":
    sys.exit(main())
