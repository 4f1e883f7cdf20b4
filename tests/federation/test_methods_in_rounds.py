"""Whole rounds of every method: together as alone, bytes as foretold, and what clients keep for themselves."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedlora.aggregation import GlobalState
from fedlora.aggregation.mean import FactorMean
from fedlora.errors import AggregationError, ConfigError
from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.client import BASES, KEPT, reply_spec
from fedlora.federation.costs import costs_of
from fedlora.federation.policy import Observation, objection_to_policy
from fedlora.federation.roll import call_roll
from fedlora.federation.strategy import UNLIMITED, RoundStrategy
from fedlora.federation.workbench import Workbench, build
from fedlora.methods import METHODS
from fedlora.runs.preflight import preflight
from fedlora.runs.progress import round_line
from fedlora.runs.simulate import simulate
from fedlora.training.backbone import Backbone
from fedlora.training.batches import Indices, Prepared
from fedlora.training.gradients import weight_gradients
from fedlora.wire import decode, encode, encoded_size, from_record, record_size, to_record
from runs_compared import assert_same_run
from tiny_run import Ground, OneByOneGrid, fresh_state, play


def begun(bench: Workbench) -> tuple[BatchedGrid, RoundStrategy]:
    grid = BatchedGrid(bench)
    return grid, RoundStrategy(bench, call_roll(grid, bench.config.clients), fresh_state(bench))


def ask(strategy: RoundStrategy, number: int, grid: BatchedGrid) -> list[Message]:
    return list(strategy.configure_train(number, ArrayRecord(), ConfigRecord(), grid))


def tensors_of(message: Message, number: int) -> dict[str, torch.Tensor]:
    return decode(from_record(message.content.array_records["arrays"]), "fp32", tag=number)


@pytest.mark.parametrize("name", METHODS.names())
def test_together_as_one_by_one_at_mixed_ranks(ground: Ground, name: str) -> None:
    """The client axis is batched: who else is trained beside a client changes nothing."""
    config = ground.config(f"method={name}", "policy.name=random", "rounds=3", "training.optimizer=sgd")
    found = []
    for kind in (BatchedGrid, OneByOneGrid):
        bench = build(config)
        state, records = play(bench, kind(bench))
        assert [row["status"] for record in records for row in record.clients] == ["ok"] * 12
        if bench.aggregator.steady:
            found.append(state)
        else:  # factors of the same product: singular vectors may turn
            sites = GlobalState.from_flat(state, len(bench.adapters)).sites
            pairs = [bench.aggregator.export_factors(index, site) for index, site in enumerate(sites)]
            found.append({str(index): b @ a for index, (b, a) in enumerate(pairs)})
    assert found[0].keys() == found[1].keys()
    for key, tensor in found[0].items():
        assert torch.allclose(tensor, found[1][key], rtol=0, atol=1e-4), key


@pytest.mark.parametrize("name", METHODS.names())
def test_bytes_are_foretold_in_every_round(ground: Ground, name: str) -> None:
    bench = build(ground.config(f"method={name}", "policy.name=random", 'adapter.targets=["re:.*layer.*(query|dense)"]'))
    grid, strategy = begun(bench)
    for number in (1, 2):
        messages = ask(strategy, number, grid)
        costs = costs_of(bench, number)
        replies = list(grid.send_and_receive(messages))
        for message, reply in zip(messages, replies, strict=True):
            asked = list(message.content.config_records["config"]["ranks"])  # type: ignore[arg-type]
            ranks = list(reply.content.metric_records["metrics"].get("ranks", asked))  # type: ignore[arg-type]
            size = record_size(reply.content.array_records["arrays"])
            assert size == encoded_size(reply_spec(bench, ranks, number), "fp32") == int(costs.bytes(np.array([ranks]))[0])
        strategy.aggregate_train(number, replies)
        assert strategy.record.done()


# -- FedSA: B stays at home --------------------------------------------------------------------------------------------


def test_fedsas_b_never_leaves_the_client_and_is_there_next_time(ground: Ground) -> None:
    bench = build(ground.config("method=fedsa-lora", "clients_per_round=6"))
    grid, strategy = begun(bench)
    for number in (1, 2):
        messages = ask(strategy, number, grid)
        before = {node: kept_b(context) for node, context in grid.contexts.items()}
        for message, reply in zip(messages, grid.send_and_receive(messages), strict=True):
            for sent in (message, reply):
                assert {key.partition("/")[2] for key in tensors_of(sent, number) if not key.startswith("head")} == {"A"}
            after = kept_b(grid.contexts[message.metadata.dst_node_id])
            assert after.any() and not torch.equal(after, before[message.metadata.dst_node_id])
        strategy.state.round = number
    own = [kept_b(context) for context in grid.contexts.values()]
    assert not any(torch.equal(own[0], other) for other in own[1:])


def kept_b(context: Any) -> torch.Tensor:
    if KEPT not in context.state:
        return torch.zeros(0)
    return decode(from_record(context.state.array_records[KEPT]), "fp32")["0/B"]


def test_fedsa_is_measured_where_the_whole_model_is(ground: Ground, tmp_path: Any) -> None:
    result = simulate(ground.config("method=fedsa-lora", "rounds=2"), tmp_path / "run")
    assert all(row["test_accuracy"] is None for row in result.rounds)
    assert all(row["clients_accuracy"] is not None for row in result.rounds[1:])


# -- Fed-SB: bases once per client -------------------------------------------------------------------------------------


def test_bases_go_to_each_client_once_and_again_after_a_failure(ground: Ground) -> None:
    bench = build(ground.config("method=fed-sb", "clients_per_round=6"))
    grid, strategy = begun(bench)
    first = ask(strategy, 1, grid)
    assert all(any(key.startswith("bases/") for key in tensors_of(message, 1)) for message in first)
    strategy.aggregate_train(1, grid.send_and_receive(first))
    second = ask(strategy, 2, grid)
    assert not any(key.startswith("bases/") for message in second for key in tensors_of(message, 2))
    rows = [row["downlink_bytes"] for row in strategy._rows.values()]
    assert len(set(rows)) == 1 and rows[0] < record_size(first[0].content.array_records["arrays"])
    lost = second[2].metadata.dst_node_id
    del grid.contexts[lost].state[BASES]  # a device that was set up anew
    strategy.aggregate_train(2, grid.send_and_receive(second))
    status = {row["client"]: row["status"] for row in strategy.record.clients}
    assert (
        status[lost - 1] == "failed: this client has not got the bases that the adapter works with; the server sends them again"
    )
    assert [value for client, value in status.items() if client != lost - 1] == ["ok"] * 5
    third = ask(strategy, 3, grid)
    again = [m.metadata.dst_node_id for m in third if any(key.startswith("bases/") for key in tensors_of(m, 3))]
    assert again == [lost]
    strategy.aggregate_train(3, grid.send_and_receive(third))
    assert [row["status"] for row in strategy.record.clients] == ["ok"] * 6


def test_fed_sb_starts_at_the_leading_part_of_a_signed_gradient_step(ground: Ground) -> None:
    config = ground.config("method=fed-sb", "adapter.rank=5", "adapter.start_examples=7", "adapter.alpha=10")
    bench = build(config)
    state = bench.initial()
    sites, bases = bench._gradient_start
    weights = [layer.base.weight for layer in bench.backbone.layers]
    assert all(weight.grad is None and not weight.requires_grad for weight in weights)
    for adapter, site, own in zip(bench.adapters, state.sites, bases, strict=True):
        assert torch.equal(adapter.buffers()["B"], own["B"])
        values = torch.linalg.svdvals(adapter.delta_weight(site).double())
        assert torch.allclose(values[:5], 2 * site["R"].diagonal().double(), rtol=1e-4, atol=1e-6)
        assert float(values[0]) > 5 * config.training.lr  # a matrix of signs has a leading direction
        assert torch.allclose(own["B"].T @ own["B"], torch.eye(5), atol=1e-5)
    assert sites[0]["R"].diagonal().tolist() == sorted(sites[0]["R"].diagonal().tolist(), reverse=True)


def test_fed_sb_starts_from_no_example_that_clients_measure_on(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(backbone: Backbone, train: Prepared, chosen: Indices, *more: Any) -> list[torch.Tensor]:
        seen.extend(chosen.tolist())
        return weight_gradients(backbone, train, chosen, *more)

    monkeypatch.setattr("fedlora.federation.workbench.weight_gradients", watched)
    bench = build(ground.config("method=fed-sb", "adapter.rank=5", "adapter.start_examples=1000"))
    bench.initial()
    assert sorted(seen) == sorted(np.concatenate(bench.parts).tolist()) and sum(map(len, bench.held)) > 0


# -- HetLoRA: clients prune themselves ---------------------------------------------------------------------------------


def test_clients_that_pruned_themselves_are_asked_for_no_more(ground: Ground) -> None:
    config = ground.config(
        "method=hetlora", "clients_per_round=6", "aggregator.options={sparsity=100.0, gamma=0.7}", "training.clip=0"
    )
    bench = build(config)
    grid, strategy = begun(bench)
    for number in (1, 2, 3):
        strategy.aggregate_train(number, grid.send_and_receive(ask(strategy, number, grid)))
        assert [row["status"] for row in strategy.record.clients] == ["ok"] * 6
    fell = [row for row in strategy.record.clients if row.get("ranks_kept")]
    assert fell and all(kept <= asked for row in fell for kept, asked in zip(row["ranks_kept"], row["ranks"], strict=True))
    limits = strategy.state.limits.copy()
    asked = strategy.ranks(4, np.arange(6))
    assert (asked == np.minimum(4, limits)).all() and (asked < 4).any()


@pytest.mark.parametrize(
    ("policy", "asked", "limit"),
    [("full", 4, 2), ("random", 4, 2), ("random", 3, UNLIMITED), ("fixed", 3, 2), ("tiers", 3, 2)],
)
def test_only_a_tail_of_a_clients_whole_rank_is_dropped_for_good(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, policy: str, asked: int, limit: int
) -> None:
    """A rank that is low for one round is not the client's own (r_k of the paper); that of a fixed rank or a tier is."""
    options = {"fixed": ["policy.options.rank=3"], "tiers": ["policy.options.fractions=[0.75]"]}.get(policy, [])
    bench = build(ground.config("method=hetlora", f"policy.name={policy}", *options))
    monkeypatch.setattr(bench.aggregator, "settle", lambda index, rho, start, trained: min(rho, 2))
    grid, strategy = begun(bench)
    monkeypatch.setattr(strategy.policy, "choose", lambda observation: np.full((4, 4), asked))
    strategy.aggregate_train(1, grid.send_and_receive(ask(strategy, 1, grid)))
    drawn = [row["client"] for row in strategy.record.done()]
    assert all(row["ranks_kept"] == [2] * 4 for row in strategy.record.done())
    assert len(drawn) == 4 and (strategy.state.limits[drawn] == limit).all()


@pytest.mark.parametrize("ranks", [[5, 4, 4, 4], [4, 4, 4], [0, 4, 4, 4], [-1, 4, 4, 4], [3.0, 4.0, 4.0, 4.0]], ids=str)
def test_ranks_that_nobody_may_settle_at_are_rejected(ground: Ground, ranks: list[Any]) -> None:
    grid, strategy = begun(build(ground.config("method=hetlora")))
    replies = list(grid.send_and_receive(ask(strategy, 1, grid)))
    metrics = dict(replies[0].content.metric_records["metrics"])
    replies[0].content["metrics"] = MetricRecord({**metrics, "ranks": ranks})  # type: ignore[arg-type]
    strategy.aggregate_train(1, replies)
    status = {row["client"]: row["status"] for row in strategy.record.clients}
    assert status.pop(replies[0].metadata.src_node_id - 1).startswith("rejected: schema: the reply was sent at ranks")
    assert list(status.values()) == ["ok"] * 3


# -- what a client works with ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flexlora", "hetlora"])
def test_own_components_alone_whatever_the_downlink(ground: Ground, name: str) -> None:
    """A slice and a broadcast give the same round; a broadcast only costs more."""
    states, bytes_down = [], []
    for downlink in ("sliced", "broadcast"):
        bench = build(ground.config(f"method={name}", f"wire.downlink={downlink}", "policy.name=random", "rounds=2"))
        state, records = play(bench, BatchedGrid(bench))
        states.append(state)
        bytes_down.append(sum(row["downlink_bytes"] for record in records for row in record.clients))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert bytes_down[0] < bytes_down[1]


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("method=rolora", "wire.downlink=sliced"),
            "wire.downlink = 'sliced' does not fit adapter.method = 'rolora', whose clients",
        ),
        (("method=fedex-lora", "wire.downlink=sliced"), "wire.downlink = 'sliced' does not fit aggregator.method = 'fedex'"),
        (("method=flora", "server.optimizer=fedadam"), "server.optimizer = 'fedadam' does not fit aggregator.method = 'stack'"),
        (("adapter.method=ffa-lora", "aggregator.method=hetlora"), "aggregator.method = 'hetlora' does not fit adapter.method"),
        (("method=fed-sb", "adapter.rank=33"), "adapter.rank = 33 does not fit site"),
        (("adapter.init=gram-schmidt", "adapter.rank=9"), "adapter.heads x adapter.rank = 36 orthogonal columns do not exist"),
        (("method=full", "adapter.alpha=2"), "adapter.alpha has no meaning for adapter.method = 'full'"),
        (("aggregator.method=median", "aggregator.weighting=examples"), "aggregator.weighting = 'examples' does not fit"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(ground: Ground, changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(ground.config(*changes))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("aggregator.method=multi-krum", "clients_per_round=6"),
            "clients_per_round = 6 does not fit aggregator.method = 'multi-krum': with aggregator.options.malicious = 0.2, f = 2",
        ),
        (
            ("aggregator.method=multi-krum", "clients_per_round=5", "aggregator.options.select=5"),
            "clients_per_round = 5 does not fit aggregator.method = 'multi-krum': aggregator.options.select = 5 is more than n",
        ),
        (
            ("aggregator.method=trimmed-mean", "clients_per_round=2"),
            "clients_per_round = 2 does not fit aggregator.method = 'trimmed-mean': it cuts at least one client off at each end",
        ),
    ],
)
def test_rounds_too_small_for_a_rule_are_refused_before_anything_is_written(
    ground: Ground, tmp_path: Path, changes: tuple[str, ...], message: str
) -> None:
    config = ground.config("adapter.method=lora", *changes)
    for refuse in (lambda: simulate(config, tmp_path / "run"), lambda: preflight(config)):
        with pytest.raises(ConfigError) as caught:
            refuse()
        assert str(caught.value).startswith(message)
    assert not (tmp_path / "run").exists()


MIXES = "it compares clients entry by entry and cannot mix ranks"
OWN_HEADS = "clients below the cap choose heads of their own, so that their updates cover different entries"


@pytest.mark.parametrize(
    ("rule", "adapter", "policy", "reason"),
    [
        ("median", "lora", ("tiers", "policy.options.fractions=[0.5,1.0]", "policy.options.weights=[5,1]"), MIXES),
        ("trimmed-mean", "lora", ("random",), MIXES),
        ("multi-krum", "lora", ("greedy", "clients_per_round=5"), MIXES),
        ("median", "lora", ("tiers", "policy.options.fractions=[0.5]"), ""),
        ("median", "lora", ("tiers", "policy.options.fractions=[0.5]", "clients_per_round=1"), ""),
        ("median", "lora", ("random", "clients_per_round=1"), ""),
        ("median", "lora", ("fixed", "policy.options.rank=2"), ""),
        ("median", "lora", ("full",), ""),
        ("median", "ravan", ("fixed", "policy.options.rank=8"), OWN_HEADS),
        ("median", "ravan", ("fixed", "policy.options.rank=8", "clients_per_round=1"), OWN_HEADS),
        ("median", "ravan", ("tiers", "clients_per_round=1"), OWN_HEADS),
        ("median", "ravan", ("fixed", "policy.options.rank=16"), ""),
        ("norm-bound", "ravan", ("random",), ""),
    ],
)
def test_ranks_that_a_rule_cannot_take_are_refused_before_anything_is_written(
    ground: Ground, tmp_path: Any, rule: str, adapter: str, policy: tuple[str, ...], reason: str
) -> None:
    """Whatever the dice of the first rounds say."""
    config = ground.config(f"adapter.method={adapter}", f"aggregator.method={rule}", f"policy.name={policy[0]}", *policy[1:])
    if not reason:
        begun(build(config))
        return
    with pytest.raises(ConfigError) as caught:
        simulate(config, tmp_path / "run")
    assert str(caught.value) == (
        f"policy.name = '{policy[0]}' does not fit aggregator.method = '{rule}': {reason}. "
        "Use policy.name = 'full', or another rule"
    )
    assert not (tmp_path / "run").exists()


class _ByRound:
    """A policy of another package, which gives everybody the same and says so; in round 2 it does not keep its word."""

    mixes_ranks = False

    def choose(self, observation: Observation) -> Any:
        ranks = np.full((len(observation.clients), len(observation.caps)), observation.round)
        ranks[0] += observation.round == 2
        return ranks


@pytest.mark.parametrize("says", [True, False])
def test_a_policy_may_say_that_it_does_not_mix_and_is_held_to_it(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, says: bool
) -> None:
    if not says:
        monkeypatch.delattr(_ByRound, "mixes_ranks")
    bench = build(ground.config("adapter.method=lora", "aggregator.method=median"))
    assert objection_to_policy(_ByRound(), bench.aggregator, 6, 4) == ("" if says else MIXES)
    _, strategy = begun(bench)
    strategy.policy = _ByRound()
    assert (strategy.ranks(1, np.arange(4)) == 1).all()
    with pytest.raises(ConfigError, match=MIXES):
        strategy.ranks(2, np.arange(4))


@pytest.mark.parametrize("name", METHODS.names())
def test_a_round_without_a_sound_reply_is_void_and_the_run_goes_on(ground: Ground, name: str) -> None:
    bench = build(ground.config(f"method={name}", "server.optimizer=none"))
    grid, strategy = begun(bench)
    strategy.aggregate_train(1, grid.send_and_receive(ask(strategy, 1, grid)))
    before = {key: tensor.clone() for key, tensor in strategy.state.adapter.flat().items()}
    empty = [Message(RecordDict({}), reply_to=reply) for reply in stamped(ask(strategy, 2, grid))]
    strategy.aggregate_train(2, empty)
    assert all(row["status"].startswith("rejected: schema") for row in strategy.record.clients)
    assert all(torch.equal(tensor, before[key]) for key, tensor in strategy.state.adapter.flat().items())
    strategy.aggregate_train(3, grid.send_and_receive(ask(strategy, 3, grid)))
    assert [row["status"] for row in strategy.record.clients] == ["ok"] * 4


def stamped(messages: list[Message]) -> list[Message]:
    for message in messages:
        message.metadata.__dict__["_message_id"] = str(message.metadata.dst_node_id)
    return messages


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        (("method=flexlora",), 3e38),  # a product of two factors; no mean of finite numbers overflows
        (("method=ravan", "server.optimizer=fedadam"), 3e38),  # its second moment overflows, its step does not
        (("method=ravan", "wire.dtype=fp16", "server.optimizer=fedavgm", "server.lr=3"), 6e4),  # as the next message carries it
    ],
    ids=["flexlora", "moments", "fp16"],
)
def test_a_round_whose_aggregate_is_not_finite_is_void(ground: Ground, changes: tuple[str, ...], size: float) -> None:
    bench = build(ground.config(*changes))
    dtype = bench.config.wire.dtype
    grid, strategy = begun(bench)
    strategy.aggregate_train(1, grid.send_and_receive(ask(strategy, 1, grid)))
    state, before = strategy.state.adapter, copy.deepcopy(strategy.state)
    replies = list(grid.send_and_receive(ask(strategy, 2, grid)))
    for reply in replies[: 4 if dtype == "fp16" else 1]:
        sent = decode(from_record(reply.content.array_records["arrays"]), dtype, tag=2)
        huge = {key: torch.full_like(value, size) if value.is_floating_point() else value for key, value in sent.items()}
        reply.content["arrays"] = to_record(encode(huge, dtype, tag=2))
    strategy.aggregate_train(2, replies)
    assert strategy.state.round == 2 and strategy.state.adapter is state
    for now, then in ((state.flat(), before.adapter.flat()), (state.memory, before.adapter.memory)):
        assert now.keys() == then.keys() and all(torch.equal(tensor, then[key]) for key, tensor in now.items())
    assert (strategy.state.limits == before.limits).all()
    assert re.match(r"the aggregate is not finite; the largest number, .*, came from client \d$", strategy.record.void)
    assert [row["status"] for row in strategy.record.clients] == ["rejected: the round is void"] * 4
    strategy.aggregate_train(3, grid.send_and_receive(ask(strategy, 3, grid)))
    assert [row["status"] for row in strategy.record.clients] == ["ok"] * 4 and not strategy.record.void
    assert any(not torch.equal(tensor, before.adapter.flat()[key]) for key, tensor in strategy.state.adapter.flat().items())


@pytest.mark.parametrize("world", [(), ("world.name=ideal",)], ids=["alone", "world"])
def test_a_run_goes_on_after_a_round_that_cannot_be_aggregated(
    ground: Ground, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, world: tuple[str, ...]
) -> None:
    aggregate = FactorMean.aggregate

    def sometimes(self: Any, updates: Any, state: GlobalState, round_number: int) -> Any:
        if round_number == 2:
            raise AggregationError("it does not add up")
        return aggregate(self, updates, state, round_number)

    monkeypatch.setattr(FactorMean, "aggregate", sometimes)
    rows = simulate(ground.config("method=fedit", "rounds=3", *world), tmp_path / "run").rounds
    assert [row["clients_failed"] for row in rows] == [0, 0, 4, 0]
    assert [row.get("void") for row in rows] == [None, None, "it does not add up", None]
    assert rows[1]["test_loss"] == rows[2]["test_loss"] != rows[3]["test_loss"] and rows[2]["coverage"] == 0
    line = round_line(rows[2], 3)
    assert "  0/4 clients  " in line and "  void: it does not add up  " in line


def test_a_void_round_says_so(ground: Ground, tmp_path: Any) -> None:
    result = simulate(ground.config("training.lr=1e38", "training.clip=0", "training.optimizer=sgd"), tmp_path / "run")
    assert all("void: no sound reply" in round_line(row, 2) for row in result.rounds[1:])


# -- resume ------------------------------------------------------------------------------------------------------------

KINDS = {
    "fedsa-lora": ("method=fedsa-lora",),
    "fed-sb": ("method=fed-sb",),
    "fedex-lora": ("method=fedex-lora", "policy.name=random"),
    "flexlora": ("method=flexlora", "policy.name=random"),
    "hetlora": ("method=hetlora", "aggregator.options={sparsity=100.0, gamma=0.7}"),
    "rolora-fedadam": ("method=rolora", "server.optimizer=fedadam", "server.lr=0.01"),
    "ravan-fedyogi": ("server.optimizer=fedyogi", "policy.name=random"),
    "ffa-fedavgm": ("method=ffa-lora", "server.optimizer=fedavgm", "training.proximal=0.1"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_after_any_round_it_ends_with_the_same_bytes(ground: Ground, kind: str, tmp_path: Any) -> None:
    config = ground.config("rounds=4", "output.keep_checkpoints=9", "output.tensorboard=false", *KINDS[kind])
    simulate(config, tmp_path / "whole")
    for back in (1, 2):
        simulate(config, tmp_path / f"cut{back}")
        for number in range(4, 4 - back, -1):
            folder = tmp_path / f"cut{back}" / "checkpoints" / f"round-{number:05d}"
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        simulate(config, tmp_path / f"cut{back}", resume=True)
        assert_same_run(tmp_path / f"cut{back}", tmp_path / "whole")
