"""Reports are made of one small run behind a radio, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedlora.runs.simulate import simulate
from tiny_run import Ground, ground

__all__ = ["ground"]


@pytest.fixture(scope="session")
def radio_run(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run behind a radio, with ranks of several sizes and a late client or two."""
    out = tmp_path_factory.mktemp("radio") / "tiers-run"
    changes = ("world.name=umi-indoor", "world.options.deadline_s=0.01", "policy.name=tiers", "rounds=4")
    simulate(ground.config(*changes), out)
    return out


@pytest.fixture(scope="session")
def plain_run(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run without a radio."""
    out = tmp_path_factory.mktemp("plain") / "plain-run"
    simulate(ground.config(), out)
    return out
