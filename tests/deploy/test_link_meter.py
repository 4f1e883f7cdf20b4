"""What a node measures: real exchanges over a real socket, and what the operating system tells."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from fedlora.deploy.link_meter import LinkMeter, clock_skew, device_metrics, link_metrics, read_notes


class _Slow(BaseHTTPRequestHandler):
    """Answers as a SuperLink would, at about 8 Mbit/s each way."""

    seconds_per_byte = 1e-6

    def do_POST(self) -> None:
        """Take the body slowly, give another slowly."""
        size = int(self.headers["content-length"])
        self.rfile.read(size)
        body = {"/pull-object": b"x" * 200_000, "/activate-node": b"{}"}.get(self.path.removeprefix("/v1/fleet"), b"")
        status = 401 if self.path.endswith("heartbeat") else 400 if self.path.endswith("refuse") else 200
        if status == 400:
            body = json.dumps({"code": 2004, "detail": "no"}).encode()
        time.sleep(self.seconds_per_byte * (size + len(body)))
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    """A slow server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Slow) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/v1/fleet"
        http.shutdown()
        thread.join()


@pytest.fixture
def meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LinkMeter:
    """A meter that watches this process until the test is over."""
    monkeypatch.setattr(httpx.Client, "send", httpx.Client.send)
    found = LinkMeter(tmp_path / "link.json")
    found.watch()
    return found


def test_goodput_is_bytes_over_time_each_way(server: str, meter: LinkMeter) -> None:
    with httpx.Client() as client:
        for _ in range(2):
            client.post(f"{server}/pull-messages")
            client.post(f"{server}/pull-object")
            client.post(f"{server}/push-messages", content=b"m")
            for _ in range(3):
                client.post(f"{server}/push-object", content=b"u" * 100_000)
    found = link_metrics(meter.path)
    assert found["down-seconds"] == pytest.approx(0.2, rel=0.5) and found["up-seconds"] == pytest.approx(0.3, rel=0.5)
    assert found["down-bps"] == pytest.approx(8e6, rel=0.5) and found["up-bps"] == pytest.approx(8e6, rel=0.5)


def test_a_transfer_lasts_from_its_first_start_to_its_last_end(tmp_path: Path) -> None:
    meter = LinkMeter(tmp_path / "link.json")
    meter.exchanged("/v1/fleet/push-messages", 2000, 10, 0.0, 1.0)
    meter.exchanged("/v1/fleet/push-object", 10_000, 1, 1.0, 3.0)
    meter.exchanged("/v1/fleet/push-object", 30_000, 1, 2.0, 5.0)  # beside the one before, not after it
    assert link_metrics(meter.path) == {"up-bps": 80_000.0, "up-seconds": 4.0}
    meter.exchanged("/v1/fleet/push-messages", 2000, 10, 8.0, 9.0)
    meter.exchanged("/v1/fleet/push-object", 10_000, 1, 9.0, 10.0)
    assert link_metrics(meter.path) == {"up-bps": 80_000.0, "up-seconds": 1.0}


def test_what_every_exchange_takes_is_no_part_of_the_rate(tmp_path: Path) -> None:
    """A link of 1 Mbit/s whose every exchange takes 0.3 s before its first byte."""
    meter = LinkMeter(tmp_path / "link.json")
    for second in range(4):
        meter.exchanged("/v1/fleet/pull-messages", 100, 20, second, second + 0.3)
    meter.exchanged("/v1/fleet/push-messages", 2000, 10, 5.0, 5.3)
    meter.exchanged("/v1/fleet/push-object", 50_000, 1, 6.0, 6.7)
    assert link_metrics(meter.path)["up-bps"] == pytest.approx(1e6)
    assert link_metrics(meter.path)["up-seconds"] == pytest.approx(0.7)
    # Faster than latency lets us see: the rate stays bounded.
    meter.exchanged("/v1/fleet/push-messages", 2000, 10, 8.0, 8.3)
    meter.exchanged("/v1/fleet/push-object", 50_000, 1, 9.0, 9.2)
    assert link_metrics(meter.path)["up-bps"] == pytest.approx(5 * 8 * 50_000 / 0.2)


def test_a_few_bytes_tell_of_no_rate(tmp_path: Path) -> None:
    meter = LinkMeter(tmp_path / "link.json")
    meter.exchanged("/v1/fleet/push-messages", 300, 10, 0.0, 0.5)
    meter.exchanged("/v1/fleet/push-object", 900, 1, 1.0, 2.0)
    assert link_metrics(meter.path) == {"up-seconds": 1.0}


def test_what_the_server_says_of_the_node_is_noted(server: str, meter: LinkMeter) -> None:
    with httpx.Client() as client:
        client.post(f"{server}/refuse")
        assert read_notes(meter.path)["refused"]["code"] == 2004
        client.post(f"{server}/activate-node")
        assert read_notes(meter.path)["activated"] is True and read_notes(meter.path)["refused"] is None
        client.post(f"{server}/heartbeat")
        noted = read_notes(meter.path)["refused"]
        assert noted["status"] == 401 and noted["skew_s"] == pytest.approx(0, abs=2)
        with pytest.raises(httpx.ConnectError):
            client.post("http://127.0.0.1:1/v1/fleet/pull-messages")
    assert read_notes(meter.path)["error"]["path"] == "/v1/fleet/pull-messages"


def test_a_meter_that_cannot_write_stops_nothing(tmp_path: Path) -> None:
    meter = LinkMeter(tmp_path / "gone" / "link.json")
    meter.exchanged("/v1/fleet/push-object", 1000, 1, 1.0, 3.0)
    assert link_metrics(meter.path) == {}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"up": 3}', '{"up": {"bps": null, "seconds": "a"}}', '{"up": {"bps": 0, "seconds": 0}}']
)
def test_what_is_not_readable_is_left_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "link.json").write_text(text)
    assert link_metrics(tmp_path / "link.json") == {}


def _device(root: Path, kind: str = "Battery", capacity: str = "37", level: str = "-56.") -> Path:
    supply = root / "sys/class/power_supply/BAT0"
    supply.mkdir(parents=True)
    (supply / "type").write_text(f"{kind}\n")
    (supply / "capacity").write_text(f"{capacity}\n")
    (root / "proc/net").mkdir(parents=True)
    head = "Inter-| sta-|   Quality        |   Discarded packets\n face | tus | link level noise |  nwid  crypt\n"
    (root / "proc/net/wireless").write_text(
        head + f" wlan0: 0000   54.  {level}  -256        0      0      0      0     18        0\n"
    )
    return root


def test_battery_and_radio_level_where_the_system_tells(tmp_path: Path) -> None:
    assert device_metrics(_device(tmp_path)) == {"battery": 0.37, "rssi-dbm": -56.0}


@pytest.mark.parametrize("change", [{"kind": "Mains"}, {"capacity": "unknown"}, {"capacity": "250"}])
def test_no_battery_is_no_metric(tmp_path: Path, change: dict[str, str]) -> None:
    assert device_metrics(_device(tmp_path, **change)) == {"rssi-dbm": -56.0}


@pytest.mark.parametrize("level", ["70.", "-256.", "x"])
def test_no_level_in_dbm_is_no_metric(tmp_path: Path, level: str) -> None:
    assert device_metrics(_device(tmp_path, level=level)) == {"battery": 0.37}


def test_a_device_that_tells_nothing(tmp_path: Path) -> None:
    assert device_metrics(tmp_path) == {}


def test_skew_is_this_clock_minus_the_servers() -> None:
    now = time.time()
    assert clock_skew(formatdate(now - 60, usegmt=True), now) == pytest.approx(60, abs=2)
    assert clock_skew(formatdate(now + 600, usegmt=True), now) == pytest.approx(-600, abs=2)
    assert clock_skew(None, now) is None and clock_skew("noon", now) is None


def test_an_answer_that_takes_long_is_no_skew() -> None:
    now = time.time()
    for written in (now - 30, now - 15, now):
        assert clock_skew(formatdate(written, usegmt=True), now - 30) == 0
