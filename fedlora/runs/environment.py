"""What a run ran on: versions, commit, hardware, command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = ("fedlora", "torch", "flwr", "transformers", "numpy", "safetensors", "flwr-datasets", "datasets", "peft", "ray")


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Return versions, commit, hardware and command line as plain data."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [*_program(), *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": commit(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "device": str(device) if device is not None else None,
    }


def _program() -> list[str]:
    """Return what was typed before the arguments."""
    name = Path(sys.argv[0]).name
    return ["python", "-m", "fedlora"] if name == "__main__.py" else [name]


def commit() -> str | None:
    """Return the git commit of the source tree that fedlora runs from, with "+changes" if it was edited; None when installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head, dirty = (_git(root, *command) for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno")))
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if dirty else "")


def _git(root: Path, *command: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
