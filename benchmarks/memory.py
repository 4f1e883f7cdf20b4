"""Peak memory against how many clients are trained at once, beside what fedlora expects.

    python benchmarks/memory.py                       about five minutes on two idle cores

Each point is a process of its own. What a local step keeps is its peak of resident memory less what was resident before:
the model, the data and the libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "HF_HUB_OFFLINE": "1"}

import psutil
import torch
from contenders import Case
from measure import machine, save, table

from fedlora.federation.workbench import build
from fedlora.training.chunks import client_memory, example_length, train_in_chunks
from fedlora.training.local import Job

MIB = 2**20


def point(clients: int, data: str, method: str, batch: int) -> dict[str, Any]:
    """Train `clients` at once in this process; return bytes measured and expected."""
    torch.set_num_threads(1)
    config = Case("", data, clients, steps=2, method=method, threads=1, batch=batch).config()
    config = config.model_copy(update={"data": config.data.model_copy(update={"partition": "iid"})})
    bench = build(config)
    start = bench.start(bench.aggregator.initial(bench.backbone.initial_head()), 1)
    caps = [adapter.cap for adapter in bench.adapters]
    jobs = [Job(client, 1, 1, caps, part, start) for client, part in enumerate(bench.parts)]
    reset = _forget_peak()
    before = psutil.Process().memory_info().rss
    train_in_chunks(bench.backbone, bench.train, jobs, config.training, clients)
    expected = client_memory(bench.backbone, config.training, example_length(bench.backbone, bench.train))
    return {"clients": clients, "before": before, "peak": _peak(reset), "expected": expected * clients, "chosen": bench.chunk}


def _forget_peak() -> bool:
    """Let the kernel count the peak anew, where it can (Linux): loading a model may take more than a step."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak(reset: bool) -> int:
    if reset:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Parse arguments, start a process per point, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--data", default="20newsgroups", help="default 20newsgroups, cut at 64 tokens")
    parser.add_argument("--method", choices=["lora", "ravan"], default="ravan")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--point", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(point(options.clients[0], options.data, options.method, options.batch)))
        return
    print(machine() + "\n", flush=True)
    found: list[dict[str, Any]] = []
    settings = ["--data", options.data, "--method", options.method, "--batch", str(options.batch)]
    for clients in options.clients:
        command = [sys.executable, __file__, "--point", "--clients", str(clients), *settings]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:
            sys.exit(f"K = {clients} failed:\n{answer.stderr}")
        found.append(json.loads(answer.stdout.splitlines()[-1]))
        print(f"K = {clients}: peak {found[-1]['peak'] / MIB:.0f} MiB", file=sys.stderr, flush=True)
    rows = []
    for own in found:
        step = own["peak"] - own["before"]
        rows.append(
            [
                str(own["clients"]),
                *(f"{bytes_ / MIB:.0f}" for bytes_ in (own["peak"], step, own["expected"])),
                f"{own['expected'] / step:.2f}",
            ]
        )
    print(f"{options.data}, {options.method}, {options.batch} examples a client and step\n")
    print(table(["clients at once", "peak MiB", "of it the step, MiB", "expected MiB", "expected / measured"], rows))
    save(options.out, {"settings": vars(options) | {"out": None}, "points": found})


if __name__ == "__main__":
    main()
