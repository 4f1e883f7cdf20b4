"""What a policy is shown: exact bytes, budgets by hand, the worth of levels, and what clients say of their texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlora.adapters import Tensors
from fedlora.data.features import read_corpus, text_features
from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.budgets import budget_bytes
from fedlora.federation.client import TEXT_METRICS, reply_spec
from fedlora.federation.costs import costs_of
from fedlora.federation.gains import PRIOR, level_gains
from fedlora.federation.policy import Links, Observation, legal
from fedlora.federation.roll import call_roll
from fedlora.federation.strategy import RoundStrategy, policy_of
from fedlora.federation.workbench import Workbench, build
from fedlora.federation.world import expected_units, make_world, setup_of
from fedlora.training.batches import plan
from fedlora.wire import encoded_size
from tiny_run import Ground, fresh_state

KINDS = {
    "lora": ("adapter.method=lora",),
    "triplet": ("adapter.method=triplet",),
    "heads": (),
    "block": ("adapter.unit=block",),
    "svd": ("adapter.unit=svd", "adapter.rank=8", "adapter.heads=3"),
}
UMI = ("world.name=umi-indoor", "world.options.devices.jitter=0")


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "int8"])
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_costs_are_the_codecs_bytes(ground: Ground, changes: tuple[str, ...], dtype: str) -> None:
    bench = build(ground.config(*changes, f"wire.dtype={dtype}"))
    costs = costs_of(bench)
    rng = np.random.default_rng(0)
    caps = np.array([adapter.cap for adapter in bench.adapters])
    drawn = legal(rng.integers(0, caps + 1, (60, len(caps))), bench.adapters)
    ranks = np.concatenate([drawn, np.zeros((1, len(caps)), np.int64), caps[None]])
    exact = [encoded_size(reply_spec(bench, row.tolist()), bench.config.wire.dtype) for row in ranks]
    assert costs.bytes(ranks).tolist() == exact
    assert (costs.base, costs.full) == tuple(exact[-2:]) and len(set(exact)) > 10
    assert (costs.table[:, 0] == 0).all() and costs.levels.tolist() == (caps // costs.units).tolist()
    told = policy_of(bench)[1].costs
    assert told is not None and np.array_equal(told.table, costs.table) and told.base == costs.base


def _links(**changes: object) -> Links:
    given = {
        "uplink_snr_db": np.zeros(3),
        "uplink_bps": np.array([8e3, 8e4, 0.0]),
        "downlink_bps": np.array([4e5, 1e5, 0.0]),
        "age_rounds": np.ones(3, np.int64),
        "outage": np.array([False, False, True]),
        "compute_bps": np.ones(3),
        "energy_left_j": np.full(3, np.inf),
        "deadline_s": 10.0,
        "compute_s": np.array([1.0, 5.0, 0.0]),
    }
    return Links(**{**given, **changes})  # type: ignore[arg-type]


def test_a_budget_by_hand() -> None:
    # 2e5 bits at the slowest listener's 1e5 bit/s take 2 s: 10 - 2 - 1 = 7 s at 8 kbit/s, 10 - 2 - 5 = 3 s at 80 kbit/s.
    np.testing.assert_allclose(budget_bytes(_links(), 2e5), [7000.0, 30_000.0, 0.0])
    # A slice: b bytes go down and up, 9 s at (1 / 8e3 + 1 / 4e5) s per bit and 5 s at (1 / 8e4 + 1 / 1e5).
    per_bit = [1 / 8e3 + 1 / 4e5, 1 / 8e4 + 1 / 1e5]
    np.testing.assert_allclose(budget_bytes(_links()), [9 / per_bit[0] / 8, 5 / per_bit[1] / 8, 0.0])
    # What is over before the upload could begin leaves nothing, and nothing negative.
    np.testing.assert_allclose(budget_bytes(_links(deadline_s=4.0), 2e5), [1000.0, 0.0, 0.0])
    np.testing.assert_allclose(budget_bytes(_links(compute_s=None), 2e5), [8000.0, 80_000.0, 0.0])
    # Who hears the broadcast slows it down, even if nothing comes back from there.
    deaf = _links(downlink_bps=np.array([4e5, 1e5, 5e4]))
    np.testing.assert_allclose(budget_bytes(deaf, 2e5), [5000.0, 10_000.0, 0.0])


def test_budgets_of_several_rounds_at_once() -> None:
    one, other = _links(), _links(downlink_bps=np.array([5e4, 2e5, 0.0]))
    both = {
        name: np.concatenate([getattr(one, name), getattr(other, name)])
        for name in ("uplink_bps", "downlink_bps", "outage", "compute_s")
    }
    apart = [budget_bytes(links, 2e5) for links in (one, other)]
    np.testing.assert_array_equal(budget_bytes(_links(**both), 2e5, together=3), np.concatenate(apart))
    assert (apart[0] != apart[1]).any()


def test_a_budget_without_limits() -> None:
    endless = _links(deadline_s=np.inf)
    for budget in (budget_bytes(endless, 2e5), budget_bytes(endless)):
        assert budget.tolist() == [np.inf, np.inf, 0.0]
    free = np.full(3, np.inf)
    instant = _links(uplink_bps=free, downlink_bps=free, outage=np.zeros(3, bool), compute_s=np.array([1.0, 10.0, 11.0]))
    for budget in (budget_bytes(instant, 2e5), budget_bytes(instant)):
        assert budget.tolist() == [np.inf, 0.0, 0.0]


class Seen:
    """Looks, and gives everybody the cap."""

    def __init__(self) -> None:
        self.last: Observation | None = None

    def choose(self, observation: Observation) -> np.ndarray:
        """Remember what is shown."""
        self.last = observation
        return np.tile(observation.caps, (len(observation.clients), 1))


def _look(bench: Workbench, rounds: int = 1) -> list[Observation]:
    """Play rounds and return what the policy was shown in each."""
    grid, world = BatchedGrid(bench), make_world(bench)
    roster = call_roll(grid, bench.config.clients)
    strategy = RoundStrategy(bench, roster, fresh_state(bench), world)
    strategy.policy = seen = Seen()
    outer = world.grid(grid, {node: client for client, (node, _) in roster.items()}) if world else grid
    shown: list[Observation] = []

    def keep(number: int, _: object) -> None:
        if number:
            assert seen.last is not None
            shown.append(seen.last)

    strategy.start(outer, strategy.broadcast(), num_rounds=rounds, evaluate_fn=keep)
    return shown


def test_the_strategy_shows_what_a_policy_needs(ground: Ground) -> None:
    bench = build(ground.config(*UMI, "world.options.deadline_s=2.0", "adapter.method=triplet"))
    first, second = _look(bench, 2)
    for observation in (first, second):
        links, costs, budget = observation.links, observation.costs, observation.budget_bytes
        assert links is not None and costs is not None and budget is not None and links.compute_s is not None
        down_bits = 8 * encoded_size(fresh_state(bench).adapter.spec(), "fp32")
        left_s = 2.0 - down_bits / links.downlink_bps.min() - links.compute_s
        assert not links.outage.any()
        np.testing.assert_allclose(budget, left_s * links.uplink_bps / 8)
        assert (budget > costs.full).all()
        assert observation.gains is not None and observation.gains.shape == (4, 4, 4)
        np.testing.assert_allclose(observation.gains.sum(axis=(1, 2)), 1)
    assert first.gains is not None and second.gains is not None
    assert np.ptp(first.gains) == 0 and np.ptp(second.gains) > 0


def test_without_a_world_nothing_limits(ground: Ground) -> None:
    (observation,) = _look(build(ground.config("rounds=1")))
    assert observation.links is None and observation.budget_bytes is not None and observation.costs is not None
    assert observation.budget_bytes.tolist() == [np.inf] * 4


@pytest.mark.parametrize(
    "changes", [("training.steps=3",), ("training.epochs=1.5",), ("training.steps=2", "training.batch_size=64")]
)
def test_the_expected_work_is_what_training_takes_on_average(ground: Ground, changes: tuple[str, ...]) -> None:
    bench = build(ground.config(*changes, "training.length_bucketing=false"))
    lengths, units = bench.train.lengths, setup_of(bench).units
    for client, part in enumerate(bench.parts):
        drawn = [plan(part, lengths, bench.config.training, seed, 1, client) for seed in range(400)]
        taken = np.array([lengths[batches[batches >= 0]].sum() for batches in drawn])
        assert units[client] == expected_units(part, lengths, bench.config.training)
        assert abs(taken.mean() - units[client]) <= 4.5 * taken.std() / 20 + 1e-9 + 0.5 * ("epochs" in changes[0]) * lengths.max()


@pytest.mark.parametrize("changes", [UMI, ("world.name=yang2021", "aggregator.method=auto")], ids=["flops", "cycles"])
def test_the_expected_seconds_are_those_of_a_round_without_jitter(ground: Ground, changes: tuple[str, ...]) -> None:
    """Texts of one length, so that what is expected is what happens."""
    bench = build(ground.config(*changes, "data.max_length=4", "wire.downlink=sliced"))
    assert set(bench.train.lengths.tolist()) == {4}
    grid, world = BatchedGrid(bench), make_world(bench)
    assert world is not None
    roster = call_roll(grid, 6)
    strategy = RoundStrategy(bench, roster, fresh_state(bench), world)
    strategy.policy = seen = Seen()
    strategy.start(world.grid(grid, {node: client for client, (node, _) in roster.items()}), strategy.broadcast(), num_rounds=1)
    assert seen.last is not None and seen.last.links is not None and seen.last.links.compute_s is not None
    took = [row["compute_s"] for row in strategy.record.clients]
    np.testing.assert_allclose(seen.last.links.compute_s, took, atol=2e-9)
    assert min(took) > 0


def _trained(bench: Workbench, seed: int = 0) -> list[Tensors]:
    torch.manual_seed(seed)
    return [{name: torch.randn(shape) for name, shape in adapter.state_shapes.items()} for adapter in bench.adapters]


@pytest.mark.parametrize("changes", [*KINDS.values(), ("adapter.score=weight",)], ids=[*KINDS, "weight"])
def test_gains_fall_sum_to_one_and_begin_flat(ground: Ground, changes: tuple[str, ...]) -> None:
    bench = build(ground.config(*changes))
    costs = costs_of(bench)
    real = np.arange(1, costs.table.shape[1]) <= costs.levels[:, None]
    zero = level_gains(bench.adapters, fresh_state(bench).adapter.sites)
    np.testing.assert_allclose(zero, real / real.sum())
    np.testing.assert_array_equal(level_gains(bench.adapters, []), zero)
    gains = level_gains(bench.adapters, _trained(bench))
    assert gains.shape == real.shape and gains.sum() == pytest.approx(1)
    assert (gains[real] >= PRIOR / real.sum() - 1e-12).all() and (np.diff(gains, axis=1) <= 1e-12).all()
    assert np.ptp(gains) > 0


def test_gains_are_squared_norms_of_components(ground: Ground) -> None:
    bench = build(ground.config("adapter.method=triplet"))
    sites = _trained(bench)
    for state in sites:
        state["E"] = torch.tensor([8.0, 4.0, 2.0, 1.0]) * (1 + torch.arange(4) * 0.1)
    expected = []
    for adapter, state in zip(bench.adapters, sites, strict=True):
        whole = [(adapter.delta_weight(state | {"E": state["E"] * (torch.arange(4) == j)})).square().sum() for j in range(4)]
        expected.append([float(value) for value in whole])
    share = np.minimum.accumulate(np.array(expected), axis=1)
    share = share / share.sum()
    np.testing.assert_allclose(level_gains(bench.adapters, sites), (1 - PRIOR) * share + PRIOR / share.size, rtol=1e-5)


def test_gains_of_heads_are_squared_norms_of_heads(ground: Ground) -> None:
    bench = build(ground.config("adapter.score=weight"))
    sites = _trained(bench)
    expected = []
    for adapter, state in zip(bench.adapters, sites, strict=True):
        alone = [adapter.delta_weight({"H": state["H"] * (torch.arange(4) == j)[:, None, None]}).square().sum() for j in range(4)]
        expected.append(sorted((float(value) for value in alone), reverse=True))
    share = np.array(expected) / np.sum(expected)
    np.testing.assert_allclose(level_gains(bench.adapters, sites), (1 - PRIOR) * share + PRIOR / share.size, rtol=1e-5)


def test_gains_of_a_stack_are_its_spectrum(ground: Ground) -> None:
    bench = build(ground.config("adapter.method=lora", "aggregator.method=stack"))
    empty = bench.aggregator.initial({}).sites
    assert np.ptp(level_gains(bench.adapters, empty)) == 0
    torch.manual_seed(1)
    sites = [{"B": torch.randn(32, 7), "A": torch.randn(7, 32)} for _ in empty]
    found = level_gains(bench.adapters, sites)
    values = np.array([torch.linalg.svdvals(site["B"] @ site["A"])[:4].square().numpy() for site in sites])
    np.testing.assert_allclose(found, (1 - PRIOR) * values / values.sum() + PRIOR / values.size, rtol=1e-4)


def test_clients_say_what_their_texts_are_like(ground: Ground) -> None:
    bench = build(ground.config())
    roster = call_roll(BatchedGrid(bench), 6)
    assert roster == {client: (client + 1, len(part)) for client, part in enumerate(bench.parts)}
    tokenizer, texts = bench.train.loaded.tokenizer, bench.train.examples.texts
    assert bench.train.encoded is not None and texts is not None
    corpus = read_corpus(bench.train.encoded, texts, tokenizer)
    np.testing.assert_array_equal(bench.surprisal, corpus.surprisal)
    expected = text_features(corpus, bench.parts)
    np.testing.assert_allclose([roster.text[client] for client in range(6)], expected)
    assert (np.ptp(expected[:, :2], axis=0) > 0).all()
    (first, *_) = _look(bench)
    np.testing.assert_allclose(first.text, expected[first.clients])


def test_what_a_client_says_of_its_texts_is_brought_inside_bounds(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = build(ground.config())
    said = {0: [2.0, -1.0, 0.5], 1: [float("nan"), 0.1, 0.1], 2: [0.1, 0.1], 3: [0.25, 0.5, 0.75]}
    monkeypatch.setattr(
        "fedlora.federation.client._text_metrics",
        lambda _, client: dict(zip(TEXT_METRICS, said.get(client, []), strict=False)),
    )
    assert call_roll(BatchedGrid(bench), 6).text == {0: (1.0, 0.0, 0.5), 3: (0.25, 0.5, 0.75)}
