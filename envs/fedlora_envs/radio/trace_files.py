"""Trace files: four text formats of public bandwidth data sets, and CSV.

| format   | a line                                                          | its rate holds                                  |
| -------- | --------------------------------------------------------------- | ----------------------------------------------- |
| hsdpa    | unix_s mono_ms lat lon bytes ms (Riiser et al., MMSys 2013)     | for the `ms` that end at the line's time        |
| ghent    | epoch_ms rel_ms lat lon bytes ms (van der Hooft et al., 2016)   | for the `ms` that end at the line's time        |
| pensieve | t_s Mbps (Pensieve's "cooked" traces)                           | until the next line's time                      |
| mahimahi | ms at which one packet of 1500 bytes may pass (whole numbers)   | packets of (t - 1, t] pass at even rate in it   |
| csv      | header with columns time_s and rate_bps, others are left alone  | until the next line; empty rate: the trace ends |

Times are counted from the first interval. hsdpa and ghent intervals are joined end to end: pauses of the logger, in which
nothing was measured, are left out. The last line of pensieve and csv holds as long as the one before it (1 s if it is the
only one). A mahimahi trace ends with its last packet. Empty lines and lines that begin with "#" are skipped.

`python -m fedlora_envs.radio.trace_files FOLDER` writes the samples that come with fedlora, one per format: they are
generated, not recorded anywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError, UnknownNameError
from fedlora_envs.radio.traces import Floats, Trace, generate

PACKET_BITS = 1500 * 8
EPOCH_MS = 1e11
"""Times above are milliseconds since 1970 (ghent), below seconds (hsdpa)."""
FORMATS = ("csv", "ghent", "hsdpa", "mahimahi", "pensieve")
SAMPLES = {
    "hsdpa": ("hsdpa.txt", 2e6),
    "ghent": ("ghent.txt", 20e6),
    "pensieve": ("pensieve.txt", 3e6),
    "mahimahi": ("mahimahi.txt", 2e6),
    "csv": ("rates.csv", 10e6),
}
"""Format: (file name, mean rate in bit/s) of the samples in `fedlora_envs/data/traces`."""

Lines = list[tuple[int, list[str]]]


def load(path: Path, style: str = "auto") -> Trace:
    """Return the trace in a file.

    Args:
        path: The file.
        style: One of `FORMATS`, or "auto" to tell by its first line.

    Raises:
        UnknownNameError: No such format.
        ConfigError: No such file, no text, no rows, a format that nobody knows, or a line that cannot be right (named by its
            number): other columns, no number, negative or non-finite, time running back, only zeros.
    """
    if style not in (*FORMATS, "auto"):
        raise UnknownNameError("trace format", style, (*FORMATS, "auto"))
    lines = _lines(path)
    style = _detect(path, lines) if style == "auto" else style
    time_s, rate_bps, end_s = _PARSERS[style](path, lines)
    if not rate_bps.any():
        raise ConfigError(f"trace file '{path}' has only zero rates: no transfer would ever end; leave the file out")
    return Trace(time_s, rate_bps, path.name, end_s)


def load_all(path: Path, style: str = "auto") -> list[Trace]:
    """Return the traces of a folder in the order of their names (hidden files and `.md` are skipped), or the one in a file.

    Raises:
        ConfigError: As `load`, or a folder without trace files.
    """
    if not path.is_dir():
        return [load(path, style)]
    files = sorted(entry for entry in path.iterdir() if entry.is_file() and entry.name[0] != "." and entry.suffix != ".md")
    if not files:
        raise ConfigError(f"folder '{path}' holds no trace files; put one file per trace there")
    return [load(file, style) for file in files]


def write(trace: Trace, path: Path, style: str) -> None:
    """Write a trace so that `load` gives it back within the format's resolution.

    hsdpa and ghent round edges to 1 ms and intervals to whole bytes, mahimahi to whole packets at whole ms (and ends with the
    last packet), pensieve drops the end of the last interval; csv is exact.

    Raises:
        UnknownNameError: No such format.
        ConfigError: The trace is finer than the format: intervals below 1 ms, or not one packet in all.
    """
    if style not in FORMATS:
        raise UnknownNameError("trace format", style, FORMATS)
    path.write_text("\n".join(_WRITERS[style](trace)) + "\n", encoding="utf-8")


def write_samples(folder: Path) -> None:
    """Write the samples that come with fedlora: about 20 lines per format, the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (style, (filename, mean_bps)) in enumerate(SAMPLES.items()):
        seconds, step_s = (0.2, 0.02) if style == "mahimahi" else (20.0, 1.0)
        trace = generate(seconds, step_s, mean_bps, np.random.default_rng([2025, number]), hold_s=4 * step_s)
        rate_bps = 1e3 * np.array([round(rate / 1e3) for rate in trace.rate_bps.tolist()])
        write(Trace(trace.time_s, rate_bps, style, trace.end_s), folder / filename, style)


# -- reading ---------------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Lines:
    """Return (line number, cells) of all lines that hold something; cells are split at commas or white space."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"trace file '{path}' cannot be read ({error.strerror}); check its name") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"trace file '{path}' is no text (byte {error.start}); unpack it first if it is packed") from error
    if "\0" in text:
        raise ConfigError(f"trace file '{path}' is no text; unpack it first if it is packed")
    numbered = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    filled = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    if not filled:
        raise ConfigError(f"trace file '{path}' has no rows; a trace needs at least one")
    return [(number, [cell.strip() for cell in (line.split(",") if "," in line else line.split())]) for number, line in filled]


def _detect(path: Path, lines: Lines) -> str:
    number, cells = lines[0]
    if "time_s" in cells or "rate_bps" in cells:
        return "csv"
    try:
        first = [float(cell) for cell in cells]
    except ValueError:
        first = []
    if len(first) == 6:
        return "ghent" if first[0] > EPOCH_MS else "hsdpa"
    if len(first) in (1, 2):
        return "mahimahi" if len(first) == 1 else "pensieve"
    raise ConfigError(
        f"trace file '{path}', line {number}: '{' '.join(cells)[:60]}' begins none of the known formats ({', '.join(FORMATS)}); "
        "see the trace formats in the documentation, or write it as CSV with columns time_s,rate_bps"
    )


def _numbers(path: Path, lines: Lines, names: tuple[str, ...]) -> Floats:
    """Return all cells as numbers, [rows, columns]; each row must have exactly these columns."""
    rows = np.empty((len(lines), len(names)))
    for row, (number, cells) in enumerate(lines):
        if len(cells) != len(names):
            raise _fault(path, number, f"has {len(cells)} columns, expected {len(names)} ({' '.join(names)})")
        try:
            rows[row] = [float(cell) for cell in cells]
        except ValueError:
            raise _fault(path, number, f"'{' '.join(cells)[:60]}' is not all numbers ({' '.join(names)})") from None
    _refuse(path, lines, np.asarray(~np.isfinite(rows).all(axis=1)), "a number is not finite")
    return rows


def _refuse(path: Path, lines: Lines, bad: NDArray[np.bool_], what: str) -> None:
    """Refuse the file if any row is bad, naming the first one's line."""
    if bad.any():
        raise _fault(path, lines[int(bad.argmax())][0], what)


def _fault(path: Path, number: int, what: str) -> ConfigError:
    return ConfigError(f"trace file '{path}', line {number}: {what}; correct or remove that line")


def _backwards(times: Floats, strictly: bool) -> NDArray[np.bool_]:
    steps = np.diff(times, prepend=-np.inf)
    return steps <= 0 if strictly else steps < 0


def _logged(path: Path, lines: Lines, clock: str, since: str) -> tuple[Floats, Floats, float]:
    rows = _numbers(path, lines, (clock, since, "lat", "lon", "bytes", "ms"))
    times, sent, ms = rows[:, 1], rows[:, 4], rows[:, 5]
    _refuse(path, lines, _backwards(times, strictly=False), f"time ({since}) runs back")
    _refuse(path, lines, sent < 0, "bytes are negative")
    _refuse(path, lines, ms <= 0, "the interval (ms) is not above 0")
    edges_ms = np.concatenate([[0.0], np.cumsum(ms)])
    return edges_ms[:-1] / 1e3, sent * 8e3 / ms, float(edges_ms[-1] / 1e3)


def _hsdpa(path: Path, lines: Lines) -> tuple[Floats, Floats, float]:
    return _logged(path, lines, "unix_s", "mono_ms")


def _ghent(path: Path, lines: Lines) -> tuple[Floats, Floats, float]:
    return _logged(path, lines, "epoch_ms", "rel_ms")


def _pensieve(path: Path, lines: Lines) -> tuple[Floats, Floats, float]:
    rows = _numbers(path, lines, ("t_s", "Mbps"))
    _refuse(path, lines, _backwards(rows[:, 0], strictly=True), "time (t_s) does not increase")
    _refuse(path, lines, rows[:, 1] < 0, "the rate (Mbps) is negative")
    return rows[:, 0] - rows[0, 0], rows[:, 1] * 1e6, np.nan


def _mahimahi(path: Path, lines: Lines) -> tuple[Floats, Floats, float]:
    times = _numbers(path, lines, ("ms",))[:, 0]
    _refuse(path, lines, (times < 0) | (times != np.round(times)), "a packet's time (ms) is not a whole number >= 0")
    _refuse(path, lines, _backwards(times, strictly=False), "time (ms) runs back")
    end_ms = int(times[-1])
    if end_ms == 0:
        raise _fault(path, lines[-1][0], "the trace ends at 0 ms, so it has no length")
    # Packets at t pass in (t - 1, t]; one at 0 in the first millisecond. Equal neighbours become one interval.
    packets = np.bincount(np.maximum(times.astype(np.int64) - 1, 0), minlength=end_ms)
    starts = np.flatnonzero(np.diff(packets, prepend=-1))
    rate_bps: Floats = packets[starts].astype(np.float64) * (PACKET_BITS * 1e3)
    return starts / 1e3, rate_bps, end_ms / 1e3


def _csv(path: Path, lines: Lines) -> tuple[Floats, Floats, float]:
    number, header = lines[0]
    if header.count("time_s") != 1 or header.count("rate_bps") != 1:
        raise _fault(path, number, f"the header '{','.join(header)[:60]}' must name time_s and rate_bps, once each")
    lines = lines[1:]
    if not lines:
        raise ConfigError(f"trace file '{path}' has a header but no rows; a trace needs at least one")
    for number, cells in lines:
        if len(cells) != len(header):
            raise _fault(path, number, f"has {len(cells)} columns, the header has {len(header)}")
    time, rate = header.index("time_s"), header.index("rate_bps")
    ends = len(lines) > 1 and lines[-1][1][rate] == ""
    picked = [(number, [cells[time], cells[rate]]) for number, cells in lines]
    if ends:
        picked[-1] = (picked[-1][0], [picked[-1][1][0], "0"])
    rows = _numbers(path, picked, ("time_s", "rate_bps"))
    _refuse(path, lines, _backwards(rows[:, 0], strictly=True), "time (time_s) does not increase")
    _refuse(path, lines, rows[:, 1] < 0, "the rate (rate_bps) is negative")
    times = rows[:, 0] - rows[0, 0]
    return (times[:-1], rows[:-1, 1], float(times[-1])) if ends else (times, rows[:, 1], np.nan)


# -- writing ---------------------------------------------------------------------------------------------------------------


def _log_lines(trace: Trace, clock_scale: float) -> list[str]:
    edges_ms = np.round(trace.edges_s() * 1e3).astype(np.int64)
    ms = np.diff(edges_ms)
    if (ms == 0).any():
        raise ConfigError(f"trace '{trace.name}' has intervals below the format's resolution of 1 ms; use csv")
    sent = np.round(trace.rate_bps * ms / 8e3).astype(np.int64)
    # No recording: the clock starts at an arbitrary moment, the place is 0 N 0 E.
    start = round(1.7e9 * clock_scale)
    clocks = start + (edges_ms[1:] * clock_scale / 1e3).astype(np.int64)
    return [f"{c} {t} 0.0 0.0 {b} {m}" for c, t, b, m in zip(clocks, edges_ms[1:], sent, ms, strict=True)]


def _hsdpa_lines(trace: Trace) -> list[str]:
    return _log_lines(trace, 1.0)


def _ghent_lines(trace: Trace) -> list[str]:
    return _log_lines(trace, 1e3)


def _pensieve_lines(trace: Trace) -> list[str]:
    return [f"{t!r} {r!r}" for t, r in zip(trace.time_s.tolist(), (trace.rate_bps / 1e6).tolist(), strict=True)]


def _mahimahi_lines(trace: Trace) -> list[str]:
    bits = trace.bits()
    wanted = PACKET_BITS * np.arange(1, int(bits[-1] / PACKET_BITS + 1e-9) + 1)
    if wanted.size == 0:
        raise ConfigError(f"trace '{trace.name}' carries less than one packet of 1500 bytes; use csv")
    last = np.clip(np.searchsorted(bits, wanted, side="left") - 1, 0, trace.rate_bps.size - 1)
    moments_s = trace.time_s[last] + (wanted - bits[last]) / trace.rate_bps[last]
    return [str(ms) for ms in np.maximum(1, np.ceil(moments_s * 1e3 - 1e-6)).astype(np.int64)]


def _csv_lines(trace: Trace) -> list[str]:
    rows = [f"{t!r},{r!r}" for t, r in zip(trace.time_s.tolist(), trace.rate_bps.tolist(), strict=True)]
    return ["time_s,rate_bps", *rows, f"{trace.end_s!r},"]


_PARSERS: dict[str, Callable[[Path, Lines], tuple[Floats, Floats, float]]] = {
    "csv": _csv,
    "ghent": _ghent,
    "hsdpa": _hsdpa,
    "mahimahi": _mahimahi,
    "pensieve": _pensieve,
}
_WRITERS: dict[str, Callable[[Trace], list[str]]] = {
    "csv": _csv_lines,
    "ghent": _ghent_lines,
    "hsdpa": _hsdpa_lines,
    "mahimahi": _mahimahi_lines,
    "pensieve": _pensieve_lines,
}


if __name__ == "__main__":
    write_samples(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "data" / "traces")
