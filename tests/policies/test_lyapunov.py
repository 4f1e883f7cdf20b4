"""Drift plus penalty: the budget holds in the long run, and the queue is what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlora.errors import ConfigError
from fedlora.federation.policy import make_policy
from fedlora_policies.lyapunov import LyapunovPolicy
from looks import COSTS, GAINS, SETUP, links, look


def test_the_queue_by_hand() -> None:
    """Allowance 360 of 1,440 bytes. Round 1 is free of charge: 1,240 are sent, so that 880 / 360 are owed."""
    policy = LyapunovPolicy(SETUP, share=0.25, v=1.0)
    first = policy.choose(look(1, (5,)))
    assert first.tolist() == [[4, 3, 8]]
    assert policy.queue[5] == pytest.approx(880 / 360)
    # A byte now costs queue / 460, in shares of the whole gain: only what is worth more per byte is sent.
    price = policy.queue[5] / 360 * GAINS.sum()
    per_byte = GAINS / np.array([[100], [200], [50]])
    second = policy.choose(look(2, (5,)))
    assert (second // np.array([1, 1, 2])).tolist() == [(per_byte > price).sum(axis=1).tolist()]
    assert policy.queue[5] == pytest.approx(max(880 / 360 + float(COSTS.bytes(second)[0]) / 360 - 1, 0))
    assert not policy.queue[:5].any() and not policy.queue[6:].any()
    assert policy.choose(look(1, (5,))).tolist() == first.tolist()  # the next episode owes nothing


def spending(policy: LyapunovPolicy, rounds: int, budgets: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    seen = (look(number, (0,), budget_bytes=budgets[number - 1 : number]) for number in range(1, rounds + 1))
    return np.concatenate([COSTS.bytes(policy.choose(item)) for item in seen])


@pytest.mark.parametrize("share", [0.1, 0.25, 0.6])
def test_the_budget_holds_in_the_long_run(share: float) -> None:
    budgets = np.random.default_rng(1).uniform(0.2, 1.0, 800) * COSTS.full
    sent = spending(LyapunovPolicy(SETUP, share=share, v=1.0), 800, budgets)
    allowed = share * COSTS.full
    assert (sent <= budgets).all()
    assert sent.mean() <= allowed * (1 + 10 / 800 / share)
    assert sent.mean() > 0.7 * min(allowed, budgets.mean())  # and it is used


def test_a_larger_v_gains_more_and_settles_later() -> None:
    budgets = np.random.default_rng(2).uniform(0.2, 1.0, 400) * COSTS.full
    early = {v: spending(LyapunovPolicy(SETUP, share=0.2, v=v), 400, budgets)[:40].mean() for v in (0.1, 1.0, 10.0)}
    assert early[0.1] < early[1.0] < early[10.0]


def test_airtime_is_dearer_on_a_slow_link() -> None:
    policy = LyapunovPolicy(SETUP, airtime_s=0.5, v=1.0)
    for number in range(1, 30):
        slow = policy.choose(look(number, (1,), links=links([0.0], 4000.0)))
        fast = policy.choose(look(number, (2,), links=links([0.0], 40_000.0)))
        if number == 1:
            policy.queue[[1, 2]] = 0.0  # each round of one client must not begin the other's episode
    assert COSTS.bytes(slow)[0] < COSTS.bytes(fast)[0]


def test_it_goes_on_from_its_state() -> None:
    budgets = np.random.default_rng(3).uniform(0.2, 1.0, 8) * COSTS.full
    whole, cut, resumed = (LyapunovPolicy(SETUP, share=0.2) for _ in range(3))
    sent = spending(whole, 8, budgets)
    spending(cut, 4, budgets)
    resumed.restore({name: array.copy() for name, array in cut.state().items()})
    rest = [COSTS.bytes(resumed.choose(look(n, (0,), budget_bytes=budgets[n - 1 : n]))) for n in range(5, 9)]
    assert np.concatenate(rest).tolist() == sent[4:].tolist()
    assert resumed.queue.tolist() == whole.queue.tolist() and whole.queue.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.5, "airtime_s": 1.0}, "give either share or airtime_s, not both"),
        ({"share": 0}, "policy.options.share = 0: give a number above 0 and at most 1"),
        ({"airtime_s": -1}, "policy.options.airtime_s = -1: give a number above 0"),
        ({"v": 0}, "policy.options.v = 0: give a number above 0"),
    ],
)
def test_options_that_do_not_fit_are_one_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_policy("lyapunov", options, SETUP)
    assert message in str(caught.value)


def test_airtime_needs_a_radio() -> None:
    with pytest.raises(ConfigError, match="'lyapunov' goes by airtime, and no radio is simulated"):
        LyapunovPolicy(SETUP, airtime_s=1.0).choose(look(links=None))
