"""A node with a good key and bad intentions: between its client app and a real trainer stands somebody who spoils the replies."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edge_links import free_port
from edge_nodes import TrainerProcess
from fedlora.deploy.child_processes import stop
from fedlora.deploy.frames import Frame, receive, send
from fedlora.deploy.superexec import write_program
from fedlora.wire import decode, encode

_LIMIT = 10**9
# A node may run what it likes: this one's client app lets messages of any size through.
_NO_LIMIT = "import fedlora.deploy.client_app as app\napp.most_payload = lambda settings: 10**12\n"


@dataclass
class Spoiler:
    """Stands between the client app and the trainer.

    Args:
        path: The socket that the client app knows.
        trainer: The trainer's socket.
        spoil: What is done to the reply of each round that it names; the others pass as they are.
    """

    path: Path
    trainer: str
    spoil: dict[int, Callable[[Frame, Spoiler], Frame]]
    sound: dict[int, bytes] = field(default_factory=dict)
    spoilt: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(self.path))
        self.listener.listen(16)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                threading.Thread(target=self._answer, args=(near,), daemon=True).start()

    def _answer(self, near: socket.socket) -> None:
        with near, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as far, contextlib.suppress(OSError):
            frame = receive(near, _LIMIT)
            far.connect(self.trainer)
            send(far, frame.header, frame.payload)
            reply = receive(far, _LIMIT)
            number = int(frame.header["config"].get("round", 0))
            if number:
                self.sound[number] = reply.payload
            if number in self.spoil:
                reply = self.spoil[number](reply, self)
                self.spoilt.append(number)
            send(near, reply.header, reply.payload)


def truncated(reply: Frame, node: Spoiler) -> Frame:
    """The last bytes are missing."""
    return Frame(reply.header, reply.payload[:-7])


def malformed(reply: Frame, node: Spoiler) -> Frame:
    """Something else altogether."""
    return Frame(reply.header, b"\x80\x04" + bytes(range(256)) * 40)


def not_a_number(reply: Frame, node: Spoiler) -> Frame:
    """One number is NaN; the checksum fits."""
    return Frame(reply.header, _encoded(reply.payload, max(node.sound), float("nan")))


def stale(reply: Frame, node: Spoiler) -> Frame:
    """A sound update that says it is of the round before."""
    return Frame(reply.header, _encoded(reply.payload, max(node.sound) - 1))


def replayed(reply: Frame, node: Spoiler) -> Frame:
    """The very bytes of an earlier round."""
    return Frame(reply.header, node.sound[min(node.sound)])


def oversized(reply: Frame, node: Spoiler) -> Frame:
    """Far more than asked for."""
    return Frame(reply.header, bytes(12_000_000))


def late(reply: Frame, node: Spoiler) -> Frame:
    """A sound update after the deadline."""
    time.sleep(36)
    return reply


def breaks_the_client_app(reply: Frame, node: Spoiler) -> Frame:
    """Metrics of a kind that Flower does not carry: the client app raises."""
    return Frame({**reply.header, "metrics": {"client": "somebody"}}, reply.payload)


def _encoded(payload: bytes, tag: int, first: float | None = None) -> bytes:
    tensors = decode(payload, "fp32")
    if first is not None:
        next(tensor for tensor in tensors.values() if tensor.is_floating_point()).view(-1)[0] = first
    return encode(tensors, "fp32", tag=tag)


@contextlib.contextmanager
def bad_node(
    folder: Path, superlink: str, ca: Path, key: Path, client: int, spoil: dict[int, Callable[[Frame, Spoiler], Frame]]
) -> Iterator[Spoiler]:
    """A SuperNode whose replies are spoilt, ended with the block."""
    folder.mkdir()
    (folder / "path").mkdir()
    (folder / "path" / "sitecustomize.py").write_text(_NO_LIMIT)
    write_program(folder)
    trainer = TrainerProcess(folder / "trainer")
    trainer.start()
    spoiler = Spoiler(folder / "socket", trainer.socket, spoil)
    environment = {
        **os.environ,
        "FEDLORA_TRAINER": str(folder / "socket"),
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder / "path"), os.environ.get("PYTHONPATH", "")])),
        "PATH": os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    command = [
        sys.executable,
        "-m",
        "fedlora.deploy.supernode",
        "--link",
        str(folder / "link.json"),
        "--poll-s",
        "0.2",
        "--parent",
    ]
    command += [str(os.getpid()), "--", "--superlink", superlink, "--host", "127.0.0.1", "--port", str(free_port())]
    command += [
        "--node-config",
        f"partition-id={client}",
        "--root-certificates",
        str(ca),
        "--auth-supernode-private-key",
        str(key),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield spoiler
    finally:
        stop(process)
        spoiler.listener.close()
        trainer.kill()
