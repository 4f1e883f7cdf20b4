"""`python -m fedlora_envs.emulation`: the command `fedlora emulate`."""

from __future__ import annotations

import sys

from fedlora import cli
from fedlora_envs.emulation.command import emulate

if __name__ == "__main__":
    cli.app.command("emulate")(emulate)
    sys.argv.insert(1, "emulate")
    cli.main()
