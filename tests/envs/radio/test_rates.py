"""Rate models against published values and each other."""

from __future__ import annotations

import numpy as np
import pytest

from fedlora.errors import ConfigError, UnknownNameError
from fedlora_envs.radio.rates import NAMES, Cqi, make_rate_model, normal_approximation, shannon_bps

SNR_DB = np.array([-5.0, 0.0, 5.0, 10.0, 15.0])


def linear(snr_db: float | np.ndarray) -> np.ndarray:
    return np.asarray(10 ** (np.asarray(snr_db, dtype=np.float64) / 10))


def test_the_airllm_cost_table_to_its_printed_digits() -> None:
    bps = shannon_bps(SNR_DB, 100e6)
    assert [f"{value / 1e6:.2f}" for value in bps] == ["39.64", "100.00", "205.74", "345.94", "502.78"]
    bits_per_rank = 24 * (4 * 4097 + 2 * 10241) * 32  # OPT-1.3B, 144 sites, float32
    cost = bits_per_rank / bps  # of rank 1 in one second
    assert [f"{value:.3f}" for value in cost] == ["0.714", "0.283", "0.138", "0.082", "0.056"]
    assert [f"{value:.3g}" for value in 8 * cost] == ["5.71", "2.27", "1.1", "0.655", "0.451"]
    assert [f"{value:.3g}" for value in 64 * cost] == ["45.7", "18.1", "8.81", "5.24", "3.6"]
    assert [f"{value:.2f}" for value in 1 / cost] == ["1.40", "3.53", "7.27", "12.22", "17.76"]


@pytest.mark.parametrize(
    ("snr_db", "n", "error", "bits"), [(0.0, 500, 1e-3, 0.83630), (10.0, 200, 1e-5, 3.04526), (0.0, 100, 1e-2, 0.74256)]
)
def test_finite_blocklength_has_its_published_values(snr_db: float, n: int, error: float, bits: float) -> None:
    assert normal_approximation(linear([snr_db]), n, error)[0] == pytest.approx(bits, abs=6e-6)
    efficiency, again = make_rate_model("finite_blocklength", block_length=n, error=error).both(linear([snr_db]))
    assert efficiency[0] == pytest.approx((1 - error) * bits, abs=6e-6) and again[0] == error


def test_finite_blocklength_sends_nothing_where_no_code_is_known_and_nears_capacity_with_length() -> None:
    efficiency, again = make_rate_model("finite_blocklength", block_length=100, error=1e-5).both(linear([-30.0]))
    assert efficiency[0] == 0 and again[0] == 0
    shannon = make_rate_model("shannon").efficiency(linear(SNR_DB))
    long = make_rate_model("finite_blocklength", block_length=10**8, error=1e-3).efficiency(linear(SNR_DB))
    assert np.allclose(long, shannon, rtol=2e-3) and np.all(long < shannon)


def test_shannon_gap_and_truncation() -> None:
    snr = linear([-11.0, -9.0, 10.0, 40.0])
    assert np.allclose(make_rate_model("shannon_gap").efficiency(snr), np.log2(1 + linear([-13.0, -11.0, 8.0, 38.0])))
    assert np.allclose(make_rate_model("shannon_gap", margin_db=3.0).efficiency(linear([3.0])), 1.0)
    down, up = (make_rate_model("truncated_shannon", direction=direction).efficiency(snr) for direction in ("dl", "ul"))
    capacity = np.log2(1 + snr)
    assert np.allclose(down, [0.0, 0.6 * capacity[1], 0.6 * capacity[2], 4.4])
    assert np.allclose(up, [0.0, 0.4 * capacity[1], 0.4 * capacity[2], 2.0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_model_keeps_shape_and_type_rises_with_snr_and_is_zero_at_zero(name: str, dtype: type) -> None:
    model = make_rate_model(name)
    snr = np.concatenate([[0.0], linear(np.arange(-30, 40, 2.0))]).astype(dtype).reshape(4, 9)
    efficiency, again = model.both(snr)
    assert efficiency.shape == again.shape == (4, 9) and efficiency.dtype == again.dtype == dtype
    assert np.array_equal(efficiency, model.efficiency(snr)) and np.array_equal(again, model.retransmitted(snr))
    assert efficiency[0, 0] == again[0, 0] == 0
    assert np.all(np.diff(efficiency.ravel()) >= 0) and np.all((again >= 0) & (again < 1))
    assert np.all(efficiency <= np.log1p(snr.astype(np.float64)) / np.log(2) * (1 + 1e-6))
    assert make_rate_model(name) == model and hash(make_rate_model(name)) == hash(model)


def test_cqi_takes_two_db_of_margin_by_default_and_no_cqi_passes_its_table() -> None:
    default, theory = make_rate_model("cqi"), make_rate_model("cqi", margin_db=0.0)
    snr_db = np.arange(-20, 40, 0.25)
    assert isinstance(default, Cqi) and default.adaptation.margin_db == 2.0
    shifted = theory.efficiency(linear(snr_db - 2))
    differing = np.abs(default.efficiency(linear(snr_db)) - shifted)
    assert np.count_nonzero(differing > 0.06) <= 2 * 15  # cells straddle a threshold here and there
    assert theory.efficiency(linear([45.0]))[0] == pytest.approx(5.5547)
    assert make_rate_model("cqi", table="256qam").efficiency(linear([45.0]))[0] == pytest.approx(7.4063)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("shanon", {}, "unknown rate model 'shanon'. Did you mean 'shannon'?"),
        ("cqi", {"table": "256-qam"}, "unknown CQI table '256-qam'. Did you mean '256qam'?"),
        ("cqi", {"rule": "targets"}, "Did you mean 'target'?"),
        ("cqi", {"harq": "chas"}, "Did you mean 'chase'?"),
        ("cqi", {"margin_db": float("nan")}, "margin_db is nan"),
        ("cqi", {"max_transmissions": 0}, "sent at least once"),
        ("truncated_shannon", {"direction": "up"}, "unknown link direction"),
        ("finite_blocklength", {"block_length": 0}, "at least 1 symbol"),
        ("finite_blocklength", {"error": 1.0}, "error between 0 and 1"),
    ],
)
def test_what_is_no_model_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        make_rate_model(name, **options)  # type: ignore[arg-type]


def test_an_unknown_name_lists_its_kind() -> None:
    with pytest.raises(UnknownNameError) as refused:
        make_rate_model("x")
    assert refused.value.kind == "rate model" and refused.value.valid == sorted(NAMES)
