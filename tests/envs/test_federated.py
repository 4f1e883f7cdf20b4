"""The environment of K clients: its radio is the world's, its arithmetic can be done by hand, its members share nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora.federation.budgets import budget_bytes
from fedlora.federation.policy import Observation
from fedlora_envs.availability import OnOff
from fedlora_envs.band_links import BandLinks
from fedlora_envs.devices import tier
from fedlora_envs.federated import FederatedConfig, FederatedRankAllocation
from fedlora_envs.group_links import sharing_rows_s
from fedlora_envs.presets import Preset
from fedlora_envs.radio.ergodic import ergodic_worst
from fedlora_envs.radio.sharing import processor_sharing_s
from fedlora_envs.rank_env import Step
from fedlora_envs.tasks.rounds import made_up

CALM: dict[str, Any] = {"devices": {"mix": {"raspberry_pi_5": 1.0}, "jitter": 0.0}}
ROUGH: dict[str, Any] = {
    "availability": {"on_s": 50.0, "off_s": 20.0, "dropouts_per_s": 0.1},
    "cell": {"speed_kmh": 30.0},
    "csi": {"error_db": 1.0},
}
WORLDS = ("umi-indoor", "uma-macro", "inh-office", "airllm", "airllm-markov")


def make(episodes: int = 1, **options: Any) -> FederatedRankAllocation:
    return FederatedRankAllocation(FederatedConfig(**options), episodes, None if "response" in options else made_up())


def everywhere(env: FederatedRankAllocation) -> NDArray[np.bool_]:
    return np.ones(env.episodes, np.bool_)


def begun(episodes: int = 1, seed: int = 0, **options: Any) -> FederatedRankAllocation:
    env = make(episodes, **options)
    env.reset(everywhere(env), np.arange(seed, seed + episodes, dtype=np.uint64))
    return env


def at(env: FederatedRankAllocation, share: float) -> NDArray[np.int64]:
    return np.tile((env.sites.caps * share).astype(np.int64), (env.episodes * env.rows, 1))


def arrays(observation: Observation, rows: slice) -> list[NDArray[Any]]:
    links = observation.links
    assert links is not None and observation.budget_bytes is not None and observation.gains is not None
    of_links = (links.uplink_snr_db, links.uplink_bps, links.downlink_bps, links.energy_left_j, links.compute_s, links.outage)
    return [np.asarray(array)[rows] for array in (*of_links, observation.budget_bytes, observation.gains, observation.previous)]


@pytest.mark.parametrize(
    "options",
    [
        {"world_options": ROUGH},
        {"world": "uma-macro", "world_options": {"fading": {"transfer": "quasi_static"}}},
        {"world": "airllm-markov", "csi_delay": 3},
        {"world": "airllm", "csi_delay": 0, "world_options": {"downlink": {"sharing": "unicast"}}},
        {"world": "inh-office", "energy_budget_j": 3.0},
    ],
    ids=["rough", "quasi-static", "markov", "iid", "short"],
)
def test_a_member_of_many_is_an_environment_by_itself(options: dict[str, Any]) -> None:
    """Episodes end at different times and begin anew by themselves, and nobody notices the others."""
    many = begun(6, **options)
    alone = [make(**options) for _ in range(6)]
    for seed, env in enumerate(alone):
        env.reset(np.ones(1, np.bool_), np.array([seed], np.uint64))
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(45):
        ranks = rng.integers(0, many.sites.caps + 1, (6 * many.rows, len(many.sites)))
        truth, step = many.truth(), many.step(ranks)
        features = many.features()
        for place, env in enumerate(alone):
            rows = slice(place * env.rows, (place + 1) * env.rows)
            own_truth, own = env.truth(), env.step(ranks[rows])
            np.testing.assert_array_equal(truth.budget_bytes[rows], own_truth.budget_bytes)
            np.testing.assert_array_equal(truth.gains[rows], own_truth.gains)
            for name, values in step.info.items():
                np.testing.assert_array_equal(values[place], own.info[name][0], err_msg=name)
            mine = (step.reward, step.terminated, step.truncated)
            for here, there in zip(mine, (own.reward, own.terminated, own.truncated), strict=True):
                assert here[place] == there[0]
            for here, there in zip(arrays(step.observation, rows), arrays(own.observation, slice(None)), strict=True):
                np.testing.assert_array_equal(here, there)
            np.testing.assert_array_equal(features[place], env.features()[0])
            if own.terminated[0] or own.truncated[0]:
                env.reset(np.ones(1, np.bool_))
        over = step.terminated | step.truncated
        ended += int(over.sum())
        if over.any():
            many.reset(over)
    assert ended >= 12


@pytest.mark.parametrize("world", WORLDS)
def test_what_is_sent_never_changes_the_channel(world: str) -> None:
    seen = []
    for share in (0.0, 0.3, 1.0):
        env = begun(4, world=world, energy_budget_j=None)
        truths = []
        for _ in range(6):
            truths.append(env.truth().budget_bytes)
            env.step(at(env, share))
        seen.append(np.array(truths))
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])
    assert len(np.unique(seen[0])) > 4


def test_seeds_and_episodes_differ() -> None:
    env = begun(3, seed=5)
    first = env.links.measured().copy()
    env.reset(everywhere(env))
    second = env.links.measured().copy()
    assert len(np.unique(np.concatenate([first, second]))) == 4 * 15
    env.reset(everywhere(env), np.array([5, 6, 7], np.uint64))
    np.testing.assert_array_equal(env.links.measured(), first)


def test_the_arithmetic_of_a_round_by_hand() -> None:
    """One client at a fixed SNR: 10 dB over 100 MHz is 346 Mbit/s both ways, a Raspberry Pi 5 computes at its tier's speed."""
    world = {"levels": {"values_db": [10.0]}, "rate": {"model": "shannon"}, **CALM}
    pi = tier("raspberry_pi_5")
    calm = {"world": "airllm", "world_options": world, "clients": 1, "energy_budget_j": None, "round_steps": 4.0}
    env = begun(**calm, flops=0.5 * pi.flops, deadline_s=1.0)
    rate_bps = 1e8 * np.log2(11)
    ranks = at(env, 0.5)
    sent = int(env.costs.bytes(ranks)[0])
    assert sent == 2048 + 12 * 16 * 769 * 4
    down_s, up_s = 8 * env.costs.full / rate_bps, 8 * sent / rate_bps
    assert env.truth().budget_bytes[0] == pytest.approx((0.5 - down_s) * rate_bps / 8)
    step = env.step(ranks)
    assert step.info["latency_s"][0] == pytest.approx(down_s + 0.5 + up_s)
    assert step.info["bits"][0] == 8 * sent and step.info["delivered"][0] == 1 and step.info["feasible"][0]
    # 0.1 W while receiving, 0.1 W and 23 dBm through an amplifier of 35 % while sending, the board's power while computing.
    radio_j = 0.1 * down_s + (0.1 + 10 ** (2.3 - 3) / 0.35) * up_s
    assert step.info["energy_j"][0] == pytest.approx(radio_j + 0.5 * pi.busy_w)
    assert step.info["paid_j"][0] == pytest.approx(radio_j)
    # Four steps, a half of each site's components, age and shape 1: worth phi(1/2) of 0.04, the head 0.01.
    moved = 4 * (0.01 + 0.04 * np.expm1(-1.5) / np.expm1(-3.0))
    tail = env.models.response.tail
    loss = 0.25 + 1.35 * (1 + moved / tail) ** -tail + 0.15 * np.exp(-0.5 * 4)
    utility = 1.75 - loss
    assert step.info["utility"][0] == pytest.approx(utility) and step.info["loss"][0] == pytest.approx(loss)
    assert step.info["accuracy"][0] == pytest.approx(np.interp(loss, [1.2, 1.6], [0.6, 0.25]))
    # Prices: 0.04 for a round of the length of the deadline (1 s), 0.005 for a joule.
    assert step.reward[0] == pytest.approx(utility - 0.04 * step.info["latency_s"][0] - 0.005 * radio_j)


def test_the_deadline_is_exact_and_a_late_round_moves_nothing() -> None:
    world = {"levels": {"values_db": [0.0]}, **CALM}
    options: dict[str, Any] = {"world": "airllm", "clients": 1, "world_options": world, "flops": 1e9, "energy_budget_j": None}
    needs = begun(**options).step(at(make(**options), 1.0)).info["latency_s"][0]
    env = begun(**options, deadline_s=float(needs) * (1 + 1e-6))
    assert env.step(at(env, 1.0)).info["delivered"][0] == 1
    env = begun(**options, deadline_s=float(needs) * (1 - 1e-6))
    step = env.step(at(env, 1.0))
    assert (step.info["delivered"][0], step.info["cost"][0], step.info["utility"][0]) == (0, 1.0, 0.0)
    assert step.info["latency_s"][0] == env.config.deadline_s and not step.info["feasible"][0]
    assert 0 < step.info["bits"][0] < 8 * env.costs.full and not env.models.age.any()
    assert step.reward[0] < 0


@pytest.mark.parametrize("world", WORLDS)
def test_who_stays_inside_the_true_budget_delivers_and_who_does_not_is_late(world: str) -> None:
    env = begun(8, world=world, energy_budget_j=None, deadline_s=1.0, flops=2e10)
    rng = np.random.default_rng(1)
    kinds = set()
    for _ in range(8):
        budget = env.truth().budget_bytes
        ranks = rng.integers(0, env.sites.caps + 1, (40, 12)) * rng.integers(0, 2, (40, 1))
        fits = env.costs.bytes(ranks) <= budget
        step = env.step(ranks)
        assert step.info["delivered"].tolist() == fits.reshape(8, 5).sum(axis=1).tolist()
        kinds |= set(fits.tolist())
    assert kinds == ({True, False} if not world.startswith("airllm") else kinds)


def test_the_round_that_uses_up_the_energy_is_void_and_the_last() -> None:
    plenty, scarce = begun(world_options=CALM, energy_budget_j=None), begun(world_options=CALM, energy_budget_j=3.0)
    spent, left = 0.0, 3.0
    for _ in range(20):
        free, tight = plenty.step(at(plenty, 0.3)), scarce.step(at(scarce, 0.3))
        spent += float(free.info["paid_j"][0])
        if spent >= 3.0:
            assert tight.terminated[0] and not tight.truncated[0] and tight.info["delivered"][0] == 0
            assert tight.info["paid_j"][0] == pytest.approx(left) and scarce.energy_left_j[0] == pytest.approx(0, abs=1e-12)
            assert tight.info["utility"][0] == 0 and not tight.info["feasible"][0]
            break
        left -= float(tight.info["paid_j"][0])
        assert not tight.terminated[0] and tight.info["paid_j"][0] == free.info["paid_j"][0]
    assert spent >= 3.0
    before = scarce.models.age.copy()
    after = scarce.step(at(scarce, 0.3))
    assert after.reward[0] == 0 and not after.terminated[0] and not after.truncated[0] and (scarce.models.age == before).all()
    everything = begun(world_options=CALM, energy_budget_j=3.0, budget_of="all").step(at(scarce, 0.3))
    assert everything.terminated[0]


def test_the_horizon_truncates() -> None:
    env = begun(2, horizon=3, energy_budget_j=None)
    assert [env.step(at(env, 0.1)).truncated.tolist() for _ in range(4)] == [[False] * 2, [False] * 2, [True] * 2, [False] * 2]


def played(env: FederatedRankAllocation, share: float, rounds: int = 6) -> list[Step]:
    return [env.step(at(env, share)) for _ in range(rounds)]


def test_more_ranks_take_longer_and_deliver_less() -> None:
    shares = (0.0, 0.1, 0.3, 1.0)
    runs = [played(begun(64, energy_budget_j=None), share) for share in shares]
    latency, delivered, paid = (
        [np.mean([step.info[name] for step in run]) for run in runs] for name in ("latency_s", "delivered", "paid_j")
    )
    assert (np.diff(latency) > 0).all() and (np.diff(delivered) < 0).all() and (np.diff(paid) > 0).all()


def test_a_better_uplink_delivers_more() -> None:
    """In every round of every episode: the same draws, with another power, and a downlink that holds nobody up."""
    runs = []
    for power_dbm in (3.0, 13.0, 23.0, 33.0):
        world = {"uplink": {"power_dbm": power_dbm}, "downlink": {"power_dbm": 100.0}}
        steps = played(begun(64, world_options=world, energy_budget_j=None), 0.3, 4)
        runs.append(np.array([step.info["delivered"] for step in steps]))
    for worse, better in pairwise(runs):
        assert (better >= worse).all() and (better > worse).any()


# -- the radio is the world's ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", ["umi-indoor", "uma-macro", "inh-office"])
def test_large_scale_is_that_of_a_cell(world: str) -> None:
    """Mean and spread of the SNR over many independent groups are those over many cells of the world."""
    env = begun(400, world=world)
    mine = env.links.measured()
    theirs = np.concatenate([BandLinks(env.world, 5, seed).measured() for seed in range(400)], axis=1)
    for here, there in zip(mine, theirs, strict=True):
        # Clients of one cell are correlated, so the number of cells counts, not that of clients.
        error = np.sqrt(here.var() / 2000 + there.reshape(400, 5).mean(axis=1).var() / 400)
        assert abs(here.mean() - there.mean()) < 4.5 * error
        assert here.std() == pytest.approx(there.std(), rel=0.1)
    before = env.links.measured().copy()
    env.step(at(env, 0.0))
    moved = env.links.measured() - before
    expected = BandLinks(env.world, 2000, 7)
    start = expected.measured()
    expected.step(1)
    steps = expected.measured() - start
    assert np.abs(moved).mean() == pytest.approx(np.abs(steps).mean(), rel=0.25) and (moved != 0).all()


def test_rates_are_those_of_the_links_of_a_world() -> None:
    env = begun(60, world_options={"fading": {"transfer": "ergodic", "rician": False}})
    theirs = BandLinks(env.world, 300, 0)
    snr_db = env.links.measured()
    mine = env.links.expected(snr_db, 5)
    for here, there in zip(mine[:2], theirs.expected(snr_db, 5)[:2], strict=True):
        # Blocks are chosen at an SNR rounded to 1/16 dB: seldom others, never much worse.
        np.testing.assert_allclose(here, there, rtol=5e-3)
    np.testing.assert_allclose(env.links.upload_bps(None), mine[1], rtol=1e-12)


def test_a_broadcast_goes_at_the_rate_of_the_weakest() -> None:
    env = begun(40, world_options={"fading": {"rician": False}, "cell": {"antenna_gain_db": 0.0}})
    snr = 10 ** (env.links.measured()[0] / 10).reshape(40, 5)
    found = env.links.download_s(1e6, np.ones(200, np.bool_), None).reshape(40, 5)
    band_hz = float(env.links._useful_hz(env.world.downlink, env.links._occupied_hz(env.world.downlink)))
    together = 0
    for row, seconds in zip(snr, found, strict=True):
        if np.ptp(seconds[np.isfinite(seconds)]) == 0 and np.isfinite(seconds).all():
            # `ergodic_worst` rounds means to 1/16 dB.
            assert seconds[0] == pytest.approx(1e6 / (ergodic_worst(env.links._down, row)[0] * band_hz), rel=0.03)
            together += 1
    assert together >= 30
    some = np.ones(200, np.bool_)
    some[::5] = False
    fewer = env.links.download_s(1e6, some, None)
    assert np.isinf(fewer[::5]).all()
    last, before = (
        np.where(some & np.isfinite(seconds), seconds, 0.0).reshape(40, 5).max(axis=1) for seconds in (fewer, found.ravel())
    )
    assert (last <= before + 1e-12).all() and (last < before).any()


def test_sharing_by_rows_is_processor_sharing() -> None:
    rng = np.random.default_rng(0)
    alone_s = rng.exponential(size=(50, 6))
    alone_s[rng.random((50, 6)) < 0.3] = np.inf
    with np.errstate(divide="ignore"):
        rows = [processor_sharing_s(np.ones(6), 1 / row) for row in alone_s]
    np.testing.assert_allclose(sharing_rows_s(alone_s), rows, rtol=1e-12)


def test_fading_gains_have_mean_one() -> None:
    env = begun(4000, world="inh-office", world_options={"fading": {"transfer": "quasi_static"}})
    gains = env.links.gains("fading up", np.arange(4000, dtype=np.uint64), np.zeros(4000, np.int64), np.ones(4000, np.int64))
    assert gains is not None
    k = env.links._k_factor(np.arange(20_000))
    z = (gains.mean() - 1) / np.sqrt(((1 + 2 * k) / (1 + k) ** 2).mean() / gains.size)
    assert abs(z) < 4.5 and (k > 0).any() and (k == 0).any()


# -- what is seen ------------------------------------------------------------------------------------------------------


def test_what_is_known_is_as_old_as_it_says() -> None:
    fresh, old = begun(3, csi_delay=0), begun(3, csi_delay=2)
    seen = []
    for number in range(1, 6):
        known, late = fresh._links(), old._links()
        seen.append(known.uplink_snr_db)
        assert known.age_rounds.tolist() == [0] * 15 and late.age_rounds.tolist() == [min(number, 2)] * 15
        if number > 2:
            np.testing.assert_array_equal(late.uplink_snr_db, seen[number - 3])
            assert (late.uplink_snr_db != known.uplink_snr_db).any()
        fresh.step(at(fresh, 0.1))
        old.step(at(old, 0.1))


def test_perfect_knowledge_foresees_the_budget() -> None:
    env = begun(20, csi_delay=0, world_options={**CALM, "fading": {"model": "none"}, "downlink": {"power_dbm": 60.0}})
    seen = env._seen
    assert seen.budget_bytes is not None and seen.links is not None
    np.testing.assert_array_equal(seen.budget_bytes, budget_bytes(seen.links, 8 * env.costs.full, 5))
    reached = ~seen.links.outage
    assert reached.mean() > 0.8
    np.testing.assert_allclose(seen.budget_bytes[reached], env.truth().budget_bytes[reached], rtol=5e-3)


def test_features_are_flat_bounded_and_named() -> None:
    env = begun(50, world_options=ROUGH)
    for _ in range(25):
        env.step(at(env, 0.5))
        features = env.features()
        assert features.shape == (50, len(env.feature_names)) and np.isfinite(features).all() and np.abs(features).max() <= 1
    assert env.feature_names[0] == "round" and "budget 4" in env.feature_names


def test_who_is_there_follows_the_chain() -> None:
    env = begun(2000, clients=3, world_options={"availability": {"on_s": 50.0, "off_s": 20.0}}, energy_budget_j=None)
    first = env.fleet.there()
    env.step(at(env, 0.0))
    stayed = env.fleet.there()[first].mean()
    chain = OnOff(50.0, 20.0, np.zeros(1))
    chain.step(10.0, np.zeros(1))
    memory = np.exp(-(1 / 50 + 1 / 20) * 10)
    for share, n, p in ((first.mean(), 6000, 5 / 7), (stayed, first.sum(), 5 / 7 + 2 / 7 * memory)):
        assert abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"world": "umi-indor"}, "umi-indoor"),
        ({"response": "no-such-model"}, "no-such-model"),
        ({"world": "yang2021"}, "uplink.sharing = 'equal'"),
        ({"world": "ideal"}, "'cell' or 'levels'"),
        ({"world": "trace"}, "'cell' or 'levels'"),
        ({"world_options": {"energy": {"battery_j": 5.0}}}, "energy_budget_j"),
        ({"world_options": {"celll": {}}}, "world_options.celll"),
        ({"world_options": {"downlink": {"quantile": 0.5}}}, "quantile"),
        ({"world_options": {"devices": {"cycles_per_example": [1.0, 2.0]}}}, "cycles_per_example"),
        ({"world_options": {"devices": {"mix": {"raspberry_pi_55": 1.0}}}}, "raspberry_pi_5"),
    ],
)
def test_worlds_that_cannot_be_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make(**options)


def test_a_preset_of_every_kind_works() -> None:
    for world in WORLDS:
        assert Preset(world).summary
        step = begun(3, world=world).step(at(make(3), 0.2))
        assert np.isfinite(step.reward).all()
