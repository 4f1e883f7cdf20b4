"""The trainer behind a node: a process of its own, asked over its socket as Flower's client processes ask it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict

from edge_nodes import Server, TrainerProcess, context_of, question, trainer_process, wait_for
from fedlora.config import RunConfig
from fedlora.deploy.client_app import NODE_FAILED, TRAINER_SOCKET, ask_trainer, reply_to
from fedlora.deploy.frames import receive, send
from fedlora.deploy.settings import to_settings
from fedlora.errors import FedLoRAError, PayloadError
from fedlora.federation.client import CLIENT_FAILED, answer, introduce
from fedlora.federation.workbench import build
from fedlora.wire import from_record
from tiny_run import Ground, write_rows

FEW = ("clients=2", "clients_per_round=2", "rounds=4")


def _payload(reply: Message) -> bytes:
    assert not reply.has_error(), reply.error.reason
    return from_record(reply.content.array_records["arrays"])


def _told(reply: Message) -> dict[str, object]:
    """What a reply says, without how long it took."""
    metrics = dict(reply.content.metric_records["metrics"])
    return {key: value for key, value in metrics.items() if not key.endswith("seconds")}


@pytest.fixture(scope="module")
def config(ground: Ground) -> RunConfig:
    return ground.config(*FEW)


@pytest.fixture(scope="module")
def server(config: RunConfig) -> Server:
    return Server(build(config))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    with trainer_process(tmp_path_factory.mktemp("trainer")) as running:
        yield running


def test_the_trainer_answers_as_this_process_would_and_loads_the_model_once(
    server: Server, config: RunConfig, trainer: TrainerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = server.messages(1)
    monkeypatch.delenv(TRAINER_SOCKET, raising=False)
    for _ in range(2):
        for client, message in enumerate(messages):
            here = answer(server.bench, [message], [context_of(config, client)])[0]
            there = ask_trainer(trainer.socket, message, context_of(config, client))
            assert _payload(there) == _payload(here) and _told(there) == _told(here)
            assert there.metadata.reply_to_message_id == message.metadata.message_id
            assert there.content.metric_records["metrics"]["compute-seconds"] > 0  # type: ignore[operator]
    who = ask_trainer(trainer.socket, question(1), context_of(config, 1))
    assert _told(who) == _told(introduce(server.bench, question(1), context_of(config, 1)))
    assert "arrays" not in who.content.array_records
    # Without a trainer the same client app does the work itself.
    assert _payload(reply_to(messages[0], context_of(config, 0))) == _payload(
        ask_trainer(trainer.socket, messages[0], context_of(config, 0))
    )
    assert trainer.printed.count("loaded ") == 1


def test_another_configuration_is_another_model(ground: Ground, trainer: TrainerProcess) -> None:
    before = trainer.printed.count("loaded ")
    for _ in range(2):
        assert not ask_trainer(trainer.socket, question(0), context_of(ground.config(*FEW, "seed=5"), 0)).has_error()
    assert trainer.printed.count("loaded ") == before + 1


@pytest.mark.parametrize(
    ("change", "client", "code", "reason"),
    [
        ({}, 7, NODE_FAILED, "this node is client 7, the run has clients = 2"),
        ({"model.name": "/no/such/model"}, 0, NODE_FAILED, "/no/such/model"),
        ({"adapter.rank": "many"}, 0, NODE_FAILED, "adapter.rank"),
        ({"nonsense": 1}, 0, NODE_FAILED, "unknown key 'nonsense'"),
    ],
)
def test_what_cannot_work_is_an_error_reply_that_says_why(
    config: RunConfig, trainer: TrainerProcess, change: dict[str, object], client: int, code: int, reason: str
) -> None:
    context = context_of(config, client)
    context.run_config.update(change)  # type: ignore[arg-type]
    reply = ask_trainer(trainer.socket, question(client), context)
    assert reply.has_error() and reply.error.code == code and reason in (reply.error.reason or "")


def test_a_damaged_or_stale_message_is_an_error_reply(server: Server, config: RunConfig, trainer: TrainerProcess) -> None:
    message = server.messages(1)[0]
    message.content.config_records["config"]["round"] = 2
    reply = ask_trainer(trainer.socket, message, context_of(config, 0))
    assert reply.error.code == CLIENT_FAILED and "stale" in (reply.error.reason or "")
    del message.content.config_records["config"]["ranks"]
    assert "ranks" in (ask_trainer(trainer.socket, message, context_of(config, 0)).error.reason or "")
    del message.content["config"]
    assert ask_trainer(trainer.socket, message, context_of(config, 0)).has_error()


def test_messages_of_another_kind_or_too_large_do_not_reach_the_trainer(
    server: Server, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = server.messages(1)[0]
    packed = message.content.array_records["arrays"]["payload"]
    context = context_of(config, 0)
    context.run_config["deployment.max_payload_mb"] = (len(packed.data) - 1) / 1e6
    with pytest.raises(PayloadError, match=r"oversized: the message has \d+ bytes, deployment.max_payload_mb allows \d+"):
        ask_trainer("/nobody", message, context, patience=0)
    for path in ("/nobody", None):
        monkeypatch.setenv(TRAINER_SOCKET, path) if path else monkeypatch.delenv(TRAINER_SOCKET)
        reply = reply_to(message, context)
        assert reply.error.code == NODE_FAILED and "oversized" in (reply.error.reason or "")
    message.content["arrays"] = ArrayRecord({"a": packed, "b": packed})
    with pytest.raises(PayloadError, match="2 arrays, expected one packed array"):
        ask_trainer("/nobody", message, context_of(config, 0), patience=0)


def test_no_trainer_is_an_error_after_some_patience(config: RunConfig) -> None:
    with pytest.raises(FedLoRAError, match="the node's trainer cannot be reached at /nobody: No such file or directory"):
        ask_trainer("/nobody", question(0), context_of(config, 0), patience=0.2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<4sIQ", b"FLF1", 2**31, 0),
        struct.pack("<4sIQ", b"FLF1", 2, 2**62) + b"{}",
        struct.pack("<4sIQ", b"FLF1", 2, 0) + b"[]",
        struct.pack("<4sIQ", b"FLF1", 15, 0) + b'{"settings": 7}',
        struct.pack("<4sIQ", b"FLF1", 2, 0) + b"{}",
    ],
)
def test_whatever_comes_over_the_socket_the_trainer_goes_on(config: RunConfig, trainer: TrainerProcess, data: bytes) -> None:
    wait_for(lambda: Path(trainer.socket).exists())
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(trainer.socket)
        with contextlib.suppress(OSError):  # it may have answered and gone before all is sent
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
        reply = receive(peer, 0).header
    assert reply["code"] == NODE_FAILED and reply["error"].startswith(("truncated", "schema", "oversized", "'int' object"))
    assert not ask_trainer(trainer.socket, question(0), context_of(config, 0)).has_error()


def test_whoever_hangs_up_disturbs_nobody(server: Server, config: RunConfig, trainer: TrainerProcess) -> None:
    wait_for(lambda: Path(trainer.socket).exists())
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(trainer.socket)
            node = {"partition-id": 0}
            header = {"kind": "query", "settings": to_settings(config), "node": node, "config": {}, "array": None}
            send(peer, {**header, "flower": {"run": 1, "node": 1, "group": "roll"}})
    assert not ask_trainer(trainer.socket, question(0), context_of(config, 0)).has_error()


def test_the_socket_is_for_its_owner_only(config: RunConfig, trainer: TrainerProcess) -> None:
    ask_trainer(trainer.socket, question(0), context_of(config, 0))
    assert os.stat(trainer.socket).st_mode & 0o777 == 0o600


def test_killed_over_a_message_the_reply_is_an_error_and_the_next_one_works(ground: Ground, tmp_path: Path) -> None:
    long = ground.config(*FEW, "training.steps=1000000", "evaluation.clients=false")
    short = ground.config(*FEW)
    message = Server(build(long)).messages(1)[0]
    with trainer_process(tmp_path / "t") as trainer:
        replies: list[Message] = []
        os.environ[TRAINER_SOCKET] = trainer.socket
        try:
            asking = threading.Thread(target=lambda: replies.append(reply_to(message, context_of(long, 0))))
            asking.start()
            wait_for(lambda: "loaded " in trainer.printed)
            trainer.kill()
            asking.join(20)
        finally:
            del os.environ[TRAINER_SOCKET]
        assert replies[0].error.code == NODE_FAILED
        assert (
            replies[0].error.reason
            == "the node's trainer stopped while it worked on this message; the next message finds a new one"
        )
        trainer.start()
        server = Server(build(short))
        assert _payload(ask_trainer(trainer.socket, server.messages(1)[0], context_of(short, 0)))


@pytest.mark.parametrize("changes", [("adapter.unit=svd",), ("adapter.unit=svd", "wire.dtype=int8")], ids=["svd", "svd-int8"])
def test_state_survives_a_restart_and_rounds_done_again_give_the_same_bytes(
    ground: Ground, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    """What svd compression kept back enters the next upload: it must neither get lost nor count twice."""
    config = ground.config(*FEW, "policy.name=random", *changes)
    server = Server(build(config))
    kept = [RecordDict({}) for _ in range(2)]
    expected: list[list[bytes]] = []
    asked: list[list[Message]] = []
    for number in (1, 2, 3):
        asked.append(server.messages(number))
        contexts = [context_of(config, client, state=kept[client]) for client in range(2)]
        replies = [answer(server.bench, [message], [context])[0] for message, context in zip(asked[-1], contexts, strict=True)]
        expected.append([_payload(reply) for reply in replies])
        assert server.aggregate(number, replies) == ["ok", "ok"]
    forgetful = answer(server.bench, [asked[2][0]], [context_of(config, 0)])[0]
    assert _payload(forgetful) != expected[2][0]  # so the state does matter

    def round_of(trainer: TrainerProcess, number: int) -> list[bytes]:
        return [_payload(ask_trainer(trainer.socket, asked[number - 1][client], context_of(config, client))) for client in (0, 1)]

    with trainer_process(tmp_path / "t") as trainer:
        assert round_of(trainer, 1) == expected[0]
        assert round_of(trainer, 2) == expected[1]
        trainer.kill()
        trainer.start()
        assert round_of(trainer, 3) == expected[2]
        assert round_of(trainer, 2) == expected[1]  # the server went back to its checkpoint of round 1
        assert round_of(trainer, 3) == expected[2]
        # Another run begins with nothing, whatever its name and however alike.
        other: Context = context_of(config, 0, run="../another run")
        assert _payload(ask_trainer(trainer.socket, asked[2][0], other)) == _payload(forgetful)


def test_a_second_trainer_in_the_same_folder_is_refused(config: RunConfig, trainer: TrainerProcess) -> None:
    ask_trainer(trainer.socket, question(0), context_of(config, 0))
    command = [sys.executable, "-m", "fedlora.deploy.trainer", "--socket", str(trainer.folder / "other")]
    command += ["--state", str(trainer.folder / "state")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 5 and done.stderr.startswith("error: another node is at work in ") and done.stderr.count("\n") == 1


def test_a_trainer_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys\n"
        "process = subprocess.Popen([sys.executable, '-m', 'fedlora.deploy.trainer', '--socket', 's', '--state', 'd',"
        " '--parent', str(os.getpid())])\n"
        "print(process.pid, flush=True)\n"
        "input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_for((tmp_path / "s").exists)
        parent.send_signal(signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])


_CLIENT = """
import json, sys
from fedlora.deploy.client_app import app
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
context = Context(1, 1, {"partition-id": 1}, RecordDict({}), json.loads(sys.stdin.read()))
message = Message(RecordDict({}), dst_node_id=1, message_type=MessageType.QUERY, group_id="roll")
reply = app(message, context)
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "transformers", "pydantic", "ray", "pandas"})
print(json.dumps({"heavy": heavy, "metrics": dict(reply.content.metric_records["metrics"])}))
"""


def test_the_client_app_imports_no_torch(server: Server, config: RunConfig, trainer: TrainerProcess) -> None:
    environment = {**os.environ, TRAINER_SOCKET: trainer.socket}
    settings = json.dumps(dict(context_of(config, 1).run_config))
    done = subprocess.run(
        [sys.executable, "-c", _CLIENT], input=settings, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    found = json.loads(done.stdout)
    assert found["heavy"] == [] and found["metrics"]["num-examples"] == len(server.bench.parts[1])


def _own(path: Path, labels: str, rows: int = 12) -> Path:
    lines = (f"w{row} w{row + 1} w{30 + row},{labels[row % len(labels)]}" for row in range(rows))
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return path


def test_a_node_trains_on_its_own_file(ground: Ground, config: RunConfig, server: Server, tmp_path: Path) -> None:
    """One label of three is enough; its place among the run's labels is the run's, not the file's."""
    own = _own(tmp_path / "own.csv", "c")
    with trainer_process(tmp_path / "t", "--data", str(own)) as trainer:
        who = ask_trainer(trainer.socket, question(1), context_of(config, 1)).content.metric_records["metrics"]
        assert (who["num-examples"], who["held-examples"]) == (11, 1)
        messages = server.messages(1)
        replies = [ask_trainer(trainer.socket, message, context_of(config, at)) for at, message in enumerate(messages)]
        assert server.aggregate(1, replies) == ["ok", "ok"]
        assert _payload(replies[1]) != _payload(answer(server.bench, [messages[1]], [context_of(config, 1)])[0])
        assert replies[1].content.metric_records["metrics"]["num-examples"] == 11


def test_labels_may_come_from_the_server_where_its_data_is_not_here(ground: Ground, tmp_path: Path) -> None:
    away = ground.config(*FEW, "data.name=/on/the/server.csv")
    own = _own(tmp_path / "own.csv", "ac")
    server = Server(build(ground.config(*FEW)))
    with trainer_process(tmp_path / "t", "--data", str(own)) as trainer:
        reply = ask_trainer(trainer.socket, question(0), context_of(away, 0))
        assert "the run's labels are not known here: the server does not tell them" in (reply.error.reason or "")
        asking = question(0)
        asking.content["config"] = _labels("a", "b", "c")
        assert not ask_trainer(trainer.socket, asking, context_of(away, 0)).has_error()
        trainer.kill()
        trainer.start()  # what the server told is remembered
        assert _payload(ask_trainer(trainer.socket, server.messages(1)[0], context_of(away, 0)))


def _labels(*names: str):  # type: ignore[no-untyped-def]
    from flwr.app import ConfigRecord

    return ConfigRecord({"labels": list(names)})


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: _own(path, "abx"), "row 3 has the label 'x' in column 'label', which the run does not know"),
        (lambda path: _own(path, "a", rows=1), "has 1 examples; a client needs 2"),
        (lambda path: write_rows(path, header="words,label"), "has no column 'text'"),
        (lambda path: write_rows(path, header="text,kind"), "has no column 'label'"),
    ],
    ids=["label", "few", "text-column", "label-column"],
)
def test_own_data_that_does_not_fit_the_run_is_refused(config: RunConfig, tmp_path: Path, write, reason: str) -> None:  # type: ignore[no-untyped-def]
    from fedlora.deploy.own_data import read_own
    from fedlora.errors import DataError

    with pytest.raises(DataError, match=reason):
        read_own(write(tmp_path / "own.csv"), config, ["a", "b", "c"])
