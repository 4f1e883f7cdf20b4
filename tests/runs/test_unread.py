"""Keys that were set to no effect are said once, and only these."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedlora.adapters import ADAPTERS
from fedlora.adapters.lora import LoRA
from fedlora.config import QUICKSTART, AdapterConfig, load_config
from fedlora.methods import METHODS
from fedlora.runs.progress import Quiet
from fedlora.runs.simulate import simulate
from fedlora.runs.unread import _READERS, unread
from fedlora.sites import Site
from tiny_run import Ground


def _notes(*changes: str) -> list[str]:
    config = load_config(QUICKSTART, ["adapter.rank=4", *changes])
    return unread(config, ADAPTERS.get(config.adapter.method)(Site("q", 12, 12), config.adapter, 0, 0))


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        (
            ("method=fedit", "adapter.unit=svd"),
            ["adapter.unit = 'svd' changes nothing: adapter.method = 'lora' does not read it"],
        ),
        (
            ("method=fedit", "adapter.heads=9", "adapter.scales=fixed"),
            ["adapter.heads = 9 and adapter.scales = 'fixed' change nothing: adapter.method = 'lora' does not read them"],
        ),
        (
            ("adapter.start_examples=3",),
            ["adapter.start_examples = 3 changes nothing: adapter.method = 'ravan' does not read it"],
        ),
        (("method=fed-sb", "adapter.start_examples=3"), []),
        (
            ("method=fed-sb", "adapter.start_examples=3", "adapter.init=random"),
            ["adapter.start_examples = 3 changes nothing: adapter.init = 'random' does not read it"],
        ),
        (("adapter.score=gradient",), []),
        (
            ("adapter.score=gradient", "adapter.unit=svd"),
            ["adapter.score = 'gradient' changes nothing: adapter.unit = 'svd' does not read it"],
        ),
        (
            ("server.lr=0.1", "server.momentum=0.5"),
            ["server.lr = 0.1 and server.momentum = 0.5 change nothing: server.optimizer = 'none' does not read them"],
        ),
        (("server.optimizer=fedavgm", "server.lr=0.1", "server.momentum=0.5"), []),
        (
            ("server.optimizer=fedavgm", "server.tau=0.1"),
            ["server.tau = 0.1 changes nothing: server.optimizer = 'fedavgm' does not read it"],
        ),
        (("server.optimizer=fedadam", "server.tau=0.1", "server.second_momentum=0.9"), []),
    ],
)
def test_keys_that_nothing_reads_are_named(changes: tuple[str, ...], notes: list[str]) -> None:
    assert _notes(*changes) == notes


@pytest.mark.parametrize("method", METHODS.names())
def test_a_run_file_that_methods_share_says_nothing(method: str) -> None:
    """The quickstart gives Ravan's heads, whatever the method."""
    assert _notes(f"method={method}") == []


def test_of_adapters_of_other_packages_nothing_is_said() -> None:
    class Other(LoRA):
        pass

    config = load_config(QUICKSTART, ["method=fedit", "adapter.rank=4", "adapter.heads=9"])
    assert unread(config, Other(Site("q", 12, 12), config.adapter, 0, 0)) == []


def test_they_are_keys_that_there_are() -> None:
    assert _READERS.keys() <= AdapterConfig.model_fields.keys() and set(_READERS.values()) <= set(ADAPTERS.names())


class _Hears(Quiet):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_run_says_it_once_before_the_first_round(ground: Ground, tmp_path: Path) -> None:
    hears = _Hears()
    simulate(ground.config("rounds=1", "method=fedit", "adapter.heads=9"), tmp_path / "run", progress=hears)
    assert hears.said[1:] == ["note: adapter.heads = 9 changes nothing: adapter.method = 'lora' does not read it"]
