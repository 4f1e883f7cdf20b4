"""No packet leaves the machine: runs in a network of their own whose only way out is watched (see airlock.py).

The switches are those that fedlora sets by itself: what the test suite sets in conftest.py is taken out of the environment. Two
controls show that the watch sees what it should: the same runs with Flower's telemetry on are caught.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

import airlock
from airlock import run_inside
from fedlora import quiet_env
from tiny_run import Ground, ground

__all__ = ["ground"]

ON = {"FLWR_TELEMETRY_ENABLED": "1", "FLWR_DISABLE_UPDATE_CHECK": "0"}
_HERE = Path(__file__).parent
_SIMULATE = """
import sys
from pathlib import Path
from fedlora.config import load_config
from fedlora.runs.simulate import simulate

assert simulate(load_config(None, sys.argv[1:]), Path("run")).rounds[-1]["clients_failed"] == 0
"""


def bare_environment(**changes: str) -> dict[str, str]:
    """Return this process's environment without what keeps libraries quiet or off the hub."""
    kept = {key: value for key, value in os.environ.items() if key not in {*quiet_env.NETWORK, *quiet_env.SCREEN}}
    kept.pop("HF_HUB_OFFLINE", None)
    return kept | changes


def test_settings_of_the_user_are_left_alone() -> None:
    environment = {"FLWR_TELEMETRY_ENABLED": "1"}
    quiet_env.calm(environment)
    assert environment == {**quiet_env.NETWORK, **quiet_env.SCREEN, "FLWR_TELEMETRY_ENABLED": "1"}


def test_whoever_imports_fedlora_is_quiet_before_flower_is_there() -> None:
    code = "import fedlora.runs.simulate, flwr.supercore.telemetry as t, sys; sys.exit(int(t.FLWR_TELEMETRY_ENABLED))"
    for switch, expected in (({}, 0), ({"FLWR_TELEMETRY_ENABLED": "1"}, 1)):
        assert os.spawnve(os.P_WAIT, sys.executable, [sys.executable, "-c", code], bare_environment(**switch)) == expected


@pytest.mark.slow
@pytest.mark.skipif(airlock.missing() is not None, reason=f"no network of its own: {airlock.missing()}")
class TestLockedIn:
    def test_the_watch_sees_packets_and_questions_for_names(self, tmp_path: Path) -> None:
        datagram = "import socket; socket.socket(2, 2).sendto(b'x', ('203.0.113.9', 7))"
        question = "import socket\ntry: socket.getaddrinfo('flower.ai', 80)\nexcept OSError: pass"
        assert run_inside([sys.executable, "-c", datagram], tmp_path, os.environ).packets == ["udp 203.0.113.9:7"]
        assert set(run_inside([sys.executable, "-c", question], tmp_path, os.environ).packets) == {"udp 198.51.100.53:53"}
        assert run_inside([sys.executable, "-c", "pass"], tmp_path, os.environ).packets == []

    def test_simulate_on_the_command_line(self, ground: Ground, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "fedlora", "simulate", *ground.overrides("rounds=1"), "--out", "run"]
        report = run_inside(command, tmp_path, bare_environment())
        assert (report.code, report.packets) == (0, []), report.printed

    @pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
    def test_with_a_tracker_that_stays_here(self, tracker: str, ground: Ground, tmp_path: Path) -> None:
        pytest.importorskip(tracker)
        here = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'them.db'}"}
        command = [sys.executable, "-m", "fedlora", "simulate", *ground.overrides("rounds=1"), "--log", tracker, "--out", "run"]
        report = run_inside(command, tmp_path, bare_environment(**here))
        assert (report.code, report.packets) == (0, []), report.printed
        assert list(json.loads((tmp_path / "run" / "trackers.json").read_text())) == [tracker], report.printed

    def test_simulate_on_ray_from_python(self, ground: Ground, tmp_path: Path) -> None:
        few = ground.overrides("rounds=1", "clients=2", "clients_per_round=2", "engine=ray", "ray.num_cpus=1")
        command = [sys.executable, "-c", _SIMULATE, *few]
        report = run_inside(command, tmp_path, bare_environment())
        assert (report.code, report.packets) == (0, []), report.printed
        (tmp_path / "run").rename(tmp_path / "quiet")
        control = run_inside(command, tmp_path, bare_environment(**ON))
        assert control.code == 0 and "udp 198.51.100.53:53" in control.packets, control

    def test_real_supernodes(self, ground: Ground, tmp_path: Path) -> None:
        config = tmp_path / "run.json"
        config.write_text(ground.config("rounds=1", "clients=2", "clients_per_round=2").model_dump_json())
        (tmp_path / "quiet").mkdir()
        command = [sys.executable, str(_HERE / "superlink_run.py"), str(config)]
        report = run_inside(command, tmp_path / "quiet", bare_environment())
        assert (report.code, report.packets) == (0, []), report.printed

    def test_flower_left_to_itself_is_seen(self, tmp_path: Path) -> None:
        """What the settings are good for: a SuperLink that is merely started asks for two names outside."""
        program = str(Path(sys.executable).parent / "flower-superlink")
        command = ["timeout", "15", program, "--insecure", "--host", "127.0.0.1", "--port", "8000"]
        report = run_inside(command, tmp_path, bare_environment(FLWR_HOME=str(tmp_path / "home"), **ON))
        assert "udp 198.51.100.53:53" in report.packets, report
