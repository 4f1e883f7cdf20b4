"""The relay as its owner sees it: started, told of channels, stopped."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedlora.errors import FedLoRAError
from fedlora_envs.emulation.pipe import Channel
from fedlora_envs.emulation.processes import stop
from fedlora_envs.emulation.relay import Plan

Channels = Mapping[int, Mapping[str, Channel]]
"""By node, then by direction ("up", "down")."""


class Relay:
    """A relay process; a context manager that stops it.

    Args:
        plan: What to make.

    Raises:
        FedLoRAError: It cannot make its devices.
    """

    def __init__(self, plan: Plan) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fedlora_envs.emulation.relay"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for its owner, who stops it in time
        )
        try:
            self._tell(plan.to_json())
            if "error" in (answer := self._answer()):
                raise FedLoRAError(f"{answer['error']}. Emulation needs root and the kernel's TUN device /dev/net/tun")
        except BaseException:
            self.stop()
            raise

    def change(self, round_number: int, channels: Channels) -> float:
        """Set channels as a round begins; return when they hold, on the monotonic clock.

        Args:
            round_number: Written into the log's rows from here on.
            channels: Those that change.
        """
        nodes = {str(node): {way: channel.to_json() for way, channel in ways.items()} for node, ways in channels.items()}
        self._tell({"round": round_number, "nodes": nodes})
        return float(self._answer()["t"])

    def stop(self) -> None:
        """Stop it; its log is whole then."""
        if self.process.stdin:
            with contextlib.suppress(OSError):  # it may be dead, with something still to be told
                self.process.stdin.close()
        stop(self.process, patience_s=5.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _tell(self, tree: dict[str, Any]) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(tree) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise self._dead() from None

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise self._dead()
        return dict(json.loads(line))

    def _dead(self) -> FedLoRAError:
        return FedLoRAError(f"the relay has ended (exit code {self.process.poll()}): links are down, the run cannot go on")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a relay's log; a line that was cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
