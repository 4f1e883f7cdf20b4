"""The round on the server's side: who is drawn, at which ranks, and what policies get to see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlora.errors import ConfigError
from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.policy import Observation
from fedlora.federation.roll import call_roll
from fedlora.federation.strategy import RoundStrategy
from fedlora.federation.workbench import build
from tiny_run import Ground, fresh_state, play


def _strategy(ground: Ground, *changes: str) -> RoundStrategy:
    bench = build(ground.config(*changes))
    return RoundStrategy(bench, call_roll(BatchedGrid(bench), bench.config.clients), fresh_state(bench))


def test_clients_are_drawn_evenly_without_replacement_and_by_round(ground: Ground) -> None:
    strategy = _strategy(ground)
    drawn = [strategy.draw(number).tolist() for number in range(1, 301)]
    assert all(sorted(set(round_)) == round_ and len(round_) == 4 for round_ in drawn)
    counts = np.bincount(np.concatenate(drawn))
    assert len(counts) == 6 and counts.min() > 170 and counts.max() < 230  # 200 expected
    assert strategy.draw(7).tolist() == drawn[6]
    assert [_strategy(ground, "seed=1").draw(number).tolist() for number in range(1, 11)] != drawn[:10]


def test_who_is_drawn_does_not_depend_on_the_method(ground: Ground) -> None:
    other = _strategy(ground, "adapter.method=lora", "policy.name=random", "wire.dtype=int8")
    assert [other.draw(number).tolist() for number in range(1, 6)] == [_strategy(ground).draw(n).tolist() for n in range(1, 6)]


class _Watches:
    def __init__(self, answer: Any = None) -> None:
        self.seen: list[Observation] = []
        self.answer = answer

    def choose(self, observation: Observation) -> Any:
        self.seen.append(observation)
        if self.answer is not None:
            return self.answer
        return np.full((len(observation.clients), 4), 4 * observation.round)


def test_policies_see_the_round_and_what_came_before(ground: Ground) -> None:
    bench = build(ground.config("rounds=3"))
    grid = BatchedGrid(bench)
    strategy = RoundStrategy(bench, call_roll(grid, 6), fresh_state(bench))
    watcher = strategy.policy = _Watches()
    strategy.start(grid, strategy.broadcast(), num_rounds=3)
    previous = np.zeros((6, 4), np.int64)
    for number, seen in enumerate(watcher.seen, 1):
        assert (seen.round, seen.rounds) == (number, 3) and seen.clients.tolist() == strategy.draw(number).tolist()
        assert seen.examples.tolist() == [len(bench.parts[client]) for client in seen.clients]
        assert seen.caps.tolist() == [16] * 4 and seen.units.tolist() == [4] * 4
        assert seen.previous.tolist() == previous[seen.clients].tolist()
        previous[seen.clients] = 4 * number
    assert strategy.state.previous.tolist() == previous.tolist()


@pytest.mark.parametrize(
    "answer",
    [np.full(4, 4), np.full((4, 3), 4), np.full((3, 4), 4), np.full((4, 4), 4.0), [["4"] * 4] * 4, 4],
    ids=["one-row", "sites-missing", "clients-missing", "fractions", "words", "one-number"],
)
def test_a_policy_that_answers_something_else_is_named(ground: Ground, answer: Any) -> None:
    strategy = _strategy(ground)
    strategy.policy = _Watches(answer)
    with pytest.raises(
        ConfigError, match=r"policy.name = 'full' chose ranks of .* whole numbers of shape \[4, 4\], \[clients, sites\]"
    ):
        strategy.ranks(1, strategy.draw(1))


def test_ranks_are_brought_inside_the_caps_and_units(ground: Ground) -> None:
    strategy = _strategy(ground)
    strategy.policy = _Watches(np.array([[-1, 3, 4, 99]] * 4))
    assert strategy.ranks(1, strategy.draw(1)).tolist() == [[0, 0, 4, 16]] * 4


ODD = {
    "one-client": ("clients=1", "clients_per_round=1"),
    "everybody": ("clients_per_round=6",),
    "nothing-held-out": ("data.client_test_fraction=0",),
    "nothing-measured-by-clients": ("evaluation.clients=false",),
    "one-test-example": ("data.max_test_examples=1",),
    "a-few-examples": ("data.max_examples=14", "data.partition=iid"),
    "batch-larger-than-clients": ("training.batch_size=500",),
    "less-than-a-batch": ("training.epochs=0.01",),
    "one-head": ("adapter.heads=1",),
    "rank-of-the-site": ("adapter.rank=32", "adapter.heads=1", "adapter.init=gram-schmidt"),
    "scaled": ("adapter.alpha=0.5", "training.head_lr=0.5"),
    "shards": ("data.partition=shards",),
    "short-texts": ("data.max_length=4",),
    "tiny-evaluation-batches": ("evaluation.batch_size=1",),
    "every-projection": ('adapter.targets=["re:.*layer.*(query|key|value|dense)"]', "adapter.method=lora"),
    "large-seed": ("seed=123456789012345678901234567890",),
    "bf16": ("training.precision=bf16",),
}


@pytest.mark.parametrize("changes", ODD.values(), ids=ODD.keys())
def test_odd_but_legal(ground: Ground, changes: tuple[str, ...]) -> None:
    bench = build(ground.config(*changes))
    _, records = play(bench, BatchedGrid(bench))
    for record in records:
        assert [row["status"] for row in record.clients] == ["ok"] * bench.config.clients_per_round
