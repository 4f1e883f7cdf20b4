"""Faults of a deployment: seconds until somebody says so, and until a round counts all nodes again.

    python benchmarks/faults.py                       about twelve minutes, mostly waiting; Linux

A run over three real nodes on loopback, with TLS and keys, each behind a relay whose link can go down. One fault after the
other is put into it, as the tests do (tests/fault_cases.py says how). "Noticed" counts from the fault to the line that `fedlora
serve` or the node prints. "Whole again" counts from the fault, or from when its cause ended (room on the disk, the link), to the
end of the first round after it in which the updates of all three nodes count. Then nodes that may not join, or not any longer,
one by one: seconds from the call of `fedlora node`, or from the revocation, until it has ended with its one line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import machine, save, table

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from edge_links import EdgeLink, NodeProcess, edge_link, free_port, join, nodes, timed_wait
from fault_cases import ALL, FAULTS
from faulty_runs import faulty_run
from fedlora.deploy.certificates import write_authority
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


REVOKED = "key revoked while online"
NOBODY = "nobody at the address, --max-retries 5"
REFUSED = ("no key", "unknown key", "the same key twice", REVOKED, "wrong authority", "plain text to a TLS server", NOBODY)


@contextlib.contextmanager
def _refused(link: EdgeLink, name: str, folder: Path) -> Iterator[NodeProcess]:
    """Start a node that is to end by itself; the block begins when nothing but that is to be waited for."""
    known, other = link.new_key(f"{folder.name}-known"), link.new_key(f"{folder.name}-unknown", register=False)
    folder.mkdir()
    write_authority(folder / "ca.crt", folder / "ca.key", "another")
    calls = {
        "no key": join(link, None),
        "unknown key": join(link, other),
        "wrong authority": ["--superlink", link.address, "--ca", str(folder / "ca.crt"), "--key", str(known), "--client", "0"],
        "plain text to a TLS server": ["--superlink", link.address, "--insecure-plain-text", "--client", "0"],
        NOBODY: ["--superlink", f"127.0.0.1:{free_port()}", "--client", "0", "--max-retries", "5"],
    }
    if name in calls:
        with nodes(folder, calls[name]) as (node,):
            yield node
        return
    with nodes(folder, join(link, known)) as (first,):
        first.wait_online()
        if name == REVOKED:
            (number,) = link.online()
            link.flwr("supernode", "unregister", str(number), "lab")
            yield first
        else:
            with nodes(folder / "second", join(link, known)) as (second,):
                yield second


def measure_refused(folder: Path, turns: int, only: str) -> dict[str, list[dict[str, Any]]]:
    """Return what became of each node that is refused, `turns` times one after the other."""
    found: dict[str, list[dict[str, Any]]] = {}
    with edge_link(folder / "link") as link:
        for turn in range(turns):
            for number, name in enumerate(REFUSED):
                if not re.search(only, name):
                    continue
                own = folder / f"refused-{turn}-{number}"
                with _refused(link, name, own) as node:
                    code, seconds = timed_wait(node, 120)
                line = node.errors[0].replace(str(link.folder), "").replace(str(own), "")
                print(f"{name}: {seconds:.1f} s, {code}, {line}", file=sys.stderr, flush=True)
                found.setdefault(name, []).append({"noticed_s": round(seconds, 2), "status": f"node: {code}", "line": line})
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
        found = (
            measure(Path(folder), options.turns, options.only) if any(re.search(options.only, name) for name in FAULTS) else {}
        )
        found |= measure_refused(Path(folder), options.turns, options.only)
    if options.out and options.out.exists():
        there = json.loads(options.out.read_text(encoding="utf-8"))["faults"] | found
        found = {name: there[name] for name in (*FAULTS, *REFUSED) if name in there}
    rows = [[name, _seconds(results, "noticed_s"), _seconds(results, "whole_s")] for name, results in found.items()]
    print(table(["fault", "noticed, s", "whole again, s"], rows))
    print(f"\n{machine()}")
    save(options.out, {"faults": found})


if __name__ == "__main__":
    main()
