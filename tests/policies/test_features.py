"""What learned policies read: numbers without units, about any model, from every place that shows an observation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedlora.errors import ConfigError
from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.policy import Allowance, Observation, PolicySetup, Ranks
from fedlora.federation.roll import call_roll
from fedlora.federation.strategy import RoundStrategy, policy_of
from fedlora.federation.workbench import build
from fedlora.federation.world import make_world
from fedlora.ranks import Costs
from fedlora_policies.features import CLIENT_FEATURES, SITE_FEATURES, Features, Reader, places
from fedlora_policies.rollout import Stage, make_core
from looks import CAPS, COSTS, GAINS, SETUP, UNITS, links, look
from tiny_run import Ground, fresh_state
from worlds import make, round_of

NAMES = ("block.0.query", "block.2.query", "block.1.query")
TOLD = replace(SETUP, sites=NAMES)


def shown(**fields: Any) -> Observation:
    """Return an observation in which everything is told and differs from client to client."""
    known = replace(
        links([-7.0, 3.0, 20.0]), age_rounds=np.array([1, 2, 0]), outage=np.array([True, False, False]),
        allowance=Allowance(np.array([0.1, 0.6, 1.0]), np.array([3e-4, 1e-4, 2e-5])),
    )  # fmt: skip
    told: dict[str, Any] = {
        "links": known, "budget_bytes": np.array([30.0, 600.0, 9000.0]), "gains": np.stack([GAINS, 2 * GAINS, GAINS / 2]),
        "text": np.array([[0.5, 0.2, 0.1], [0.6, 0.3, 0.0], [0.9, 0.4, 0.2]]),
    }  # fmt: skip
    return replace(look(3, **(told | fields)), previous=np.array([[1, 0, 8], [4, 2, 0], [0, 0, 0]]))


def same(one: Features, other: Features) -> bool:
    return bool(np.allclose(one.client, other.client, atol=1e-6) and np.allclose(one.sites, other.sites, atol=1e-6))


def column(found: Features, name: str) -> Any:
    """Return a feature by name, `[n]` or `[n, sites]`."""
    if name in CLIENT_FEATURES:
        return found.client[:, CLIENT_FEATURES.index(name)]
    return found.sites[:, :, SITE_FEATURES.index(name)]


def test_numbers_by_hand() -> None:
    found = Reader(TOLD, "x")(shown())
    assert found.client.shape == (3, len(CLIENT_FEATURES)) and found.sites.shape == (3, 3, len(SITE_FEATURES))
    assert found.client.dtype == found.sites.dtype == np.float32 and len(found) == 3
    full = 400 + 800 + 200 + 40
    for name, wanted in {
        "snr": [-0.35, 0.15, 1.0],
        "fits": [30 / full, 600 / full, 1.0],
        "fits, decades": np.log10([30 / full, 600 / full, 9000 / full]),
        "outage": [1, 0, 0],
        "csi age": [0.25, 0.5, 0.0],
        "round": [0.3] * 3,
        "rounds left": [np.log10(8)] * 3,
        "allowance left": [0.1, 0.6, 1.0],
        "allowance use": np.log10(np.array([3e-4, 1e-4, 2e-5]) * full * 8),
        "has allowance": [1, 1, 1],
        "previous rank": [1.25 / 3, 1.5 / 3, 0],
        "base": [40 / full] * 3,
        "sites": [np.log10(3)] * 3,
        "split words": [0.1, 0.0, 0.2],
    }.items():
        assert column(found, name).tolist() == pytest.approx(list(wanted), abs=1e-6), name
    worth = GAINS.sum(axis=1)
    for name, wanted in {
        "worth": np.log10(worth / worth.mean()),
        "worth of best": worth / worth.max(),
        "concentration": GAINS[:, 0] / worth,
        "bytes": np.log2(np.array([400, 800, 200]) / (1400 / 3)),
        "depth": [0.0, 1.0, 0.5],
        "cap": [0.5, 0.5, 1.0],
    }.items():
        assert column(found, name)[1].tolist() == pytest.approx(list(wanted), abs=1e-6), name
    assert column(found, "previous rank").shape == (3,)
    assert found.sites[0, :, SITE_FEATURES.index("previous rank")].tolist() == [0.25, 0.0, 1.0]


def test_gains_have_no_unit() -> None:
    reader = Reader(TOLD, "x")
    scaled = np.array([1e-6, 1.0, 1e5])[:, None, None]
    assert same(reader(shown(gains=GAINS * scaled)), reader(shown(gains=np.tile(GAINS, (3, 1, 1)))))
    bent = np.tile(GAINS, (3, 1, 1))
    bent[:, 0, 0] *= 2
    assert not same(reader(shown(gains=bent)), reader(shown(gains=np.tile(GAINS, (3, 1, 1)))))


@pytest.mark.parametrize("unit", [8, 1000])
def test_bytes_have_no_unit(unit: int) -> None:
    before = shown()
    assert before.links is not None and before.links.allowance is not None and before.budget_bytes is not None
    allowance = replace(before.links.allowance, per_byte=before.links.allowance.per_byte / unit)
    costs = Costs(COSTS.base * unit, COSTS.table * unit, UNITS, CAPS)
    after = shown(costs=costs, budget_bytes=before.budget_bytes * unit, links=replace(before.links, allowance=allowance))
    reader = Reader(TOLD, "x")
    assert same(reader(after), reader(before))
    assert not same(reader(shown(costs=costs)), reader(before))


def test_another_order_of_sites_gives_another_order_of_features() -> None:
    order, seen = np.array([2, 0, 1]), shown()
    assert seen.gains is not None
    turned = replace(
        seen, caps=CAPS[order], units=UNITS[order], previous=seen.previous[:, order], gains=seen.gains[:, order],
        costs=Costs(COSTS.base, COSTS.table[order], UNITS[order], CAPS[order]),
    )  # fmt: skip
    setup = replace(TOLD, caps=CAPS[order], units=UNITS[order], costs=turned.costs, sites=tuple(NAMES[site] for site in order))
    one, other = Reader(TOLD, "x")(seen), Reader(setup, "x")(turned)
    assert np.allclose(other.client, one.client) and np.allclose(other.sites, one.sites[:, order])
    assert not np.allclose(other.sites, one.sites)


@pytest.mark.parametrize(
    ("names", "depth", "role"),
    [
        (("e.0.q", "e.0.k", "e.0.v", "e.3.q", "e.3.k", "e.3.v"), [0, 0, 0, 1, 1, 1], [0, 0.5, 1] * 2),
        (("h.4.attn", "h.5.attn", "h.6.attn"), [0, 0.5, 1], [0, 0, 0]),
        (("layer.11.a", "layer.2.a", "layer.2.b"), [1, 0, 0], [0, 0, 1]),
        (("t5.layer.1.wi_0", "t5.layer.1.wi_1"), [0, 0], [0, 1]),
        (("query", "key", "value"), [0, 0.5, 1], [0, 0, 0]),
        (("only",), [0], [0]),
        ((), [0, 0.25, 0.5, 0.75, 1], [0] * 5),
    ],
)
def test_where_sites_are(names: tuple[str, ...], depth: list[float], role: list[float]) -> None:
    found = places(names, len(depth))
    assert found[0].tolist() == pytest.approx(depth) and found[1].tolist() == pytest.approx(role)


def test_no_names_and_one_site() -> None:
    assert [part.tolist() for part in places((), 1)] == [[0.0], [0.0]]
    assert [part.tolist() for part in places(("too", "many"), 1)] == [[0.0], [0.0]]


NOTHING = replace(links([-np.inf, np.inf, np.nan], 0.0), age_rounds=np.full(3, -1), outage=np.ones(3, bool))
EMPTY = replace(NOTHING, allowance=Allowance(np.zeros(3), np.array([np.inf, 1e300, 0.0])))


@pytest.mark.parametrize(
    "fields",
    [
        {"links": None, "budget_bytes": None, "text": None},
        {"links": None, "budget_bytes": np.full(3, np.inf)},
        {"links": NOTHING, "budget_bytes": np.zeros(3)},
        {"links": EMPTY, "budget_bytes": np.array([0.0, 1e300, np.inf])},
        {"gains": np.zeros((3, 3, 4))},
        {"gains": np.full((3, 3, 4), 1e-300)},
        {"costs": Costs(40, np.zeros((3, 5), np.int64), UNITS, CAPS)},
    ],
)
def test_what_is_endless_or_missing_gives_small_numbers(fields: dict[str, Any]) -> None:
    with np.errstate(all="raise", under="ignore"):
        found = Reader(SETUP, "x")(look(**fields))
    assert_small(found)
    assert found.client[:, CLIENT_FEATURES.index("fits")].min() >= 0


def assert_small(found: Features) -> None:
    for part in (found.client, found.sites):
        assert np.isfinite(part).all() and np.abs(part).max() <= 6.0


@pytest.mark.parametrize(("field", "says"), [("costs", "what ranks cost"), ("gains", "what ranks are worth")])
def test_what_is_needed_is_asked_for(field: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"policy.name = 'mine' needs to know {says}"):
        Reader(SETUP, "mine")(look(**{field: None}))


def test_some_and_flat() -> None:
    found = Reader(TOLD, "x")(shown())
    some = found.take(np.array([2, 0]))
    assert np.array_equal(some.client, found.client[[2, 0]]) and np.array_equal(some.sites, found.sites[[2, 0]])
    flat = found.flat()
    assert flat.shape == (3, len(CLIENT_FEATURES) + 3 * len(SITE_FEATURES))
    assert np.array_equal(flat[1], np.concatenate([found.client[1], *found.sites[1]]))


# -- the places that show observations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "budget"),
    [
        ("fedlora/RemoteFineTuning-v0", {}, False),
        ("fedlora/RemoteFineTuning-v0", {"channel": "markov", "csi_delay": 1, "budget_s": 3.0, "language": "coming"}, True),
        ("fedlora/FederatedRankAllocation-v0", {"energy_budget_j": 2.0, "clients": 3}, True),
        ("fedlora/FederatedRankAllocation-v0", {"energy_budget_j": None, "clients": 3, "csi_error_db": 3.0}, False),
    ],
)
def test_environments_are_read_to_their_end(name: str, options: dict[str, Any], budget: bool) -> None:
    stage = Stage(make_core(name, 4, options))
    reader, seen = Reader(stage.setup(0), "x"), stage.reset(np.arange(4, dtype=np.uint64))
    first = reader(seen)
    depth, role = column(first, "depth"), column(first, "role")
    assert depth.min() == role.min() == 0 and depth.max() == role.max() == 1 and len(np.unique(depth)) == 6
    rng = np.random.default_rng(0)
    for step in range(stage.core.horizon):
        found = reader(seen)
        assert_small(found)
        assert (column(found, "has allowance") == budget).all() and (budget or (column(found, "allowance left") == 1).all())
        assert not step or (column(found, "round") > column(first, "round")).all()
        seen = stage.step(rng.integers(0, stage.costs.caps + 1, (len(found), len(stage.costs.caps)))).observation
    if budget:
        assert column(found, "allowance left").max() < 1


class Reads:
    """Reads features and gives everybody the smallest rank."""

    def __init__(self, setup: PolicySetup) -> None:
        self.reader, self.units = Reader(setup, "reads"), setup.units
        self.found: list[Features] = []

    def choose(self, observation: Observation) -> Ranks:
        self.found.append(self.reader(observation))
        return np.tile(self.units, (len(observation.clients), 1))


@pytest.mark.parametrize(
    "changes",
    [(), ("world.name=umi-indoor", "world.options.energy.battery_j=50", "world.options.deadline_s=5"), ("world.name=ideal",)],
    ids=["no world", "battery", "ideal"],
)
def test_a_run_is_read(ground: Ground, changes: tuple[str, ...]) -> None:
    bench = build(ground.config(*changes))
    grid, world, setup = BatchedGrid(bench), make_world(bench), policy_of(bench)[1]
    roster = call_roll(grid, bench.config.clients)
    strategy = RoundStrategy(bench, roster, fresh_state(bench), world)
    strategy.policy = reads = Reads(setup)
    outer = world.grid(grid, {node: client for client, (node, _) in roster.items()}) if world else grid
    strategy.start(outer, strategy.broadcast(), num_rounds=2)
    assert len(setup.sites) == len(setup.caps) and [len(found) for found in reads.found] == [4, 4]
    for found in reads.found:
        assert_small(found)
        assert (column(found, "has allowance") == ("world.options.energy.battery_j=50" in changes)).all()
    assert column(reads.found[0], "depth").max() == 1 and column(reads.found[0], "round").max() == 0.5
    assert column(reads.found[1], "round").min() == 1.0


# -- allowances --------------------------------------------------------------------------------------------------------------


def test_airtime_of_a_link() -> None:
    """A byte takes what the features say it takes; without a budget there is no allowance."""
    options = {"budget_s": 3.0, "min_rank": 0, "loss": "heldout", "fresh": True}
    core = make_core("fedlora/RemoteFineTuning-v0", 6, options)
    every, seeds = np.ones(6, bool), np.arange(6, dtype=np.uint64)
    seen, ranks = core.reset(every, seeds), np.tile(core.costs.caps // 8, (6, 1))
    for _ in range(4):
        assert seen.links is not None and seen.links.allowance is not None
        before = seen.links.allowance
        step = core.step(ranks)
        assert step.info["feasible"].all()
        seen = step.observation
        assert seen.links is not None and seen.links.allowance is not None
        taken = before.per_byte * core.costs.bytes(ranks)
        np.testing.assert_allclose(seen.links.allowance.left, before.left * (1 - taken))
    assert seen.links.allowance.left.max() < 1
    free = make_core("fedlora/RemoteFineTuning-v0", 6, {}).reset(every, seeds)
    assert free.links is not None and free.links.allowance is None


def test_energy_of_a_group() -> None:
    """What larger messages take beyond smaller ones is what the bytes between them take; the budget is shared evenly."""
    options = {
        "csi_delay": 0, "csi_error_db": 0.0, "deadline_s": 1000.0, "energy_budget_j": 400.0, "clients": 4,
        "world_options": {"fading": {"model": "none"}},
    }  # fmt: skip
    core = make_core("fedlora/FederatedRankAllocation-v0", 3, options)
    paid, told = [], []
    for rank in (2, 6):
        ranks = np.full((12, len(core.costs.caps)), rank)
        seen = core.reset(np.ones(3, bool), np.arange(3, dtype=np.uint64))
        assert seen.links is not None and seen.links.allowance is not None
        assert (seen.links.allowance.left == 1).all()
        told.append((seen.links.allowance.per_byte * core.costs.bytes(ranks)).reshape(3, 4).sum(axis=1) * 400 / 4)
        step = core.step(ranks)
        paid.append(step.info["paid_j"])
        assert step.observation.links is not None and step.observation.links.allowance is not None
        np.testing.assert_allclose(step.observation.links.allowance.left, np.repeat(1 - step.info["paid_j"] / 400, 4))
    np.testing.assert_allclose(paid[1] - paid[0], told[1] - told[0])
    endless = make_core("fedlora/FederatedRankAllocation-v0", 3, {"energy_budget_j": None})
    seen = endless.reset(np.ones(3, bool), np.arange(3, dtype=np.uint64))
    assert seen.links is not None and seen.links.allowance is None


def test_batteries_of_a_world() -> None:
    options: dict[str, Any] = {"csi": {"delay_rounds": 0, "error_db": 0.0}, "fading": {"model": "none"}, "clients": 5}
    light, heavy = (make(energy={"battery_j": 500.0}, **options) for _ in range(2))
    everyone = np.arange(5)
    before = light.observe(1, everyone).allowance
    heavy.observe(1, everyone)
    assert before is not None and before.left.tolist() == [1.0] * 5
    spent = round_of(heavy, up=60_000).energy_j - round_of(light, up=20_000).energy_j
    np.testing.assert_allclose(spent, before.per_byte * 40_000 * 500)
    after = heavy.observe(2, everyone[3:]).allowance
    assert after is not None and (after.left < 1).all()
    np.testing.assert_allclose(after.left, heavy.battery.left_j[3:] / 500)
    assert make(**options).observe(1, everyone).allowance is None
