"""Which round a run is in, read from its folder while it goes on, and the world's channel given to the relay at each."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedlora.config import RunConfig
from fedlora.runs.folder import LOGS
from fedlora.runs.logs import Tail
from fedlora_envs.emulation.relay import DOWN, UP
from fedlora_envs.emulation.relay_process import Relay
from fedlora_envs.emulation.schedule import Charges, Schedule

_GUESSED_BYTES = 300_000
_GUESSED_COMPUTE_S = 1.0


@dataclass
class Expected:
    """What messages are expected to be like before a round: as simulated, otherwise as they were last, otherwise a guess.

    The world's rates depend on it only where clients share the band by what they have to send.
    """

    simulated: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    _last: dict[int, dict[str, Any]] = field(default_factory=dict)

    def learn(self, rows: list[dict[str, Any]]) -> None:
        """Take in rows of clients.jsonl."""
        self._last |= {row["client"]: row for row in rows if row["status"] == "ok"}

    def bytes(self, number: int, client: int, way: str) -> int:
        """Return the bytes of the message down, or of the reply."""
        rows = [self.simulated.get((number, client), {}), self._last.get(client, {}), *self._last.values()]
        return next((int(row[f"{way}link_bytes"]) for row in rows if row.get(f"{way}link_bytes")), _GUESSED_BYTES)

    def compute_s(self, client: int) -> float:
        """Return the real seconds between the two."""
        rows = [self._last.get(client, {}), *self._last.values()]
        return next((float(row["seconds"]) for row in rows if row.get("seconds")), _GUESSED_COMPUTE_S)


class Follower:
    """Keeps the relay at the run's round.

    Args:
        config: The run.
        out: Its folder.
        schedule: The world's channel.
        relay: Who plays it.
        log: File for what was played (JSON lines).
        expected: What messages are expected to be like.
    """

    def __init__(self, config: RunConfig, out: Path, schedule: Schedule, relay: Relay, log: Path, expected: Expected) -> None:
        self.config, self.schedule, self.relay, self.expected = config, schedule, relay, expected
        self._rounds, self._clients = Tail(out / LOGS["metrics"]), Tail(out / LOGS["clients"])
        self._log = log

    def look(self) -> list[dict[str, Any]]:
        """Look how far the run is; return the rows of the rounds that are done since the last look."""
        done = self._rounds.read()
        if done:
            self.expected.learn(self._clients.read())
            number = int(done[-1]["round"]) + 1
            if number <= self.config.rounds:
                self._play(number)
            else:  # what comes now belongs to no round
                self.relay.change(number, {})
        return done

    def _play(self, number: int) -> None:
        began = time.monotonic()
        clients, expected = self.schedule.draw(number), self.expected
        down, up = (
            np.array([expected.bytes(number, client, way) for client in clients.tolist()], np.int64) for way in (DOWN, UP)
        )
        compute_s = np.array([expected.compute_s(client) for client in clients.tolist()]) / self.schedule.scale
        charges = self.schedule.charges(number, clients, down, up, compute_s)
        at = self.relay.change(number, self.schedule.channels(charges))
        rows = _rows(number, charges, down.tolist(), up.tolist(), at - began)
        with self._log.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def _rows(number: int, charges: Charges, down: list[int], up: list[int], took_s: float) -> list[dict[str, Any]]:
    """Return what was played, a row per client; seconds are the world's, null where there is no end."""
    return [
        {
            "round": number,
            "client": client,
            "away": bool(charges.away[place]),
            "leave_s": _finite(charges.leave_s[place]),
            "bytes_down": down[place],
            "bytes_up": up[place],
            "down_s": _finite(charges.down_s[place]),
            "up_s": _finite(charges.up_s[place]),
            "down": charges.down[place],
            "up": charges.up[place],
            "took_s": round(took_s, 4),
        }
        for place, client in enumerate(charges.clients.tolist())
    ]


def _finite(value: float) -> float | None:
    return round(float(value), 9) if np.isfinite(value) else None
