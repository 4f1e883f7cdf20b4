"""A node on a device: Flower's SuperNode, and behind it a trainer that has the model loaded, both started and watched here."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from fedlora.deploy.child_processes import last_line, start_module, stop
from fedlora.deploy.client_app import TRAINER_SOCKET
from fedlora.deploy.edge_check import (
    ClockError,
    Greeting,
    RefusedError,
    UnreachableError,
    check_key,
    clock_fault,
    greet,
    reach,
)
from fedlora.deploy.flower_private import NODE_AUTH_FAILED, REGISTRATION_DISABLED
from fedlora.deploy.link_meter import read_notes
from fedlora.deploy.node_state import only_user
from fedlora.deploy.superexec import write_program
from fedlora.errors import ConfigError, DataError, FedLoRAError
from fedlora.files import disk_errors

_SCRATCH = "fedlora-node-"
_LOOK_S = 0.1
# Flower counts a node as online for two heartbeats of 30 s after it has vanished, and refuses its key that long.
_GHOST_S, _GHOST_PAUSE_S = 100.0, 5.0
_JOIN_S = 60.0
_DEATHS, _DEATHS_S = 5, 120.0
_LOG_BYTES = 5_000_000
_NO_RETRIES = 10  # tries to reach the server at the start, where the user does not say how many
_UNAUTHORISED = 401
_CALM = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # How often Flower's launcher of client apps looks whether there is something to do, seconds.
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
}


@dataclass(frozen=True)
class NodeOptions:
    """What `fedlora node` is told.

    Attributes:
        superlink: HOST:PORT of the server.
        client: This node's client number, 0 to clients - 1.
        state: The node's own folder.
        ca: Certificate of the authority that signed the server's; None trusts the system's authorities.
        key: The node's private key; None joins servers that ask for none.
        data: The node's own file; None trains on this client's part of the run's data set.
        max_retries: Tries to reach the server again, at the start and whenever the link is down; None: 10 at the start, then for
            ever.
        poll_s: Seconds between two looks for a message.
        plain: Speak plain text.
    """

    superlink: str
    client: int
    state: Path
    ca: Path | None = None
    key: Path | None = None
    data: Path | None = None
    max_retries: int | None = None
    poll_s: float = 0.5
    plain: bool = False


class _StoppedError(BaseException):
    """The node was told to stop."""


def run_node(options: NodeOptions) -> None:
    """Join a deployment and work for it until told to stop (SIGTERM; Ctrl-C raises KeyboardInterrupt).

    Raises:
        ConfigError: A file or option that cannot work.
        RefusedError: The server may not be talked to, or refuses this node.
        UnreachableError: The server cannot be reached.
        FedLoRAError: The node cannot go on; says why.
    """
    _check(options)
    with only_user(options.state), _stoppable():
        greeting = reach(_greeting(options), _NO_RETRIES if options.max_retries is None else options.max_retries, _say)
        if fault := clock_fault(greeting.skew_s):
            raise ClockError(fault)
        with _scratch() as scratch:
            node = _Node(options, scratch)
            try:
                node.work()
            except _StoppedError:
                _say("stopped")
            finally:
                node.end()


def _greeting(options: NodeOptions) -> Callable[[], Greeting]:
    return lambda: greet(options.superlink, options.ca, options.plain)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for sockets and notes, gone at the end; those of nodes that were killed go now.

    It is not the node's own folder because a Unix socket's path may have a hundred letters at most.
    """
    for other in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError), (other / "lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a node that lives holds it
            shutil.rmtree(other, ignore_errors=True)
    with disk_errors(Path(tempfile.gettempdir())):
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH))
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check(options: NodeOptions) -> None:
    if options.plain and (options.key or options.ca):
        raise ConfigError("--insecure-plain-text goes without --key and --ca: a key proves nothing over plain text")
    if options.key is not None:
        check_key(options.key)
    if options.data is not None and not options.data.exists():
        raise DataError(f"there is no file or folder {options.data} to train on. Check --data")
    if not 0.05 <= options.poll_s <= 60:
        raise ConfigError(f"--poll-s {options.poll_s} is not between 0.05 and 60 seconds")
    if options.client < 0:
        raise ConfigError(f"--client {options.client}: client numbers count from 0")


@dataclass
class _Node:
    """The two processes of a node."""

    options: NodeOptions
    scratch: Path
    trainer: subprocess.Popen[bytes] | None = None
    supernode: subprocess.Popen[bytes] | None = None
    _deaths: dict[str, list[float]] = field(default_factory=dict)
    _told: bool = False
    _was_in: bool = False
    _since: float = 0.0
    _ghost_until: float = 0.0

    @property
    def _link(self) -> Path:
        return self.scratch / "link.json"

    @property
    def _online(self) -> Path:
        """There while the server counts this node as online, as far as the node knows: what a killed node leaves behind."""
        return self.options.state / "online"

    def work(self) -> None:
        """Start both processes and keep them going."""
        for name in ("trainer", "supernode"):
            _shorten(self._log(name))
        write_program(self.scratch)
        if self._online.exists():
            self._ghost_until = time.monotonic() + _GHOST_S
        self._start_supernode()
        while True:
            time.sleep(_LOOK_S)
            self._look_at_trainer()
            self._look_at_supernode()

    def end(self) -> None:
        """Stop both processes; a SuperNode that ends in order tells the server."""
        joined = self.supernode is not None and self.supernode.poll() is None
        for process in (self.supernode, self.trainer):
            if process is not None:
                stop(process)
        if joined and self.supernode is not None and self.supernode.returncode == 0:
            with contextlib.suppress(OSError):
                self._online.unlink(missing_ok=True)

    # -- trainer ------------------------------------------------------------------------------------------------------

    def _start_trainer(self) -> None:
        arguments = ["--socket", str(self.scratch / "trainer"), "--state", str(self.options.state / "clients")]
        arguments += ["--link", str(self._link), "--parent", str(os.getpid())]
        if self.options.data is not None:
            arguments += ["--data", str(self.options.data.absolute())]
        self.trainer = start_module("fedlora.deploy.trainer", arguments, self._environment(), self._log("trainer"), True)

    def _look_at_trainer(self) -> None:
        code = None if self.trainer is None else self.trainer.poll()
        if code is None:
            return
        if code >= 0:
            raise FedLoRAError(f"the trainer cannot start: {last_line(self._log('trainer')).removeprefix('error: ')}")
        self._count_death("trainer", f"the trainer was ended by signal {-code}")
        self._start_trainer()

    # -- SuperNode ----------------------------------------------------------------------------------------------------

    def _start_supernode(self) -> None:
        options = self.options
        self._link.unlink(missing_ok=True)
        arguments = ["--link", str(self._link), "--poll-s", str(options.poll_s), "--parent", str(os.getpid()), "--"]
        arguments += ["--superlink", options.superlink, "--host", "127.0.0.1", "--port", str(_free_port())]
        arguments += ["--node-config", f"partition-id={options.client}"]
        if options.plain:
            arguments += ["--insecure"]
        if options.ca is not None:
            arguments += ["--root-certificates", str(options.ca.absolute())]
        if options.key is not None:
            arguments += ["--auth-supernode-private-key", str(options.key.absolute())]
        if options.max_retries is not None:
            arguments += ["--max-retries", str(options.max_retries)]
        self._told, self._since = False, time.monotonic()
        self.supernode = start_module("fedlora.deploy.supernode", arguments, self._environment(), self._log("supernode"), False)

    def _look_at_supernode(self) -> None:
        assert self.supernode is not None
        code, notes = self.supernode.poll(), read_notes(self._link)
        if notes.get("activated") and not self._told:
            self._told, self._was_in, self._ghost_until = True, True, 0.0
            with contextlib.suppress(OSError):  # a disk that is full must not keep the node out
                self._online.touch()
            _say(f"online at {self.options.superlink} as client {self.options.client}")
            if self.trainer is None:  # not before: a node that is refused needs none
                self._start_trainer()
        if code is not None:
            self._after_supernode(code, notes)
        elif not self._told and not self._was_in and time.monotonic() - self._since > _JOIN_S:
            raise UnreachableError(f"{self.options.superlink} answers, but did not let this node in within {_JOIN_S:.0f} s")

    def _after_supernode(self, code: int, notes: dict[str, Any]) -> None:
        """Say why a SuperNode ended, or start it anew where that may help."""
        refused = notes.get("refused") or {}
        if refused.get("status") == _UNAUTHORISED and (fault := clock_fault(refused.get("skew_s"))):
            raise ClockError(fault)
        reason = self._refusal(refused, bool(notes.get("activated")))
        if reason and refused.get("code") == NODE_AUTH_FAILED and time.monotonic() < self._ghost_until:
            # Our own earlier self, killed before it could say goodbye.
            _say("the server still counts this node as online from before; waiting until it has noticed")
            time.sleep(_GHOST_PAUSE_S)
            self._start_supernode()
            return
        if reason:
            with contextlib.suppress(OSError):
                self._online.unlink(missing_ok=True)
            raise RefusedError(reason)
        what = f"was ended by signal {-code}" if code < 0 else f"ended with code {code} ({last_line(self._log('supernode'))})"
        self._ghost_until = time.monotonic() + _GHOST_S
        if not self._was_in or self._server_answers():
            self._count_death("supernode", f"the SuperNode {what}")
        time.sleep(1.0)
        self._start_supernode()

    def _server_answers(self) -> bool:
        """Return whether the server answers at once; where it does not, wait until it does, which is nobody's fault.

        Flower tries again where nobody answers, and ends where a connection breaks in the middle of TLS's greeting.

        Raises:
            UnreachableError: The user said how often to try, and it was not enough.
        """
        greeting, told = _greeting(self.options), False
        tries = 0
        while True:
            try:
                greeting()
                return not told
            except UnreachableError as error:
                tries += 1
                if self.options.max_retries is not None and tries > self.options.max_retries:
                    raise UnreachableError(f"{error} (tried {tries} times)") from None
                if not told:
                    _say(f"{error}; trying until it does")
                told = True
            time.sleep(min(5.0, float(tries)))

    def _refusal(self, refused: dict[str, Any], was_in: bool) -> str | None:
        """Return why the server turned this node away, None where it did not."""
        server, key = self.options.superlink, self.options.key
        if refused.get("status") == _UNAUTHORISED:
            if was_in:
                return f"{server} no longer accepts this node: its key was revoked, or the server's database is another one"
            return f"{server} does not accept this node's signature. Use the key that `fedlora deploy` made for this node"
        if refused.get("code") == REGISTRATION_DISABLED:
            return f"{server} lets in registered keys only. Give this node's key with --key"
        if refused.get("code") == NODE_AUTH_FAILED:
            return (
                f"{server} does not let in the key {key}: it is not registered there, was revoked, or another node is online "
                "with it. Each node needs a key of its own, from `fedlora deploy`"
            )
        return None

    # -- both ---------------------------------------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        own = {
            TRAINER_SOCKET: str(self.scratch / "trainer"),
            "FLWR_HOME": str(self.options.state.absolute() / "flwr"),
            # Flower starts its own programs by name: ours comes first, and a service does not have the virtual environment there.
            "PATH": os.pathsep.join([str(self.scratch), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        }
        return {**_CALM, **os.environ, **own}

    def _log(self, name: str) -> Path:
        return self.options.state / f"{name}.log"

    def _count_death(self, name: str, what: str) -> None:
        """Tell that a process ended and is started anew; too often means that it is no use (FedLoRAError)."""
        now = time.monotonic()
        recent = [moment for moment in self._deaths.get(name, []) if now - moment < _DEATHS_S] + [now]
        self._deaths[name] = recent
        if len(recent) > _DEATHS:
            raise FedLoRAError(f"{what}, {len(recent)} times within {_DEATHS_S:.0f} s. See {self._log(name)}")
        _say(f"{what}; starting another")


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM and a terminal that is closed raise _StoppedError in the block, so that everything is ended in order."""

    def told(_signal: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # once is enough: the end is under way
        raise _StoppedError

    # Whoever starts a node with nohup wants it to outlive the terminal.
    stops = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, told) for number in stops}
    try:
        yield
    except _StoppedError:
        _say("stopped")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def default_state(key: Path | None, client: int) -> Path:
    """Return the folder that a node keeps its own things in where the user names none: one per key, else per client number."""
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    name = f"client-{client}"
    if key is not None:
        from cryptography.hazmat.primitives import hashes

        digest = hashes.Hash(hashes.SHA256())
        with contextlib.suppress(OSError):
            digest.update(key.read_bytes())
        name = f"key-{digest.finalize().hex()[:12]}"
    return home / "fedlora" / "nodes" / name


def client_number(key: Path | None, given: int | None) -> int:
    """Return the client number of a node: as given, else the number that its key's name ends with (ConfigError if neither)."""
    if given is not None:
        return given
    digits = "" if key is None else key.stem[len(key.stem.rstrip("0123456789")) :]
    if not digits:
        raise ConfigError("which client is this node? Give its number with --client: 0 for the first, up to clients - 1")
    return int(digits)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _shorten(log: Path) -> None:
    """Start a log anew once it is large, keeping the one before."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > _LOG_BYTES:
            os.replace(log, log.with_suffix(".old"))


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that is closed, a log on a full disk
        print(text, flush=True)


__all__ = ["NodeOptions", "client_number", "default_state", "run_node"]
