"""The bell between a node's processes: a wait ends when it rings, and not before."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from fedlora.deploy.doorbell import Doorbell


def _waited(bell: Doorbell, seconds: float) -> float:
    began = time.monotonic()
    bell.wait(seconds)
    return time.monotonic() - began


def test_a_ring_wakes_who_waits_at_another_end(tmp_path: Path) -> None:
    ringing, waiting = Doorbell(tmp_path / "bell"), Doorbell(tmp_path / "bell")
    threading.Timer(0.2, ringing.ring).start()
    assert 0.1 < _waited(waiting, 60) < 30
    assert _waited(waiting, 0.1) >= 0.09  # one ring, one wake


def test_rings_that_came_before_are_one_and_are_not_lost(tmp_path: Path) -> None:
    ringing, waiting = Doorbell(tmp_path / "bell"), Doorbell(tmp_path / "bell")
    for _ in range(3):
        ringing.ring()
    assert _waited(waiting, 60) < 30
    assert _waited(waiting, 0.1) >= 0.09


def test_nobody_hears_and_nobody_is_held_up(tmp_path: Path) -> None:
    bell = Doorbell(tmp_path / "bell")
    for _ in range(100_000):  # more than a pipe holds
        bell.ring()
    assert _waited(bell, 60) < 30  # the last is heard by whoever comes to wait


def test_without_named_pipes_it_is_a_sleep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.mkfifo")
    bell = Doorbell(tmp_path / "bell")
    bell.ring()
    assert _waited(bell, 0.1) >= 0.09
