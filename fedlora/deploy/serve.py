"""`fedlora serve`: one run over real nodes, from the first process to a truthful end."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from fedlora.config import RunConfig
from fedlora.deploy.app_folder import SERVER_DEFAULTS, flat_settings, settings_file, write_app
from fedlora.deploy.deploy_folder import DeployFolder
from fedlora.deploy.server_processes import STOPS, lives, undisturbed
from fedlora.deploy.settings import to_settings
from fedlora.deploy.status import Status, StatusFile
from fedlora.deploy.superlink import Link, RunStatus, warning
from fedlora.deploy.watch import Watcher
from fedlora.errors import ConfigError, FedLoRAError, Terminated
from fedlora.runs.folder import RunFolder, holds_run, refuse_taken
from fedlora.runs.logs import Tail

_LOOK_S = 0.3
_ASK_FLOWER_S = 10.0


@dataclass(frozen=True)
class Served:
    """A finished run: its folder and one row per round (the rows of metrics.jsonl)."""

    folder: Path
    rounds: list[dict[str, Any]]


def serve(config: RunConfig, folder: DeployFolder, out: Path, *, resume: bool, plain_text: bool, watcher: Watcher) -> Served:
    """Run `config` over the nodes of a deployment, and return when all its rounds are done.

    Args:
        config: The run.
        folder: The deployment.
        out: New folder, or with `resume` the folder of a run that was cut off.
        resume: Go on from the newest checkpoint; the folder's configuration must be `config`.
        plain_text: Neither encrypt nor authenticate.
        watcher: Who is told what happens.

    Raises:
        FedLoRAError: Not all rounds are done; says why, and how to go on.
        KeyboardInterrupt: Ctrl-C or SIGTERM (`Terminated`); everything that was started has been stopped.
    """
    config = config.model_copy(update={"engine": "deployment"})
    out = out.absolute()
    if resume and holds_run(out):
        RunFolder.open(out).refuse_other(config)
        if done := _finished(out, config):
            watcher.say(f"all {config.rounds} rounds of {out} are done already")
            return done
    else:
        refuse_taken(out)
    for note in _check_nodes(config, folder):
        watcher.say(f"note: {note}")
    if plain_text:
        watcher.say(f"warning: {warning(folder)}")
    _check_app(config, folder, watcher)
    work = _Work(config, folder, out, resume, plain_text, watcher)
    with _terminable():
        return work.do()


class _Work:
    """One run of `serve`, from start to end."""

    def __init__(
        self, config: RunConfig, folder: DeployFolder, out: Path, resume: bool, plain_text: bool, watcher: Watcher
    ) -> None:
        self.config, self.folder, self.out, self.resume, self.watcher = config, folder, out, resume, watcher
        self.status_file = StatusFile(folder.state / "status.json")
        self.name = self._name()
        environment = {"FEDLORA_STATUS": str(self.status_file.path), "FEDLORA_SERVED": self.name}
        self.link = Link(folder, plain_text, environment, watcher.say)
        self.rows, self.clients = Tail(out / "metrics.jsonl"), Tail(out / "clients.jsonl")
        self.details: list[dict[str, Any]] = []
        self.status = Status()

    def do(self) -> Served:
        """Start everything, submit the run, watch it, stop everything."""
        with self.link.up():
            self.status_file.create()  # not before: what an earlier server left behind has had its last word by now
            self.link.stop_old_runs()
            names = self.folder.registered()
            settings = self.folder.state / "run.toml"
            settings_file(settings, self.config, self.out, self.resume, self.name)
            self.watcher.begin(self.config, {number: name for name, number in names.items()}, self.folder.address)
            run = self.link.submit(settings)
            try:
                outcome = self._watch(run)
            except BaseException:
                with undisturbed():
                    self.link.stop_run(run)
                raise
            if not outcome.status.endswith("completed"):
                with undisturbed():
                    self.link.stop_run(run)
        return self._result(outcome)

    def _name(self) -> str:
        """Return the name under which nodes know this run: the one of its folder, else a new one."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            return str(json.loads((self.out / "deployment.json").read_text())["run"])
        return secrets.token_hex(8)

    def _watch(self, run: int) -> RunStatus:
        """Return how the run ended, as far as Flower knows, after telling all that happened."""
        asked = time.monotonic()
        answer: list[RunStatus | None] = []
        inquiry: threading.Thread | None = None
        while True:
            self.link.care()
            self.status = self.status_file.read() or self.status
            self._tell()
            if self.status.pid:
                self.link.adopt(self.status.pid)
            gone = self.status.pid != 0 and not lives(self.status.pid)
            # Flower's answer costs a second of a process: it is asked where there is something to learn, beside all else.
            if inquiry is None and (gone or time.monotonic() - asked > _ASK_FLOWER_S):
                asked = time.monotonic()
                inquiry = threading.Thread(target=lambda: answer.append(self.link.run_status(run)), daemon=True)
                inquiry.start()
            if inquiry is not None and not inquiry.is_alive():
                inquiry = None
                found = answer.pop() if answer else None
                if found is not None and found.finished:
                    self._tell()
                    return found
                if gone and found is not None:
                    return RunStatus("died", "")  # Flower will notice in a minute; we know already
            time.sleep(_LOOK_S)

    def _tell(self) -> None:
        """Tell the rounds that are new, and where the run is."""
        if self.status.round:  # before that, a resumed run's folder may still hold rows that it is about to cut off
            rows = self.rows.read()
            self.details += self.clients.read()
            for row in rows:
                if row["round"] > self.status.first:
                    self.watcher.round(row, [client for client in self.details if client["round"] == row["round"]])
            if rows:
                self.details = [client for client in self.details if client["round"] > rows[-1]["round"]]
        self.watcher.status(self.status)

    def _result(self, outcome: RunStatus) -> Served:
        """Return the finished run where Flower and the run folder agree that it is; otherwise say why not."""
        self.status = self.status_file.read() or self.status
        done = _finished(self.out, self.config)
        # A server app that is done and finds no SuperLink cannot tell Flower; it has told us.
        if done and (outcome.status.endswith("completed") or (outcome.status == "died" and self.status.phase == "done")):
            return done
        where = f"round {self.status.round}" if self.status.round else "before the first round"
        again = f"Go on with: fedlora serve --deployment {self.folder.path} --resume {self.out}"
        if not holds_run(self.out):
            again = f"The run folder was not begun; logs are in {self.folder.state / 'logs'}"
        if self.status.phase == "failed":
            error = FedLoRAError(f"{self.status.error.rstrip('.')}. {again}" if holds_run(self.out) else self.status.error)
            error.exit_code = self.status.exit_code or 1
            raise error
        if outcome.status == "died":
            raise FedLoRAError(f"the server app died in {where}; what was done until then is kept. {again}")
        details = f" ({' '.join(outcome.details.split())})" if outcome.details else ""
        raise FedLoRAError(f"Flower ended the run in {where}: {outcome.status}{details}. {again}")


def _finished(out: Path, config: RunConfig) -> Served | None:
    """Return a run whose last round is done and whose adapter is there."""
    if not holds_run(out):
        return None
    rows = RunFolder(out, config).rows()
    whole = bool(rows) and rows[-1]["round"] == config.rounds and (out / "adapter" / "adapter_model.safetensors").is_file()
    return Served(out, rows) if whole else None


def _check_nodes(config: RunConfig, folder: DeployFolder) -> list[str]:
    """Return what to note of a run over these nodes (ConfigError where it cannot be)."""
    nodes, revoked = folder.nodes(), folder.server.revoked
    for node in nodes:
        if node.client >= config.clients:
            raise ConfigError(
                f"node '{node.name}' is client {node.client}, the run has clients = {config.clients} (numbered from 0). "
                f"Set clients={max(node.client for node in nodes) + 1}, or revoke the node"
            )
    missing = [client for client in range(config.clients) if client not in {node.client for node in nodes}]
    if not missing:
        return []
    if set(missing) - set(revoked.values()) or len(nodes) < config.deployment.least_nodes:
        raise ConfigError(
            f"clients = {config.clients}, but {folder.path} has keys for {len(nodes)} nodes. "
            f"Set clients={len(nodes)} (and clients_per_round to no more), or add nodes: "
            f"fedlora deploy add-node {folder.path} NAME"
        )
    return [
        f"no node has a key for clients {', '.join(map(str, missing))} (revoked): the run waits "
        f"{config.deployment.start_timeout_s:g} s for all clients, then starts with those that are there"
    ]


def _check_app(config: RunConfig, folder: DeployFolder, watcher: Watcher) -> None:
    """Bring the Flower app up to date with this version of fedlora: Flower takes no setting that the app does not have."""
    wanted = set(to_settings(config)) | set(SERVER_DEFAULTS)
    file = folder.app / "pyproject.toml"
    found = set(flat_settings(file)) if file.is_file() else set()
    if wanted != found:
        watcher.say(f"note: {file} is of another version of fedlora; its settings are replaced by those of this run")
        write_app(folder.app, config)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM and a terminal that is closed end the process as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    # Ctrl-C too: who is started in the background is deaf to it otherwise. With nohup the terminal may go.
    handlers = {number: signal.default_int_handler if number == signal.SIGINT else stop for number in STOPS}
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and hangup in handlers and signal.getsignal(hangup) == signal.SIG_IGN:
        del handlers[hangup]
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
