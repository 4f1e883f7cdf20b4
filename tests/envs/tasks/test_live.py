"""The live task: side by side is one by one, ranks bound what acts and moves, and a fine-tune learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from fedlora.config import RunConfig
from fedlora.errors import ConfigError, TrainingError
from fedlora.training.evaluation import evaluate, evaluate_many
from fedlora.training.local import Start
from fedlora_envs.tasks.live import LiveTask
from fedlora_envs.tasks.worths import falling, with_prior
from tiny_run import Ground

ALL = np.ones(3, np.bool_)
SEEDS = np.array([3, 4, 5], np.uint64)
NUMBERS = np.array([0, 1, 7], np.int64)


def config(ground: Ground, *changes: str) -> RunConfig:
    return ground.config("adapter.method=triplet", "data.client_test_fraction=0.3", "training.lr=0.05", *changes)


def live(ground: Ground, *changes: str, episodes: int = 3, begun: bool = True, **options: Any) -> LiveTask:
    task = LiveTask(config(ground, *changes), episodes, **{"local_steps": 2, "heldout": 10, **options})
    if begun:
        task.begin(ALL[:episodes], SEEDS[:episodes], NUMBERS[:episodes], fresh=True)
    return task


def ranks_of(task: LiveTask, *levels: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.repeat(np.array(levels)[:, None], len(task.sites), axis=1)


def tensors(start: Start) -> dict[str, torch.Tensor]:
    named = {f"{site}/{name}": tensor for site, own in enumerate(start.sites) for name, tensor in own.items()}
    return named | start.head


def test_sites_are_the_models_with_their_bytes(ground: Ground) -> None:
    task = live(ground)
    assert task.sites.caps.tolist() == [4] * 4 and task.sites.numbers.tolist() == [32 + 32 + 1] * 4
    assert live(ground, "adapter.method=lora").sites.numbers.tolist() == [32 + 32] * 4


@pytest.mark.parametrize("method", ["triplet", "lora"])
@pytest.mark.parametrize("order", ["index", "importance"])
def test_side_by_side_is_one_by_one(method: str, order: str, ground: Ground) -> None:
    together = live(ground, f"adapter.method={method}", order=order)
    steps = [ranks_of(together, 0, 2, 4), ranks_of(together, 4, 1, 3), ranks_of(together, 2, 2, 2)]
    found = [(together.text(), together.train(ranks, ALL), together.measure(ranks), together.gains()) for ranks in steps]
    for episode in range(3):
        alone = live(ground, f"adapter.method={method}", episodes=1, begun=False, order=order)
        alone.begin(ALL[:1], SEEDS[episode : episode + 1], NUMBERS[episode : episode + 1], fresh=True)
        for ranks, (text, batch, (loss, accuracy), gains) in zip(steps, found, strict=True):
            own = ranks[episode : episode + 1]
            assert alone.text()[0] == pytest.approx(text[episode])
            assert alone.train(own, ALL[:1])[0] == pytest.approx(batch[episode], abs=1e-4)
            measured = alone.measure(own)
            assert measured[0][0] == pytest.approx(loss[episode], abs=1e-4)
            assert measured[1][0] == pytest.approx(accuracy[episode], abs=0.11)  # one example on the edge may fall either way
            assert np.allclose(alone.gains()[0], gains[episode], rtol=1e-2, atol=1e-4)
    assert len({round(value, 3) for value in found[-1][1]}) == 3  # the episodes went different ways


@pytest.mark.parametrize("method", ["triplet", "lora"])
def test_what_lies_beyond_the_ranks_does_not_move_by_a_bit(method: str, ground: Ground) -> None:
    task = live(ground, f"adapter.method={method}")
    task.train(ranks_of(task, 4, 4, 4), ALL)
    before = [{name: tensor.clone() for name, tensor in tensors(start).items()} for start in task._starts]
    task.train(ranks_of(task, 0, 1, 4), ALL)
    axes = {"P": 1, "E": 0, "Q": 0, "A": 0, "B": 1}
    for episode, rank in enumerate((0, 1, 4)):
        after = tensors(task._starts[episode])
        for name, old in before[episode].items():
            axis = axes.get(name.partition("/")[2])
            if axis is None:
                assert not torch.equal(after[name], old)  # the head always learns
                continue
            beyond = old.shape[axis] - rank
            assert torch.equal(after[name].narrow(axis, rank, beyond), old.narrow(axis, rank, beyond))
            if rank:
                assert not torch.equal(after[name].narrow(axis, 0, rank), old.narrow(axis, 0, rank))


def test_what_lies_beyond_the_ranks_does_not_act(ground: Ground) -> None:
    """Training at rank 1 gives the same whether the other components are there or zero."""
    task, other = live(ground), live(ground)
    for each in (task, other):
        each.train(ranks_of(each, 4, 4, 4), ALL)
    other._starts = [other._cut(episode, [1] * 4) for episode in range(3)]
    ranks = ranks_of(task, 1, 1, 1)
    assert np.array_equal(task.train(ranks, ALL), other.train(ranks, ALL))
    assert np.array_equal(task.measure(ranks), other.measure(ranks))
    assert not np.allclose(task.measure(ranks_of(task, 4, 4, 4))[0], other.measure(ranks_of(task, 4, 4, 4))[0], atol=1e-4)


def test_measuring_is_evaluating_the_cut_adapter_on_examples_that_nobody_trains_on(ground: Ground) -> None:
    task = live(ground)
    for _ in range(3):
        task.train(ranks_of(task, 4, 4, 4), ALL)
    loss, accuracy = task.measure(ranks_of(task, 0, 2, 4))
    assert len(set(task.heldout.tolist())) == 10 and not set(task.heldout) & set(task.bench.parts[0])
    for episode, rank in enumerate((0, 2, 4)):
        start = task._starts[episode]
        sites = [{**site, "E": site["E"] * (torch.arange(4) < rank)} for site in start.sites]
        wanted = evaluate(
            task.bench.backbone, task.bench.train, task.heldout, Start(sites, start.merges, start.head), 8
        ).summary()
        assert (accuracy[episode], loss[episode]) == (pytest.approx(wanted[0]), pytest.approx(wanted[1], abs=1e-5))


def test_only_the_chosen_episodes_train(ground: Ground) -> None:
    task = live(ground)
    before, text = list(task._starts), task.text()
    losses = task.train(ranks_of(task, 4, 4, 4), np.array([False, True, False]))
    assert np.isnan(losses).tolist() == [True, False, True]
    assert [new is old for new, old in zip(task._starts, before, strict=True)] == [True, False, True]
    assert (task.text() == text).all(axis=1).tolist() == [True, False, True]  # no batch was drawn where none was used
    assert np.isnan(task.train(ranks_of(task, 4, 4, 4), np.zeros(3, np.bool_))).all()


def test_episodes_begin_anew_or_go_on(ground: Ground) -> None:
    task, ranks = live(ground), np.full((3, 4), 4)
    first = task.train(ranks, ALL)
    task.begin(np.array([True, True, False]), SEEDS, NUMBERS, fresh=True)
    again = task.train(ranks, ALL)
    assert np.array_equal(again[:2], first[:2]) and again[2] != first[2]
    task.begin(ALL, SEEDS, NUMBERS + 1, fresh=False)
    assert task._starts[0] is not task._first
    assert not np.allclose(task.train(ranks, ALL), first)


def test_the_coming_batch_is_the_one_that_is_trained_on(ground: Ground) -> None:
    """With a batch of everything the step's first loss is that of exactly these examples."""
    task = live(ground, "training.batch_size=5", local_steps=1)
    rows = [task.coming(episode) for episode in range(3)]
    wanted = [
        evaluate(task.bench.backbone, task.bench.train, own, task._cut(episode, [2] * 4), 8).summary()[1]
        for episode, own in enumerate(rows)
    ]
    assert task.train(ranks_of(task, 2, 2, 2), ALL) == pytest.approx(np.array(wanted), abs=1e-5)
    assert not any(np.array_equal(task.coming(episode), rows[episode]) for episode in range(3))


def test_it_learns(ground: Ground) -> None:
    task = live(ground, "training.lr=0.02", local_steps=5, heldout=29)
    ranks = ranks_of(task, 0, 1, 4)
    losses = [task.train(ranks, ALL) for _ in range(12)]
    assert np.mean(losses[-3:], axis=0)[2] < 0.9 * np.mean(losses[:3], axis=0)[2]
    assert task.measure(ranks)[1][2] > 0.6  # three classes


# -- gains --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["triplet", "lora"])
def test_gains_are_the_components_own_energy(method: str, ground: Ground) -> None:
    task = live(ground, f"adapter.method={method}")
    untrained = task.gains()
    assert (untrained > 0).all() and (np.diff(untrained, axis=-1) < 0).all()
    task.train(ranks_of(task, 2, 2, 2), ALL)
    gains = task.gains()
    assert (np.diff(gains, axis=-1) <= 1e-12).all()
    energy = np.zeros((3, 4))
    for episode, start in enumerate(task._starts):
        for site, (adapter, state) in enumerate(zip(task.bench.adapters, start.sites, strict=True)):
            energy[episode, site] = float(adapter.delta_weight(task._cut(episode, [1] * 4).sites[site]).square().sum())
            b, a = adapter.factors(state)
            parts = [float(torch.outer(b[:, part], a[part]).square().sum()) for part in range(4)]
            assert gains[episode, site].sum() == pytest.approx(sum(parts), rel=0.02)
            assert gains[episode, site, 2] < 0.01 * gains[episode, site, 0]  # never trained
    assert (gains[..., 0] >= energy).all()  # what leads cannot be worth less than its own part


def test_importance_order_puts_the_strongest_first_and_changes_no_function(ground: Ground) -> None:
    plain, ordered = live(ground), live(ground, order="importance")
    full = ranks_of(plain, 4, 4, 4)
    for task in (plain, ordered):
        task.train(full, ALL)
    assert np.allclose(plain.measure(full), ordered.measure(full), atol=1e-5)
    for start in ordered._starts:
        for adapter, state in zip(ordered.bench.adapters, start.sites, strict=True):
            b, a = adapter.factors(state)
            assert (np.diff((b.norm(dim=0) * a.norm(dim=1)).numpy()) <= 1e-7).all()
    assert any(
        not torch.equal(left.sites[0]["E"], right.sites[0]["E"])
        for left, right in zip(plain._starts, ordered._starts, strict=True)
    )


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9))
def test_falling_is_isotonic_regression(values: list[float]) -> None:
    array = np.array(values)
    found = falling(array[None, None], np.array([len(values)]))[0, 0]
    assert np.allclose(found, isotonic_regression(array, increasing=False).x, atol=1e-9)


def test_beyond_a_cap_nothing_is_worth_anything() -> None:
    gains = with_prior(falling(np.ones((2, 2, 4)), np.array([4, 2])), np.array([4, 2]))
    assert (gains[:, 1, 2:] == 0).all() and (gains[:, 1, :2] > 1).all() and (gains[:, 0] > 1).all()


# -- bad input ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        (["adapter.method=ravan"], {}, "adapter.method = 'ravan' has no ranks in steps of one: use 'triplet' or 'lora'"),
        (["training.schedule=linear"], {}, "training.schedule must be 'constant'"),
        (["training.warmup=0.1"], {}, "training.warmup 0"),
        ([], {"heldout": 1000}, "1000 held-out examples were asked for, but data.client_test_fraction = 0.3 leaves"),
        ([], {"order": "importanc"}, "order = 'importanc' is unknown. Did you mean 'importance'?"),
    ],
)
def test_what_cannot_be_is_refused(changes: list[str], options: dict[str, Any], says: str, ground: Ground) -> None:
    with pytest.raises(ConfigError, match=says):
        live(ground, *changes, **options)


def test_a_fine_tune_that_diverges_is_one_error(ground: Ground) -> None:
    task = live(ground, "training.lr=1e37", "training.clip=0", "training.optimizer=sgd")
    with pytest.raises(TrainingError, match=r"episode \d: non-finite .*Lower training.lr"):
        for _ in range(3):
            task.train(ranks_of(task, 4, 4, 4), ALL)


def test_nothing_is_measured_twice(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """What did not change since is not measured again; what did, in any way, is."""
    asked: list[int] = []

    def counted(backbone: Any, prepared: Any, indices: Any, starts: Any, batch_size: int) -> Any:
        asked.append(len(starts))
        return evaluate_many(backbone, prepared, indices, starts, batch_size)

    task, plain = live(ground), live(ground)
    monkeypatch.setattr("fedlora_envs.tasks.live.evaluate_many", counted)
    ranks = ranks_of(task, 4, 2, 4)
    for own in (task, plain):
        own.train(ranks, ALL)
    first = task.measure(ranks)
    for again, changed in ((ranks, 0), (ranks_of(task, 4, 1, 4), 1), (ranks, 1)):
        before = len(asked)
        found = task.measure(again)
        assert asked[before:] == [changed]
    np.testing.assert_allclose(found, first, rtol=1e-5)
    task.train(ranks, np.array([False, False, True]))
    assert not np.array_equal(task.measure(ranks)[0], first[0]) and asked[-1] == 1
    task.begin(np.array([True, False, False]), SEEDS, NUMBERS, fresh=True)
    np.testing.assert_allclose(task.measure(ranks)[0][0], live(ground).measure(ranks)[0][0], rtol=1e-5)
