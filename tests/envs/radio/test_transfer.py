"""Transfer times in the three modes, and the expected rates behind them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import exp1

from fedlora.errors import ConfigError
from fedlora.streams import fast_stream
from fedlora_envs.radio.ergodic import ergodic, ergodic_worst
from fedlora_envs.radio.fading import Fading, make_fading
from fedlora_envs.radio.rates import RateModel, Shannon, make_rate_model
from fedlora_envs.radio.transfer import MODES, Transfer, broadcast_s, transfer_s
from zscores import LIMIT, z_mean

SHANNON = Shannon()


def fade(n: int, model: str = "block", k: float | NDArray[np.float64] = 0.0, step_s: float = 0.01) -> Fading:
    return make_fading(model, n, fast_stream(5, "fading"), doppler_hz=10.0, step_s=step_s, k_factor=k)


def gains_of(n: int, blocks: int, model: str = "block") -> NDArray[np.float64]:
    process = fade(n, model)
    return np.array([process.step().copy() for _ in range(blocks)], dtype=np.float64)


def by_hand(bits: float, bandwidth_hz: float, snr: NDArray[np.float64], rate: RateModel, step_s: float) -> tuple[float, float]:
    """Return (seconds, retransmission seconds) of one link that meets `snr` in consecutive blocks."""
    left, seconds, again = bits, 0.0, 0.0
    for value in snr:
        efficiency, share = (float(found[0]) for found in rate.both(np.array([value], np.float32)))
        used = min(step_s, left / (bandwidth_hz * efficiency)) if efficiency else step_s
        seconds, again, left = seconds + used, again + used * share, left - used * bandwidth_hz * efficiency
        if used < step_s:
            return seconds, again
    raise AssertionError("too few blocks")


# --- expected rates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 7.3, 10.0, 20.0, 40.0])
def test_expected_capacity_has_its_closed_form(snr_db: float) -> None:
    g = 10 ** (snr_db / 10)
    assert ergodic(SHANNON, np.array([g]))[0][0] == pytest.approx(np.exp(1 / g) * exp1(1 / g) / np.log(2), rel=1e-4)
    for n in (1, 20, 500):
        expected = np.exp(n / g) * exp1(n / g) / np.log(2) if n / g < 500 else g / n / np.log(2)
        assert ergodic_worst(SHANNON, np.full(n, g))[0] == pytest.approx(expected, rel=0.01)  # 7.3 dB is rounded to 1/16 dB


def test_goodput_over_capacity_under_rayleigh_fading_is_as_recorded() -> None:
    g = 10 ** (np.array([-5.0, 0.0, 5.0, 10.0, 15.0, 20.0]) / 10)
    ratio = ergodic(make_rate_model("cqi", margin_db=0.0), g)[0] / ergodic(SHANNON, g)[0]
    assert ratio == pytest.approx([0.56, 0.66, 0.71, 0.74, 0.78, 0.77], abs=0.006)


@pytest.mark.parametrize("k", [0.0, 0.7, 5.0, 20.0])
@pytest.mark.parametrize("name", ["shannon", "cqi"])
def test_expected_rates_are_means_over_the_fading(name: str, k: float) -> None:
    rate, g = make_rate_model(name), 10**0.83
    gains = fade(1_000_000, k=k).step()
    efficiency, share = rate.both(g * gains)
    expected = ergodic(rate, np.array([g]), np.array([k]))
    slack = 0.0 if k == 0 else 0.004  # interpolation along K
    for samples, value in ((efficiency, expected[0][0]), (share, expected[1][0])):
        if samples.any():
            error = samples.std(dtype=np.float64) / 1000
            assert abs(samples.mean(dtype=np.float64) - value) <= LIMIT * error + slack * value + 1e-4


def test_expected_rate_without_fading_is_the_rate_itself() -> None:
    g = 10 ** (np.array([-3.0, 10.0]) / 10)
    assert ergodic(SHANNON, g, np.inf)[0] == pytest.approx(np.log2(1 + g), rel=1e-5)
    assert ergodic(SHANNON, np.array([0.0, 1e-12]))[0].tolist() == [0.0, 0.0]


def test_expected_rate_of_the_weakest_of_unlike_links() -> None:
    n, trials = 12, 200_000
    mean = 10 ** (np.linspace(5, 20, n) / 10)
    k = np.tile([0.0, 7.0, 2.4], 4)  # between the rows of the table
    gains = fade(n * trials, k=np.tile(k, trials)).step().reshape(trials, n)
    rate = make_rate_model("cqi")
    efficiency, share = rate.both((mean * gains).min(axis=1).astype(np.float32))
    expected = ergodic_worst(rate, mean, k)
    assert expected[0] == pytest.approx(efficiency.mean(dtype=np.float64), rel=0.01)
    assert expected[1] == pytest.approx(share.mean(dtype=np.float64), rel=0.03)


# --- one transfer per link --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_without_fading_a_transfer_takes_bits_over_rate_in_every_mode(mode: str) -> None:
    mean, bits = np.array([0.0, 1.0, 3.0]), np.array([1e6, 1e6, 4e6])
    found = transfer_s(bits, 1e6, mean, SHANNON, None, mode)
    assert found.seconds.tolist() == pytest.approx([np.inf, 1.0, 2.0])
    assert found.mean_bps.tolist() == pytest.approx([0.0, 1e6, 2e6])
    assert found.retransmission_s.tolist() == [0.0, 0.0, 0.0]


def test_quasi_static_takes_one_gain_and_its_rate() -> None:
    rate, gains = make_rate_model("cqi"), gains_of(300, 1)[0]
    found = transfer_s(1e6, 5e6, np.full(300, 2.0), rate, fade(300))
    efficiency, share = rate.both(2.0 * gains)
    dead = efficiency == 0
    assert dead.any() and np.all(np.isinf(found.seconds[dead])) and not found.mean_bps[dead].any()
    assert np.allclose(found.seconds[~dead], 0.2 / efficiency[~dead])
    assert np.allclose(found.retransmission_s, np.where(dead, 0, found.seconds) * share, equal_nan=True) or np.allclose(
        found.retransmission_s[~dead], found.seconds[~dead] * share[~dead]
    )


@pytest.mark.parametrize("model", ["block", "clarke", "markov"])
@pytest.mark.parametrize("name", ["shannon", "cqi"])
def test_slotted_adds_up_blocks_until_the_payload_is_through(model: str, name: str) -> None:
    n, rate, step_s = 40, make_rate_model(name), 0.002
    mean, bits = 10 ** (np.linspace(-2, 25, n) / 10), np.linspace(2e5, 1e5, n)
    process = fade(n, model, step_s=step_s)
    found = transfer_s(bits, 1e6, mean, rate, process, "slotted")
    reference = fade(n, model, step_s=step_s)
    gains = np.array([reference.step().copy() for _ in range(int(found.seconds.max() / step_s) + 2)], dtype=np.float64)
    expected = [by_hand(bits[link], 1e6, mean[link] * gains[:, link], rate, step_s) for link in range(n)]
    # Links end at very different times, so that finished ones were dropped on the way.
    assert found.seconds.max() > 8 * found.seconds.min()
    assert np.allclose(found.seconds, [seconds for seconds, _ in expected], rtol=2e-3)
    assert np.allclose(found.retransmission_s, [again for _, again in expected], rtol=2e-2, atol=1e-4)
    assert np.allclose(found.mean_bps, bits / found.seconds)


def test_slotted_nears_ergodic_as_the_payload_grows() -> None:
    n, step_s, mean, rate = 4000, 0.01, 10.0, make_rate_model("cqi")
    expected_bps = 1e6 * float(ergodic(rate, np.array([mean]))[0][0])
    efficiency = rate.efficiency(mean * fade(1_000_000).step()).astype(np.float64)
    one_block = efficiency.std() / efficiency.mean()  # relative spread of a single block
    for blocks in (25, 100, 400):
        seconds = transfer_s(blocks * step_s * expected_bps, 1e6, np.full(n, mean), rate, fade(n), "slotted").seconds
        spread = seconds.std() / seconds.mean()
        assert spread == pytest.approx(one_block / np.sqrt(blocks), rel=0.12)
        # The time's own bias, half a block and the spread squared, fades with the payload too.
        assert seconds.mean() / (blocks * step_s) == pytest.approx(1.0, abs=1.5 / blocks + LIMIT * spread / np.sqrt(n))


def test_beyond_the_blocks_followed_the_rest_goes_at_the_expected_rate() -> None:
    n, step_s = 2000, 0.01
    mean, bits = np.full(n, 10.0), 5e6
    expected = transfer_s(bits, 1e6, mean, SHANNON, fade(n, k=3.0), "ergodic").seconds
    cut = transfer_s(bits, 1e6, mean, SHANNON, fade(n, k=3.0), "slotted", max_blocks=20)
    assert np.ptp(expected) == 0 and expected[0] > 100 * step_s
    assert np.ptp(cut.seconds) > 0 and abs(z_mean(cut.seconds, expected[0])) <= LIMIT
    rate = SHANNON.efficiency(10 * np.array([g.step().copy() for g in [fade(n, k=3.0)] for _ in range(20)], np.float64)).sum(
        axis=0
    )
    by_rate = 0.2 + (bits - rate * 1e6 * step_s) / (bits / expected)
    assert np.allclose(cut.seconds, by_rate, rtol=1e-5)


def test_a_dead_link_never_ends_and_holds_nobody_up() -> None:
    found = transfer_s(1e5, 1e6, np.array([0.0, 10.0]), make_rate_model("cqi"), fade(2), "slotted", max_blocks=50)
    assert np.isinf(found.seconds[0]) and found.retransmission_s[0] == 0 and found.mean_bps[0] == 0
    assert 0 < found.seconds[1] < 0.5


def test_other_payloads_meet_the_same_channel() -> None:
    mean, rate = np.full(50, 5.0), make_rate_model("shannon")
    loads = np.full(50, 2e6)
    first = transfer_s(loads, 1e6, mean, rate, fade(50), "slotted").seconds
    loads[::2] = 1e4
    second = transfer_s(loads, 1e6, mean, rate, fade(50), "slotted").seconds
    assert np.allclose(second[1::2], first[1::2], rtol=1e-9) and np.all(second[::2] < first[::2])


# --- broadcast --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_broadcast_without_fading_goes_at_the_weakest_rate(mode: str) -> None:
    found = broadcast_s(4e6, 1e6, np.array([15.0, 3.0, 7.0]), SHANNON, None, mode)
    assert found.seconds.tolist() == pytest.approx([2.0]) and found.mean_bps.tolist() == pytest.approx([2e6])


def test_a_fading_broadcast_follows_the_weakest_link_of_every_block() -> None:
    n, rate, mean = 8, make_rate_model("cqi"), 10 ** (np.linspace(8, 25, 8) / 10)
    worst = (mean * gains_of(n, 900)).min(axis=1)
    seconds, again = by_hand(1e6, 1e6, worst, rate, 0.01)
    found = broadcast_s(1e6, 1e6, mean, rate, fade(n), "slotted")
    assert found.seconds[0] == pytest.approx(seconds, rel=1e-4) and found.retransmission_s[0] == pytest.approx(again, rel=1e-3)
    still = broadcast_s(1e6, 1e6, mean, rate, fade(n), "quasi_static")
    assert still.seconds[0] == pytest.approx(1 / float(rate.efficiency(worst[:1])[0]), rel=1e-6)


def test_a_long_broadcast_takes_the_expected_time_and_cut_ones_end_at_the_expected_rate() -> None:
    mean = np.full(20, 10.0)
    expected = broadcast_s(1e6, 1e6, mean, SHANNON, fade(20), "ergodic").seconds[0]
    assert expected == pytest.approx(1 / 0.52129, rel=1e-4)
    seconds: list[float] = []
    for trial in range(200):
        process = make_fading("block", 20, fast_stream(5, "fading", trial), doppler_hz=10.0, step_s=0.01)
        seconds.append(broadcast_s(1e6, 1e6, mean, SHANNON, process, "slotted", max_blocks=100).seconds[0])
    assert abs(z_mean(np.array(seconds), expected)) <= LIMIT


# --- refusals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 0.0}, "bits of 0; an empty payload"),
        ({"bits": np.array([1.0, 0.0])}, "bits of 0; an empty payload"),
        ({"bits": np.array([1.0, 2.0, 3.0])}, "one per link"),
        ({"bandwidth_hz": -1e6}, "bandwidth_hz of -1e"),
        ({"bandwidth_hz": np.nan}, "bandwidth_hz of nan"),
        ({"mean_snr": np.array([1.0, -2.0])}, "dB were given"),
        ({"mean_snr": np.array([1.0, np.inf])}, "finite linear SNRs"),
        ({"fading": fade(3)}, "2 links but fading over 3"),
        ({"mode": "quasistatic"}, "Did you mean 'quasi_static'"),
        ({"max_blocks": 0}, "max_blocks is 0"),
    ],
)
def test_what_is_no_transfer_is_refused(arguments: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"bits": 1e6, "bandwidth_hz": 1e6, "mean_snr": np.array([1.0, 2.0]), "rate": SHANNON}
    with pytest.raises(ConfigError, match=message):
        transfer_s(**{**given, **arguments})  # type: ignore[arg-type]
    if np.ndim(arguments.get("bits", 0.0)) == 0:  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=message):
            broadcast_s(**{**given, **arguments})  # type: ignore[arg-type]


def test_results_are_arrays_of_one_length() -> None:
    found = transfer_s(1e5, np.array([1e6, 2e6]), np.array([1.0, 2.0]), SHANNON, fade(2), "ergodic")
    assert isinstance(found, Transfer)
    assert {getattr(found, name).shape for name in ("seconds", "retransmission_s", "mean_bps")} == {(2,)}
