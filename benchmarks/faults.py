"""Faults of a deployment: seconds until somebody says so, and until a round counts all nodes again.

    python benchmarks/faults.py                       about twelve minutes, mostly waiting; Linux

A run over three real nodes on loopback, with TLS and keys, each behind a relay whose link can go down. One fault after the
other is put into it, as the tests do (tests/fault_cases.py says how). "Noticed" counts from the fault to the line that `fedlora
serve` or the node prints. "Whole again" counts from the fault, or from when its cause ended (room on the disk, the link), to the
end of the first round after it in which the updates of all three nodes count.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import machine, save, table

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fault_cases import ALL, FAULTS
from faulty_runs import faulty_run
from tiny import tiny_text_model
from tiny_run import Ground, write_rows

_RUN = ("rounds=100000", "clients=3", "clients_per_round=3", "adapter.unit=svd", "adapter.rank=16", "adapter.heads=8")


def measure(folder: Path, turns: int, only: str) -> dict[str, list[dict[str, Any]]]:
    """Return what each fault gave, `turns` times one after the other."""
    tiny_text_model(folder / "model")
    write_rows(folder / "data.csv")
    (folder / "lab").mkdir()
    found: dict[str, list[dict[str, Any]]] = {}
    with faulty_run(folder / "lab", Ground(folder).overrides(*_RUN), 3) as run:
        run.serve()
        for node in ALL:
            run.start_node(node)
        run.told.wait(r"^round +2/", 0.0)
        for _ in range(turns):
            for name, fault in FAULTS.items():
                if not re.search(only, name):
                    continue
                run.whole(0.0, ALL)
                told = fault(run)
                print(f"{name}: {told}", file=sys.stderr, flush=True)
                times = {"noticed_s": told.noticed_s, "whole_s": told.whole_s}
                kept = {key: round(value, 2) for key, value in times.items() if math.isfinite(value)}
                words = {"status": told.status, "line": told.line}
                found.setdefault(name, []).append({**kept, **{key: _anywhere(text, folder) for key, text in words.items()}})
    return found


def _anywhere(text: str, folder: Path) -> str:
    """Return a line without the paths and numbers that are of this run alone."""
    return re.sub(r"node \d{6,}", "node N", text.replace(str(folder), "")).strip()


def _seconds(results: list[dict[str, Any]], key: str) -> str:
    values = sorted(result[key] for result in results if key in result)
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.0f}"
    return f"{values[0]:.0f} to {values[-1]:.0f}"


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=1, help="times that each fault is put in")
    parser.add_argument("--only", default="", help="faults in whose name this pattern is found")
    parser.add_argument("--out", type=Path, help="write results as JSON, beside those of other faults that are there already")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends with the blocks that started it
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.turns, options.only)
    if options.out and options.out.exists():
        there = json.loads(options.out.read_text(encoding="utf-8"))["faults"] | found
        found = {name: there[name] for name in FAULTS if name in there}
    rows = [[name, _seconds(results, "noticed_s"), _seconds(results, "whole_s")] for name, results in found.items()]
    print(table(["fault", "noticed, s", "whole again, s"], rows))
    print(f"\n{machine()}")
    save(options.out, {"faults": found})


if __name__ == "__main__":
    main()
