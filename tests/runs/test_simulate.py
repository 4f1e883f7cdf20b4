"""What a run leaves behind, and that its numbers are true."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Error, Message
from peft import PeftModel
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from fedlora.config import load_config
from fedlora.errors import ConfigError, RunFolderError
from fedlora.federation.batched_grid import BatchedGrid
from fedlora.federation.workbench import build
from fedlora.runs.checkpoint import load_checkpoint
from fedlora.runs.folder import RunFolder
from fedlora.runs.progress import Lines, Quiet
from fedlora.runs.simulate import Session, simulate
from fedlora.wire import from_record, to_record
from tiny import tiny_text_model
from tiny_run import Ground

METRICS = (
    "round test_accuracy test_loss train_loss clients_accuracy uplink_bytes downlink_bytes clients_selected clients_failed "
    "mean_rank coverage wall_time_s"
)
CLIENTS = (
    "round client status ranks mean_rank downlink_bytes uplink_bytes train_loss steps tokens seconds held_accuracy held_loss "
    "held_examples examples"
)
# With these a tiny random model learns something in a few rounds.
LEARNING = ("data.partition=iid", "training.lr=0.02", "training.steps=20")


@pytest.fixture(scope="module")
def run(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four rounds with mixed ranks."""
    path = tmp_path_factory.mktemp("run") / "run"
    simulate(ground.config("rounds=4", "policy.name=random", *LEARNING), path)
    return path


def _rows(run: Path, log: str = "metrics") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"{log}.jsonl").read_text().splitlines()]


def test_the_folder_holds_everything(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names == {
        "adapter",
        "checkpoints",
        "clients.jsonl",
        "config.toml",
        "environment.json",
        "federation.json",
        "label_mix.png",
        "metrics.jsonl",
        "tensorboard",
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"round-00003", "round-00004"}
    with Image.open(run / "label_mix.png") as picture:
        assert picture.format == "PNG" and picture.width > 500


def test_the_stored_configuration_is_the_runs(run: Path, ground: Ground) -> None:
    wanted = ground.config("rounds=4", "policy.name=random", *LEARNING)
    assert load_config(run / "config.toml") == wanted == RunFolder.open(run).config
    tree = tomllib.loads((run / "config.toml").read_text())
    assert tree["wire"] == {"dtype": "fp32", "downlink": "broadcast"} and tree["seed"] == 0  # defaults included


def test_the_environment_is_recorded(run: Path) -> None:
    found = json.loads((run / "environment.json").read_text())
    assert found["packages"]["torch"] == torch.__version__ and {"flwr", "transformers", "fedlora"} <= found["packages"].keys()
    assert found["device"] == "cpu" and found["cores"] >= 1 and found["memory_gib"] > 0 and found["command"] and found["cpu"]
    assert "T" in found["started"] and found["python"].startswith("3.")


def test_a_row_for_every_round_and_client(run: Path) -> None:
    rounds, clients = _rows(run), _rows(run, "clients")
    assert [row["round"] for row in rounds] == [0, 1, 2, 3, 4]
    assert all(list(row) == METRICS.split() for row in rounds)
    assert all(sorted(row) == sorted(CLIENTS.split()) for row in clients)
    assert rounds[0]["clients_selected"] == rounds[0]["uplink_bytes"] == 0 and rounds[0]["train_loss"] is None
    for row in rounds[1:]:
        own = [client for client in clients if client["round"] == row["round"]]
        assert len(own) == row["clients_selected"] == 4 and row["clients_failed"] == 0
        assert row["uplink_bytes"] == sum(client["uplink_bytes"] for client in own)
        assert row["downlink_bytes"] == sum(client["downlink_bytes"] for client in own)
        assert row["train_loss"] == pytest.approx(sum(client["train_loss"] for client in own) / 4)
        assert row["mean_rank"] == pytest.approx(sum(sum(client["ranks"]) / 4 for client in own) / 4)
        right = sum(client["held_accuracy"] * client["held_examples"] for client in own)
        assert row["clients_accuracy"] == pytest.approx(right / sum(client["held_examples"] for client in own))
        assert 0 < row["coverage"] <= 1 and row["wall_time_s"] > 0
    assert rounds[-1]["test_accuracy"] > rounds[0]["test_accuracy"] + 0.2  # it learns
    assert rounds[-1]["test_loss"] < rounds[0]["test_loss"]


def test_tensorboard_reads_the_same_numbers(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"histograms": 0}).Reload()
    for name in ("test_accuracy", "train_loss", "uplink_bytes", "mean_rank"):
        seen = {event.step: event.value for event in events.Scalars(f"round/{name}")}
        assert seen == pytest.approx({row["round"]: row[name] for row in _rows(run) if row[name] is not None})
    histograms = events.Histograms("round/ranks")
    assert [event.step for event in histograms] == [1, 2, 3, 4]
    ranks = [rank for row in _rows(run, "clients") if row["round"] == 4 for rank in row["ranks"]]
    last = histograms[-1].histogram_value
    assert (last.num, last.sum, last.min, last.max) == (16, sum(ranks), min(ranks), max(ranks)) and sum(last.bucket) == 16


def test_without_tensorboard_there_are_no_events(ground: Ground, tmp_path: Path) -> None:
    simulate(ground.config("rounds=1", "output.tensorboard=false"), tmp_path / "run")
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_evaluation_on_some_rounds_only(ground: Ground, tmp_path: Path) -> None:
    rows = simulate(ground.config("rounds=5", "evaluation.every=3", "evaluation.clients=false"), tmp_path / "run").rounds
    assert [row["test_loss"] is not None for row in rows] == [True, False, False, True, False, True]
    assert all(row["clients_accuracy"] is None for row in rows)


# -- bytes ------------------------------------------------------------------------------------------------------------


class _Scales(BatchedGrid):
    """Weighs every message on its way."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.down: list[int] = []
        self.up: list[int] = []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        sent = list(messages)
        replies = list(super().send_and_receive(sent))
        if sent and sent[0].metadata.message_type == "train":
            self.down.append(sum(len(from_record(message.content.array_records["arrays"])) for message in sent))
            self.up.append(sum(len(from_record(reply.content.array_records["arrays"])) for reply in replies))
        return replies


def _session(ground: Ground, folder: Path, grid: Callable[..., BatchedGrid], *changes: str) -> tuple[Session, Any]:
    bench = build(ground.config(*changes))
    session = Session(bench, RunFolder.create(folder, bench.config), Quiet())
    behind = grid(bench)
    session.serve(behind)
    session.finish()
    return session, behind


@pytest.mark.parametrize(
    "changes",
    [
        ("policy.name=random", "wire.downlink=sliced"),
        ("adapter.method=lora", "aggregator.method=stack", "wire.dtype=int8"),
        ("adapter.unit=svd", "policy.name=random", "wire.dtype=bf16"),
    ],
    ids=["sliced", "stack-int8", "svd-bf16"],
)
def test_bytes_are_those_of_the_encoded_messages(ground: Ground, tmp_path: Path, changes: tuple[str, ...]) -> None:
    session, scales = _session(ground, tmp_path / "run", _Scales, "rounds=3", *changes)
    rows = session.folder.rows()[1:]
    assert [row["uplink_bytes"] for row in rows] == scales.up
    assert [row["downlink_bytes"] for row in rows] == scales.down


# -- clients that fail ------------------------------------------------------------------------------------------------


class _Spoils(BatchedGrid):
    """In round 1 one client is silent and one cuts its reply short, in round 2 nothing comes back at all."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        sent = list(messages)
        replies = list(super().send_and_receive(sent))
        train = [reply for reply in replies if reply.metadata.message_type == "train"]
        if not train or train[0].metadata.group_id == "3":
            return replies
        if train[0].metadata.group_id == "2":
            return [Message(Error(7, "out of memory"), reply_to=message) for message in sent]
        data = from_record(train[0].content.array_records["arrays"])
        train[0].content["arrays"] = to_record(data[:-1])
        return train[:3]


def test_a_run_survives_clients_that_fail(ground: Ground, tmp_path: Path) -> None:
    session, _ = _session(ground, tmp_path / "run", _Spoils, "rounds=3", "output.keep_checkpoints=4")
    rounds, clients = session.folder.rows(), session.folder.rows("clients")
    assert [row["clients_failed"] for row in rounds] == [0, 2, 4, 0]
    status = {(row["round"], row["client"]): row["status"].partition(":")[0] for row in clients}
    assert sorted(value for (number, _), value in status.items() if number == 1) == ["no reply", "ok", "ok", "rejected"]
    assert {value for (number, _), value in status.items() if number == 2} == {"failed"}
    assert rounds[2]["train_loss"] is None and rounds[2]["uplink_bytes"] == 0 and rounds[2]["coverage"] == 0.0
    assert (rounds[2]["test_accuracy"], rounds[2]["test_loss"]) == (rounds[1]["test_accuracy"], rounds[1]["test_loss"])
    states = [load_checkpoint(tmp_path / "run" / "checkpoints" / f"round-0000{number}").state for number in (1, 2, 3)]
    first, void, last = (state.adapter.flat() for state in states)
    assert all(torch.equal(first[name], void[name]) for name in first)
    assert any(not torch.equal(void[name], last[name]) for name in first)


class _Lines(Lines):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_when_every_loss_is_nan_the_run_goes_on_and_says_so(ground: Ground, tmp_path: Path) -> None:
    lines = _Lines()
    config = ground.config("rounds=2", "training.lr=1e30", "training.clip=0")
    rows = simulate(config, tmp_path / "run", progress=lines).rounds
    assert [row["clients_failed"] for row in rows] == [0, 4, 4]
    assert len({row["test_loss"] for row in rows}) == 1
    clients = [line for line in lines.said if line.startswith("  client ")]
    assert len(clients) == 8 and all("failed: non-finite" in line for line in clients)
    assert sum("void: no sound reply" in line for line in lines.said) == 2


def test_a_model_that_is_lost_for_good_leaves_valid_json(ground: Ground, tmp_path: Path) -> None:
    """One step at an absurd rate: the numbers are finite, what the model makes of them is not."""
    config = ground.config("rounds=2", "training.lr=1e37", "training.clip=0", "training.steps=1", "training.optimizer=sgd")
    rows = simulate(config, tmp_path / "run").rounds
    text = (tmp_path / "run" / "metrics.jsonl").read_text() + (tmp_path / "run" / "clients.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert rows[-1]["test_loss"] is None and rows[-1]["clients_failed"] == 4


# -- before any work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        ("policy.name=fixed",),
        ("policy.name=fixed", "policy.options.rank=99"),
        ("adapter.rank=33",),
        ("adapter.rank=9", "adapter.init=gram-schmidt"),
        ("adapter.method=lora", "aggregator.method=stack", "wire.downlink=sliced"),
        ("adapter.method=lora", "aggregator.method=ravan"),
        ("data.max_length=1000",),
        ("data.partition=natural",),
        ("data.max_examples=11",),
        ("device=cuda:64",),
    ],
    ids=" ".join,
)
def test_what_cannot_work_leaves_no_folder(ground: Ground, tmp_path: Path, changes: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        simulate(ground.config(*changes), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_stored_configuration_that_was_edited(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text((run / "config.toml").read_text().replace("rounds =", "ronds ="))
    wanted = r"config\.toml is not what a run wrote: unknown key 'ronds'\. Did you mean 'rounds'\?"
    with pytest.raises(RunFolderError, match=wanted):
        RunFolder.open(tmp_path)


# -- the adapter ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        ("policy.name=random",),
        ("adapter.method=lora", "aggregator.method=stack", "adapter.rank=6", "policy.name=random"),
        ("adapter.method=triplet", "adapter.alpha=8"),
    ],
    ids=["ravan", "lora-stack", "triplet"],
)
def test_stock_peft_has_the_accuracy_of_the_last_row(ground: Ground, tmp_path: Path, changes: tuple[str, ...]) -> None:
    config = ground.config("rounds=4", *LEARNING, *changes)
    result = simulate(config, tmp_path / "run")
    test = build(config).dataset.test
    about = json.loads((tmp_path / "run" / "adapter" / "fedlora.json").read_text())
    base = AutoModelForSequenceClassification.from_pretrained(about["base"], num_labels=len(about["labels"]))
    model = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter")).eval()
    tokens = AutoTokenizer.from_pretrained(about["base"])(
        test.texts, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**tokens).logits
    labels = torch.from_numpy(test.labels)
    accuracy, loss = result.rounds[-1]["test_accuracy"], result.rounds[-1]["test_loss"]
    assert float((logits.argmax(1) == labels).float().mean()) == pytest.approx(accuracy)
    assert float(torch.nn.functional.cross_entropy(logits, labels)) == pytest.approx(loss, abs=1e-5)
    assert accuracy > result.rounds[0]["test_accuracy"]
    assert about["labels"] == ["a", "b", "c"] and about["task"] == "classification"


def test_a_language_model_from_rows_to_peft(ground: Ground, tmp_path: Path) -> None:
    model = tiny_text_model(tmp_path / "gpt2", "gpt2", task="causal-lm")
    config = ground.config(f"model.name={model}", "model.task=causal-lm", "data.partition=iid", "training.lr=0.05", "rounds=3")
    result = simulate(config, tmp_path / "run")
    assert abs(result.rounds[-1]["test_loss"] - result.rounds[0]["test_loss"]) > 1e-3
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(tmp_path / "run" / "adapter")).eval()
    tokenizer, test = AutoTokenizer.from_pretrained(model), build(config).dataset.test
    total = count = 0.0
    assert test.texts is not None
    with torch.no_grad():
        for text in test.texts:
            tokens = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
            predictions = tokens["input_ids"].shape[1] - 1
            total += float(tuned(**tokens, labels=tokens["input_ids"]).loss) * predictions if predictions else 0.0
            count += predictions
    assert total / count == pytest.approx(result.rounds[-1]["test_loss"], abs=1e-5)
