"""A run's outcome in a few numbers."""

from __future__ import annotations

from typing import Any


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a run's outcome in a few numbers; `rounds` are rows of metrics.jsonl, at least one."""
    first, last = rounds[0], rounds[-1]
    return {
        "rounds": last["round"],
        "accuracy_before": first["test_accuracy"],
        "accuracy_after": last["test_accuracy"],
        "loss_before": first["test_loss"],
        "loss_after": last["test_loss"],
        "clients_accuracy": last["clients_accuracy"],
        "uplink_bytes": sum(row["uplink_bytes"] for row in rounds),
        "downlink_bytes": sum(row["downlink_bytes"] for row in rounds),
        "replies": sum(counted(row) for row in rounds),
        "replies_failed": sum(row["clients_failed"] for row in rounds),
        "wall_time_s": round(sum(row["wall_time_s"] for row in rounds), 3),
        **(_in_the_world(rounds) if "virtual_time_s" in last else {}),
    }


def _in_the_world(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the run cost in its radio world."""
    return {
        "virtual_time_s": rounds[-1]["virtual_time_s"],
        "energy_j": sum(row["energy_j"] for row in rounds),
        "replies_dropped": sum(row["clients_dropped"] for row in rounds),
        "replies_late": sum(row["clients_late"] for row in rounds),
    }


def counted(row: dict[str, Any]) -> int:
    """Return how many replies of a round count, from its row of metrics.jsonl."""
    lost = ("clients_failed", "clients_dropped", "clients_late")
    return int(row["clients_selected"] - sum(row.get(name, 0) for name in lost))
