"""The launcher of client apps: what it starts does not outlive it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from edge_nodes import wait_for

# A SuperExec whose client app hangs, as one does whose SuperNode was killed before it could hand over its reply.
_HANGS = """
import os, time
from pathlib import Path
from fedlora.deploy import superexec

def hang(name, arguments):
    Path("pid.new").write_text(str(os.getpid()))
    os.rename("pid.new", "pid")
    time.sleep(1000)

superexec._run = hang
if __name__ == "__main__":
    superexec._launch(["flwr-clientapp", "--token", "x"])
    time.sleep(1000)
"""


def test_a_client_app_ends_with_the_launcher_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(_HANGS)
    launcher = subprocess.Popen([sys.executable, "hangs.py"], cwd=tmp_path)
    try:
        wait_for((tmp_path / "pid").exists)
        client = psutil.Process(int((tmp_path / "pid").read_text()))
        server = client.parent()
        assert server is not None and server.pid != launcher.pid
    finally:
        launcher.kill()
        launcher.wait()
    _, left = psutil.wait_procs([client, server], timeout=20)
    assert left == []
