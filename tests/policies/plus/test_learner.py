"""How airllm-plus learns: advantages by hand, lessons of teachers, the price of what does not fit, and learning itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedlora.errors import ConfigError, TrainingError
from fedlora.federation.policy import make_policy
from fedlora_envs.rank_env import Ranks, Step
from fedlora_policies.features import Reader
from fedlora_policies.known import budget_of
from fedlora_policies.plus.chain import ChainConfig
from fedlora_policies.plus.learner import PlusLearner
from fedlora_policies.plus.network import NetworkConfig
from fedlora_policies.plus.policy import AirllmPlusPolicy, Brain
from fedlora_policies.plus.requests import ranks_of
from fedlora_policies.plus.teachers import Lessons, denoising_loss, gather, imitate
from fedlora_policies.rollout import Stage, play, play_with
from fedlora_policies.training import Grounds
from rank_problem import RankProblem

SMALL: dict[str, Any] = {"price": 1.0, "sites": 3, "cap": 2, "horizon": 3}
# All that could be tuned is said here, so that these tests are about the method.
OPTIONS: dict[str, Any] = {
    "lessons": 0, "channels": 8, "copies": 8, "width": 16, "blocks": 1, "steps": 2, "tuned": 1, "share_std": 0.1,
    "total_std": 0.15, "guidance": 1.0, "lr": 5e-3, "epochs": 3, "minibatch": 64, "clip": 0.1, "trace": 0.0, "gamma": 1.0,
    "grad": 1.0, "price_lr": 1.0,
}  # fmt: skip
ONE = {"greedy": {"price": [1.0]}}
UNSEEN = np.arange(10_000, 10_064, dtype=np.uint64)


def learner(seed: int = 0, world: dict[str, Any] | None = None, **options: Any) -> PlusLearner:
    return PlusLearner(Grounds("rank_problem:problem", SMALL | (world or {})), seed, **(OPTIONS | options))


def score(learnt: PlusLearner) -> float:
    """Return the mean return of its policy on channels it never saw."""
    stage = Stage(RankProblem(len(UNSEEN), **SMALL))
    return float(play_with(stage, learnt.policy(stage.setup(0)), "learnt", UNSEEN).returns.mean())


# -- advantages ------------------------------------------------------------------------------------------------------------


def test_advantages_by_hand() -> None:
    """Three episodes on one channel, the third over after its first step; discount and trace 1/2."""
    made = learner(channels=1, copies=3, gamma=0.5, trace=0.5)
    reward = np.array([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]])
    there = np.array([[True, True, True], [True, True, False]])
    value = np.array([[1.0, 1.0, 1.0], [2.0, 1.0, 9.0]])
    advantage, gain = made._advantage(reward, there, value)
    assert gain.tolist() == [[3.0, 2.0, 3.0], [4.0, 0.0, 0.0]]
    # Surprises: 1 + 2/2 - 1, 2 + 1/2 - 1, 3 - 1 first, then 4 - 2 and 0 - 1; a quarter of a later one counts before it: 1.5,
    # 1.25, 2.
    own = np.array([[1.5 - 3.25 / 2, 1.25 - 3.5 / 2, 2 - 2.75 / 2], [2 - -1, -1 - 2, 0.0]])
    assert advantage == pytest.approx(own / (np.abs(own).sum() / 5))


def test_channels_are_judged_apart_and_luck_cancels() -> None:
    made = learner(channels=2, copies=2, trace=1.0)
    reward = np.array([[1.0, 3.0, 101.0, 103.0]])
    there, value = np.ones((1, 4), bool), np.zeros((1, 4))
    assert made._advantage(reward, there, value)[0].tolist() == [[-1.0, 1.0, -1.0, 1.0]]
    # Whose others are all over has nobody to be compared with.
    alone = np.array([[True, False, True, True]])
    assert made._advantage(reward * alone, alone, value)[0].tolist() == [[0.0, 0.0, -1.5, 1.5]]
    assert not made._advantage(np.ones((1, 4)), there, value)[0].any()


def test_outliers_are_cut() -> None:
    made = learner(channels=8, copies=2)
    reward = np.zeros((1, 16))
    reward[0, 0] = 1e6
    assert made._advantage(reward, np.ones((1, 16), bool), np.zeros((1, 16)))[0][0, :3].tolist() == [5.0, -5.0, 0.0]


@pytest.mark.parametrize(("gamma", "same"), [(0.0, True), (0.9, False)])
def test_without_discount_nothing_later_counts(gamma: float, same: bool) -> None:
    made, rng = learner(gamma=gamma, trace=0.95), np.random.default_rng(0)
    reward, value, there = rng.random((3, 64)), rng.random((3, 64)), np.ones((3, 64), bool)
    other = reward.copy()
    other[1:] = rng.permuted(other[1:], axis=1)  # the same spread, so that the scale stays comparable
    one, two = (made._advantage(item, there, value) for item in (reward, other))
    signs = np.sign(one[0][0]) == np.sign(two[0][0])
    assert bool(signs.all()) is same and np.array_equal(one[1][0], two[1][0]) is same
    if same:
        ratio = one[0][0] / two[0][0]
        assert ratio == pytest.approx(np.full(64, ratio[0])) and np.array_equal(one[1], reward)


# -- playing ---------------------------------------------------------------------------------------------------------------


class Short(RankProblem):
    """Episodes of odd seeds end after two steps, and pay what nobody may count after that."""

    def step(self, ranks: Ranks) -> Step:
        step = super().step(ranks)
        odd = self._seeds % 2 == 1
        step.terminated[:] = odd & (self._step == 2)
        step.reward[:] += np.where(odd & (self._step > 2), 1e6, 0.0)
        return step


def test_decisions_are_those_of_episodes_that_were_not_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rank_problem.problem", Short)
    made = learner(world={"rows": 2, "horizon": 4}, channels=4, copies=2, steps=4, tuned=2)
    played = made.play()
    core = made.stages[0].core
    assert isinstance(core, Short)
    odd = int((core._seeds % 2).sum())
    assert 0 < odd < 8 and len(played.features) == 2 * (2 * odd + 4 * (8 - odd))
    assert abs(played.reward) < 100 and float(played.gain.abs().max()) < 100
    assert played.states.shape == (3, len(played.features), 4) and played.likelihood.shape == (2, len(played.features))
    client, sites = torch.from_numpy(played.features.client), torch.from_numpy(played.features.sites)
    for index in range(2):
        with torch.no_grad():
            again = made.brain.chain.log_prob(made.brain.chain.first + index, *played.states[index : index + 2], client, sites)
        torch.testing.assert_close(again, played.likelihood[index], rtol=1e-3, atol=1e-3)
    assert abs(float(played.advantage.mean())) < 0.05 < float(played.advantage.std())


def test_playing_depends_on_seed_and_iteration_alone() -> None:
    made, other = learner(seed=3), learner(seed=3)
    first = made.play()
    torch.rand(7)
    np.random.rand(7)
    assert torch.equal(first.states, other.play().states) and torch.equal(first.states, made.play().states)
    other.iteration = 1
    assert not torch.equal(first.states, other.play().states)
    assert not torch.equal(first.states, learner(seed=4).play().states)


def test_variants_take_turns() -> None:
    """One network learns in environments of three and of five sites."""
    make = Grounds("rank_problem:problem", SMALL, [{}, {"sites": 5, "cap": 4}])
    made = PlusLearner(make, 0, **OPTIONS)
    sizes = []
    for _ in range(3):
        sizes.append(made.play().states.shape[2] - 1)
        made.iterate()
    assert sizes == [3, 5, 3]


def test_a_reward_that_is_no_number_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(RankProblem):
        def step(self, ranks: Ranks) -> Step:
            step = super().step(ranks)
            step.reward[3] = np.nan if self._step[3] == 2 else step.reward[3]
            return step

    monkeypatch.setattr("rank_problem.problem", Broken)
    made, before = learner(channels=2, copies=2), learner(channels=2, copies=2).state()["denoiser"]
    with pytest.raises(TrainingError, match=r"the episode with seed \d+ is nan in step 2 of iteration 1: nothing can be learnt"):
        made.iterate()
    assert made.iteration == 0 and all(torch.equal(tensor, before[name]) for name, tensor in made.state()["denoiser"].items())
    with pytest.raises(TrainingError, match=r"the episode with seed \d+ is nan in the lessons of 'oracle'"):
        learner(lessons=4).prepare(lambda text: None)


# -- the price of what does not fit ----------------------------------------------------------------------------------------


def test_the_price_follows_what_was_infeasible() -> None:
    late = {"delay": 2, "horizon": 6}
    made = learner(world=late, infeasible=0.01, price_lr=2.0)
    price = 0.0
    for _ in range(2):
        row = made.iterate()
        assert row["infeasible"] > 0.02
        price += 2.0 * (row["infeasible"] - 0.01)
        assert row["price"] == made.price == pytest.approx(price)
    made.config = made.config.model_copy(update={"infeasible": 1.0})
    assert made.iterate()["price"] == 0.0
    free = learner(world=late, infeasible=0.01, price_lr=0.0)
    assert [free.iterate()["price"] for _ in range(2)] == [0.0, 0.0]


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_price_tells_feasible_decisions_from_others_unless_rewards_are_shuffled(shuffle: bool) -> None:
    made = learner(world={"delay": 2, "horizon": 6}, gamma=0.0, channels=32, shuffle=shuffle)
    found = []

    def step(ranks: Ranks) -> Step:
        taken = RankProblem.step(core, ranks)  # type: ignore[arg-type]
        found.append(taken.info["feasible"])
        return taken

    core = made.stages[0].core
    core.step = step  # type: ignore[method-assign]
    made.price = 1000.0
    played = made.play()
    good = np.concatenate(found).astype(bool)
    assert 0.02 < 1 - good.mean() < 0.9 and played.infeasible == pytest.approx(1 - good.mean())
    gap = float(played.advantage[torch.from_numpy(good)].mean() - played.advantage[torch.from_numpy(~good)].mean())
    print(gap)
    assert abs(gap) < 0.15 if shuffle else gap > 0.3, gap
    assert abs(played.reward) < 10  # what is reported is without the price


# -- learning --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [2, 3])
def test_it_learns_from_rewards_and_from_nothing_else(seed: int) -> None:
    """It closes most of the gap to the best on channels it never saw; with rewards dealt out at random it does not."""
    best = play(RankProblem(len(UNSEEN), **SMALL), "oracle", {"price": 1.0}, UNSEEN).returns.mean()
    closed = {}
    for shuffle in (False, True):
        made = learner(seed, shuffle=shuffle)
        start = score(made)
        for _ in range(12):
            made.iterate()
        closed[shuffle] = (score(made) - start) / (best - start)
    assert closed[False] > 0.75 and closed[True] < 0.3, closed


def test_a_myopic_learner_learns_what_is_not_about_later() -> None:
    made = learner(2, gamma=0.0)
    start = score(made)
    for _ in range(10):
        made.iterate()
    assert score(made) > start + 0.3


# -- lessons ---------------------------------------------------------------------------------------------------------------


def test_lessons_are_the_best_of_each_channel() -> None:
    several = {"greedy": {"price": [0.0, 1.0, 3.0], "backoff": [0.5, 1.0]}}
    world = {"rows": 2, "horizon": 4, "budget": 0.3, "price": 0.3, "sites": 3}
    seeds, stage = np.arange(20, dtype=np.uint64), Stage(RankProblem(20, **world))  # type: ignore[arg-type]
    lessons = gather(stage, Reader(stage.setup(0), "x"), seeds, teachers=several)
    options = [{"price": price, "backoff": backoff} for price in (0.0, 1.0, 3.0) for backoff in (0.5, 1.0)]
    tried = np.stack([play(RankProblem(20, **world), "greedy", option, seeds).returns for option in options])  # type: ignore[arg-type]
    assert lessons.score == pytest.approx(tried.max(axis=0).mean()) and len(set(tried.argmax(axis=0))) > 1
    assert lessons.requests.shape == (len(lessons.features), 4) and 0 < len(lessons.features) <= 20 * 2 * 4
    # The episodes of one teacher, decision by decision: what was asked for is what it took.
    lessons, wanted = gather(stage, Reader(stage.setup(0), "x"), seeds, teachers=ONE), []

    def watch(seen: Any, ranks: Ranks, step: Step, alive: Any) -> None:
        good = np.repeat(step.info["feasible"], 2)
        again = ranks_of(lessons.requests.numpy()[sum(map(len, wanted)) :][: good.sum()], stage.costs, budget_of(seen)[good])
        assert again.tolist() == ranks[good].tolist()
        wanted.append(again)

    play_with(stage, make_policy("greedy", {"price": 1.0}, stage.setup(0)), "greedy", seeds, watch)
    assert sum(map(len, wanted)) == len(lessons.features)
    dealt = gather(stage, Reader(stage.setup(0), "x"), seeds, teachers=ONE, shuffle=np.random.default_rng(0))
    assert dealt.score == pytest.approx(lessons.score)


def test_imitation_reproduces_a_teacher() -> None:
    """On channels that it has not seen either."""
    made = learner(1, teachers=ONE, lessons=96, imitations=300, batch=128, imitation_lr=1e-2)
    told: list[str] = []
    made.prepare(told.append)
    assert made.numbers["lessons"] == 96 * 3 and told
    stage, chosen = Stage(RankProblem(len(UNSEEN), **SMALL)), {}
    for name, policy in (
        ("ours", made.policy(stage.setup(0))),
        ("greedy", make_policy("greedy", {"price": 1.0}, stage.setup(0))),
    ):
        seen: list[Ranks] = []
        play_with(stage, policy, name, UNSEEN, lambda look, ranks, step, alive, seen=seen: seen.append(ranks))  # type: ignore[misc]
        chosen[name] = np.concatenate(seen)
    agree = (chosen["ours"] == chosen["greedy"]).all(axis=1).mean()
    assert agree > 0.9 and len(np.unique(chosen["greedy"], axis=0)) > 2, agree


def test_the_loss_of_imitation_by_hand() -> None:
    """A denoiser that says 0 is wrong by the requests themselves, the bytes counting as much as all sites together."""
    brain = Brain(NetworkConfig(width=8, blocks=1), ChainConfig())
    brain.denoiser.forward = lambda noisy, *rest: torch.zeros_like(noisy)  # type: ignore[method-assign]
    requests = torch.tensor([[1.0, -1.0, 0.5], [0.5, 0.5, -1.0]])
    features = Reader(learner().stages[0].setup(0), "x")(learner().stages[0].reset(np.arange(64, dtype=np.uint64))).take(
        np.arange(2)
    )
    loss = denoising_loss(brain, features, requests, 0.0, torch.Generator().manual_seed(0))
    assert float(loss) == pytest.approx(((1 + 0.25) + (0.25 + 1)) / 2)


def test_imitation_hides_clients_where_guidance_is_used() -> None:
    for guidance, moved in ((1.0, False), (2.0, True)):
        made = learner(lessons=8, imitations=3, guidance=guidance, hide=0.5)
        made.prepare(lambda text: None)
        assert bool(made.brain.denoiser.nothing.detach().any()) is moved


def test_no_lessons_no_imitation() -> None:
    made, before = learner(), learner().state()["denoiser"]
    made.prepare(lambda text: None)
    assert made.numbers == {} and all(torch.equal(tensor, before[name]) for name, tensor in made.state()["denoiser"].items())


def test_imitation_is_a_function_of_its_seed() -> None:
    lessons = Lessons(*_two_lessons())
    found = []
    for seed in (1, 1, 2):
        brain = Brain(NetworkConfig(width=8, blocks=1), ChainConfig(), seed=0)
        torch.rand(3)
        loss = imitate(brain, [lessons], 4, 8, 1e-2, 0.1, seed)
        found.append((loss, brain.denoiser.site.weight.detach()))
    assert torch.equal(found[0][1], found[1][1]) and found[0][0] == found[1][0] != found[2][0]


def _two_lessons() -> tuple[Any, torch.Tensor, float]:
    stage = Stage(RankProblem(4, **SMALL))
    features = Reader(stage.setup(0), "x")(stage.reset(np.arange(4, dtype=np.uint64)))
    return features, torch.linspace(-1, 1, 16).reshape(4, 4), 0.0


# -- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"widht": 3}, "unknown key 'learner.widht'. Did you mean 'learner.width'?"),
        ({"tuned": 3}, "learner.tuned = 3 is more than the chain's learner.steps = 2"),
        ({"steps": 101}, "learner.steps = 101"),
        ({"channels": 10_001}, "learner.channels = 10001"),
        ({"lessons": 10_001}, "learner.lessons = 10001"),
        ({"copies": 1}, "learner.copies = 1"),
        ({"gamma": 1.5}, "learner.gamma = 1.5"),
        ({"lr": "fast"}, "learner.lr = 'fast'"),
    ],
)
def test_options_that_cannot_work_are_one_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        learner(**options)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_one_policy_for_other_sites() -> None:
    """What was trained on three sites chooses for six, inside the budget."""
    made, stage = learner(), Stage(RankProblem(5, sites=6, cap=8))
    policy = made.policy(stage.setup(0))
    assert isinstance(policy, AirllmPlusPolicy)
    assert play_with(stage, policy, "learnt", np.arange(5, dtype=np.uint64)).feasible.tolist() == [1.0] * 5
