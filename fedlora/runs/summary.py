"""A run's outcome in a few numbers."""

from __future__ import annotations

from typing import Any


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a run's outcome in a few numbers; `rounds` are rows of metrics.jsonl, at least one.

    `accuracy_after` and `loss_after` are those of the last round that was measured, `evaluated_round`; None where none was.
    What a row lacks adds nothing to a sum.
    """
    first, last = rounds[0], rounds[-1]
    before = first if first["round"] == 0 else {}
    measured = [row for row in rounds if _known(row, "test_accuracy") or _known(row, "test_loss")]
    after: dict[str, Any] = measured[-1] if measured else {}
    return {
        "rounds": last["round"],
        "accuracy_before": before.get("test_accuracy"),
        "accuracy_after": after.get("test_accuracy"),
        "loss_before": before.get("test_loss"),
        "loss_after": after.get("test_loss"),
        "evaluated_round": after.get("round"),
        "clients_accuracy": last.get("clients_accuracy"),
        "uplink_bytes": int(_total(rounds, "uplink_bytes")),
        "downlink_bytes": int(_total(rounds, "downlink_bytes")),
        "replies": sum(counted(row) for row in rounds),
        "replies_failed": int(_total(rounds, "clients_failed")),
        "wall_time_s": round(_total(rounds, "wall_time_s"), 3),
        **_in_the_world(rounds),
    }


def _in_the_world(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the run cost in its radio world; nothing without one."""
    times = [row["virtual_time_s"] for row in rounds if _known(row, "virtual_time_s")]
    if not times and not any(_known(row, "energy_j") for row in rounds):
        return {}
    return {
        **({"virtual_time_s": times[-1]} if times else {}),
        "energy_j": _total(rounds, "energy_j"),
        "replies_dropped": int(_total(rounds, "clients_dropped")),
        "replies_late": int(_total(rounds, "clients_late")),
    }


def _known(row: dict[str, Any], name: str) -> bool:
    return row.get(name) is not None


def _total(rounds: list[dict[str, Any]], name: str) -> float:
    return sum(row.get(name) or 0 for row in rounds)


def counted(row: dict[str, Any]) -> int:
    """Return how many replies of a round count, from its row of metrics.jsonl."""
    lost = sum(row.get(name) or 0 for name in ("clients_failed", "clients_dropped", "clients_late"))
    return max(0, int((row.get("clients_selected") or 0) - lost))
