"""Real fine-tunings at random ranks, written down step by step: what a response model is fitted to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedlora.config import RunConfig
from fedlora.errors import ConfigError, reason
from fedlora.files import write_atomic
from fedlora.streams import stream
from fedlora_envs.tasks.base import Floats, Ranks, Sites
from fedlora_envs.tasks.live import LiveTask, alone

FORMAT = 1
# Fine-tunings side by side: enough to fill the cores, few enough that little is lost when a recording is cut off.
_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class Records:
    """N episodes of T steps each, in the order in which they were drawn.

    Attributes:
        header: What was run: format, run file, seed, local_steps, heldout, horizon, sites, numbers and the untrained loss.
        ranks: Ranks of each training step, `[N, T, L]`.
        batch_loss: Loss of its mini-batches, `[N, T]`.
        text: Features of its mini-batches, `[N, T, 3]`.
        measured: Ranks at which the adapter was cut for measuring after the step, `[N, T, L]`.
        loss: Held-out loss then, `[N, T]`.
        accuracy: Held-out accuracy then, `[N, T]`.
        gains: What `LiveTask.gains` said then, `[N, T, L, cap]`.
    """

    header: dict[str, Any]
    ranks: Ranks
    batch_loss: Floats
    text: Floats
    measured: Ranks
    loss: Floats
    accuracy: Floats
    gains: Floats

    def __len__(self) -> int:
        return len(self.ranks)

    def take(self, rows: Any) -> Records:
        """Return some of the episodes."""
        return Records(self.header, *(getattr(self, name)[rows] for name in _COLUMNS))


_COLUMNS: dict[str, Any] = {
    "ranks": np.int64,
    "batch_loss": np.float64,
    "text": np.float64,
    "measured": np.int64,
    "loss": np.float64,
    "accuracy": np.float64,
    "gains": np.float64,
}


def random_ranks(sites: Sites, horizon: int, seed: int, episode: int) -> tuple[Ranks, Ranks]:
    """Return the ranks that an episode trains at and those it is measured at, `[T, L]` each.

    An episode keeps one of four ways of drawing: every site by itself; one share of the cap for all sites; every site all or
    nothing; a share of each site's own about a share that the step has. In a third of the episodes the vector stays the same
    from step to step. Every other step is measured at its own ranks, the others at new ones, which shows what a cut costs.
    """
    rng = stream(seed, "recorded ranks", episode)

    def draw(steps: int) -> Floats:
        each = rng.random((steps, len(sites)))
        common = rng.random((steps, 1))
        shapes = [each, np.broadcast_to(common, each.shape), (each < common).astype(float), (0.3 * each + common) / 1.3]
        return shapes[episode % 4]

    def whole(share: Floats) -> Ranks:
        return np.minimum((share * (sites.caps + 1)).astype(np.int64), sites.caps)

    constant = bool(rng.random() < 1 / 3)
    trained = np.repeat(whole(draw(1)), horizon, axis=0) if constant else whole(draw(horizon))
    other = whole(rng.random((horizon, len(sites)))) if rng.random() < 0.5 else whole(draw(horizon))
    return trained, np.where(np.arange(horizon)[:, None] % 2 == 0, trained, other)


def record(
    config: RunConfig,
    path: Path,
    episodes: int,
    horizon: int,
    seed: int = 0,
    local_steps: int = 5,
    heldout: int = 64,
    say: Callable[[str], None] = lambda text: None,
) -> Records:
    """Run what is not in `path` yet and return all of it; the file is whole after every group of episodes.

    Args:
        config: The run (see `LiveTask`).
        path: JSON lines: a header, then one line an episode. A file of the same recording is gone on with.
        episodes: N.
        horizon: T.
        seed: Root of the random ranks and data orders.
        local_steps: Mini-batches of one step.
        heldout: Examples that are measured on.
        say: Told how far it is.

    Raises:
        FedLoRAError: The configuration cannot work, or `path` holds another recording.
    """
    header: dict[str, Any] = {"format": FORMAT, "seed": seed, "horizon": horizon, "local_steps": local_steps}
    header |= {"heldout": heldout, "run": alone(config, local_steps).model_dump(mode="json", exclude_none=True)}
    lines: list[str] = []
    if path.exists():
        found = read_records(path)
        if any(found.header.get(key) != value for key, value in header.items()):
            raise ConfigError(f"{path} holds a recording of another run. Name another file, or remove it")
        lines = path.read_text(encoding="utf-8").splitlines()
        say(f"{len(found)} of {episodes} episodes are in {path}")
    if len(lines) - 1 < episodes:
        say("loading model and data")
        task = LiveTask(config, min(_AT_ONCE, episodes), local_steps, heldout)
        if not lines:
            lines = [json.dumps(header | _start(task))]
        while len(lines) - 1 < episodes:
            first = len(lines) - 1
            numbers = np.arange(first, min(first + task.episodes, episodes))
            lines += _group(task, numbers, horizon, seed, lambda step: say(f"episodes {first} to {numbers[-1]}: {step}"))  # noqa: B023
            write_atomic(path, "\n".join(lines) + "\n")
    return read_records(path).take(slice(episodes))


def _start(task: LiveTask) -> dict[str, Any]:
    loss, accuracy = task.measure(np.zeros((task.episodes, len(task.sites)), np.int64))
    sites = task.sites
    named = {"sites": list(sites.names), "caps": sites.caps.tolist(), "numbers": sites.numbers.tolist()}
    return {**named, "untrained_loss": float(loss[0]), "untrained_accuracy": float(accuracy[0])}


def _group(task: LiveTask, numbers: Ranks, horizon: int, seed: int, say: Callable[[str], None]) -> list[str]:
    """Run episodes side by side; return a line of each."""
    count, spare = len(numbers), task.episodes - len(numbers)
    which = np.arange(task.episodes) < count
    padded = np.pad(numbers, (0, spare))
    task.begin(which, np.full(task.episodes, seed, np.uint64), padded, fresh=True)
    drawn = [random_ranks(task.sites, horizon, seed, int(number)) for number in padded]
    trained, measured = (np.stack([pair[part] for pair in drawn]) for part in (0, 1))
    measured[~which] = 0  # places left over are measured once: nothing changes there
    rows: list[dict[str, Any]] = [{"episode": int(number), **{name: [] for name in _COLUMNS}} for number in numbers]
    for step in range(horizon):
        text = task.text()
        batch_loss = task.train(trained[:, step], which)
        loss, accuracy = task.measure(measured[:, step])
        say(f"step {step + 1} of {horizon}, held-out loss {loss[which].mean():.3f}, accuracy {accuracy[which].mean():.3f}")
        values = (trained[:, step], batch_loss, text, measured[:, step], loss, accuracy, task.gains())
        for episode, row in enumerate(rows):
            for name, value in zip(_COLUMNS, values, strict=True):
                row[name].append(np.round(value[episode], 6).tolist())
    return [json.dumps(row) for row in rows]


def read_records(path: Path) -> Records:
    """Read what `record` wrote (ConfigError where it is something else)."""
    try:
        header, *rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        if header["format"] != FORMAT:
            raise ConfigError(f"{path} has format {header['format']}; this version reads {FORMAT}. Record it anew")
        steps, sites = header["horizon"], len(header["sites"])
        cap = max(header["caps"])
        shapes = {"ranks": (steps, sites), "measured": (steps, sites), "text": (steps, 3), "gains": (steps, sites, cap)}
        columns: dict[str, Any] = {
            name: np.array([row[name] for row in rows], kind).reshape(len(rows), *shapes.get(name, (steps,)))
            for name, kind in _COLUMNS.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} cannot be read as records of `fedlora record-response`: {reason(error)}. Record them anew"
        ) from None
    return Records(header, **columns)
