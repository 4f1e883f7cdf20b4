"""Trace files, playback by cumulative integral, and the generator."""

from __future__ import annotations

from fractions import Fraction
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedlora.errors import ConfigError
from fedlora_envs.radio.trace_files import FORMATS, SAMPLES, load, load_all, write, write_samples
from fedlora_envs.radio.traces import Trace, TraceMedium, TracePlayer, generate
from zscores import LIMIT, z_mean, z_share

Floats = NDArray[np.float64]


def made(seed: int = 0, seconds: float = 30.0) -> Trace:
    return generate(seconds, 0.25, 5e6, np.random.default_rng(seed))


def file(folder: Path, text: str, name: str = "trace.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# -- playback --------------------------------------------------------------------------------------------------------------


def slow_transfer(trace: Trace, offset: float, start: float, bits: float) -> Fraction:
    """Walk through the intervals in exact arithmetic."""
    edges = [Fraction(edge) for edge in trace.edges_s().tolist()]
    rates = [Fraction(rate) for rate in trace.rate_bps.tolist()]
    carried = sum((edges[i + 1] - edges[i]) * rates[i] for i in range(len(rates)))
    at, left = (Fraction(offset) + Fraction(start)) % edges[-1], Fraction(bits)
    loops = max(0, left // carried - 1)
    spent = loops * edges[-1]
    left -= loops * carried
    i = max(i for i in range(len(rates)) if edges[i] <= at)
    while left > (edges[i + 1] - at) * rates[i]:
        left -= (edges[i + 1] - at) * rates[i]
        spent += edges[i + 1] - at
        i = (i + 1) % len(rates)
        at = edges[i]
    return spent + (left / rates[i] if left else 0)


def test_transfers_are_exact_across_pauses_and_many_loops() -> None:
    gaps = Trace(np.array([0.0, 0.5, 2.0, 2.25, 7.0]), np.array([0.0, 3e5, 0.0, 1e6, 0.0]), "gaps", 7.5)
    traces = [made(1, 10.0), gaps, Trace(np.array([0.0]), np.array([2e6]), "constant")]
    rng = np.random.default_rng(4)
    player = TracePlayer(traces, 60, rng)
    start, bits = rng.uniform(0, 1e4, 60), 10 ** rng.uniform(0, 11, 60)
    found = player.transfer_s(start, bits)
    loops = 0.0
    for link in range(60):
        trace = traces[link % 3]
        expected = float(slow_transfer(trace, player.offset_s[link], start[link], bits[link]))
        assert found[link] == pytest.approx(expected, rel=1e-12, abs=1e-9)
        loops = max(loops, found[link] / trace.end_s)
    assert loops > 1000


def test_what_was_carried_until_the_end_is_the_payload() -> None:
    rng = np.random.default_rng(7)
    player = TracePlayer([made(1), made(2)], 50, rng)
    start, bits = rng.uniform(0, 100, 50), rng.uniform(1e5, 1e9, 50)
    seconds = player.transfer_s(start, bits)
    np.testing.assert_allclose(player.bits_between(start, start + seconds), bits, rtol=1e-9)
    middle = start + seconds / 3
    parts = player.bits_between(start, middle) + player.bits_between(middle, start + seconds)
    np.testing.assert_allclose(parts, bits, rtol=1e-9)


def test_whole_loops_end_with_the_last_bit_not_after_the_pause() -> None:
    """10 bits per loop in [1, 2) of 3 s, from phase 0: two loops' worth is through at 5 s, not at 6."""
    player = TracePlayer([Trace(np.arange(3.0), np.array([0.0, 10.0, 0.0]), "pauses")], 1, np.random.default_rng(0))
    player.offset_s[:] = 0.0
    for start, bits, expected in [
        (0.0, 20.0, 5.0),
        (0.0, 10.0, 2.0),
        (0.0, 5.0, 1.5),
        (2.5, 10.0, 2.5),
        (1.5, 10.0, 3.0),
        (1.5, 0, 0),
    ]:
        assert player.transfer_s(start, np.array([bits]))[0] == pytest.approx(expected, abs=1e-12)


def test_rates_follow_the_trace_and_loop() -> None:
    trace = Trace(np.array([0.0, 1.0, 4.0]), np.array([1.0, 2.0, 3.0]), "steps")
    assert trace.end_s == 7.0  # the last interval is as long as the one before it
    player = TracePlayer([trace], 2, np.random.default_rng(0))
    player.offset_s[:] = [0.0, 3.5]
    assert player.rate_bps(0.5).tolist() == [1.0, 3.0]
    assert player.rate_bps(4.0).tolist() == [3.0, 1.0]
    assert player.rate_bps(np.array([1.0, 7e6 + 1.0])).tolist() == [2.0, 3.0]
    assert Trace(np.zeros(1), np.ones(1), "one").end_s == 1.0


def test_links_take_turns_through_traces_from_offsets_of_their_own() -> None:
    traces = [made(1), made(2), made(3, 5.0)]
    player, again = (TracePlayer(traces, 3000, np.random.default_rng(9)) for _ in range(2))
    np.testing.assert_array_equal(player.offset_s, again.offset_s)
    for first, trace in enumerate(traces):
        own = player.offset_s[first::3]
        assert ((own >= 0) & (own < trace.end_s)).all()
        assert abs(z_mean(own, trace.end_s / 2)) <= LIMIT
        np.testing.assert_allclose(player.mean_bps[first::3], trace.mean_bps())
    rng, other = np.random.default_rng(9), np.random.default_rng(9)
    TracePlayer(traces, 10, rng)
    TracePlayer(traces[:1], 10, other)
    assert rng.random() == other.random()  # as many variates whatever the traces


def test_a_medium_of_traces_ends_each_transfer_when_its_trace_says() -> None:
    player = TracePlayer([made(1), made(2)], 8, np.random.default_rng(3))
    bits = np.random.default_rng(4).uniform(1e6, 1e9, 8)
    bits[5] = 0.0
    medium, now, left, ends = TraceMedium(player), 2.0, bits, np.full(8, 2.0)
    for until in [3.0, 3.5, *np.linspace(4, 300, 40), float("inf")]:
        while now < until and (left > 0).any():
            now, after = medium.serve(now, until, left)
            ends[(left > 0) & (after == 0)] = now
            left = after
    np.testing.assert_allclose(ends, 2.0 + player.transfer_s(2.0, bits), atol=1e-9)


# -- files -----------------------------------------------------------------------------------------------------------------


def test_the_samples_are_what_the_command_writes_and_load(tmp_path: Path) -> None:
    write_samples(tmp_path)
    with as_file(files("fedlora_envs") / "data" / "traces") as folder:
        assert sorted(path.name for path in folder.iterdir()) == sorted(name for name, _ in SAMPLES.values())
        for style, (name, mean_bps) in SAMPLES.items():
            assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()
            assert 10 <= len((folder / name).read_text().splitlines()) <= 30
            found = load(folder / name)
            assert mean_bps / 3 < found.mean_bps() < 3 * mean_bps
            np.testing.assert_array_equal(found.rate_bps, load(folder / name, style).rate_bps)
        assert [trace.name for trace in load_all(folder)] == sorted(name for name, _ in SAMPLES.values())


def test_formats_are_read_as_their_data_sets_define_them(tmp_path: Path) -> None:
    logged = "{} 549879 59.85 10.78 248456 1029\n{} 550879 59.85 10.78 100000 500\n"
    for clocks, style in (((1289406399, 1289406400), "hsdpa"), ((1453121790686, 1453121791686), "ghent")):
        trace = load(file(tmp_path, logged.format(*clocks)))
        assert trace.edges_s().tolist() == pytest.approx([0.0, 1.029, 1.529]), style
        assert trace.rate_bps.tolist() == pytest.approx([248456 * 8 / 1.029, 1.6e6]), style
    trace = load(file(tmp_path, "0.5\t1.25\n1.5\t0\n\n# a remark\n2.0\t3\n"))
    assert (trace.edges_s().tolist(), trace.rate_bps.tolist()) == ([0.0, 1.0, 1.5, 2.0], [1.25e6, 0.0, 3e6])
    trace = load(file(tmp_path, "1\n1\n4\n5\n"))
    assert trace.edges_s().tolist() == [0.0, 0.001, 0.003, 0.005]
    assert trace.rate_bps.tolist() == [24e6, 0.0, 12e6]
    trace = load(file(tmp_path, "cell,rate_bps,time_s\na,5e5,10\nb,7e5,12\n"))
    assert (trace.edges_s().tolist(), trace.rate_bps.tolist()) == ([0.0, 2.0, 4.0], [5e5, 7e5])


@pytest.mark.parametrize("style", FORMATS)
def test_writing_and_reading_give_the_trace_back(style: str, tmp_path: Path) -> None:
    trace = made(6)
    write(trace, tmp_path / "trace", style)
    found = load(tmp_path / "trace")
    assert load(tmp_path / "trace", style).rate_bps.tolist() == found.rate_bps.tolist()
    if style == "mahimahi":
        # Whole packets: what has passed by any millisecond differs by one packet and what passes in 1 ms.
        at = np.arange(0, found.end_s, 0.001)
        passed = np.interp(at, found.edges_s(), found.bits())
        expected = np.interp(at, trace.edges_s(), trace.bits())
        assert (np.abs(passed - expected) <= 12000 + trace.rate_bps.max() / 1000).all()
        assert trace.end_s - found.end_s <= 12000 / trace.rate_bps[-1] + 0.001
        return
    np.testing.assert_allclose(found.edges_s(), trace.edges_s(), atol=1e-12)
    resolution = {"csv": 0.0, "pensieve": 1e-9 * trace.rate_bps.max()}.get(style, 0.5 * 8 / 0.25)
    np.testing.assert_allclose(found.rate_bps, trace.rate_bps, rtol=0, atol=resolution)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("# only remarks\n\n", "has no rows"),
        ("time_s,rate_bps\n", "has a header but no rows"),
        ("0 1.5\n1 2\n0.5 3\n", "line 3: time .t_s. does not increase"),
        ("0 1.5\n\n0 2\n", "line 3: time .t_s. does not increase"),
        ("5\n9\n7\n", "line 3: time .ms. runs back"),
        ("1289406399 5000 1 1 9 1000\n1289406400 4000 1 1 9 1000\n", "line 2: time .mono_ms. runs back"),
        ("1453121790686 5000 1 1 9 1000\n1453121790687 4000 1 1 9 1000\n", "line 2: time .rel_ms. runs back"),
        ("time_s,rate_bps\n0,1\n1,2\n1,3\n", "line 4: time .time_s. does not increase"),
        ("0 1.5\n1 -2\n", "line 2: the rate .Mbps. is negative"),
        ("time_s,rate_bps\n0,-1\n", "line 2: the rate .rate_bps. is negative"),
        ("1289406399 5000 1 1 -9 1000\n", "line 1: bytes are negative"),
        ("1289406399 5000 1 1 9 0\n", "line 1: the interval .ms. is not above 0"),
        ("0 1.5\n1 fast\n", "line 2: '1 fast' is not all numbers"),
        ("0 1.5\n1 nan\n", "line 2: a number is not finite"),
        ("0 1.5\n1 inf\n", "line 2: a number is not finite"),
        ("0 1.5\n1 2 3\n", "line 2: has 3 columns, expected 2"),
        ("time_s,rate_bps\n0,1\n1\n", "line 3: has 1 columns, the header has 2"),
        ("time_s,rate\n0,1\n", "line 1: the header 'time_s,rate' must name time_s and rate_bps"),
        ("time_s,rate_bps\n0,\n", "line 2: '0 ' is not all numbers"),
        ("1.5\n", "line 1: a packet's time .ms. is not a whole number"),
        ("-4\n", "line 1: a packet's time .ms. is not a whole number"),
        ("0\n0\n", "line 2: the trace ends at 0 ms"),
        ("0 0\n1 0\n", "has only zero rates"),
        ("once upon a time\n", "line 1: 'once upon a time' begins none of the known formats"),
        ("1 2 3\n", "begins none of the known formats"),
        ("a\0b", "is no text"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_where_it_fails(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(file(tmp_path, text))
    assert "trace.txt" in str(caught.value)


def test_files_that_are_not_there_or_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.*cannot be read .No such file"):
        load(tmp_path / "nowhere")
    (tmp_path / "packed").write_bytes(b"\x1f\x8b\x08\xff")
    with pytest.raises(ConfigError, match=r"packed' is no text"):
        load(tmp_path / "packed")
    with pytest.raises(ConfigError, match="Did you mean 'mahimahi'"):
        load(tmp_path / "packed", "mahimah")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no trace files"):
        load_all(tmp_path / "empty")


def test_a_folder_gives_its_traces_by_name(tmp_path: Path) -> None:
    file(tmp_path, "0 2\n", "b.txt")
    file(tmp_path, "0 1\n", "a")
    file(tmp_path, "what this is", "README.md")
    file(tmp_path, "junk", ".hidden")
    assert [(trace.name, trace.rate_bps.tolist()) for trace in load_all(tmp_path)] == [("a", [1e6]), ("b.txt", [2e6])]
    assert [trace.name for trace in load_all(tmp_path / "a")] == ["a"]


def test_what_is_finer_than_a_format_is_not_written(tmp_path: Path) -> None:
    fine = Trace(np.array([0.0, 1e-4]), np.array([1.0, 2.0]), "fine")
    for style, message in (
        ("hsdpa", "resolution of 1 ms"),
        ("ghent", "resolution of 1 ms"),
        ("mahimahi", "less than one packet"),
    ):
        with pytest.raises(ConfigError, match=message):
            write(fine, tmp_path / "fine", style)
    with pytest.raises(ConfigError, match="Did you mean 'csv'"):
        write(fine, tmp_path / "fine", "cvs")


@pytest.mark.parametrize(
    ("times", "rates"),
    [([], []), ([0.0, 1.0], [1.0]), ([1.0], [1.0]), ([0.0, 0.0], [1.0, 1.0]), ([0.0], [0.0]), ([0.0], [-1.0]), ([0.0], [np.inf])],
)
def test_impossible_traces_are_refused(times: list[float], rates: list[float]) -> None:
    with pytest.raises(ConfigError, match="trace 'odd'"):
        Trace(np.array(times), np.array(rates), "odd")


# -- generator -------------------------------------------------------------------------------------------------------------


def test_the_generator_has_its_mean_its_levels_and_its_memory() -> None:
    """Independent traces, one sample each, so that z-scores hold."""
    last = np.array([generate(30.0, 1.0, 5e6, np.random.default_rng([1, i]), sigma=0.5).rate_bps[-1] for i in range(4000)])
    assert abs(z_mean(last, 5e6)) <= LIMIT
    flat = generate(40_000.0, 1.0, 5e6, np.random.default_rng(2), sigma=0.0, hold_s=20.0)
    levels = 5e6 * np.array([0.2, 0.6, 1.2, 2.0])
    assert np.unique(flat.rate_bps) == pytest.approx(levels)
    changes = np.flatnonzero(np.diff(flat.rate_bps))
    assert (np.abs(np.diff(np.searchsorted(levels * 0.99, flat.rate_bps)))[changes] == 1).all()  # to a neighbour
    # From an inner level the chance per step is step / hold; at the ends half of the attempts lead nowhere.
    inner = np.abs(flat.rate_bps[:-1] - levels[1]) < 1
    assert abs(z_share(float((np.diff(flat.rate_bps) != 0)[inner].sum()), int(inner.sum()), 1 / 20)) <= LIMIT


def test_the_generator_draws_a_fixed_number_of_variates() -> None:
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    generate(10.0, 0.5, 1e6, one)
    generate(10.0, 0.5, 9e9, other, levels=(1.0,), hold_s=1.0, sigma=0.0)
    assert one.random() == other.random()


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds": 0.1},
        {"step_s": 0.0},
        {"hold_s": 0.1},
        {"mean_bps": 0.0},
        {"levels": (1.0, 0.0)},
        {"levels": ()},
        {"sigma": -1.0},
    ],
)
def test_impossible_generators_are_refused(changes: dict[str, float]) -> None:
    arguments = {"seconds": 10.0, "step_s": 0.5, "mean_bps": 1e6} | changes
    with pytest.raises(ConfigError, match="trace"):
        generate(rng=np.random.default_rng(0), **arguments)  # type: ignore[arg-type]
