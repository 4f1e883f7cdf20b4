"""Replies that are wrong, sent by a real node with a good key, and rounds that end by their deadline."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import bad_nodes
from faulty_runs import FaultyRun, faulty_run
from tiny_run import Ground

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Generous: on a busy machine a client app that raises takes seconds to be done.
_DEADLINE_S = 30.0
_RUN = (
    "rounds=100000",
    "clients=3",
    "clients_per_round=3",
    "adapter.unit=svd",
    "adapter.rank=16",
    "adapter.heads=8",
    f"deployment.round_timeout_s={_DEADLINE_S}",
    "deployment.max_payload_mb=10",
)
# Round -> what is done to the reply of client 2, and what clients.jsonl says of it.
_BAD = {
    3: (bad_nodes.truncated, "rejected: truncated: "),
    4: (bad_nodes.malformed, "rejected: schema: "),
    5: (bad_nodes.not_a_number, "rejected: non-finite: tensor "),
    6: (bad_nodes.stale, "rejected: stale: the message belongs to round 5"),
    7: (bad_nodes.replayed, "rejected: stale: the message belongs to round 1"),
    8: (bad_nodes.oversized, "failed: oversized: the reply has 12.0 MB, deployment.max_payload_mb = 10"),
    9: (bad_nodes.breaks_the_client_app, "failed: "),
    10: (bad_nodes.late, "no reply"),
}


@pytest.fixture(scope="module")
def run(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyRun]:
    """A run in which client 2 sends bad replies in some rounds."""
    with faulty_run(tmp_path_factory.mktemp("lab"), ground.overrides(*_RUN), 3) as made:
        made.start_node(0)
        made.start_node(1)
        device = made.lab.folder / "device" / "etc" / "fedlora"
        spoil = {number: change for number, (change, _) in _BAD.items()}
        address = f"localhost:{made.relays[2].port}"
        made.serve()
        with bad_nodes.bad_node(made.lab.folder / "bad", address, device / "ca.crt", device / "node-2", 2, spoil):
            yield made


@pytest.mark.parametrize("number", _BAD)
def test_a_bad_reply_is_named_and_not_counted(run: FaultyRun, number: int) -> None:
    status = run.status(number, 2)
    assert status.startswith(_BAD[number][1]) and "\n" not in status
    assert [run.status(number, client) for client in (0, 1)] == ["ok", "ok"]


def test_sound_replies_of_the_same_node_count(run: FaultyRun) -> None:
    assert run.status(1, 2) == run.status(2, 2) == "ok"
    late = next(number for number, (change, _) in _BAD.items() if change is bad_nodes.late)
    # What came after its deadline is not taken for an answer to a later round.
    assert run.status(late + 1, 2) in ("ok", "no reply") and run.status(late + 3, 2) == "ok"


@pytest.mark.parametrize("uploaded", [0, 20_000], ids=["before the reply", "in the middle of the reply"])
def test_a_link_that_is_down_longer_than_a_round(run: FaultyRun, uploaded: int) -> None:
    """Rounds end by their deadline without the node, also where its reply was announced and does not come; then it is back."""
    run.whole(0.0, (0, 1, 2))
    with run.in_the_middle(1) as number:
        if uploaded:
            run.relays[1].budget = uploaded  # the reply has 34 kB
        else:
            run.relays[1].down()
    assert run.status(number, 1) == "no reply" and [run.status(number, client) for client in (0, 2)] == ["ok", "ok"]
    run.relays[1].up()
    run.whole(0.0, (0, 1, 2))
    clock = {row["round"]: row["real_time_s"] for row in run.rows("metrics")}
    assert _DEADLINE_S <= clock[number] - clock[number - 1] < _DEADLINE_S + 5
    line, _ = run.told.wait(rf"^round +{number}/", 0.0)
    assert " 2/3 clients" in line
