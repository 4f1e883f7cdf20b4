"""Run a federation: build, open the folder, let Flower's loop turn, export."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fedlora.config import RunConfig
from fedlora.data.plot import count_labels, plot_label_mix
from fedlora.errors import FedLoRAError
from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.client import BASES, KEPT
from fedlora.federation.engines import refuse_deployment, run_engine
from fedlora.federation.policy import StatefulPolicy
from fedlora.federation.roll import Latecomers, Roster, call_roll
from fedlora.federation.strategy import RoundStrategy, ServerState, policy_of
from fedlora.federation.workbench import Workbench, build, check_run
from fedlora.federation.world import World, make_world
from fedlora.files import write_atomic, write_json
from fedlora.runs.checkpoint import Checkpoint, prune, save_checkpoint
from fedlora.runs.environment import environment
from fedlora.runs.export import export_state
from fedlora.runs.folder import FEDERATION, RunFolder, holds_run, refuse_taken
from fedlora.runs.progress import Progress, Quiet
from fedlora.runs.summary import counted
from fedlora.runs.tensorboard import Events
from fedlora.runs.trackers import Trackers, check_trackers, flat_config
from fedlora.runs.unread import unread
from fedlora.training.evaluation import evaluate
from fedlora.wire import encode, from_record, to_record


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder and one row per round (the rows of metrics.jsonl)."""

    folder: Path
    rounds: list[dict[str, Any]]


def simulate(config: RunConfig, out: Path, *, resume: bool = False, progress: Progress | None = None) -> RunResult:
    """Run `config` into the folder `out` on the engine that it names (see `run`).

    Raises:
        FedLoRAError: Before any work where the configuration or the folder cannot do; during the run where the disk fails.
    """
    refuse_deployment(config)
    return run(config, out, resume=resume, progress=progress)


def run(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    grid: Grid | None = None,
    world_of: Callable[[Workbench], World | None] = make_world,
) -> RunResult:
    """Run `config` into the folder `out`.

    Args:
        config: The run.
        out: New folder, or with `resume` the folder of a run that was cut off.
        resume: Go on from the newest checkpoint; the folder's configuration must be `config`.
        progress: Who is told how far the run is; default: nobody.
        grid: The nodes to work with; default: those of the engine that the configuration names, started here.
        world_of: Returns the world between server and clients; default: the simulated one that the configuration names.

    Raises:
        FedLoRAError: Before any work where the configuration or the folder cannot do; during the run where the disk fails.
    """
    progress = progress or Quiet()
    logging.getLogger("flwr").setLevel(logging.ERROR)  # its loop logs every step of a round; the run folder has all of it
    if not (resume and holds_run(out)):
        refuse_taken(out)
    else:
        RunFolder.open(out).refuse_other(config)
    check_trackers(config)
    check_run(config)
    progress.say("loading model and data")
    bench = build(config)
    policy_of(bench)  # options that do not fit are refused before anything is written
    world = world_of(bench)
    for note in [*unread(config, bench.adapters[0]), *(world.notes if world else [])]:
        progress.say(f"note: {note}")
    if bench.backbone.placement.emulated:
        progress.say(
            "note: this device emulates bf16, which is slower than fp32 here; training.precision = 'auto' would choose fp32"
        )
    folder = RunFolder.open(out) if resume and holds_run(out) else RunFolder.create(out, config)
    with folder.alone():
        session = Session(bench, folder, progress, world)
        done = False
        try:
            session.run(grid)
            session.finish()
            done = True
        finally:
            session.trackers.close(done)
    rows = folder.rows()
    if not any(counted(row) for row in rows):
        progress.say("no reply was counted in any round: the adapter is the one that the run began with")
    return RunResult(folder.path, rows)


class Session:
    """One process's work on a run: what Flower's loop calls back into.

    Args:
        bench: Model, data and aggregator.
        folder: The run's folder.
        progress: Who is told how far the run is.
        world: The radio world of the run, or None.
    """

    def __init__(self, bench: Workbench, folder: RunFolder, progress: Progress, world: World | None = None) -> None:
        self.bench, self.folder, self.progress, self.world = bench, folder, progress, world
        self.config = bench.config
        checkpoint = folder.latest()
        if checkpoint is None:
            previous = np.zeros((self.config.clients, len(bench.adapters)), np.int64)
            checkpoint = Checkpoint(ServerState(0, bench.initial(), previous), {}, {}, bench.chunk)
            self.fresh = True
        else:
            self.fresh = False
        self.state, self.kept, self.remembered = checkpoint.state, checkpoint.clients, checkpoint.policy
        bench.chunk = checkpoint.chunk
        if world and checkpoint.world:
            world.restore(checkpoint.world)
        folder.clean(checkpoint.log_bytes)
        prune(folder.checkpoints, self.config.output.keep_checkpoints)
        self.events = Events(folder.log("events"), self.config.output.tensorboard, about=flat_config(self.config))
        self.trackers = Trackers(folder.path, self.config, progress.say)
        self.clock = time.perf_counter()
        self.grid: Grid | None = None

    def run(self, grid: Grid | None = None) -> None:
        """Run the rounds that are left: over `grid`, or on the engine that the configuration names."""
        if self.fresh:
            write_json(self.folder.path / "environment.json", environment(self.bench.backbone.placement.device))
            self._describe()
        self.progress.start(self.config, self.folder.rows())
        self.bench.backbone.on_step = self.progress.step
        if self.state.round >= self.config.rounds:
            return
        if grid is not None:
            self.serve(grid)
            return
        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            self.serve(grid)

        run_engine(self.bench, app)

    def _describe(self) -> None:
        """Write down who has what, and what is trained."""
        labels, names = self.bench.dataset.train.labels, self.bench.dataset.label_names
        parts = [np.concatenate(pair) for pair in zip(self.bench.parts, self.bench.held, strict=True)]
        about = {
            "labels": list(names),
            "counts": count_labels(labels, parts, names).tolist(),
            "sites": [adapter.site.name for adapter in self.bench.adapters],
            "caps": [adapter.cap for adapter in self.bench.adapters],
        }
        write_atomic(self.folder.path / FEDERATION, json.dumps(about) + "\n")
        plot_label_mix(labels, parts, names, self.folder.path / "label_mix.png")

    def serve(self, grid: Grid) -> None:
        """Be the server: restore what clients keep, call the roll, drive Flower's loop."""
        self.grid = grid
        if isinstance(grid, BatchedGrid):
            self._restore_clients(grid)
        else:
            self.state.holders[:] = False  # nodes of another process may be new ones
        labels = self.bench.dataset.label_names
        roster = call_roll(grid, self.config.clients, self.config.deployment.start_timeout_s, labels)
        if len(roster) < self.config.deployment.least_nodes:
            raise FedLoRAError(
                f"{len(roster)} of {self.config.clients} clients are there after {self.config.deployment.start_timeout_s:g} s, "
                f"deployment.least_nodes = {self.config.deployment.least_nodes}. Start the nodes that are missing, or lower it"
            )
        strategy = RoundStrategy(self.bench, roster, self.state, self.world)
        if self.remembered and isinstance(strategy.policy, StatefulPolicy):
            strategy.policy.restore(self.remembered)
        clients = {node: client for client, (node, _) in roster.items()}
        late = Latecomers(grid, roster, self.config.clients, labels, self.progress.say)
        if self.world:
            grid = self.world.grid(grid, clients)
        self.clock = time.perf_counter()

        def between_rounds(number: int, _: ArrayRecord) -> None:
            self.end_round(number, strategy)
            if self.config.engine == "deployment":  # elsewhere all nodes are there from the start
                self._take_in(late, roster, clients)

        strategy.start(grid, strategy.broadcast(), num_rounds=self.config.rounds - self.state.round, evaluate_fn=between_rounds)

    def _take_in(self, late: Latecomers, roster: Roster, clients: dict[int, int]) -> None:
        """Let nodes that came late take part in the rounds to come; `clients` is what the world knows them by."""
        for client in late.look():
            node = roster[client][0]
            clients[node] = client
            self.state.holders[client] = False  # it may be another device than before
            self.progress.say(f"client {client} takes part from round {self.state.round + 1} on")

    def end_round(self, number: int, strategy: RoundStrategy) -> None:
        """Measure, log and checkpoint; Flower calls this before the first round (0) and after each."""
        if number == 0 and not self.fresh:
            return
        state, record = strategy.state, strategy.record
        row = self._metrics(state, record.clients, record.coverage)
        row |= {"void": record.void} if record.void else {}
        self.folder.append("clients", record.clients)
        self.folder.append("metrics", [row])
        self.events.round(row, record.clients)
        self.trackers.round(row, record.clients)
        save_checkpoint(
            self.folder.checkpoints,
            Checkpoint(
                state,
                self._kept_by_clients(),
                self.folder.log_bytes(),
                self.bench.chunk,
                self.world.state() if self.world else {},
                strategy.policy.state() if isinstance(strategy.policy, StatefulPolicy) else {},
            ),
            self.config.output.keep_checkpoints,
        )
        self.progress.round(row, record.clients)
        self.clock = time.perf_counter()

    def finish(self) -> None:
        """Export the final adapter; where this process trained nothing, the one that is there is it."""
        adapter = self.folder.path / "adapter"
        if self.grid is not None or not adapter.exists():
            export_state(self.bench, self.state, adapter)
        self.progress.stop(self.folder.path, self.folder.rows())

    def _metrics(self, state: ServerState, clients: list[dict[str, Any]], coverage: float) -> dict[str, Any]:
        done = [row for row in clients if row["status"] == "ok"]
        losses = [row["train_loss"] for row in done if "train_loss" in row]
        held = [row for row in done if "held_accuracy" in row and row.get("held_examples", 0) > 0]
        due = state.round % self.config.evaluation.every == 0 or state.round == self.config.rounds
        # Where clients keep a part of the model for themselves, the server has nothing whole to measure.
        whole = not any(adapter.personal for adapter in self.bench.adapters)
        accuracy, loss = self._evaluate(state) if due and whole else (None, None)
        examples = sum(row["held_examples"] for row in held)
        return {
            "round": state.round,
            "test_accuracy": accuracy,
            "test_loss": loss,
            "train_loss": float(np.mean(losses)) if losses else None,
            "clients_accuracy": sum(row["held_accuracy"] * row["held_examples"] for row in held) / examples if examples else None,
            "uplink_bytes": sum(row["uplink_bytes"] for row in clients),
            "downlink_bytes": sum(row["downlink_bytes"] for row in clients),
            "clients_selected": len(clients),
            "clients_failed": sum(not row["status"].startswith(("ok", "dropped", "late")) for row in clients),
            **(self.world.round_row() if self.world else {}),
            "mean_rank": float(np.mean([row["mean_rank"] for row in clients])) if clients else None,
            "coverage": coverage if clients else None,
            "wall_time_s": round(time.perf_counter() - self.clock, 3),
        }

    def _evaluate(self, state: ServerState) -> tuple[float, float]:
        start = self.bench.start(state.adapter, state.round + 1)
        batch = self.config.evaluation.batch_size
        return evaluate(self.bench.backbone, self.bench.test, self.bench.test_indices(), start, batch).summary()

    def _restore_clients(self, grid: BatchedGrid) -> None:
        """Give the clients back what they keep for themselves, and the bases to those that hold them."""
        for node, data in self.kept.items():
            grid.contexts[node].state[KEPT] = to_record(data)
        bases = encode(self.state.adapter.flat_bases(), "fp32")
        for node, context in grid.contexts.items():
            if self.state.holders[node - 1] and self.state.adapter.bases:
                context.state[BASES] = to_record(bases)

    def _kept_by_clients(self) -> dict[int, bytes]:
        if not isinstance(self.grid, BatchedGrid):
            return {}
        kept = {node: context.state for node, context in self.grid.contexts.items() if KEPT in context.state}
        return {node: from_record(state.array_records[KEPT]) for node, state in kept.items()}
