"""AirLLM's problem as published, to the printed digit, and each switch on its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from analytic import AnalyticTask, small_sites
from fedlora.config import parse_section
from fedlora.errors import ConfigError
from fedlora.ranks import greedy_ranks
from fedlora_envs.rank_env import Step
from fedlora_envs.remote import RemoteConfig, RemoteFineTuning
from fedlora_envs.tasks.base import Sites, opt_1_3b
from zscores import LIMIT, z_mean, z_share

LEVELS_DB = np.array([-5.0, 0.0, 5.0, 10.0, 15.0])


def make(episodes: int = 4, sites: Sites | None = None, **options: Any) -> RemoteFineTuning:
    """Return the environment over the analytic task; 1 MHz makes its small messages matter."""
    options = {"bandwidths_hz": [1e6], **options}
    return RemoteFineTuning(AnalyticTask(sites or small_sites(), episodes), parse_section(RemoteConfig, options))


def begin(env: RemoteFineTuning, seed: int = 0) -> None:
    """Begin a run everywhere."""
    env.reset(np.ones(env.episodes, np.bool_), np.arange(seed, seed + env.episodes).astype(np.uint64))


def take(env: RemoteFineTuning, rank: int) -> Step:
    """Take a step at one rank everywhere."""
    return env.step(np.full((env.episodes, len(env.sites)), rank))


def everything(**changes: Any) -> dict[str, Any]:
    """Return options with every switch on."""
    options: dict[str, Any] = {"channel": "markov", "csi_delay": 2, "csi_error_db": 1.0, "evaluate": "sent", "loss": "heldout"}
    return {**options, "fresh": True, "language": "coming", "budget_s": 8.0, "measure": "every", **changes}


# --- the published problem ---


@pytest.mark.parametrize(
    ("rank", "printed"),
    [
        (1, ["0.714", "0.283", "0.138", "0.082", "0.056"]),
        (8, ["5.71", "2.27", "1.10", "0.655", "0.451"]),
        (64, ["45.7", "18.1", "8.81", "5.24", "3.60"]),
    ],
)
def test_the_cost_table_of_airllm(rank: int, printed: list[str]) -> None:
    env = RemoteFineTuning(AnalyticTask(opt_1_3b(64), 1))
    costs = env.load(np.full((5, 144), rank), LEVELS_DB)
    assert [f"{cost:.{len(text.partition('.')[2])}f}" for cost, text in zip(costs, printed, strict=True)] == printed


def test_capacity_and_largest_uniform_ranks_of_airllm() -> None:
    env = RemoteFineTuning(AnalyticTask(opt_1_3b(64), 1))
    per_rank = env.load(np.ones((5, 144), np.int64), LEVELS_DB)
    assert [f"{1 / cost:.2f}" for cost in per_rank] == ["1.40", "3.53", "7.27", "12.22", "17.76"]
    assert int(env.sites.numbers.sum()) == 884_880
    assert [f"{8 * float(env.costs.bytes(np.full(144, 8))) / cost / 8e6:.2f}" for cost in per_rank] == [
        "39.64", "100.00", "205.74", "345.94", "502.78",
    ]  # fmt: skip


def test_steps_charge_what_the_table_says() -> None:
    """The same numbers through `step`, where the channel is drawn and not given."""
    env = RemoteFineTuning(AnalyticTask(opt_1_3b(64), 32))
    begin(env)
    seen = set()
    for _ in range(5):
        step = take(env, 8)
        np.testing.assert_array_equal(step.info["load"], env.load(np.full((32, 144), 8), step.info["snr_db"]))
        seen |= set(step.info["snr_db"].tolist())
        np.testing.assert_array_equal(step.info["feasible"], step.info["snr_db"] >= 10)
    assert seen == set(LEVELS_DB)


def test_published_rewards() -> None:
    env = make(64)
    begin(env)
    trained = env.task.trained.copy()
    step = take(env, 6)
    fits, load = step.info["feasible"], step.info["load"]
    assert fits.any() and not fits.all()
    expected = np.where(fits, -step.info["loss"] - 0.1 * load, -10.1 * load)
    np.testing.assert_allclose(step.reward, expected, rtol=1e-12)
    np.testing.assert_array_equal(step.info["loss"][fits], 1.0)  # of the batch before the step: nothing was learned yet
    assert np.isnan(step.info["loss"][~fits]).all()
    np.testing.assert_array_equal(env.task.trained > trained, fits)
    np.testing.assert_allclose(step.info["cost"], np.maximum(load - 1, 0))
    np.testing.assert_array_equal(step.info["bits"] > 0, fits)
    np.testing.assert_allclose(step.info["utility"], step.reward + 0.1 * load)


def test_published_state() -> None:
    env = make(64)
    begin(env)
    text = env.task.text()
    state = env.features()
    assert state.shape == (64, 4 + 12) == (64, len(env.feature_names))
    snr_db = env._link.snr_db
    np.testing.assert_allclose(state[:, 0], (snr_db + 5) / 20)
    np.testing.assert_array_equal(state[:, 1], 0.5)  # one bandwidth
    np.testing.assert_array_equal(state[:, 2], text[:, 0])
    np.testing.assert_array_equal(state[:, 3], 0.0)
    np.testing.assert_array_equal(state[:, 4:], 0.5)  # max(1, cap // 2) over the cap
    fits = take(env, 6).info["feasible"]
    state = env.features()
    np.testing.assert_array_equal(state[:, 4:], 6 / 8)  # applied whether or not it fitted
    np.testing.assert_array_equal(state[:, 2], text[:, 0])  # the batch last drawn
    take(env, 1)
    np.testing.assert_array_equal(env.features()[:, 2] != text[:, 0], fits)


def test_a_single_level_is_the_middle_of_its_scale() -> None:
    env = make(levels_db=[10.0])
    begin(env)
    np.testing.assert_array_equal(env.features()[:, :2], 0.5)


def test_episodes_truncate_at_the_horizon_and_then_stand_still() -> None:
    env = make(horizon=3)
    begin(env)
    flags = [take(env, 1) for _ in range(3)]
    assert [bool(step.truncated.all()) for step in flags] == [False, False, True]
    assert not any(step.terminated.any() for step in flags)
    assert np.isfinite(flags[2].info["accuracy"]).all() and np.isnan(flags[1].info["accuracy"]).all()
    trained = env.task.trained.copy()
    after = take(env, 1)
    np.testing.assert_array_equal(env.task.trained, trained)
    assert not after.reward.any() and not after.truncated.any() and not after.info["bits"].any()


def test_the_fine_tune_goes_on_from_episode_to_episode_unless_fresh() -> None:
    for fresh in (False, True):
        env = make(fresh=fresh, horizon=2)
        begin(env)
        take(env, 1)
        take(env, 1)
        env.reset(np.ones(4, np.bool_))
        assert (env.task.trained == 0).all() == fresh
        begin(env)  # seeds begin a new run
        assert (env.task.trained == 0).all()


def test_ranks_below_the_floor_are_raised_and_above_the_cap_cut() -> None:
    env = make(min_rank=2)
    begin(env)
    seen = env.step(np.tile([0, 99], (4, 6))).observation
    np.testing.assert_array_equal(seen.previous, np.tile([2, 8], (4, 6)))


# --- the channel ---


def test_levels_are_uniform_and_independent_as_published() -> None:
    env = make(20_000, horizon=100)
    begin(env)
    first = env._link.snr_db
    second = np.asarray(take(env, 1).observation.links.uplink_snr_db)  # type: ignore[union-attr]
    for level in LEVELS_DB:
        assert abs(z_share(float((second == level).sum()), 20_000, 0.2)) <= LIMIT
    assert abs(z_mean((first - 5) * (second - 5), 0.0)) <= LIMIT


def test_markov_levels_move_to_neighbours_and_stay_uniform() -> None:
    env = make(20_000, horizon=100, channel="markov", move=0.2)
    begin(env)
    before = env._link.snr_db
    take(env, 1)
    after = env._link.snr_db
    assert np.abs(after - before).max() == 5
    inner = np.abs(before - 5) < 10
    assert abs(z_share(float((after != before)[inner].sum()), int(inner.sum()), 0.2)) <= LIMIT
    assert abs(z_share(float((after != before)[~inner].sum()), int((~inner).sum()), 0.1)) <= LIMIT
    assert abs(z_share(float((after == 15).sum()), 20_000, 0.2)) <= LIMIT


@pytest.mark.parametrize("kind", ["iid", "markov"])
def test_delayed_knowledge_is_the_truth_of_two_steps_ago(kind: str) -> None:
    env = make(200, channel=kind, csi_delay=2, move=0.9)
    begin(env)
    true, known = [], []
    for _ in range(8):
        true.append(env._link.snr_db)
        known.append(env._link.known_snr_db)
        seen = take(env, 1).observation
    np.testing.assert_array_equal(known[2:], true[:-2])
    assert (np.array(known[0]) != np.array(true[0])).any()
    assert seen.links is not None and (seen.links.age_rounds == 2).all()


def test_errors_of_the_estimate_have_their_spread_and_do_not_touch_the_truth() -> None:
    wrong, right = make(20_000, csi_error_db=2.0), make(20_000)
    begin(wrong)
    begin(right)
    np.testing.assert_array_equal(wrong.truth().budget_bytes, right.truth().budget_bytes)
    error = wrong._link.known_snr_db - wrong._link.snr_db
    assert abs(z_mean(error, 0.0)) <= LIMIT and abs(z_mean(error**2, 4.0)) <= LIMIT
    seen = wrong.reset(np.zeros(20_000, np.bool_))
    assert seen.links is not None
    np.testing.assert_allclose(seen.links.uplink_bps, 1e6 * np.log2(1 + 10 ** (seen.links.uplink_snr_db / 10)))
    np.testing.assert_allclose(seen.budget_bytes, seen.links.uplink_bps / 8)


def test_two_policies_see_one_channel() -> None:
    env = make(8, **everything())
    tracks = []
    for rank in (1, 8):
        begin(env)
        track = []
        for _ in range(4):
            track.append(take(env, rank).info["snr_db"])
        tracks.append(track)
    # Those whose airtime ran out stand still; the others must agree.
    alive = env.airtime_left_s > 4
    assert alive.any()
    np.testing.assert_array_equal(np.array(tracks[0])[:, alive], np.array(tracks[1])[:, alive])


# --- members ---


@pytest.mark.parametrize("options", [{}, everything()], ids=["published", "everything"])
def test_a_member_is_what_it_is_alone(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    many = make(5, bandwidths_hz=[5e5, 1e6], **options)
    alone = [make(1, bandwidths_hz=[5e5, 1e6], **options) for _ in range(5)]
    begin(many, 40)
    for i, env in enumerate(alone):
        begin(env, 40 + i)
    ended = np.zeros(5, np.bool_)
    for _ in range(40):
        ranks = rng.integers(1, 5, (5, 12))
        together = many.step(ranks)
        for i, env in enumerate(alone):
            one = env.step(ranks[i : i + 1])
            assert one.reward[0] == together.reward[i] and one.truncated[0] == together.truncated[i]
            for key in one.info:
                np.testing.assert_array_equal(one.info[key][0], together.info[key][i])
            np.testing.assert_array_equal(env.features()[0], many.features()[i])
            np.testing.assert_array_equal(env.truth().budget_bytes[0], many.truth().budget_bytes[i])
            if one.terminated[0] or one.truncated[0]:
                env.reset(np.ones(1, np.bool_))
        ended = together.terminated | together.truncated
        if ended.any():
            many.reset(ended)
    assert many._episode.min() >= 2


def test_what_was_shown_does_not_change_later() -> None:
    env = make(4, **everything())
    begin(env)
    seen = take(env, 2).observation
    kept = [np.array(value) for value in (seen.previous, seen.budget_bytes, seen.text, seen.links.uplink_snr_db)]  # type: ignore[union-attr]
    for _ in range(3):
        take(env, 5)
        env.reset(np.array([True, False, False, True]))
    now = (seen.previous, seen.budget_bytes, seen.text, seen.links.uplink_snr_db)  # type: ignore[union-attr]
    for before, after in zip(kept, now, strict=True):
        np.testing.assert_array_equal(before, after)


# --- switches ---


def test_heldout_loss_is_measured_after_the_step_at_the_ranks_chosen() -> None:
    env = make(64, loss="heldout")
    begin(env)
    step = take(env, 3)
    loss, _ = env.task.measure(np.full((64, 12), 3))
    np.testing.assert_array_equal(step.info["loss"], loss)
    fits = step.info["feasible"]
    np.testing.assert_allclose(step.reward[fits], (-loss - 0.1 * step.info["load"])[fits])


def test_sent_judges_all_that_the_edge_received() -> None:
    env = make(64, loss="heldout", evaluate="sent", levels_db=[15.0])
    begin(env)
    take(env, 5)
    step = take(env, 2)  # components 3 to 5 stay at the edge
    np.testing.assert_array_equal(step.info["loss"], env.task.measure(np.full((64, 12), 5))[0])
    infeasible = make(64, loss="heldout", evaluate="sent", levels_db=[-5.0])
    begin(infeasible)
    assert not take(infeasible, 8).info["feasible"].any()
    np.testing.assert_array_equal(infeasible._held, 0)


def test_a_budget_over_the_episode_runs_down_and_ends_it() -> None:
    env = make(64, budget_s=1.0, levels_db=[15.0], horizon=50)
    begin(env)
    ranks = np.full((64, 12), 4)
    airtime = float(env.load(ranks[:1], np.array([15.0]))[0])
    steps = [env.step(ranks) for _ in range(int(1 / airtime))]
    np.testing.assert_allclose(env.airtime_left_s, 1 - len(steps) * airtime)
    assert all(step.info["feasible"].all() for step in steps)
    seen = steps[-1].observation
    assert seen.budget_bytes is not None
    np.testing.assert_allclose(seen.budget_bytes, env.airtime_left_s * env._link.rate_bps / 8)
    over = env.step(ranks)
    assert not over.info["feasible"].any() and over.terminated.all() and not over.truncated.any()
    # The steps that are left count at the loss reached: who empties the budget early is not spared them.
    rest = (50 - len(steps) - 1) * env.task.measure(ranks)[0]
    assert (rest > 0).all()
    np.testing.assert_allclose(over.reward, -10 * (1 + airtime * (len(steps) + 1) - 1) - 0.1 * airtime - rest, rtol=1e-9)
    assert (over.info["cost"] > 0).all() and (env.airtime_left_s == 0).all()


def test_what_fits_the_budget_seen_is_feasible_where_knowledge_is_perfect() -> None:
    env = make(200, budget_s=4.0, horizon=40)
    begin(env)
    checked = 0
    for _ in range(40):
        seen = env.reset(np.zeros(200, np.bool_))
        assert seen.gains is not None and seen.budget_bytes is not None
        ranks = greedy_ranks(seen.gains, env.costs, seen.budget_bytes)
        legal = (ranks >= 1).all(axis=1)
        step = env.step(ranks)
        moved = step.info["latency_s"] > 0
        assert step.info["feasible"][legal & moved].all()
        checked += int((legal & moved).sum())
    assert checked > 500


def test_extra_features_come_with_the_switches() -> None:
    env = make(64, **everything())
    begin(env)
    names = list(env.feature_names)
    take(env, 2)
    state = env.features()
    assert state.shape == (64, 4 + 12 + 6 + 12) and state.min() >= -1 and state.max() <= 1
    text = env.task.text()
    for name, expected in {
        "entropy": text[:, 0], "surprisal": text[:, 1], "split words": text[:, 2], "csi age": np.full(64, 2 / 15),
        "airtime left": env.airtime_left_s / 8, "step": np.full(64, 1 / 15),
    }.items():  # fmt: skip
        np.testing.assert_allclose(state[:, names.index(name)], expected)
    worth = env.task.weights.sum(axis=1)
    np.testing.assert_allclose(state[:, names.index("gain site0") :], np.tile(worth / worth.max(), (64, 1)))
    published = make(4, **everything(observe="published"))
    begin(published)
    assert published.features().shape == (4, 16)


def test_energy_is_power_times_time_in_use() -> None:
    env = make(64, power_w=2.0)
    begin(env)
    info = take(env, 3).info
    np.testing.assert_allclose(info["energy_j"], 2 * info["latency_s"])
    np.testing.assert_allclose(info["latency_s"], np.where(info["feasible"], info["load"], 1.0))


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chanel": "iid"}, "Did you mean 'channel'"),
        ({"channel": "fading"}, "unknown value 'fading' for channel"),
        ({"levels_db": [5.0, 0.0]}, "does not rise"),
        ({"levels_db": [0.0, 0.0]}, "does not rise"),
        ({"bandwidths_hz": [-1.0]}, "above 0"),
        ({"evaluate": "sent"}, "set loss = 'heldout'"),
        ({"min_rank": 9}, "above 8, the largest rank of any site"),
        ({"order": "importance"}, "not how this task orders"),
        ({"bits": 12}, "bits = 12"),
        ({"budget_s": 0.01}, "never fits"),
        ({"budget_s": 5.0, "bandwidths_hz": [1e3]}, "never fits"),
    ],
)
def test_bad_options_are_one_clear_error(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        make(**options)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_as_published_the_smallest_message_may_be_too_long() -> None:
    env = make(bandwidths_hz=[1e3])
    begin(env)
    step = take(env, 1)
    assert not step.info["feasible"].any() and not step.terminated.any() and (step.reward < -10).all()
