"""Plain text on loopback: only where both sides ask for it by name, and the server says what it means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployments import deployment
from tiny_run import Ground

pytestmark = pytest.mark.slow


def test_a_run_in_plain_text(ground: Ground, tmp_path: Path) -> None:
    with deployment(tmp_path, ground.overrides("rounds=1", "clients=1", "clients_per_round=1"), 1) as lab:
        lab.hand_out()
        address = lab.node_commands()[0][2]
        serve = lab.serve("--insecure-plain-text", "--out", "run")
        serve.wait_for("serving at")
        port = address.rpartition(":")[2]
        assert "warning: plain text: any user of this machine can read all messages, pose as a node and start runs" in serve.out
        careful = lab.start_node(0)
        lab.running.append(careful)
        assert careful.wait(120) == 8
        assert careful.error.startswith(f"localhost:{port} speaks plain text, this node TLS")
        command = ["node", "--superlink", address, "--insecure-plain-text", "--client", "0"]
        lab.running.append(lab.start_node(0, command))
        assert serve.wait() == 0, serve.files[1].read_text()
    rows = [json.loads(line) for line in (tmp_path / "run" / "clients.jsonl").read_text().splitlines()]
    assert [(row["round"], row["status"]) for row in rows] == [(1, "ok")]
