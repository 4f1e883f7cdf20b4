"""Predicted against measured: what the world charges for a run's messages, and how long the emulated links were really busy.

Predictions are made from the run folder alone: the world of its configuration, the bytes that its clients exchanged and the
stated overhead of the protocols. Measurements are the relay's. Seconds are those of the world (real ones over the time scale).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from fedlora.errors import RunFolderError
from fedlora.files import write_atomic, write_json
from fedlora.runs.folder import RunFolder
from fedlora_envs.emulation.overhead import FLOWER, Overhead
from fedlora_envs.emulation.relay import DOWN, UP
from fedlora_envs.emulation.relay_process import read_log
from fedlora_envs.emulation.schedule import Charges, Schedule, transfer_s
from fedlora_envs.emulation.traffic import Traffic, Transfer, traffic, transfers

FOLDER = "emulation"
"""Folder of a run folder that holds what the emulation keeps: settings.json, relay.jsonl, schedule.jsonl, logs/, simulated/."""

ROWS, SUMMARY, PICTURE = "emulation.jsonl", "emulation.json", "emulation.png"

# Columns of clients.jsonl with the goodput that a node told.
_TOLD = {DOWN: "downlink_bps", UP: "rate_bps"}
_SIMULATED = ("uplink_bytes", "downlink_bytes", "uplink_s", "downlink_s")

Measured = dict[tuple[int, int, str], Traffic]


def compare(run: Path, overhead: Overhead = FLOWER) -> dict[str, Any]:
    """Write emulation.jsonl, emulation.json and emulation.png of a run that was emulated; return the summary.

    Args:
        run: The run's folder.
        overhead: What protocols put on the air beside the payload.

    Raises:
        RunFolderError: No run, or one that was not emulated.
    """
    rows = predicted_and_measured(run, overhead)
    write_atomic(run / ROWS, "".join(json.dumps(row) + "\n" for row in rows))
    summary = summarise(rows)
    write_json(run / SUMMARY, summary)
    from fedlora_envs.emulation.plots import plot_emulation

    plot_emulation(rows, run / PICTURE)
    return summary


def predicted_and_measured(run: Path, overhead: Overhead = FLOWER) -> list[dict[str, Any]]:
    """Return one row per client and round ("kind": "client"), and one per round ("kind": "round"), in order (see `compare`)."""
    folder, settings = RunFolder.open(run), read_settings(run)
    schedule = Schedule(folder.config, settings["time_scale"])
    measured = traffic(read_log(run / FOLDER / "relay.jsonl"))
    asked: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in folder.rows("clients"):
        asked[row["round"]].append(row)
    simulated = _simulated(run)
    rows = []
    for done in folder.rows():
        number = done["round"]
        if number == 0 or number not in asked:
            continue
        clients = _clients(schedule, number, asked[number], measured, overhead)
        rows += [row | simulated["clients"].get((number, row["client"]), {}) for row in clients]
        rows += [_round(done, clients, schedule.scale) | simulated["rounds"].get(number, {})]
    return rows


def read_settings(run: Path) -> dict[str, Any]:
    """Return what a run was emulated with (RunFolderError where it was not)."""
    path = run / FOLDER / "settings.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        raise RunFolderError(
            f"{run} holds no emulated run ({path} cannot be read). Give the folder that `fedlora emulate` wrote"
        ) from None


def _clients(
    schedule: Schedule,
    number: int,
    asked: list[dict[str, Any]],
    measured: Measured,
    overhead: Overhead,
) -> list[dict[str, Any]]:
    """Return the rows of a round's clients."""
    asked = sorted(asked, key=lambda row: int(row["client"]))
    compute_s = np.array([_compute_s(row) / schedule.scale for row in asked])
    down, up = (np.array([max(1, int(row[f"{way}link_bytes"])) for row in asked], np.int64) for way in (DOWN, UP))
    charges = schedule.charges(number, np.array([row["client"] for row in asked], np.int64), down, up, compute_s)
    rows = []
    for place, row in enumerate(asked):
        payload = {DOWN: int(down[place]), UP: int(up[place])}
        air = dict(zip((DOWN, UP), overhead.on_air(payload[DOWN], payload[UP]), strict=True))
        seen = transfers({way: measured.get((number, row["client"], way), Traffic()) for way in (DOWN, UP)}, payload)
        found: dict[str, Any] = {
            "kind": "client",
            "round": number,
            "client": row["client"],
            "status": row["status"],
            "compute_s": _rounded(compute_s[place]),
        }
        # What nodes measured themselves, where they did: what the server notes may as well be the world's own charges.
        reported = schedule.config.deployment.links == "measured"
        for way in (DOWN, UP):
            told = _link(charges, place, way, payload[way], air[way], seen[way], schedule.scale)
            lasted, rate = (float(row.get(key) or 0.0) if reported else 0.0 for key in (f"{way}link_s", _TOLD[way]))
            told["reported_s"] = _rounded(lasted / schedule.scale) if lasted else None
            told["reported_bps"] = _rounded(rate * schedule.scale) if rate else None
            found |= {f"{name}_{way}": value for name, value in told.items()}
        rows.append(found)
    return rows


def _link(charges: Charges, place: int, way: str, payload: int, size: float, link: Transfer, scale: float) -> dict[str, Any]:
    """Return what is predicted and measured of one direction of a client's link."""
    pieces, bare_s = (charges.down[place], charges.down_s[place]) if way == DOWN else (charges.up[place], charges.up_s[place])
    return {
        "payload_bytes": payload,
        "world_s": _rounded(bare_s),
        "predicted_bytes": round(size),
        "predicted_s": _rounded(transfer_s(pieces, 8.0 * size)),
        "measured_bytes": round(link.bytes),
        "measured_s": _rounded(link.busy_s / scale),
        "span_s": _rounded(link.span_s / scale),
        "span_busy_s": _rounded(link.span_busy_s / scale),
        "other_bytes": round(link.other_bytes),
        "lost": link.lost,
        "full": link.full,
    }


def _round(done: dict[str, Any], clients: list[dict[str, Any]], scale: float) -> dict[str, Any]:
    """Return the row of a round: it is predicted to last until its slowest reply is through, and measured on the wall clock."""
    through = [row["predicted_s_down"] + row["compute_s"] + row["predicted_s_up"] for row in clients if _counts(row)]
    return {
        "kind": "round",
        "round": done["round"],
        "replies": len(through),
        "predicted_s": _rounded(max(through, default=math.nan)),
        "measured_s": _rounded(done["wall_time_s"] / scale),
        "uplink_bytes": done["uplink_bytes"],
        "downlink_bytes": done["downlink_bytes"],
        "accuracy": done["test_accuracy"],
    }


def _simulated(run: Path) -> dict[str, Any]:
    """Return what the simulation of the same run file said, where there was one: by (round, client), and by round."""
    path = run / FOLDER / "simulated"
    if not (path / "metrics.jsonl").exists():
        return {"clients": {}, "rounds": {}}
    folder = RunFolder.open(path)
    clients = {
        (row["round"], row["client"]): {f"simulated_{key}": row.get(key) for key in _SIMULATED} for row in folder.rows("clients")
    }
    rounds = {
        row["round"]: {
            "simulated_accuracy": row["test_accuracy"],
            "simulated_uplink_bytes": row["uplink_bytes"],
            "simulated_downlink_bytes": row["downlink_bytes"],
        }
        for row in folder.rows()
    }
    return {"clients": clients, "rounds": rounds}


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the errors of the predictions in a few numbers; only clients whose replies counted are looked at.

    Keys of each direction: `replies`, `airtime_error` (median of |predicted - measured| / measured), `within_15` (share of them
    under 15 %), `worst` (largest), `payload_alone_error` (the same error where protocols are left out), `waiting` (median share
    of a transfer, from its first packet to its last, in which the transmitter was off), `told_over_true` (median goodput that
    nodes told over the world's for the same transfer; None where they told none).
    """
    clients = [row for row in rows if row["kind"] == "client" and _counts(row)]
    rounds = [row for row in rows if row["kind"] == "round"]
    summary: dict[str, Any] = {"rounds": len(rounds), "clients": len({row["client"] for row in clients})}
    for way in (DOWN, UP):
        seen = [row for row in clients if row[f"measured_s_{way}"]]
        errors = [_error(row[f"predicted_s_{way}"], row[f"measured_s_{way}"]) for row in seen]
        summary[way] = {
            "replies": len(seen),
            "airtime_error": _median(errors),
            "within_15": _mean([error < 0.15 for error in errors]),
            "worst": max(errors, default=None),
            "payload_alone_error": _median([_error(row[f"world_s_{way}"], row[f"measured_s_{way}"]) for row in seen]),
            "bytes_error": _median([_error(row[f"predicted_bytes_{way}"], row[f"measured_bytes_{way}"]) for row in seen]),
            "waiting": _median([1 - row[f"span_busy_s_{way}"] / row[f"span_s_{way}"] for row in seen if row[f"span_s_{way}"]]),
            "told_over_true": _median(_told_over_true(clients, way)),
        }
    timed = [row for row in rounds if row["predicted_s"]]
    summary["round_s"] = {
        "predicted": _median([row["predicted_s"] for row in timed]),
        "measured": _median([row["measured_s"] for row in timed]),
        "beyond": _median([row["measured_s"] - row["predicted_s"] for row in timed]),
    }
    both = [row for row in rounds if row.get("simulated_accuracy") is not None and row["accuracy"] is not None]
    if both:
        summary["accuracy_difference"] = max(abs(row["accuracy"] - row["simulated_accuracy"]) for row in both)
        summary["bytes_equal"] = all(row["uplink_bytes"] == row["simulated_uplink_bytes"] for row in both)
    return summary


def _told_over_true(clients: list[dict[str, Any]], way: str) -> list[float]:
    """Return goodput told over goodput of the world; of an upload a node tells with its next reply."""
    own: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in clients:
        own[row["client"]].append(row)
    ratios = []
    for rows in own.values():
        for before, row in zip([None, *rows], rows, strict=False):
            meant = row if way == DOWN else before
            if meant is not None and row.get(f"reported_bps_{way}") and meant[f"world_s_{way}"]:
                ratios.append(row[f"reported_bps_{way}"] * meant[f"world_s_{way}"] / (8 * meant[f"payload_bytes_{way}"]))
    return ratios


def _counts(row: dict[str, Any]) -> bool:
    """Return whether a client's reply counted and its link could be predicted."""
    known = all(row[f"predicted_s_{way}"] is not None for way in (DOWN, UP))
    return bool(row["status"] == "ok" and known)


def _compute_s(row: dict[str, Any]) -> float:
    """Return the real seconds that a client computed, as it said itself."""
    return float(row.get("seconds") or 0.0)


def _error(predicted: float, measured: float) -> float:
    return abs(predicted - measured) / measured


def _median(values: list[float]) -> float | None:
    return _rounded(float(np.median(values))) if values else None


def _mean(values: list[bool]) -> float | None:
    return _rounded(float(np.mean(values))) if values else None


def _rounded(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None
