"""The live task by name: from options alone, one model for all tasks of a run, and the very numbers of a task made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from fedlora.config import RunConfig, parse_config
from fedlora.errors import ConfigError
from fedlora.federation import workbench
from fedlora_envs.gym_envs import make_task
from fedlora_envs.tasks.live import LiveTask
from fedlora_envs.tasks.live_options import LiveOptions, live_run, make_live
from fedlora_envs.tasks.response import find
from fedlora_envs.tasks.rounds import made_up
from fedlora_policies.compare import compare, parse_compare
from tiny_run import Ground

NAME = "fedlora/RemoteFineTuning-v0"
CHANGES = ("adapter.method=triplet", "data.client_test_fraction=0.3", "training.lr=0.05")


@pytest.fixture(scope="module")
def options(ground: Ground) -> dict[str, Any]:
    """Options of a live task that takes milliseconds, from a run file."""
    run = ground.folder / "live.toml"
    run.write_text(ground.config(*CHANGES).to_toml())
    return {"run": str(run), "local_steps": 2, "heldout": 10}


def live_env(options: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return options of an environment that the tiny adapter loads about as MiniLM's loads the default one."""
    return {"task": "live", "live": options, "bandwidths_hz": [1e4], "horizon": 3, **more}


def test_by_default_it_is_what_the_response_model_was_recorded_with() -> None:
    source = find("minilm-trec").source
    config, steps, heldout = live_run(LiveOptions())
    assert (steps, heldout) == (source["local_steps"], source["heldout"]) == (5, 64)
    assert config == parse_config(source["run"])  # keys that came later have their defaults
    changed, steps, heldout = live_run(LiveOptions(set=["adapter.rank=4", "seed=3"], local_steps=2, heldout=8))
    assert (changed.adapter.rank, changed.seed, steps, heldout) == (4, 3, 2, 8)
    assert changed.model == config.model and changed.training.lr == config.training.lr


def test_it_is_as_another_response_model_was_recorded() -> None:
    config, steps, heldout = live_run(LiveOptions(like="smollm2-trec"))
    assert (config.model.name, config.adapter.rank, steps, heldout) == ("smollm2-135m", 8, 5, 32)


def test_a_run_file_takes_the_place_of_the_recorded_run(ground: Ground, options: dict[str, Any]) -> None:
    config, steps, heldout = live_run(LiveOptions(run=options["run"], set=["seed=4"]))
    assert config == ground.config(*CHANGES, "seed=4") and (steps, heldout) == (5, 64)


def test_one_model_for_all_tasks_of_a_run(options: dict[str, Any]) -> None:
    first, second = (make_task("live", count, options) for count in (2, 3))
    assert isinstance(first, LiveTask) and isinstance(second, LiveTask)
    assert first.bench is second.bench and (first.episodes, second.episodes) == (2, 3)
    other = make_task("live", 2, {**options, "set": ["seed=1"]})
    assert isinstance(other, LiveTask) and other.bench is not first.bench


def test_tasks_that_take_turns_do_not_disturb_each_other(ground: Ground, options: dict[str, Any]) -> None:
    """Each of two tasks over one model does what a task with a model of its own does."""
    sharing = [make_live(LiveOptions(**options), count) for count in (2, 3)]
    alone = [LiveTask(ground.config(*CHANGES), count, local_steps=2, heldout=10) for count in (2, 3)]
    rng = np.random.default_rng(0)
    for task in (*sharing, *alone):
        count = task.episodes
        task.begin(np.ones(count, np.bool_), np.arange(count, dtype=np.uint64), np.zeros(count, np.int64), fresh=True)
    for _ in range(3):
        for mine, theirs in zip(sharing, alone, strict=True):
            ranks, which = rng.integers(0, 5, (mine.episodes, 4)), np.ones(mine.episodes, np.bool_)
            np.testing.assert_array_equal(mine.text(), theirs.text())
            np.testing.assert_array_equal(mine.train(ranks, which), theirs.train(ranks, which))
            np.testing.assert_array_equal(mine.measure(ranks), theirs.measure(ranks))
            np.testing.assert_array_equal(mine.gains(), theirs.gains())


def test_gymnasium_makes_it_and_has_nothing_to_say(options: dict[str, Any]) -> None:
    env = gymnasium.make(NAME, **live_env(options, loss="heldout", fresh=True))
    check_env(env.unwrapped, skip_render_check=True)
    vector = gymnasium.make_vec(NAME, num_envs=2, **live_env(options, loss="heldout", fresh=True, measure="every"))
    vector.reset(seed=0)
    _, reward, *_, info = vector.step(np.zeros((2, 4), np.int64))
    assert info["feasible"].all() and np.isfinite(info["accuracy"]).all() and (reward < 0).all()


def test_the_environments_order_is_the_tasks(options: dict[str, Any]) -> None:
    vector: Any = gymnasium.make_vec(NAME, num_envs=1, **live_env(options, order="importance"))
    assert vector.unwrapped.core.task.order == "importance"


def test_a_comparison_on_the_real_model(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuned on validation, measured on test, the model loaded once; fine-tunes learn, so that the loss falls."""
    loaded: list[RunConfig] = []

    def build(config: RunConfig, build: Callable[[RunConfig], workbench.Workbench] = workbench.build) -> workbench.Workbench:
        loaded.append(config)
        return build(config)

    monkeypatch.setattr(workbench, "build", build)
    workbench.cached_workbench.cache_clear()
    learns = {**options, "set": ["training.lr=0.02"], "local_steps": 5, "heldout": 29}
    tree = {
        "episodes": 3, "validation_episodes": 2, "draws": 100, "reference": "fixed", "high": "greedy",
        "options": live_env(learns, horizon=12, evaluate="sent", loss="heldout", fresh=True) | {"bandwidths_hz": [1e5]},
        "policies": {"fixed": {"grid": {"rank": [1, 3]}}, "random-feasible": {}, "greedy": {}},
    }  # fmt: skip
    rows = {row.label: row for row in compare(parse_compare(tree)).worlds["default"]}
    assert len(loaded) == 1
    untrained = make_live(LiveOptions(**learns), 1)
    start = untrained.measure(np.zeros((1, 4), np.int64))[0][0]
    losses = {label: row.terms["loss"] or np.inf for label, row in rows.items()}
    assert rows["fixed"].options == {"rank": 3} and all(row.terms["feasible"] == 1 for row in rows.values())
    assert max(losses["fixed"], losses["greedy"]) < losses["random-feasible"] < 0.9 * start


@pytest.mark.parametrize(
    ("task", "live", "says"),
    [
        ("minilm-trec", {"heldout": 3}, "set task = 'live' as well"),
        ("live", {"held": 3}, "unknown key 'live.held'. Did you mean 'live.heldout'?"),
        ("live", {"like": "minilm-trek"}, "Did you mean 'minilm-trec'?"),
        ("live", {"run": "nowhere.toml"}, "there is no run file nowhere.toml"),
        ("live", {"set": ["adapter.rnk=4"]}, "unknown key 'adapter.rnk'. Did you mean 'adapter.rank'?"),
        ("live", {"set": ["adapter.rank"]}, "'adapter.rank' is not an override"),
        ("live", {"set": ["adapter.method=ravan"]}, "adapter.method = 'ravan' has no ranks in steps of one"),
        ("live", {"local_steps": 0}, "live.local_steps = 0"),
    ],
)
def test_bad_input_is_one_error(task: str, live: dict[str, Any], says: str, ground: Ground, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_task(task, 2, {**({} if {"like", "run"} & live.keys() else options), **live} if task == "live" else live)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_response_model_without_a_run_says_so(tmp_path: Path) -> None:
    path = tmp_path / "made-up.json"
    made_up().save(path)
    with pytest.raises(ConfigError, match=r"does not say what was run\. Give run = \"RUN.toml\""):
        make_task("live", 1, {"like": str(path)})
