"""Whether network namespaces can be made here, and which there are."""

from __future__ import annotations

import os
import subprocess

import pytest

from fedlora_envs.emulation.namespaces import obstacle


def missing() -> str | None:
    """Return why namespaces cannot be made here, or None."""
    if reason := obstacle():
        return reason
    probe = f"fedlora-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", probe], capture_output=True, check=False)
    return f"no right to make network namespaces: {made.stderr.strip()}" if made.returncode else None


_REASON = missing()
needs_namespaces = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))


def names() -> list[str]:
    """Return the names of all network namespaces of emulations."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    found = [line.split()[0] for line in listed.splitlines() if line]
    return sorted(name for name in found if name.startswith("fedlora-") and not name.startswith("fedlora-probe-"))
