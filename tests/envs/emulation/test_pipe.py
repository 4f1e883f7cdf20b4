"""The transmitter of one direction, on a clock of its own."""

from __future__ import annotations

import math

import pytest

from fedlora_envs.emulation.pipe import Channel, Impairment, Pipe

PACKET = bytes(1250)  # 10,000 bits


def pipe(*segments: tuple[float, float], outages: tuple[tuple[float, float], ...] = (), **impairment: float) -> Pipe:
    return Pipe(Impairment(**impairment), Channel(segments, outages), "seed", 0.0)  # type: ignore[arg-type]


def arrivals(one: Pipe, until: float = 1e6) -> list[float]:
    """Return when packets arrive, going from event to event as the relay does."""
    times: list[float] = []
    now = 0.0
    for _ in range(100_000):
        times += [now] * len(one.due(now))
        at = one.next_event()
        if at > until:
            return times
        assert at >= now
        now = at
    raise AssertionError("the pipe does not come to rest")


def test_packets_leave_at_the_rate_and_arrive_after_the_delay() -> None:
    one = pipe((0, 1e6), delay_s=0.05)
    for _ in range(5):
        one.push(0.0, PACKET)
    assert arrivals(one) == pytest.approx([0.05 + 0.01 * (number + 1) for number in range(5)])
    rows = one.bins.take()
    assert sum(row["bytes"] for row in rows) == 6250
    assert sum(row["busy_s"] for row in rows) == pytest.approx(0.05)


def test_a_pause_between_packets_is_not_airtime() -> None:
    one = pipe((0, 1e6))
    one.push(0.0, PACKET)
    assert arrivals(one, until=0.5) == pytest.approx([0.01])
    one.due(3.0)
    one.push(3.0, PACKET)
    assert one.next_event() == pytest.approx(3.01)
    assert len(one.due(3.01)) == 1
    assert sum(row["busy_s"] for row in one.bins.take()) == pytest.approx(0.02)


def test_rates_follow_the_bits_wherever_in_the_round_they_are_sent() -> None:
    one = pipe((20_000, 1e6), (20_000, 1e5), (0, 1e7))
    for _ in range(5):
        one.push(0.0, PACKET)
    assert arrivals(one) == pytest.approx([0.01, 0.02, 0.12, 0.22, 0.221])


def test_nothing_is_sent_during_an_outage_and_the_packet_on_the_air_goes_on_after_it() -> None:
    one = pipe((0, 1e6), outages=((0.005, 2.0), (2.02, 3.0)))
    for _ in range(4):
        one.push(0.0, PACKET)
    assert arrivals(one) == pytest.approx([2.005, 2.015, 3.005, 3.015])
    assert sum(row["busy_s"] for row in one.bins.take()) == pytest.approx(0.04)


def test_an_outage_without_end_holds_until_the_channel_changes() -> None:
    one = pipe((0, 1e6), outages=((0.0, math.inf),))
    one.push(0.0, PACKET)
    assert arrivals(one) == []
    one.set_channel(5.0, Channel([(0, 1e6)]))
    assert one.due(5.0) == []
    assert one.next_event() == pytest.approx(5.01)


def test_a_packet_on_the_air_goes_on_at_a_new_rate() -> None:
    one = pipe((0, 1e3))  # 10 s for a packet
    one.push(0.0, PACKET)
    one.due(5.0)
    one.set_channel(5.0, Channel([(0, 1e6)]))
    assert one.next_event() == pytest.approx(5.005)


def test_a_rate_of_zero_is_an_outage() -> None:
    one = pipe((0, 0.0))
    one.push(0.0, PACKET)
    assert arrivals(one) == []


def test_what_finds_the_queue_full_is_dropped() -> None:
    one = pipe((0, 1e6), queue_bytes=3 * 1250)
    for _ in range(5):
        one.push(0.0, PACKET)
    assert len(arrivals(one)) == 3
    assert sum(row["full"] for row in one.bins.take()) == 2


def test_lost_packets_take_airtime_and_the_seed_decides_which() -> None:
    def run(seed: str) -> tuple[list[float], list[dict[str, float]]]:
        one = Pipe(Impairment(loss=0.2, queue_bytes=10**7), Channel([(0, 1e8)]), seed, 0.0)
        for _ in range(2000):
            one.push(0.0, PACKET)
        return arrivals(one), one.bins.take()

    times, rows = run("a")
    lost = sum(row["lost"] for row in rows)
    assert len(times) == 2000 - lost
    assert 340 < lost < 460
    assert sum(row["busy_s"] for row in rows) == pytest.approx(0.2, rel=1e-4)
    assert run("a")[0] == times
    assert run("b")[0] != times


def test_jitter_spreads_arrivals_and_keeps_their_order() -> None:
    one = pipe((0, 1e8), delay_s=0.1, jitter_s=0.05, queue_bytes=10**7)
    for number in range(200):
        one.push(0.0, number.to_bytes(2, "big") + PACKET)
    order: list[int] = []
    now, times = 0.0, []
    while (at := one.next_event()) < math.inf:
        now = at
        for packet in one.due(now):
            order.append(int.from_bytes(packet[:2], "big"))
            times.append(now)
    assert order == list(range(200))
    assert 0.05 <= times[0] < 0.15
    assert times[-1] <= 0.15 + 200 * 1.01e-4


def test_channels_travel_as_plain_data() -> None:
    channel = Channel([(100.0, 2.0), (0.0, 1.0)], [(1.0, 2.0), (3.0, math.inf)])
    again = Channel.from_json(channel.to_json())
    assert (again.segments, again.outages) == (channel.segments, channel.outages)
