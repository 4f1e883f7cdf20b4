"""Whole runs over a radio: what they log adds up, a kill changes nothing, and ranks never change the channel."""

from __future__ import annotations

import json
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from children import fedlora_command
from fedlora.errors import ConfigError
from fedlora.federation.policy import POLICIES, Observation, PolicySetup, Ranks
from fedlora.runs.checkpoint import load_checkpoint
from fedlora.runs.simulate import simulate
from runs_compared import assert_same_run, rows
from tiny_run import Ground

UMI = ("rounds=4", "world.name=umi-indoor")
# A little of everything that can go wrong for a client.
ROUGH = (
    *UMI,
    "policy.name=random",
    "world.options.deadline_s=0.02",
    "world.options.availability.on_s=200",
    "world.options.availability.off_s=60",
    "world.options.energy.battery_j=0.01",
    "world.options.csi.delay_rounds=2",
)
PARTS = ("downlink_s", "compute_s", "uplink_s", "retransmission_s", "energy_j")
TOTALS = ("virtual_time_s", "energy_j", "clients_dropped", "clients_late", "mean_rate_bps", "void")


def logs(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of metrics.jsonl and clients.jsonl."""
    first, second = (
        [json.loads(line) for line in (run / f"{log}.jsonl").read_text().splitlines()] for log in ("metrics", "clients")
    )
    return first, second


@pytest.mark.parametrize("changes", [UMI, ROUGH, (*ROUGH, "rounds=8")], ids=["calm", "rough", "rough-and-longer"])
def test_the_logs_add_up(ground: Ground, tmp_path: Path, changes: tuple[str, ...]) -> None:
    simulate(ground.config(*changes), tmp_path / "run")
    metrics, clients = logs(tmp_path / "run")
    assert all(row.keys() >= set(TOTALS) for row in metrics)
    assert metrics[0]["virtual_time_s"] == 0 and metrics[0]["energy_j"] == 0
    for before, row in pairwise(metrics):
        own = [client for client in clients if client["round"] == row["round"]]
        kinds = [client["status"].partition(":")[0] for client in own]
        assert row["clients_selected"] == len(own) == 4
        assert row["clients_selected"] == kinds.count("ok") + row["clients_failed"] + row["clients_dropped"] + row["clients_late"]
        assert (row["clients_dropped"], row["clients_late"]) == (kinds.count("dropped"), kinds.count("late"))
        lasted = row["virtual_time_s"] - before["virtual_time_s"]
        spent = [client["downlink_s"] + client["compute_s"] + client["uplink_s"] for client in own]
        assert lasted >= max(spent) - 1e-8 and (lasted > 0 or kinds.count("dropped") == 4)
        if kinds.count("ok") == 4:
            assert lasted == pytest.approx(max(spent), abs=1e-8)
        assert row["energy_j"] == pytest.approx(sum(client["energy_j"] for client in own), abs=1e-8)
        assert row["uplink_bytes"] == sum(client["uplink_bytes"] for client in own)
        assert (row["void"] is None) == ("ok" in kinds)
        rates = [client["rate_bps"] for client in own if client["rate_bps"] is not None]
        assert row["mean_rate_bps"] == (pytest.approx(np.mean(rates), abs=1) if rates else None)
        for client, kind in zip(own, kinds, strict=True):
            assert all(client[part] >= 0 for part in PARTS) and client["device"]
            assert (kind == "ok") == ("train_loss" in client)
            if client["rate_bps"] is not None:
                assert client["uplink_bytes"] == pytest.approx(client["rate_bps"] * client["uplink_s"] / 8, abs=1.5)


def test_late_clients_have_sent_a_part(ground: Ground, tmp_path: Path) -> None:
    whole, cut = (
        simulate(ground.config(*UMI, *more), tmp_path / name)
        for name, more in (("a", ()), ("b", ("world.options.deadline_s=0.004",)))
    )
    sent = [{(row["round"], row["client"]): row for row in logs(result.folder)[1]} for result in (whole, cut)]
    late = [key for key, row in sent[1].items() if row["status"].startswith("late: not through at the deadline of 0.004 s")]
    part = [key for key in late if sent[1][key]["uplink_bytes"]]
    assert len(late) >= 4 and part
    for key in part:
        assert 0 < sent[1][key]["uplink_bytes"] < sent[0][key]["uplink_bytes"]
    assert all(sent[1][key]["uplink_bytes"] == sent[0][key]["uplink_bytes"] for key in sent[1].keys() - late)


def test_a_void_round_is_named_and_changes_nothing(ground: Ground, tmp_path: Path) -> None:
    result = simulate(ground.config("rounds=2", *UMI[1:], "world.options.deadline_s=1e-9"), tmp_path / "run")
    assert all("the deadline of 1e-09 s is too short for any client" in row["void"] for row in result.rounds[1:])
    assert result.rounds[0]["test_loss"] == result.rounds[2]["test_loss"] and result.rounds[2]["coverage"] == 0
    assert [row["clients_late"] for row in result.rounds[1:]] == [4, 4]


RANKS: dict[str, tuple[str, ...]] = {
    "full": (),
    "small": ("policy.name=fixed", "policy.options.rank=4"),
    "random": ("policy.name=random",),
    "other-adapter": ("adapter.method=lora", "adapter.rank=8"),
    "sliced-int8": ("policy.name=random", "wire.downlink=sliced", "wire.dtype=int8"),
    "svd": ("adapter.unit=svd", "policy.name=random"),
}


def test_ranks_never_change_the_channel(ground: Ground, tmp_path: Path) -> None:
    """The same clients see the same SNR in the same rounds, whatever is sent over it, and how."""
    seen = {}
    for name, changes in RANKS.items():
        result = simulate(ground.config(*UMI, *changes, "world.options.rate.model=shannon"), tmp_path / name)
        clients = logs(result.folder)[1]
        assert all(row["status"] == "ok" for row in clients)
        seen[name] = [(row["round"], row["client"], row["snr_db"], row["device"]) for row in clients]
        seen[f"{name} bytes"] = [row["uplink_bytes"] for row in clients]
    assert all(seen[name] == seen["full"] for name in RANKS)
    assert len({tuple(seen[f"{name} bytes"]) for name in RANKS}) == len(RANKS)
    assert len({snr_db for *_, snr_db, _ in seen["full"]}) == 16


KINDS = {
    "rough": ROUGH,
    "svd": (*ROUGH, "adapter.unit=svd"),
    "sliced": (*ROUGH, "wire.downlink=sliced", "adapter.method=triplet"),
    "levels": ("rounds=4", "world.name=airllm-markov", "world.options.deadline_s=0.0003"),
    "trace": ("rounds=4", "world.name=trace", "world.options.availability.on_s=100"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_over_the_radio(ground: Ground, tmp_path: Path, kind: str) -> None:
    arguments = ["simulate", *ground.overrides(*KINDS[kind])]
    assert fedlora_command([*arguments, "--out", "whole"], tmp_path).code == 0
    for event in (28, 45) if kind == "rough" else (36,):
        (tmp_path / str(event)).mkdir()
        done = fedlora_command([*arguments, "--out", "run"], tmp_path / str(event), kill_at=event)
        assert done.code == -signal.SIGKILL
        assert fedlora_command([*arguments, "--resume", "run"], tmp_path / str(event)).code == 0
        assert_same_run(tmp_path / str(event) / "run", tmp_path / "whole")
    stored = load_checkpoint(tmp_path / "whole" / "checkpoints" / "round-00004").world
    assert float(stored["now_s"][0]) == pytest.approx(rows(tmp_path / "whole" / "metrics.jsonl")[-1]["virtual_time_s"])


class Greedy:
    """More components the better the link looks, and none for a client in outage."""

    seen: list[Observation]

    def __init__(self, setup: PolicySetup) -> None:
        self.caps, Greedy.seen = setup.caps, []

    def choose(self, observation: Observation) -> Ranks:
        links = observation.links
        if links is None:
            raise ConfigError("policy.name = 'greedy-test' needs a world")
        Greedy.seen.append(observation)
        share = np.clip(links.uplink_bps / np.median(links.uplink_bps) / 2, 0.25, 1.0) * ~links.outage
        return np.asarray(share[:, None] * self.caps, np.int64)


def test_a_policy_that_looks_at_the_links(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES._entries, "greedy-test", POLICIES.entry("full").__class__("greedy-test", Greedy, "", "tests"))
    result = simulate(ground.config(*UMI, "policy.name=greedy-test"), tmp_path / "run")
    clients = logs(result.folder)[1]
    assert len(Greedy.seen) == 4 and len({row["mean_rank"] for row in clients}) > 2
    for observation in Greedy.seen:
        assert observation.links is not None and observation.links.age_rounds.tolist() == [1] * 4
        own = [row for row in clients if row["round"] == observation.round]
        assert [row["client"] for row in own] == observation.clients.tolist()
        best = int(np.argmax(observation.links.uplink_bps))
        assert own[best]["mean_rank"] == max(row["mean_rank"] for row in own)
    with pytest.raises(ConfigError, match="needs a world"):
        simulate(ground.config("rounds=1", "policy.name=greedy-test"), tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("world.name=airllm", "aggregator.method=aircomp"), "needs 'aircomp' in both places"),
        (("world.name=umi-indoor", "world.options.uplink.sharing=aircomp"), "needs 'aircomp' in both places"),
        (("world.name=yang2021", "clients=12", "world.options.clients=10"), "holds 10 clients, 12 were asked for"),
        (
            ("world.name=ideal", "world.options.devices.mix={raspberry_pi_zero2=1.0}", "training.batch_size=100000"),
            "holds the run's model",
        ),
    ],
)
def test_a_world_that_does_not_fit_the_run_is_refused_before_it(
    ground: Ground, tmp_path: Path, changes: tuple[str, ...], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        simulate(ground.config(*changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_aircomp_in_both_places_runs(ground: Ground, tmp_path: Path) -> None:
    result = simulate(ground.config(*UMI, "world.options.uplink.sharing=aircomp", "aggregator.method=aircomp"), tmp_path / "run")
    clients = logs(result.folder)[1]
    assert all(row["status"] == "ok" for row in clients) and result.rounds[-1]["test_loss"] != result.rounds[0]["test_loss"]
