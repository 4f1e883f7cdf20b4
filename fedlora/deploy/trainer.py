"""The trainer of a node: one process that loads model and data once and answers message after message.

Flower starts a new process for every message; that process hands the message to this one over a Unix socket (see `client_app`).
Run as `python -m fedlora.deploy.trainer --socket PATH --state DIR [--data PATH] [--link FILE]`; `fedlora node` does, and starts
it anew when it dies. The socket lives in a folder that only the node's user may enter.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fedlora.config import RunConfig
from fedlora.deploy.child_processes import end_with_parent
from fedlora.deploy.client_app import NODE_FAILED, most_payload, packed_record, run_settings
from fedlora.deploy.frames import Frame, receive, send
from fedlora.deploy.link_meter import device_metrics, link_metrics
from fedlora.deploy.node_state import NodeState, only_user
from fedlora.deploy.settings import from_settings
from fedlora.errors import ConfigError, FedLoRAError, PayloadError, RunFolderError

if TYPE_CHECKING:
    from flwr.app import Message

    from fedlora.federation.workbench import Workbench

# How long a peer may take over a frame; it is a process of this node, so this is about one that was stopped half-way.
_FRAME_S = 60.0


class Trainer:
    """Answers frames of `client_app`, one after the other.

    Args:
        states: What the clients keep between rounds.
        data: The node's own data file or folder; None trains on the run's data set.
        link: File with what the SuperNode measured of the link; None reports nothing of it.
    """

    def __init__(self, states: NodeState, data: Path | None = None, link: Path | None = None) -> None:
        self.states, self.data, self.link = states, data, link
        self._loaded: tuple[str, Workbench] | None = None

    def serve(self, listener: socket.socket) -> None:
        """Answer one connection after the other, for ever."""
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(_FRAME_S)
                try:
                    reply = self.reply(receive(connection, lambda header: most_payload(dict(header.get("settings") or {}))))
                except (FedLoRAError, TypeError, ValueError) as error:
                    reply = _failure(NODE_FAILED, str(error))
                except OSError:
                    continue
                # Whoever asked may be gone by now: Flower stops a client app when its run ends.
                with contextlib.suppress(OSError):
                    send(connection, reply.header, reply.payload)

    def reply(self, frame: Frame) -> Frame:
        """Return the answer to one frame; whatever goes wrong is an answer too."""
        try:
            return self._reply(frame)
        except FedLoRAError as error:
            return _failure(NODE_FAILED, str(error))
        except Exception as error:  # the process must outlive any one message
            with contextlib.suppress(OSError):
                traceback.print_exc()
            return _failure(NODE_FAILED, f"the node's trainer failed: {type(error).__name__}: {error}")

    def _reply(self, frame: Frame) -> Frame:
        from flwr.app import ConfigRecord, Context, RecordDict

        from fedlora.deploy.flower_private import message_for
        from fedlora.federation.client import answer, introduce
        from fedlora.wire import from_record

        try:
            asked = frame.header
            settings, flower, config = dict(asked["settings"]), asked["flower"], dict(asked["config"])
            client, number = int(asked["node"]["partition-id"]), int(config.get("round", 0))
            run = str(settings.get("run") or f"flower {int(flower['run'])}")
            content = RecordDict({"config": ConfigRecord(config)} if config else {})
            if asked["kind"] not in ("train", "query") or (asked["kind"] == "train" and not {"round", "ranks"} <= config.keys()):
                raise ValueError("neither a question nor a round with ranks")
            if asked["array"] is not None:
                content["arrays"] = packed_record(frame)
            message = message_for(content, str(asked["kind"]), int(flower["run"]), int(flower["node"]), str(flower["group"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PayloadError("schema", f"the node's message cannot be read ({error!r})") from None
        bench = self._workbench(from_settings(run_settings(settings)), run, client, config)
        began = time.perf_counter()
        context = Context(int(flower["run"]), int(flower["node"]), asked["node"], self._state(run, client, number), settings)
        roll = asked["kind"] == "query"
        reply = introduce(bench, message, context) if roll else answer(bench, [message], [context])[0]
        if reply.has_error():
            return _failure(reply.error.code, reply.error.reason or "no reason given")
        metrics = self._metrics(reply, time.perf_counter() - began)
        if "arrays" not in reply.content.array_records:
            return Frame({"metrics": metrics})
        self.states.save(run, client, number, context.state)
        record = reply.content.array_records["arrays"]
        (key,) = record
        data = from_record(record)
        _say(f"round {number}: trained {metrics.get('steps', 0)} steps in {metrics['compute-seconds']:.1f} s, {len(data)} bytes")
        return Frame({"metrics": metrics, "array": {"key": key, "stype": record[key].stype}}, data)

    def _state(self, run: str, client: int, number: int) -> Any:
        from flwr.app import RecordDict

        return self.states.load(run, client, number) if number else RecordDict({})

    def _metrics(self, reply: Message, seconds: float) -> dict[str, Any]:
        measured = {"compute-seconds": seconds, **device_metrics(), **(link_metrics(self.link) if self.link else {})}
        return {**dict(reply.content.metric_records["metrics"]), **measured}

    def _workbench(self, config: RunConfig, run: str, client: int, message: dict[str, Any]) -> Workbench:
        """Return model and data of a configuration, loaded anew only where it is another one than before."""
        if not 0 <= client < config.clients:
            raise ConfigError(
                f"this node is client {client}, the run has clients = {config.clients}, counted from 0. "
                "Give each node its own number with `fedlora node --client`"
            )
        labels = message.get("labels") or self.states.recall(run, "labels")
        if message.get("labels"):
            self.states.remember(run, "labels", labels)
        key = f"{config.model_dump_json()} {client if self.data else ''} {labels if self.data else ''}"
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # the old model's memory goes before the new one's is taken
            began = time.perf_counter()
            self._loaded = key, self._load(config, client, cast(list[str] | None, labels))
            _say(f"loaded {config.model.name} in {time.perf_counter() - began:.1f} s")
        return self._loaded[1]

    def _load(self, config: RunConfig, client: int, labels: list[str] | None) -> Workbench:
        from fedlora.federation.workbench import build

        if self.data is None:
            return build(config)
        from fedlora.deploy.own_data import own_workbench

        return own_workbench(config, self.data, client, labels)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a log on a disk that is full must not cost the round
        print(text)


def _failure(code: int, reason: str) -> Frame:
    return Frame({"error": reason, "code": code})


def listen(path: Path) -> socket.socket:
    """Return a listening Unix socket at `path`; one that a dead trainer left there is replaced."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
    except OSError as error:
        raise RunFolderError(f"the trainer's socket cannot be made at {path}: {error.strerror or error}") from None
    path.chmod(0o600)
    listener.listen(16)
    return listener


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trainer until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m fedlora.deploy.trainer", description="Answer a node's messages.")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen at")
    parser.add_argument("--state", type=Path, required=True, help="folder of what the client keeps between rounds")
    parser.add_argument("--data", type=Path, help="the node's own data file or folder")
    parser.add_argument("--link", type=Path, help="file with what was measured of the link")
    parser.add_argument("--parent", type=int, default=0, help="process to end with")
    options = parser.parse_args(arguments)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    end_with_parent(options.parent)
    try:
        # The socket is there before the slow imports are: a first message waits instead of failing.
        with only_user(options.state), listen(options.socket) as listener:
            import fedlora.federation.client  # noqa: F401

            Trainer(NodeState(options.state), options.data, options.link).serve(listener)
    except FedLoRAError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
