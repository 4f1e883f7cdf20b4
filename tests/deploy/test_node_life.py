"""What surrounds a node's life: folders of nodes that were killed, and signals that end it or do not."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest

from fedlora.deploy.node_life import StoppedError, scratch_folder, stoppable


def test_folders_of_killed_nodes_are_cleared_and_those_of_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed, strange = tmp_path / "fedlora-node-killed", tmp_path / "fedlora-node-strange"
    for folder in (killed, strange):
        folder.mkdir()
    (killed / "lock").touch()
    with scratch_folder() as first:
        assert sorted(tmp_path.iterdir()) == sorted([first, strange])  # without a lock it is none of ours, or just being made
        with scratch_folder() as second:
            assert sorted(tmp_path.iterdir()) == sorted([first, second, strange])
        assert first.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == [strange]


def test_a_folder_has_no_name_before_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a node that starts between the two takes it for a dead one's, and removes it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    lock, before = fcntl.flock, []

    def look(*arguments: int) -> None:
        before.append(list(tmp_path.glob("fedlora-node-*")))
        lock(*arguments)

    monkeypatch.setattr("fcntl.flock", look)
    with scratch_folder() as folder:
        assert before == [[]] and list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_stop_a_node(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with stoppable():
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        except StoppedError:
            os.kill(os.getpid(), number)  # once is enough
            raise
    assert capsys.readouterr().out == "stopped\n" and signal.getsignal(number) == before


def test_a_node_that_nohup_started_outlives_its_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
            print("goes on")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert capsys.readouterr().out == "goes on\n"
