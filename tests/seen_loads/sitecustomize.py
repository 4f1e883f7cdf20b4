"""Put this folder on PYTHONPATH, and every Python process that opens SEEN_FILE says so in SEEN_LOG: its number and its GPUs."""

from __future__ import annotations

import os
import sys


def _watch(wanted: str, log: str) -> None:
    def hook(event: str, details: tuple[object, ...]) -> None:
        if event == "open" and str(details[0]) == wanted:
            line = f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES', 'unset') or 'none'}\n"
            file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(file, line.encode())
            os.close(file)

    sys.addaudithook(hook)


if "SEEN_FILE" in os.environ:
    _watch(os.environ["SEEN_FILE"], os.environ["SEEN_LOG"])
