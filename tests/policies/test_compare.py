"""Comparisons: numbers by hand, the same channels for all, options tuned on validation alone, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedlora.cli import app
from fedlora.errors import ConfigError, FedLoRAError
from fedlora.federation.policy import POLICIES, Observation, PolicySetup, Ranks
from fedlora.ranks import Costs
from fedlora.registry import Entry
from fedlora_policies.compare import compare, parse_compare, read_compare
from fedlora_policies.compare_report import pareto, tables, write
from fedlora_policies.learners import TEST_SEEDS, TRAIN_SEEDS, VALIDATION_SEEDS
from fedlora_policies.rollout import make_core, play, with_floor
from rank_problem import RankProblem

LIVE = Path(__file__).parents[2] / "experiments" / "live" / "remote.toml"
TREE: dict[str, Any] = {
    "env": "rank_problem:problem",
    "episodes": 12,
    "validation_episodes": 6,
    "draws": 300,
    "policies": {"random-feasible": {}, "greedy": {}, "oracle": {}},
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**TREE, **changes}


def policies(**more: Any) -> dict[str, Any]:
    return {**TREE["policies"], **{label.replace("_", "-"): entry for label, entry in more.items()}}


def test_seeds_are_split() -> None:
    sets = [set(seeds) for seeds in (TRAIN_SEEDS, VALIDATION_SEEDS, TEST_SEEDS)]
    assert [len(seeds) for seeds in sets] == [10_000, 100, 50]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]


def test_two_episodes_by_hand() -> None:
    small = {"horizon": 4, "sites": 3}
    config = parse_compare(changed(episodes=2, options=small, policies=policies(fixed={"options": {"rank": 1}})))
    rows = {row.label: row for row in compare(config).worlds["default"]}
    core = RankProblem(2, horizon=4, sites=3)
    core.reset(np.ones(2, bool), np.array([20_000, 20_001], np.uint64))
    # Rank 1 everywhere takes 100 + 300 + 500 + 700 bytes; level n of the channel lets 0.1 + 0.2 n of 6,100 through.
    fits = np.floor(6100 * (0.1 + 0.2 * core._levels[:4])) >= 1600
    assert fits.any() and not fits.all()
    scores = np.where(fits, core.worth[:, 0].sum(), -1.0).sum(axis=0)
    assert rows["fixed"].scores == pytest.approx(scores[None])
    assert rows["fixed"].score.value == pytest.approx(scores.mean())
    assert rows["fixed"].bytes.value == pytest.approx(1600 * fits.sum(axis=0).mean())
    assert rows["fixed"].terms["feasible"] == pytest.approx(fits.mean()) == pytest.approx(1 - rows["fixed"].terms["violations"])
    assert rows["fixed"].terms["mean_rank"] == 1 and rows["fixed"].snr_correlation is None
    assert rows["fixed"].difference.value == pytest.approx(rows["fixed"].score.value - rows["greedy"].score.value)
    low, high = rows["random-feasible"].score.value, rows["oracle"].score.value
    assert rows["fixed"].normalised is not None
    assert rows["fixed"].normalised.value == pytest.approx((scores.mean() - low) / (high - low))


def test_options_are_tuned_on_validation_seeds() -> None:
    """The grid's best on validation is taken even where another one is better on the test episodes."""
    grid = [0, 1, 2, 3]
    config = parse_compare(changed(policies=policies(fixed={"grid": {"rank": grid}})))
    row = next(row for row in compare(config).worlds["default"] if row.label == "fixed")

    def mean(seeds: range, rank: int) -> float:
        found = play(RankProblem(len(seeds)), "fixed", {"rank": rank}, np.array(seeds, np.uint64))
        return float(found.returns.mean())

    best = max(grid, key=lambda rank: mean(VALIDATION_SEEDS[:6], rank))
    assert row.options == {"rank": best} and row.score.value == pytest.approx(mean(TEST_SEEDS[:12], best))


def test_hindsight_takes_the_best_of_each_episode() -> None:
    grid = {"price": [0.0, 1.0], "share": [0.2, 1.0]}
    config = parse_compare(changed(options={"budget": 0.25}, policies=policies(oracle={"grid": grid, "choose": "hindsight"})))
    row = compare(config).worlds["default"][-1]
    seeds = np.array(TEST_SEEDS[:12], np.uint64)
    core = RankProblem(12, budget=0.25)
    tried = [play(core, "oracle", {"price": p, "share": s}, seeds).returns for p in (0.0, 1.0) for s in (0.2, 1.0)]
    assert row.scores[0].tolist() == np.max(tried, axis=0).tolist()
    assert len(set(np.argmax(tried, axis=0).tolist())) > 1


def test_bound_above_oracle_above_every_policy() -> None:
    """Nothing spans steps here, so that the step by step oracle is above all in every single episode."""
    fixed, importance = {"grid": {"rank": [1, 2]}}, {"grid": {"share": [0.3, 1.0]}}
    more = policies(fixed=fixed, largest_feasible={}, importance=importance, lyapunov={})
    worlds: dict[str, Any] = {"known": {}, "late": {"delay": 2}, "several": {"rows": 3, "delay": 1}}
    for name, rows in compare(parse_compare(changed(policies=more, worlds=worlds))).worlds.items():
        best = next(row.scores for row in rows if row.label == "oracle")
        for row in rows:
            assert (row.scores <= best + 1e-9).all(), (name, row.label)
        spread = {row.label: row.normalised.value for row in rows if row.normalised is not None}
        assert spread["oracle"] == 1 and spread["random-feasible"] == 0 and spread["greedy"] > 0.2
        greedy = next(row for row in rows if row.label == "greedy")
        assert greedy.snr_correlation is not None and greedy.snr_correlation > 0.8


class Meddler(RankProblem):
    """An environment whose channel follows from what was sent: nothing can be compared in it."""

    def step(self, ranks: Ranks) -> Any:
        self._levels[self._step.max() + 1 :] = ranks.sum() % 5
        return super().step(ranks)


def meddler(episodes: int, **options: Any) -> RankProblem:
    return Meddler(episodes, **options)


def test_other_channels_for_another_policy_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rank_problem.problem", meddler)
    with pytest.raises(FedLoRAError, match="policy 'greedy' met other channels than those before it"):
        compare(parse_compare(TREE))


def test_levels_that_are_sent_anyway_are_free_for_the_policy() -> None:
    """With a floor of 1, what a policy does not ask for is sent all the same: greedy must not spend that twice."""
    costs = Costs.linear(np.array([10, 20]), np.array([3, 3]), base=5)
    free = with_floor(costs, np.array([1, 1]))
    for ranks in ([0, 0], [1, 1], [2, 0], [3, 3], [0, 2]):
        assert free.bytes(np.array(ranks)) == costs.bytes(np.maximum(ranks, 1))
    assert with_floor(costs, None) is costs and with_floor(costs, np.array([0, 0])) is costs
    core = RankProblem(40, floor=1, cap=8, sites=3)
    seeds = np.arange(40, dtype=np.uint64)
    for name in ("greedy", "random-feasible", "oracle"):
        found = play(core, name, {}, seeds)
        smallest = play(core, "fixed", {"rank": 0}, seeds)
        assert found.feasible.tolist() == smallest.feasible.tolist(), name


class Coin:
    """Rank 1 or 2 by the seed of the run."""

    def __init__(self, setup: PolicySetup, shift: int = 0) -> None:
        self.rank, self.sites = 1 + (setup.seed + shift) % 2, len(setup.caps)

    def choose(self, observation: Observation) -> Ranks:
        return np.full((len(observation.clients), self.sites), self.rank)


class Wrong(Coin):
    def choose(self, observation: Observation) -> Ranks:
        return super().choose(observation)[:, :-1]


def test_runs_of_a_learned_policy_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES._entries, "coin", Entry("coin", Coin, "", "tests"))
    tree = changed(policies=policies(coin={"runs": [{}, {}, {"shift": 1}]}, fixed={"options": {"rank": 1}}))
    rows = {row.label: row for row in compare(parse_compare(tree)).worlds["default"]}
    scores = rows["coin"].scores
    assert scores.shape == (3, 12) and scores[0].tolist() == rows["fixed"].scores[0].tolist() == pytest.approx(scores[0])
    assert scores[1].tolist() == scores[2].tolist() != scores[0].tolist()
    assert rows["coin"].terms["mean_rank"] == pytest.approx(5 / 3)


def test_what_is_written(tmp_path: Path) -> None:
    found = compare(parse_compare(changed(worlds={"one": {}, "two": {"delay": 1}})))
    report, picture = write(found, tmp_path / "out")
    stored = json.loads(report.read_text())
    assert list(stored["worlds"]) == ["one", "two"] and picture.read_bytes().startswith(b"\x89PNG")
    row = stored["worlds"]["two"][1]
    assert row["policy"] == "greedy" and row["score"]["value"] == pytest.approx(np.mean(row["scores"]))
    assert row["iqm"]["low"] <= row["iqm"]["value"] <= row["iqm"]["high"]
    assert [table.row_count for table in tables(found)] == [3, 3]
    again = compare(parse_compare(changed(worlds={"one": {}, "two": {"delay": 1}})))
    assert json.dumps(again.plain()) == json.dumps(found.plain())


def test_scores_by_another_metric() -> None:
    found = play(RankProblem(3), "greedy", {}, np.arange(3, dtype=np.uint64))
    assert found.score("accuracy").tolist() == found.final["accuracy"].tolist()
    assert found.score("loss") == pytest.approx(-found.final["loss"])
    assert found.score("loss") == pytest.approx(found.final["accuracy"] - 1)
    blind = replace(found, final={"accuracy": np.array([0.5, np.nan, 0.5])})
    for metric in ("accuracy", "loss"):
        with pytest.raises(ConfigError, match=f"metric = '{metric}': the environment does not measure it in every episode"):
            blind.score(metric)


def test_the_front_by_hand() -> None:
    assert pareto([(3, 1), (1, 0), (2, 2), (2, 1), (4, 2), (5, 3)]) == [(1, 0), (2, 2), (5, 3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": {}}, "unknown key 'policy'. Did you mean 'policies'?"),
        ({"episodes": 51}, "episodes = 51"),
        ({"episodes": "all"}, "episodes = 'all'"),
        ({"metric": "returns"}, "unknown value 'returns' for metric. Did you mean 'return'?"),
        ({"reference": "gredy"}, "reference = 'gredy' is none of the policies. Did you mean 'greedy'?"),
        ({"policies": {}}, "policies: name at least one"),
        ({"policies": {**TREE["policies"], "fixed": 3}}, "policies.fixed = 3: give a section"),
        ({"policies": {**TREE["policies"], "fixed": {"option": {}}}}, "unknown key 'policies.fixed.option'. Did you mean"),
        ({"policies": {**TREE["policies"], "fixed": {"grid": {"rank": []}}}}, "policies.fixed.grid: every option needs"),
        ({"policies": {**TREE["policies"], "fixd": {}}}, "unknown policy 'fixd'. Did you mean 'fixed'?"),
        ({"policies": {**TREE["policies"], "fixed": {}}}, "world 'default', policy 'fixed': policy.options do not fit"),
        ({"worlds": {}}, "worlds"),
        ({"options": {"delays": 1}}, "env = 'rank_problem:problem' cannot be made with the options {'delays': 1}"),
        ({"env": "nosuch:thing"}, "env = 'nosuch:thing' cannot be made"),
        ({"env": "fedlora/RemoteFineTunig-v0"}, "is no vector environment that Gymnasium knows"),
        ({"env": "CartPole-v1"}, "is not an environment of rank vectors"),
    ],
)
def test_bad_input_is_one_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compare(parse_compare(changed(**changes)))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_ranks_of_another_shape_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES._entries, "wrong", Entry("wrong", Wrong, "", "tests"))
    with pytest.raises(ConfigError, match=r"policy 'wrong' chose ranks of type int64, shape \[3, 5\]; .* \[3, 6\]"):
        play(make_core("rank_problem:problem", 3, {}), "wrong", {}, np.arange(3, dtype=np.uint64))


def test_the_shipped_file_is_sound() -> None:
    config = read_compare(None, ["episodes=20", "policies.greedy.options.backoff=0.9"])
    assert config.episodes == 20 and config.policies["greedy"].options == {"backoff": 0.9}
    assert list(config.worlds) == ["published", "markov+budget", "markov+delay"]


def test_the_comparison_on_the_real_model_is_sound() -> None:
    """It is not run here, but in the same world as the shipped comparison."""
    config, shipped = read_compare(LIVE, []), read_compare(None, [])
    world = shipped.options | shipped.worlds["markov+budget"]
    assert config.options == world | {"task": "live", "measure": "every"} and config.worlds == {"default": {}}
    assert config.reference == "fixed" and set(config.policies["fixed"].grid["rank"]) < set(
        shipped.policies["fixed"].grid["rank"]
    )


def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('env = "rank_problem:problem"\n[policies.random-feasible]\n[policies.greedy]\n[policies.oracle]\n')
    arguments = ["compare", str(file), "episodes=4", "draws=100", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "default: return over 4 test episodes" in done.output and "oracle" in done.output
    told = CliRunner().invoke(app, [*arguments, "--format", "json"])
    assert json.loads(told.stdout)["config"]["episodes"] == 4
    with pytest.raises(ConfigError, match="there is no compare file"):
        read_compare(tmp_path / "none.toml", [])
    file.write_text("env = ")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        read_compare(file, [])
