"""Tiny models, saved once for all tests of local training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benches import Bench, Maker, make_bench
from fedlora.config import AdapterConfig


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Return a maker of benches: architecture, device, precision, and the adapter's section as keyword arguments."""
    root: Path = tmp_path_factory.mktemp("tiny")

    def make(architecture: str = "bert", device: str = "cpu", precision: str = "fp32", **adapter: Any) -> Bench:
        section = AdapterConfig(**{"method": "ravan", "rank": 4, "heads": 4, **adapter})
        return make_bench(root / architecture, architecture, section, device, precision)

    return make
