"""The ClientApp of a deployment: a thin one, because Flower starts a new process for every message.

On a device that `fedlora node` runs, the environment names the socket of a trainer process that has the model loaded; the message
goes there and its reply comes back. Neither torch nor transformers is imported here. On a stock SuperNode there is no trainer;
the work is then done in this process, which loads the model anew for every message.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import Any, cast

from flwr.app import Array, ArrayRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedlora.deploy.frames import Frame, receive, send
from fedlora.errors import FedLoRAError, PayloadError

TRAINER_SOCKET = "FEDLORA_TRAINER"
"""Environment variable with the path of the trainer's socket."""

SERVER_SETTINGS = ("out", "resume", "run")
"""Settings of the app that are the server's own, not of the run file. "run" names the run folder for as long as it lives."""

NODE_FAILED = 110
"""Error code of a reply that says why a node could not even try: its trainer is gone, the message is malformed."""

_DEFAULT_PAYLOAD_MB = 64.0
# How long a trainer that is being restarted is waited for.
_PATIENCE_S = 120.0

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train what the message asks for."""
    return reply_to(message, context)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say who stands behind this node."""
    return reply_to(message, context)


def run_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are a run file's: all but the server's own."""
    return {key: value for key, value in settings.items() if key not in SERVER_SETTINGS}


def most_payload(settings: Mapping[str, Any]) -> int:
    """Return the largest message accepted, bytes."""
    megabytes = settings.get("deployment.max_payload_mb", _DEFAULT_PAYLOAD_MB)
    return int(1e6 * (float(megabytes) if isinstance(megabytes, int | float) else _DEFAULT_PAYLOAD_MB))


def reply_to(message: Message, context: Context) -> Message:
    """Return the reply of the trainer that the environment names, else of this process; what fails becomes an error reply."""
    path = os.environ.get(TRAINER_SOCKET)
    try:
        return ask_trainer(path, message, context) if path else _answer_here(message, context)
    except FedLoRAError as error:
        return Message(Error(NODE_FAILED, str(error)), reply_to=message)


def ask_trainer(path: str, message: Message, context: Context, patience: float = _PATIENCE_S) -> Message:
    """Send one message to the trainer at a Unix socket and return its reply.

    Args:
        path: The socket.
        message: Carries at most one array, in record "arrays".
        context: Gives the settings, the run and the node's own configuration.
        patience: Seconds to wait for a trainer that is not there yet.

    Raises:
        FedLoRAError: The trainer is gone, or died over this message.
        PayloadError: The message is not of the one-array kind, or too large.
    """
    settings = dict(context.run_config)
    limit = most_payload(settings)
    key, array = _only_array(message, limit)
    header = {
        "kind": message.metadata.message_type,
        "settings": settings,
        "node": dict(context.node_config),
        "flower": {"run": context.run_id, "node": context.node_id, "group": message.metadata.group_id},
        "config": {key: value for key, value in _config(message).items() if not isinstance(value, bytes)},
        "array": None if array is None else {"key": key, "stype": array.stype},
    }
    with _connect(path, patience) as connection:
        try:
            # Whoever refuses a frame answers before its end; the answer tells more than the broken pipe.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                send(connection, header, b"" if array is None else array.data)
            return _to_message(receive(connection, limit), message)
        except (OSError, PayloadError) as error:
            lost = isinstance(error, OSError) or error.reason == "truncated"
            reason = "the node's trainer stopped while it worked on this message" if lost else str(error)
            raise FedLoRAError(f"{reason}; the next message finds a new one" if lost else reason) from None


def _connect(path: str, patience: float) -> socket.socket:
    """Return a connection to the trainer; while the node restarts one, there is nobody to connect to for a moment."""
    deadline = time.monotonic() + patience
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
            return connection
        except OSError as error:
            connection.close()
            if time.monotonic() > deadline:
                raise FedLoRAError(f"the node's trainer cannot be reached at {path}: {error.strerror or error}") from None
            time.sleep(0.1)


def _only_array(message: Message, limit: int) -> tuple[str, Array | None]:
    """Return the packed array of a message and its key, None where it carries none (PayloadError where it is of another kind)."""
    arrays = [item for record in message.content.array_records.values() for item in record.items()]
    if not arrays:
        return "", None
    if len(arrays) != 1:
        raise PayloadError("schema", f"the message holds {len(arrays)} arrays, expected one packed array")
    size = len(arrays[0][1].data)
    if size > limit:
        raise PayloadError("oversized", f"the message has {size} bytes, deployment.max_payload_mb allows {limit}")
    return arrays[0]


def _config(message: Message) -> dict[str, Any]:
    records = message.content.config_records
    return dict(records["config"]) if "config" in records else {}


def _to_message(frame: Frame, message: Message) -> Message:
    """Return the trainer's frame as Flower's reply."""
    header = frame.header
    if "error" in header:
        return Message(Error(int(header["code"]), str(header["error"])), reply_to=message)
    content = RecordDict({"metrics": MetricRecord(cast(dict[str, Any], header["metrics"]))})
    if message.metadata.message_type == MessageType.TRAIN:
        content["arrays"] = packed_record(frame)
    return Message(content, reply_to=message)


def packed_record(frame: Frame) -> ArrayRecord:
    """Return the one packed array that a frame carries, as Flower carries it."""
    named = frame.header["array"]
    packed = Array(dtype="uint8", shape=(len(frame.payload),), stype=str(named["stype"]), data=frame.payload)
    return ArrayRecord({str(named["key"]): packed})


def _answer_here(message: Message, context: Context) -> Message:
    """Do the work in this process, model and all."""
    from fedlora.deploy.settings import from_settings
    from fedlora.federation.client import answer, introduce
    from fedlora.federation.workbench import cached_workbench

    limit = most_payload(context.run_config)
    _only_array(message, limit)
    bench = cached_workbench(from_settings(run_settings(context.run_config)).model_dump_json())
    if message.metadata.message_type == MessageType.QUERY:
        return introduce(bench, message, context)
    return answer(bench, [message], [context])[0]
