"""A node on a device: Flower's SuperNode, and behind it a trainer that has the model loaded, both started and watched here."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlora.deploy.child_processes import last_line, start_module, stop
from fedlora.deploy.client_app import TRAINER_SOCKET
from fedlora.deploy.doorbell import DOORBELL
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
from fedlora.deploy.node_life import StoppedError, free_port, say, scratch_folder, shorten, stoppable
from fedlora.deploy.node_state import only_user
from fedlora.deploy.superexec import write_program
from fedlora.errors import ConfigError, DataError, FedLoRAError

_LOOK_S = 0.1
# Flower counts a node as online for two heartbeats of 30 s after it has vanished, and refuses its key that long.
_GHOST_S, _GHOST_PAUSE_S = 100.0, 5.0
_JOIN_S = 60.0
_LOST_S = 5.0
_DEATHS, _DEATHS_S = 5, 120.0
_NO_RETRIES = 10  # tries to reach the server at the start, where the user does not say how many
_UNAUTHORISED = 401
_TROUBLE, _TROUBLE_S = 500, 10.0
_CALM = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
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


def run_node(options: NodeOptions) -> None:
    """Join a deployment and work for it until told to stop (SIGTERM; Ctrl-C raises KeyboardInterrupt).

    Raises:
        ConfigError: A file or option that cannot work.
        RefusedError: The server may not be talked to, or refuses this node.
        UnreachableError: The server cannot be reached.
        FedLoRAError: The node cannot go on; says why.
    """
    _check(options)
    with only_user(options.state), stoppable():
        greeting = reach(_greeting(options), _NO_RETRIES if options.max_retries is None else options.max_retries, say)
        if fault := clock_fault(greeting.skew_s):
            raise ClockError(fault)
        with scratch_folder() as scratch:
            node = _Node(options, scratch)
            try:
                node.work()
            except StoppedError:
                say("stopped")
            finally:
                node.end()


def _greeting(options: NodeOptions) -> Callable[[], Greeting]:
    return lambda: greet(options.superlink, options.ca, options.plain)


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
    _lost: bool = False
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
            shorten(self._log(name))
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
        arguments += ["--superlink", options.superlink, "--host", "127.0.0.1", "--port", str(free_port())]
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
            say(f"online at {self.options.superlink} as client {self.options.client}")
            if self.trainer is None:  # not before: a node that is refused needs none
                self._start_trainer()
        self._tell_link(notes.get("error"))
        if code is None and self._deaf(notes.get("refused") or {}):
            stop(self.supernode)
            code = self.supernode.poll()
        if code is not None:
            self._after_supernode(code, notes)
        elif not self._told and not self._was_in and time.monotonic() - self._since > _JOIN_S:
            raise UnreachableError(f"{self.options.superlink} answers, but did not let this node in within {_JOIN_S:.0f} s")

    def _deaf(self, refused: dict[str, Any]) -> bool:
        """Return whether the SuperNode has stopped giving signs of life: Flower does where one was answered by an error."""
        return refused.get("status", 0) >= _TROUBLE and str(refused.get("path")).endswith("/send-node-heartbeat")

    def _tell_link(self, error: dict[str, Any] | None) -> None:
        """Tell where the server does not answer for a while, and when it does again; Flower's SuperNode tries on by itself."""
        lost = self._told and error is not None and (self._lost or time.monotonic() - error["since"] > _LOST_S)
        if lost and not self._lost and error is not None:
            say(f"{self.options.superlink} does not answer ({error['text']}); trying until it does")
        elif self._lost and not lost:
            say(f"{self.options.superlink} answers again")
        self._lost = lost

    def _after_supernode(self, code: int, notes: dict[str, Any]) -> None:
        """Say why a SuperNode ended, or start it anew where that may help."""
        assert self.supernode is not None
        stop(self.supernode)  # what it started may still be there
        refused = notes.get("refused") or {}
        if refused.get("status") == _UNAUTHORISED and (fault := clock_fault(refused.get("skew_s"))):
            raise ClockError(fault)
        reason = self._refusal(refused, bool(notes.get("activated")))
        if reason and refused.get("code") == NODE_AUTH_FAILED and time.monotonic() < self._ghost_until:
            # Our own earlier self, killed before it could say goodbye.
            say("the server still counts this node as online from before; waiting until it has noticed")
            time.sleep(_GHOST_PAUSE_S)
            self._start_supernode()
            return
        if reason:
            with contextlib.suppress(OSError):
                self._online.unlink(missing_ok=True)
            raise RefusedError(reason)
        what = f"was ended by signal {-code}" if code < 0 else f"ended with code {code} ({last_line(self._log('supernode'))})"
        self._ghost_until = time.monotonic() + _GHOST_S
        if (status := refused.get("status", 0)) >= _TROUBLE:  # Flower's SuperNode ends over it, which is nobody's fault here
            say(f"{self.options.superlink} answers with an error of its own ({status}); trying again in {_TROUBLE_S:.0f} s")
            time.sleep(_TROUBLE_S)
        elif not self._was_in or self._server_answers():
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
                if not told and not self._lost:
                    say(f"{error}; trying until it does")
                told = self._lost = True
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
            DOORBELL: str(self.scratch / "doorbell"),
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
        say(f"{what}; starting another")


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


__all__ = ["NodeOptions", "client_number", "default_state", "run_node"]
