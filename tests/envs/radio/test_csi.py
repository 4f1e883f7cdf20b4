"""Channel knowledge: its error, its delay and its age."""

from __future__ import annotations

import numpy as np
import pytest

from fedlora.errors import ConfigError
from fedlora.streams import stream
from fedlora_envs.radio.csi import DelayedCsi, estimated_snr_db
from zscores import LIMIT, z_mean


def test_estimates_err_by_their_standard_deviation() -> None:
    snr_db, normals = np.full(1_000_000, 7.0), stream(5, "csi").standard_normal(1_000_000)
    estimate = estimated_snr_db(snr_db, 1.5, normals)
    assert abs(z_mean(estimate, 7.0)) <= LIMIT
    assert abs(z_mean((estimate - 7.0) ** 2, 2.25)) <= LIMIT
    assert np.array_equal(estimated_snr_db(snr_db, 0.0, normals), snr_db)


def test_knowledge_is_as_old_as_asked_and_younger_at_the_start() -> None:
    csi = DelayedCsi(2)
    seen = []
    for round_ in range(1, 6):
        csi.push(np.array([round_, 10.0 * round_]))
        seen.append((csi.read()[0], csi.age))
    assert seen == [(1, 0), (1, 1), (1, 2), (2, 2), (3, 2)]


def test_no_delay_reads_the_present_round_and_values_are_copied() -> None:
    csi, values = DelayedCsi(0), np.array([1.0, 2.0])
    csi.push(values)
    values[0] = 9.0
    assert csi.read().tolist() == [1.0, 2.0] and csi.age == 0


def test_what_cannot_be_known_is_refused() -> None:
    with pytest.raises(ConfigError, match="knowledge of the future"):
        DelayedCsi(-1)
    with pytest.raises(ConfigError, match="call push first"):
        DelayedCsi(1).read()
    csi = DelayedCsi(1)
    csi.push(np.zeros(3))
    with pytest.raises(ConfigError, match="one value per link"):
        csi.push(np.zeros(4))
    with pytest.raises(ConfigError, match="error_db is -1"):
        estimated_snr_db(np.zeros(2), -1.0, np.zeros(2))
