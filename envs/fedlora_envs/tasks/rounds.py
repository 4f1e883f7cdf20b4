"""Federated rounds of E global models as a fitted response model gives them: what the mean over clients' replies moves.

The response model (`fedlora_envs.tasks.response`) is fitted to fine-tunings at one place. Two assumptions make rounds of it:

* a component that a share of the delivered clients sent ages by that share of the round's steps (the mean over clients);
* a round counts as `steps (delivered / clients)^a` of the model's steps: a mean over fewer clients moves less surely. The
  exponent a is not fitted: 0 says that one client is as good as all, 1 that each counts alike.

The server measures the whole global adapter, so that nothing is cut. Where nobody delivers nothing moves.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedlora.federation.gains import PRIOR
from fedlora_envs.noise import normals
from fedlora_envs.tasks.base import Chosen, Floats, Ranks
from fedlora_envs.tasks.response import Response


class RecordedRounds:
    """E global models.

    Args:
        response: The model.
        episodes: E.
        clients: K, those asked in each round.
        steps: Steps of the response model that a round of local training is worth.
        participation: Exponent a.

    Attributes:
        age: Steps that each component was trained, `[E, L, cap]`.
        steps_done: Steps taken, `[E]`.
    """

    def __init__(self, response: Response, episodes: int, clients: int, steps: float, participation: float) -> None:
        self.response, self.sites, self.episodes, self.clients = response, response.where, episodes, clients
        self._steps, self._participation = steps, participation
        self._levels = np.arange(1, int(self.sites.caps.max()) + 1)
        self._real = self._levels <= self.sites.caps[:, None]
        self._flat = self._real / self._real.sum()
        self.age = np.zeros((episodes, *self._real.shape))
        self.steps_done = np.zeros(episodes)
        self._scale = np.ones((episodes, len(self.sites)))
        self.text = np.zeros((episodes * clients, 3))

    def begin(self, which: Chosen, seeds: NDArray[np.uint64], episode: NDArray[np.int64]) -> None:
        """Start from untrained models where `which` `[E]`; what differs between episodes is drawn by seed and number."""
        response, start = self.response, np.zeros(self.episodes, np.int64)
        self.age = np.where(which[:, None, None], 0.0, self.age)
        self.steps_done = np.where(which, 0.0, self.steps_done)
        drawn = normals(seeds, "task norms", episode, start, len(self.sites))
        scale = np.asarray(response.energy) * np.exp(response.energy_std * drawn)
        self._scale = np.where(which[:, None], scale, self._scale)
        z = normals(seeds, "client texts", episode, start, 3 * self.clients).reshape(-1, 3)
        text = np.clip(np.asarray(response.text_mean) + np.asarray(response.text_std) * z, 0.0, 1.0)
        self.text = np.where(np.repeat(which, self.clients)[:, None], text, self.text)

    def advance(self, ranks: Ranks, delivered: Chosen) -> None:
        """Play a round at `ranks` `[E, K, L]`, of whose clients `delivered` `[E, K]` arrived."""
        count = delivered.sum(axis=1)
        sent = np.where(delivered[:, :, None], ranks, 0)
        # How many clients sent each component: a loop over the few clients of a round spares an array [E, K, L, cap].
        senders = np.zeros(self.age.shape, np.int16)
        for client in range(self.clients):
            senders += sent[:, client, :, None] >= self._levels
        steps = self._steps * (count / self.clients) ** self._participation * (count > 0)
        self.age += senders * (steps / np.maximum(count, 1))[:, None, None]
        self.steps_done = self.steps_done + steps

    def loss(self) -> Floats:
        """Return the held-out loss, `[E]`."""
        return self._loss(self._progress(), self.steps_done)

    def accuracy(self) -> Floats:
        """Return the held-out accuracy, `[E]`."""
        return self.response.accuracy(self.loss())

    def shown_gains(self) -> Floats:
        """Return what the server can tell of each level's worth, `[E, L, cap]`, as `fedlora.federation.gains` does.

        Squared norms of components, falling along a site, as shares of their sum; a part `PRIOR` of the total is flat.
        """
        # As in the recorded task: with its age a component's share of the update grows, and its norm with it.
        energy = np.minimum.accumulate(self.age**3 * self._scale[:, :, None], axis=2) * self._real
        total = energy.reshape(self.episodes, -1).sum(axis=1)[:, None, None]
        known = (1 - PRIOR) * energy / np.where(total > 0, total, 1.0) + PRIOR * self._flat
        return np.asarray(np.where(total > 0, known, self._flat), np.float64)

    def true_gains(self) -> Floats:
        """Return by how much each level of one client's reply lowers the loss if all deliver, `[E, L, cap]`: for oracles.

        To first order, about a round in which nobody sends anything but the task head; what all clients add together to a
        component is divided evenly.
        """
        after = self.steps_done + self._steps
        progress = self._progress()
        step = 1e-6 * np.maximum(1.0, progress)
        slope = (self._loss(progress, after) - self._loss(progress + step, after)) / step
        added = self.response.grown(self.age + self._steps) - self.response.grown(self.age)
        each = np.maximum(slope, 0.0)[:, None, None] * added * self.response.worth / self.clients
        return np.asarray(np.minimum.accumulate(each, axis=2), np.float64)

    # -- pieces ------------------------------------------------------------------------------------------------------

    def _progress(self) -> Floats:
        # Row by row, so that a member of many sums in the same order as one alone.
        grown = self.response.grown(self.age) * self.response.worth
        return np.asarray(grown.reshape(self.episodes, -1).sum(axis=1), np.float64)

    def _loss(self, progress: Floats, steps: Floats) -> Floats:
        return self.response.loss(progress, progress, cast(Any, steps))


def made_up(rank: int = 32) -> Response:
    """Return a response model that nobody measured, for the query and value projections of a MiniLM (6 blocks of width 384).

    It has the shape of real ones: sites differ by a factor of 8, the first components of a site are worth most, the head alone
    gets a fifth of the way. Use it to try things out, never to claim anything.
    """
    names = [f"encoder.layer.{block}.attention.self.{name}" for block in range(6) for name in ("query", "value")]
    share = 8.0 ** np.linspace(0.0, 1.0, len(names))
    return Response(
        sites=names, caps=[rank] * len(names), numbers=[2 * 384 + 1] * len(names), untrained=1.75, plateau=1.6, floor=0.25,
        settle=0.5, weights=(0.04 * share / share.sum()).tolist(), curve=3.0, head=0.01, age=1.0, shape=1.0, cut=0.3,
        batch_std=0.1, pace_std=0.1, text_mean=[0.85, 0.5, 0.2], text_std=[0.02, 0.02, 0.02], text_weights=[0.0, 0.0, 0.0],
        knots_loss=[0.25, 0.6, 1.2, 1.6, 1.75], knots_accuracy=[0.92, 0.84, 0.6, 0.25, 0.17], energy=share.tolist(),
        energy_std=0.5, source={"made up": "yes"},
    )  # fmt: skip
