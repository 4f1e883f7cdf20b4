"""Predicted against measured, on run folders and relay logs whose numbers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedlora.config import load_config
from fedlora.errors import RunFolderError
from fedlora.runs.folder import RunFolder
from fedlora_envs.emulation.command import lines
from fedlora_envs.emulation.compare import compare, predicted_and_measured, summarise
from fedlora_envs.emulation.overhead import FLOWER, Overhead, fit
from fedlora_envs.emulation.traffic import Traffic, transfers

BARE = Overhead(framing=0.0, acks=0.0)


def make_run(path: Path, scale: float = 1.0, *, up_rate: float = 1e6, simulated: bool = True) -> Path:
    """Write a run of two rounds and two clients over links of 4 and 1 Mbit/s; the relay was busy as `up_rate` makes it."""
    config = load_config(
        None,
        ["world.name=ideal", "clients=2", "clients_per_round=2", "rounds=2", "engine=deployment",
         "world.options.links=fixed", "world.options.fixed.downlink_bps=4e6", "world.options.fixed.uplink_bps=1e6"],
    )  # fmt: skip
    folder = RunFolder.create(path, config)
    clients: list[dict[str, Any]] = []
    log: list[dict[str, Any]] = []
    for number in (1, 2):
        for client in (0, 1):
            status = "failed: it raised" if (number, client) == (2, 1) else "ok"
            clients.append({"round": number, "client": client, "status": status, "downlink_bytes": 100_000,
                            "uplink_bytes": 50_000, "seconds": 2.0 * scale})  # fmt: skip
            for way, size, rate in (("down", 100_000, 4e6), ("up", 50_000, up_rate)):
                busy = 8 * size / rate * scale
                common = {"round": number, "node": client, "way": way, "packets": 1, "lost": 0, "full": 0}
                log += [{**common, "t": 10.0 * number + part, "bytes": size / 2, "busy_s": busy / 2} for part in (0.0, 0.5)]
    log.append({"round": 2, "late_s": 0.001, "refused": 0})
    rounds = [{"round": number, "wall_time_s": 4.0 * scale, "test_accuracy": 0.1 * number, "uplink_bytes": 100_000,
               "downlink_bytes": 200_000} for number in (0, 1, 2)]  # fmt: skip
    folder.append("clients", clients)
    folder.append("metrics", rounds)
    kept = path / "emulation"
    kept.mkdir()
    (kept / "settings.json").write_text(json.dumps({"time_scale": scale}))
    (kept / "relay.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log) + '{"round": 2, "cut')
    if simulated:
        twin = RunFolder.create(kept / "simulated", config)
        twin.append("metrics", [{**row, "test_accuracy": row["test_accuracy"] + 0.02} for row in rounds])
        twin.append("clients", [{**row, "uplink_s": 0.4, "downlink_s": 0.2} for row in clients])
    return path


def test_airtimes_are_the_worlds_for_the_bytes_that_went_over(tmp_path: Path) -> None:
    rows = predicted_and_measured(make_run(tmp_path / "run"), BARE)
    assert [(row["kind"], row["round"]) for row in rows] == [
        (kind, number) for number in (1, 2) for kind in ("client", "client", "round")
    ]
    first = rows[0]
    assert first["predicted_s_down"] == pytest.approx(0.2)
    assert first["world_s_up"] == first["predicted_s_up"] == pytest.approx(0.4)
    assert first["measured_s_up"] == pytest.approx(0.4)
    assert first["measured_bytes_down"] == 100_000
    assert first["simulated_uplink_s"] == 0.4
    assert rows[2]["predicted_s"] == pytest.approx(2.6)
    assert rows[2]["measured_s"] == 4.0
    assert (rows[5]["replies"], rows[5]["simulated_accuracy"]) == (1, pytest.approx(0.22))


def test_a_slower_link_shows_as_an_error_of_the_prediction(tmp_path: Path) -> None:
    summary = compare(make_run(tmp_path / "run", up_rate=0.8e6), BARE)
    assert summary["up"]["airtime_error"] == pytest.approx(0.2)
    assert summary["up"]["within_15"] == 0.0
    assert summary["down"]["airtime_error"] == pytest.approx(0.0, abs=1e-6)
    assert summary["up"]["replies"] == 3, "only replies that counted"
    assert summary["accuracy_difference"] == pytest.approx(0.02)
    assert summary["round_s"]["beyond"] == pytest.approx(1.4)
    assert json.loads((tmp_path / "run" / "emulation.json").read_text()) == summary
    assert len((tmp_path / "run" / "emulation.jsonl").read_text().splitlines()) == 6
    assert (tmp_path / "run" / "emulation.png").read_bytes().startswith(b"\x89PNG")
    said = lines(summary)
    assert any("uplink airtime: median error 20.0% over 3 transfers" in line for line in said)


def test_seconds_are_the_worlds_whatever_the_time_scale(tmp_path: Path) -> None:
    plain, slow = (predicted_and_measured(make_run(tmp_path / str(scale), scale), BARE) for scale in (1.0, 5.0))
    for one, other in zip(plain, slow, strict=True):
        for key in ("predicted_s", "measured_s", "predicted_s_up", "measured_s_up", "measured_s_down", "compute_s"):
            assert one.get(key) == pytest.approx(other.get(key))


def test_protocols_make_predictions_longer(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", simulated=False)
    bare, whole = (predicted_and_measured(run, overhead)[0] for overhead in (BARE, FLOWER))
    assert bare["world_s_up"] == whole["world_s_up"]
    assert whole["predicted_bytes_up"] > 1.05 * bare["predicted_bytes_up"]
    assert whole["predicted_s_up"] / bare["predicted_s_up"] == pytest.approx(
        whole["predicted_bytes_up"] / bare["predicted_bytes_up"], rel=1e-4
    )
    assert "accuracy_difference" not in summarise(predicted_and_measured(run))


def test_an_exchange_is_told_apart_from_looks_for_work_and_airtime_from_waiting() -> None:
    down = Traffic(
        bins=[(0.0, 900.0, 0.001), (5.0, 40_000.0, 0.02), (5.02, 40_000.0, 0.02), (5.5, 2e4, 0.01), (9.0, 1000.0, 0.001)]
    )
    up = Traffic(bins=[(0.0, 500.0, 0.002), (4.7, 700.0, 0.003), (5.1, 600.0, 0.003), (8.0, 30_000.0, 0.02), (8.3, 500.0, 0.003)])
    up.bins.append((9.6, 2000.0, 0.01))
    for link in (down, up):
        link.bytes = sum(size for _, size, _ in link.bins)
    found = transfers({"down": down, "up": up}, {"down": 100_000, "up": 30_000})
    assert (found["down"].span_s, found["down"].span_busy_s) == pytest.approx((0.52, 0.05))
    assert (found["up"].span_s, found["up"].span_busy_s) == pytest.approx((0.02, 0.02))
    # From the look that found the message until the last that follows the reply; the others are looks for work.
    assert (found["down"].bytes, found["down"].other_bytes) == (100_000, 1900)
    assert (found["up"].bytes, found["up"].other_bytes) == (31_800, 2500)
    assert found["up"].busy_s == pytest.approx(0.029)
    nothing = transfers({"down": Traffic(), "up": up}, {"down": 100_000, "up": 50_000})
    assert (nothing["down"].span_s, nothing["up"].span_s, nothing["up"].bytes) == (0.0, 0.0, 0)


def test_overhead_is_found_again_whatever_one_odd_round_says() -> None:
    true = Overhead(message=(4000.0, 12000.0))
    down, up = [1e4, 1e5, 1e6, 3e5, 2e4], [2e4, 2e5, 5e5, 3e5, 1e4]
    air = [true.on_air(*row) for row in zip(down, up, strict=True)]
    air[2] = (9e6, 9e6)
    found = fit(down, up, [pair[0] for pair in air], [pair[1] for pair in air])
    assert found.message == pytest.approx(true.message)


def test_a_run_that_was_not_emulated_is_refused(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", load_config(None, ["world.name=ideal"]))
    with pytest.raises(RunFolderError, match="holds no emulated run"):
        compare(tmp_path / "run")
