"""WirelessGrid: any Flower grid and any Flower strategy, unchanged, over a radio."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedlora.errors import ConfigError
from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.roll import call_roll
from fedlora.federation.strategy import RoundStrategy
from fedlora.federation.workbench import build
from fedlora.federation.world import CLIENT_DROPPED, CLIENT_LATE, make_world
from fedlora.runs.simulate import simulate
from fedlora_envs.outcome import Fate
from fedlora_envs.wireless_grid import WirelessGrid, payload_bytes
from fedlora_envs.world import RadioWorld
from tiny_run import Ground, fresh_state
from worlds import GPU_FLOPS, STILL, make

logging.getLogger("flwr").setLevel(logging.ERROR)

NODES = (907, 12, 505, 33)  # in no order: by their ids they are clients 3, 0, 2 and 1
EXAMPLES = {907: 40, 12: 10, 505: 30, 33: 20}
FLOPS = GPU_FLOPS / 100  # of an example, so that 10 examples take a tenth of a second


class PlainGrid(Grid):
    """Four nodes in this process: each adds its number of examples to what it gets.

    Args:
        slow: Nodes whose replies are there from the second pull on.
        broken: Nodes that answer with an error.
        deaf: Nodes that never answer.
    """

    def __init__(self, slow: Iterable[int] = (), broken: Iterable[int] = (), deaf: Iterable[int] = ()) -> None:
        self.slow, self.broken, self.deaf = set(slow), set(broken), set(deaf)
        self.asked: list[tuple[str, int]] = []
        self.pulled: list[str] = []
        self._run = Run.create_empty(1)
        self._replies: dict[str, Message] = {}
        self._waits: set[str] = set()
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        return list(NODES)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        keys = []
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            self.asked.append((kind, node))
            key = f"plain-{len(self.asked)}"
            message.metadata.__dict__["_message_id"] = key
            if node in self.slow:
                self._waits.add(key)
            if node not in self.deaf:
                self._replies[key] = self._reply(message, kind, node)
            keys.append(key)
        return keys

    def _reply(self, message: Message, kind: str, node: int) -> Message:
        if node in self.broken:
            return Message(Error(2, "no luck"), reply_to=message)
        metrics = MetricRecord({"num-examples": EXAMPLES[node], "loss": 0.5})
        if kind != MessageType.TRAIN:
            return Message(RecordDict({"metrics": metrics}), reply_to=message)
        old = message.content.array_records["arrays"]
        new = ArrayRecord({name: Array(array.numpy() + EXAMPLES[node]) for name, array in old.items()})
        return Message(RecordDict({"arrays": new, "metrics": metrics}), reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        keys = list(message_ids)
        self.pulled += keys
        assert all(key.startswith("plain-") for key in keys), "asked for what it was never sent"
        found = [self._replies.pop(key) for key in keys if key in self._replies and key not in self._waits]
        self._waits -= set(keys)
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        keys = list(self.push_messages(messages))
        return [reply for _ in range(2) for reply in self.pull_messages(keys)]


def weights(numbers: int = 100) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(numbers, np.float32))})


def ask(grid: Grid, nodes: Iterable[int] = NODES, kind: str = MessageType.TRAIN, arrays: bool = True) -> list[Message]:
    """Return new messages to these nodes."""
    records: dict[str, Any] = {"config": ConfigRecord({"lr": 0.1})} | ({"arrays": weights()} if arrays else {})
    return [grid.create_message(RecordDict(records), kind, node, "1") for node in nodes]


def rated(deadline_s: float | None = None, **options: Any) -> RadioWorld:
    """Return a world of four clients in which the weights take half a second each way."""
    rate = 8.0 * payload_bytes(ask(PlainGrid())[0]) / 0.5
    options = {"fixed": {"downlink_bps": rate, "uplink_bps": rate}, "deadline_s": deadline_s, **options}
    return make("ideal", clients=4, devices={**STILL, "flops_per_example": FLOPS}, **options)


def errors(replies: Iterable[Message]) -> dict[int, tuple[int, str]]:
    return {reply.metadata.src_node_id: (reply.error.code, reply.error.reason) for reply in replies if reply.has_error()}


# -- a stock strategy ------------------------------------------------------------------------------------------------------


def test_flowers_own_fedavg_over_the_radio() -> None:
    """Two rounds of training and evaluation, in seconds known by hand; each is an exchange of its own."""
    world = rated()
    result = FedAvg().start(WirelessGrid(PlainGrid(), world), weights(), num_rounds=2)
    assert world.round == 4 and sorted(result.train_metrics_clientapp) == [1, 2]
    mean = sum(count**2 for count in EXAMPLES.values()) / sum(EXAMPLES.values())
    np.testing.assert_allclose(result.arrays["w"].numpy(), 2 * mean, rtol=1e-6)
    # Training: down, 40 examples, up. Evaluation: the same but for a reply of two numbers.
    metrics_s = payload_bytes(
        Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": 0.5})}), dst_node_id=1, message_type="train")
    )
    reply_s = 0.5 * metrics_s / payload_bytes(ask(PlainGrid())[0])
    assert world.now_s == pytest.approx(2 * (0.5 + 0.4 + 0.5) + 2 * (0.5 + 0.2 + reply_s), rel=1e-6)


def test_fedavg_goes_on_without_those_who_were_late() -> None:
    """Clients of 30 and 40 examples miss the deadline; the mean is that of the others."""
    world = rated(deadline_s=1.25)
    grid = PlainGrid()
    result = FedAvg(fraction_evaluate=0.0).start(WirelessGrid(grid, world), weights(), num_rounds=1)
    np.testing.assert_allclose(result.arrays["w"].numpy(), (10**2 + 20**2) / 30, rtol=1e-6)
    assert world.now_s == 1.25 and world.round_row()["clients_late"] == 2 and len(grid.asked) == 4


def test_a_void_round_leaves_fedavg_where_it_was() -> None:
    result = FedAvg(fraction_evaluate=0.0).start(WirelessGrid(PlainGrid(), rated(deadline_s=0.9)), weights(), num_rounds=2)
    assert result.train_metrics_clientapp == {} and not result.arrays  # Flower's way to say that nothing came


# -- messages --------------------------------------------------------------------------------------------------------------


def test_late_and_lost_clients_answer_with_errors_that_say_why() -> None:
    world = rated(deadline_s=1.25, energy={"battery_j": 1e6})
    world.battery.left_j[0] = 0.0
    inner = PlainGrid()
    replies = list(WirelessGrid(inner, world).send_and_receive(ask(inner)))
    assert len(replies) == 4 and (MessageType.TRAIN, 12) not in inner.asked  # it was not reached, so it trains nothing
    late = (CLIENT_LATE, "late: not through at the deadline of 1.25 s")
    assert errors(replies) == {907: late, 505: late, 12: (CLIENT_DROPPED, "dropped: battery empty after 0 s")}
    assert all(reply.metadata.message_type == MessageType.TRAIN for reply in replies)
    (good,) = (reply for reply in replies if not reply.has_error())
    np.testing.assert_allclose(good.content.array_records["arrays"]["w"].numpy(), 20)
    assert world.outcome.fate.tolist() == [Fate.LATE, Fate.BATTERY, Fate.LATE, Fate.DONE]
    assert world.outcome.clients.tolist() == [3, 0, 2, 1]


@pytest.mark.parametrize("reverse", [False, True])
def test_pushed_and_pulled_is_the_same_as_sent_and_received(reverse: bool) -> None:
    worlds = [rated(deadline_s=1.25, availability={"on_s": 100.0, "off_s": 100.0}) for _ in range(2)]
    for _ in range(5):
        inner = PlainGrid(slow=(33, 907))
        together = list(WirelessGrid(PlainGrid(), worlds[0]).send_and_receive(ask(inner)))
        grid = WirelessGrid(inner, worlds[1])
        keys = list(grid.push_messages(ask(inner)))
        assert len(set(keys)) == 4
        replies: list[Message] = []
        for _ in range(4):
            for key in reversed(keys) if reverse else keys:
                replies += grid.pull_messages([key])
        assert errors(replies) == errors(together)
        assert sorted(reply.metadata.src_node_id for reply in replies) == sorted(NODES)
        assert {reply.metadata.reply_to_message_id for reply in replies} == set(keys)
        assert list(grid.pull_messages(keys)) == []
        assert worlds[0].round_row() == worlds[1].round_row()
    assert worlds[0].round == 5 and not all(key.startswith("plain-") for key in keys)  # somebody was offline at last


def test_a_rounds_replies_come_when_all_are_there() -> None:
    inner = PlainGrid(slow=(505,))
    grid = WirelessGrid(inner, rated())
    keys = list(grid.push_messages(ask(inner)))
    assert list(grid.pull_messages(keys)) == [] and grid.world.outcome.fate.tolist() == [Fate.NO_REPLY] * 4
    assert len(list(grid.pull_messages(keys))) == 4


def test_the_next_round_waits_for_the_last_ones_replies() -> None:
    inner = PlainGrid(slow=(505,))
    grid = WirelessGrid(inner, rated())
    keys = list(grid.push_messages(ask(inner)))
    with pytest.raises(ConfigError, match="a round is under way over this WirelessGrid"):
        grid.push_messages(ask(inner, kind=MessageType.EVALUATE))
    assert len([reply for _ in range(2) for reply in grid.pull_messages(keys)]) == 4
    assert len(list(grid.send_and_receive(ask(inner, kind=MessageType.EVALUATE)))) == 4


def test_errors_of_the_wrapped_grid_pass_and_cost_nothing() -> None:
    world = rated()
    replies = list(WirelessGrid(PlainGrid(broken=(33,), deaf=(505,)), world).send_and_receive(ask(PlainGrid()), timeout=1.0))
    assert errors(replies) == {33: (2, "no luck")} and len(replies) == 3
    assert world.outcome.fate.tolist() == [Fate.DONE, Fate.DONE, Fate.NO_REPLY, Fate.NO_REPLY]
    assert (world.outcome.energy_j > 0).tolist() == [True, True, False, False]
    world = rated()
    list(WirelessGrid(PlainGrid(broken=NODES), world).send_and_receive(ask(PlainGrid())))
    assert world.round_row()["void"] == "no client that was reached sent a sound reply" and world.round == 1


def test_questions_are_free_in_any_company() -> None:
    inner, world = PlainGrid(), rated(availability={"on_s": 1e-3, "off_s": 1e6})
    grid = WirelessGrid(inner, world)
    replies = list(grid.send_and_receive(ask(grid, kind=MessageType.QUERY)))
    assert len(replies) == 4 and errors(replies) == {} and world.round == 0 and world.now_s == 0
    mixed = [*ask(grid, (12, 33)), *ask(grid, (907, 505), MessageType.QUERY, arrays=False)]
    replies = list(grid.send_and_receive(mixed))
    assert errors(replies).keys() == {12, 33} and len(replies) == 4 and world.round == 1  # offline, but they can be asked
    keys = list(grid.push_messages(ask(grid, (907, 505), MessageType.QUERY)))
    assert len(list(grid.pull_messages(keys))) == 2 and world.round == 1


def test_bytes_on_the_air_are_those_of_the_arrays() -> None:
    inner = PlainGrid()
    (message,) = ask(inner, [12])
    assert payload_bytes(message) == len(message.content.array_records["arrays"]["w"].data) > 400
    (small,) = ask(inner, [12], arrays=False)
    assert 0 < payload_bytes(small) < 100
    assert payload_bytes(Message(RecordDict(), dst_node_id=1, message_type="train")) == 1


def test_nodes_and_clients() -> None:
    inner = PlainGrid()
    grid = WirelessGrid(inner, rated(), clients={12: 2, 33: 0})
    list(grid.send_and_receive(ask(inner, (33, 12))))
    assert grid.world.outcome.clients.tolist() == [0, 2]
    with pytest.raises(ConfigError, match="node 907 is none of the 2 nodes that this WirelessGrid was made for"):
        grid.send_and_receive(ask(inner, [907]))
    small = make("ideal", clients=3, devices={**STILL, "flops_per_example": FLOPS})
    with pytest.raises(ConfigError, match="holds 3 clients, numbered from 0; client 3 was asked"):
        WirelessGrid(inner, small).send_and_receive(ask(inner))
    with pytest.raises(ConfigError, match="two messages in one exchange"):
        WirelessGrid(inner, rated()).send_and_receive(ask(inner, [12, 12]))


def test_what_an_example_costs_must_be_said() -> None:
    inner, world = PlainGrid(), make("ideal", clients=4)
    with pytest.raises(
        ConfigError, match=r"what training cost node \d+ is unknown: set world\.options\.devices\.flops_per_example"
    ):
        WirelessGrid(inner, world).send_and_receive(ask(inner))
    told = make("ideal", clients=4)
    list(WirelessGrid(inner, told, work=lambda reply: GPU_FLOPS * 3).send_and_receive(ask(inner)))
    np.testing.assert_allclose(told.outcome.compute_s, 3)
    counted = make("ideal", clients=4, setup={"flops_per_unit": 5.0}, devices={**STILL, "flops_per_example": FLOPS})
    list(WirelessGrid(inner, counted).send_and_receive(ask(inner)))  # no tokens reported: examples count
    np.testing.assert_allclose(counted.outcome.compute_s, [0.4, 0.1, 0.3, 0.2])


def test_the_grid_stands_in_for_the_one_it_wraps() -> None:
    inner = PlainGrid()
    grid = WirelessGrid(inner, rated())
    run = Run.create_empty(7)
    grid.set_run(run)
    assert grid.run is run is inner.run and sorted(grid.get_node_ids()) == sorted(NODES)
    assert list(grid.send_and_receive([])) == [] and list(grid.push_messages([])) == [] and grid.world.round == 0


# -- fedlora's own round ---------------------------------------------------------------------------------------------------


def played(ground: Ground, worlds: list[RadioWorld], *changes: str, split: int = 0) -> list[dict[str, Any]]:
    """Run four rounds of the tiny model; with `split`, a second world takes over after that many rounds."""
    bench = build(ground.config("rounds=4", *changes))
    inner, state, rows = BatchedGrid(bench), fresh_state(bench), []
    roster = call_roll(inner, 6)
    for number, world in enumerate(worlds):
        if number:
            world.restore(worlds[0].state())
        strategy = RoundStrategy(bench, roster, state, world)
        rounds = 4 if not split else (split, 4 - split)[number]
        grid = world.grid(inner, {node: client for client, (node, _) in roster.items()})

        def note(turn: int, _: Any, strategy: RoundStrategy = strategy) -> None:
            rows.extend(strategy.record.clients if turn else [])

        strategy.start(grid, strategy.broadcast(), num_rounds=rounds, evaluate_fn=note)
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


WORLD = ("world.name=umi-indoor", "world.options.availability={on_s=300, off_s=60}", "world.options.deadline_s=0.003")


def test_a_resumed_grid_goes_on(ground: Ground) -> None:
    def world() -> Any:
        return make_world(build(ground.config(*WORLD)))

    whole, resumed = played(ground, [world()], *WORLD), played(ground, [world(), world()], *WORLD, split=2)
    assert whole == resumed and len(whole) == 16


def test_the_batched_grid_over_the_radio(ground: Ground) -> None:
    world = make_world(build(ground.config(*WORLD)))
    assert isinstance(world, RadioWorld)
    rows = played(ground, [world], *WORLD)
    kinds = {row["status"].partition(":")[0] for row in rows}
    assert {"ok", "late"} <= kinds <= {"ok", "late", "dropped"}
    for row in rows:
        assert row.keys() >= {
            "downlink_s",
            "compute_s",
            "uplink_s",
            "retransmission_s",
            "energy_j",
            "rate_bps",
            "snr_db",
            "device",
        }
        assert (row["status"] == "ok") == ("train_loss" in row) and row["downlink_s"] + row["compute_s"] + row[
            "uplink_s"
        ] <= 0.003 + 1e-8
        assert row["retransmission_s"] <= row["downlink_s"] + row["uplink_s"]
        assert row["rate_bps"] is None or abs(row["rate_bps"] * row["uplink_s"] / 8 - row["uplink_bytes"]) < 2


@pytest.mark.slow
def test_flowers_simulation_sees_the_same_world(ground: Ground, tmp_path: Path) -> None:
    few = ("clients=4", "clients_per_round=3", "ray.num_cpus=2", "rounds=3", *WORLD)
    simulate(ground.config(*few), tmp_path / "batched")
    simulate(ground.config(*few, "engine=ray"), tmp_path / "ray")
    for log, left_out in (("clients", {"seconds"}), ("metrics", {"wall_time_s"})):
        ours, theirs = (
            [json.loads(line) for line in (tmp_path / engine / f"{log}.jsonl").read_text().splitlines()]
            for engine in ("batched", "ray")
        )
        for row, other in zip(ours, theirs, strict=True):
            assert row.keys() == other.keys()
            for key in row.keys() - left_out:
                assert row[key] == (pytest.approx(other[key], abs=1e-4) if isinstance(row[key], float) else other[key]), key
