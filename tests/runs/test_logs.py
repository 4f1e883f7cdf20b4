"""Logs of JSON lines while they grow."""

from __future__ import annotations

from pathlib import Path

from fedlora.runs.logs import Tail


def test_a_tail_returns_whole_rows_once(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "log.jsonl")
    assert tail.read() == []
    with tail.path.open("w") as file:
        file.write('{"round": 0}\n{"rou')
        file.flush()
        assert tail.read() == [{"round": 0}]
        file.write('nd": 1}\n')
        file.flush()
        assert tail.read() == [{"round": 1}]
        assert tail.read() == []


def test_a_log_that_a_resumed_run_cut_back_goes_on_from_the_cut(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "log.jsonl")
    tail.path.write_text('{"round": 0}\n{"round": 1}\n{"round": 2}\n')
    assert len(tail.read()) == 3
    tail.path.write_text('{"round": 0}\n{"round": 1}\n')
    assert tail.read() == []
    with tail.path.open("a") as file:
        file.write('{"round": 2, "again": true}\n')
    assert tail.read() == [{"round": 2, "again": True}]


def test_damaged_lines_are_counted_and_passed_over(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "log.jsonl")
    tail.path.write_text('{"round": 0}\n\x00\x00\n[1]\n{"round": 1}\n')
    assert tail.read() == [{"round": 0}, {"round": 1}]
    assert tail.damaged == 2
