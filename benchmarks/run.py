"""fedlora beside what one would use instead: runs the benchmarks one after the other and gathers them in one table.

    make bench                 short: one case of each, two minutes on two idle cores
    make bench FULL=1          full, for publishing: 17 minutes there
    make bench ARGS=--tiny     whether everybody still runs, and all compute the same; its times say nothing

Results go to `runs/bench/` (`--out`), in a folder named after the size: JSON of each part, and `summary.json` and `summary.md` of
all. A contender that is not installed is left out and named; a part that fails, or whose contenders do not compute the same, is
named too, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import described, span, spread, table

from fedlora.files import write_atomic

HERE = Path(__file__).resolve().parent
LIMIT_S = {"tiny": 900.0, "short": 1800.0, "full": 7200.0}
"""What one part may take at each size before it counts as stuck."""


@dataclass(frozen=True)
class Part:
    """One benchmark and its arguments at each size; None leaves it out."""

    name: str
    tiny: list[str] | None
    short: list[str] | None
    full: list[str] | None


PARTS = (
    Part("engine", ["--short", "--clients", "2", "--steps", "2", "--rounds", "1"], ["--short", "--precision", "fp32"], []),
    Part("radio", ["--short", "--repeats", "1"], ["--short", "--repeats", "3"], []),
    Part("terminals", ["--repeats", "1"], ["--repeats", "3"], []),
    Part("overhead", ["--rounds", "1"], None, []),
    Part("memory", ["--clients", "1"], None, []),
    Part("policies", None, None, []),
)


def run(size: str, out: Path, only: list[str], limit_s: float) -> dict[str, Any]:
    """Run the parts of a size, each in a process of its own, and return the summary of all.

    Args:
        size: A key of `LIMIT_S`.
        out: Folder of the results.
        only: Names of the parts to run; empty: all.
        limit_s: What one part may take; one that takes longer is ended.
    """
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    failed, seconds = dict[str, str](), dict[str, float]()
    for part in PARTS:
        arguments: list[str] | None = getattr(part, size)
        if arguments is None or (only and part.name not in only):
            continue
        path = out / f"{part.name}.json"
        path.unlink(missing_ok=True)  # what an earlier run left is not of this one
        print(f"## {part.name}\n", flush=True)
        began = time.perf_counter()
        problem = ended([sys.executable, str(HERE / f"{part.name}.py"), *arguments, "--out", str(path)], limit_s)
        seconds[part.name] = round(time.perf_counter() - began, 1)
        print(f"({part.name}: {seconds[part.name]:.0f} s)\n", flush=True)
        if problem:
            failed[part.name] = problem
        if path.exists():
            found[part.name] = json.loads(path.read_text(encoding="utf-8"))
    return summary(size, found, failed, seconds)


def ended(command: list[str], limit_s: float) -> str:
    """Run a command and whatever it starts to their end; return what went wrong, or nothing."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(limit_s)
        return f"exit code {code}" if code else ""
    except subprocess.TimeoutExpired:
        return f"not done after {limit_s:.0f} s"
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(10)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue


def summary(size: str, found: dict[str, dict[str, Any]], failed: dict[str, str], seconds: dict[str, float]) -> dict[str, Any]:
    """Return what all parts say of fedlora beside the others.

    Args:
        size: A key of `LIMIT_S`.
        found: What each part wrote.
        failed: Parts that went wrong, and how.
        seconds: How long each took.
    """
    rows = [row | {"part": name} for name, content in found.items() for row in content["comparisons"]]
    left_out = {who: why for content in found.values() for who, why in content["left_out"].items()}
    environment = next((content["environment"] for content in found.values()), None)
    notes = {"left_out": left_out, "failed": failed, "seconds": seconds}
    return {"size": size, "environment": environment, **notes, "comparisons": rows}


def page(result: dict[str, Any]) -> str:
    """Return a summary as Markdown."""
    lines = [f"# fedlora beside the field ({result['size']})", ""]
    if result["environment"]:
        lines += [f"{described(result['environment'])}; {result['environment']['started']}.", ""]
    if result["size"] == "tiny":
        lines += ["Sizes at which times say nothing: what counts is that all ran and computed the same.", ""]
    lines += [
        "Medians (smallest-largest) of rounds or repetitions; where contenders take turns, a ratio is of one turn. Last column:",
        "the largest differences between what both computed.",
        "",
    ]
    cells = [
        [
            row["work"],
            row["against"],
            row["unit"],
            _short(row["ours"]),
            _short(row["theirs"]),
            span(row["times"], _digits(row["times"])),
            agreement(row["check"]),
        ]
        for row in result["comparisons"]
    ]
    head = ["work", "beside", "unit", "fedlora", "the other", "fedlora is x times as fast", "differences"]
    lines.append(table(head, cells) if cells else "Nothing was compared.")
    lines += [f"\nLeft out: {who}, since {why}." for who, why in result["left_out"].items()]
    lines += [f"\nFailed: {part}, {why}." for part, why in result["failed"].items()]
    took = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in result["seconds"].items())
    return "\n".join([*lines, "", f"Took: {took}."]) + "\n"


def agreement(check: dict[str, Any] | None) -> str:
    """Return the differences of one comparison in few words."""
    if check is None:
        return "-"
    return ", ".join(f"{name} {value:.1g}" for name, value in check.items() if isinstance(value, float))


def _short(values: list[float]) -> str:
    return f"{spread(values)[0]:,.{_digits(values)}f}"


def _digits(values: list[float]) -> int:
    median = spread(values)[0]
    return 0 if median >= 100 else 1 if median >= 10 else 2


def main() -> None:
    """Parse arguments, run, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--full", action="store_const", const="full", dest="size", help="all cases, for publishing")
    choice.add_argument("--tiny", action="store_const", const="tiny", dest="size", help="only whether all still works")
    parser.add_argument("--out", type=Path, default=HERE.parent / "runs" / "bench", help="folder (default runs/bench)")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], default=[], help="these parts alone")
    parser.add_argument("--limit", type=float, help="seconds that a part may take (default: by size, 900 and more)")
    parser.set_defaults(size="short")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the part under way is ended too
    folder = options.out / options.size
    try:
        result = run(options.size, folder, options.only, options.limit or LIMIT_S[options.size])
    except KeyboardInterrupt:
        sys.exit(130)
    write_atomic(folder / "summary.json", json.dumps(result, indent=1) + "\n", "measure again")
    write_atomic(folder / "summary.md", page(result), "measure again")
    print(page(result) + f"\n{folder / 'summary.md'}")
    if result["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
