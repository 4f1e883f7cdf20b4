"""The SuperLink of a deployment and what runs beside it: started, watched, started again when it dies, and stopped.

Flower is driven by its command line, as a user would. Nothing here outlives its `Link`; what an earlier one left behind,
because it was killed, is stopped first.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora.deploy.deploy_folder import DeployFolder, Node, free_port, is_loopback, with_port
from fedlora.deploy.lives import LIVES, SUPERLINK
from fedlora.deploy.server_processes import alone, children, end, end_leftovers, find, in_use, note, undisturbed
from fedlora.errors import ConfigError, FedLoRAError
from fedlora.files import disk_errors, write_atomic

_START_S = 60.0
_CALL_S = 60.0
# More deaths than this in so many seconds are no accident.
_DEATHS, _DEATHS_WITHIN_S = 5, 60.0
_TASK_POLL_S = "0.2"


@dataclass(frozen=True)
class RunStatus:
    """What Flower says of a run.

    Attributes:
        status: "pending", "starting", "running", or "finished:" with how.
        details: Why it failed.
    """

    status: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether it is over."""
        return self.status.startswith("finished")


class Link:
    """The SuperLink and the SuperExec of a deployment.

    Args:
        folder: The deployment.
        plain_text: Neither encrypt nor authenticate.
        environment: More environment variables for what is started.
        say: Who is told what happens, a sentence each.
    """

    def __init__(self, folder: DeployFolder, plain_text: bool, environment: dict[str, str], say: Callable[[str], None]) -> None:
        self.folder, self.plain_text, self.say = folder, plain_text, say
        self.environment = _environment(folder) | environment
        self.connection = "plain" if plain_text else "fedlora"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.server_app = 0
        self._aside: tuple[str, int] | None = None
        self._deaths: deque[float] = deque()

    @contextlib.contextmanager
    def up(self) -> Iterator[Link]:
        """Start both, and stop both, and all they started, at the end.

        Raises:
            FedLoRAError: The port is taken, another server works on this folder, or Flower does not start; says why.
        """
        logs = self.folder.state / "logs"
        with disk_errors(logs):
            logs.mkdir(parents=True, exist_ok=True)
        with alone(self.folder.state):
            end_leftovers(self._noted)
            self._check_files()
            self._check_port()
            try:
                self._register()
                self.folder.write_flwr_config()
                self._start("superlink")
                self._wait_until_up()
                self._start("superexec")
                yield self
            finally:
                with undisturbed():
                    self._stop()

    def care(self) -> None:
        """Start again what has died.

        Raises:
            FedLoRAError: It dies again and again.
        """
        for name, process in list(self.processes.items()):
            code = process.poll()
            if code is None:
                continue
            now = time.monotonic()
            self._deaths.append(now)
            while self._deaths and self._deaths[0] < now - _DEATHS_WITHIN_S:
                self._deaths.popleft()
            if len(self._deaths) > _DEATHS:
                raise FedLoRAError(f"Flower's {name} died {len(self._deaths)} times in a minute: {self._last_words(name)}")
            self.say(f"Flower's {name} died ({_how(code)}); starting it again")
            self._start(name)
            if name == "superlink":
                self._wait_until_up()

    # -- Flower's command line -------------------------------------------------------------------------------------------

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """Run one of Flower's commands and return its answer.

        Raises:
            FedLoRAError: It fails; carries what it says.
        """
        command = [_program("flwr"), *arguments, "--format", "json"]
        try:
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=_CALL_S, check=False)
        except subprocess.TimeoutExpired:
            raise FedLoRAError(f"`flwr {' '.join(arguments[:2])}` got no answer within {_CALL_S:g} s") from None
        try:
            answer = json.loads(done.stdout[done.stdout.index("{") :])
            assert isinstance(answer, dict)
        except (ValueError, AssertionError):
            answer = {}
        if done.returncode or not answer.get("success"):
            said = answer.get("error-message") or (done.stderr or done.stdout).strip()
            raise FedLoRAError(f"`flwr {' '.join(arguments[:2])}` failed: {' '.join(str(said).split())}")
        return answer

    def _register(self) -> None:
        """Make all nodes known to the SuperLink that it does not know yet.

        Flower does this by a running SuperLink, and a node that comes before its key is known is turned away for good. So the
        SuperLink that learns the keys is one that only this machine can reach.
        """
        known = self.folder.registered()
        fresh = [node for node in self.folder.nodes() if node.name not in known]
        if not fresh or self.plain_text:
            return
        self._aside = ("127.0.0.1", free_port("127.0.0.1"))
        self.folder.write_flwr_config(with_port(*self._aside))
        self._start("superlink")
        self._wait_until_up()
        with ThreadPoolExecutor(4) as pool:
            for node, number in zip(fresh, pool.map(self._register_one, fresh), strict=True):
                known[node.name] = number
                self.folder.note_registered(known)
        self._stop()
        self._aside = None

    def _register_one(self, node: Node) -> int:
        answer = self.flwr("supernode", "register", str(node.public), self.connection, "--name", node.name)
        return int(answer["node-id"])

    def unregister(self, name: str) -> None:
        """Shut a node out; if the SuperLink never knew it, there is nothing to do."""
        known = self.folder.registered()
        number = known.pop(name, None)
        if number is not None:
            self.flwr("supernode", "unregister", str(number), self.connection)
            self.folder.note_registered(known)

    def submit(self, settings: Path) -> int:
        """Start a run with the settings of a file; return Flower's number of it."""
        answer = self.flwr("run", str(self.folder.app), self.connection, "--run-config", str(settings))
        return int(answer["run-id"])

    def run_status(self, run: int) -> RunStatus | None:
        """Return what Flower says of a run, None where it says nothing just now."""
        try:
            found = self.flwr("ls", self.connection, "--run-id", str(run))["runs"][0]
        except (FedLoRAError, LookupError):
            return None
        return RunStatus(str(found.get("status", "")), str(found.get("status-details") or ""))

    def stop_run(self, run: int) -> None:
        """Tell Flower that a run is over; it may be so already."""
        with contextlib.suppress(FedLoRAError):
            self.flwr("stop", str(run), self.connection)

    def stop_old_runs(self) -> None:
        """End what the database still holds as running: an earlier server was killed."""
        for run in self.flwr("ls", self.connection).get("runs", []):
            if not str(run.get("status", "")).startswith("finished"):
                self.stop_run(int(run["run-id"]))

    # -- processes -------------------------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        log = self.folder.state / "logs" / f"{name}.log"
        with disk_errors(log), log.open("ab") as file:
            # In a session of its own: Ctrl-C is for us, who stop the others in order.
            self.processes[name] = subprocess.Popen(
                self._command(name),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._note()
        if name == "superlink":
            write_atomic(self.folder.state / SUPERLINK, str(self.processes[name].pid))  # the server app looks at it

    def adopt(self, pid: int) -> None:
        """Remember the server app's process: it may outlive the one that started it, but not this link."""
        if pid != self.server_app:
            self.server_app = pid
            self._note()

    def _note(self) -> None:
        pids = [process.pid for process in self.processes.values()]
        note(self._noted, [self.server_app, *pids] if self.server_app else pids)

    @property
    def _noted(self) -> Path:
        return self.folder.state / "processes.json"

    def _command(self, name: str) -> list[str]:
        folder, server = self.folder, self.folder.server
        secret = ["--superexec-auth-secret-file", str(folder.secret)]
        if name == "superexec":
            trust = ["--insecure"] if self.plain_text else ["--root-certificates", str(folder.ca)]
            return [_program("flower-superexec"), *trust, "--runtime-api-address", folder.local_address, *secret]
        tls = ["--ssl-ca-certfile", str(folder.ca), "--ssl-certfile", str(folder.certificate), "--ssl-keyfile", str(folder.key)]
        safety = ["--insecure"] if self.plain_text else [*tls, "--enable-supernode-auth"]
        bind, port = self._aside or (server.bind, server.port)
        where = ["--host", bind, "--port", str(port), "--database", str(folder.state / "superlink.db")]
        count = ["--lives", str(folder.state / LIVES)]
        keep = ["--isolation", "process", "--disable-runtime-dependency-installation", *secret]
        return [sys.executable, "-m", "fedlora.deploy.superlink_process", *count, *safety, *where, *keep]

    def _check_files(self) -> None:
        """Refuse a folder that lost what the SuperLink needs (ConfigError)."""
        folder = self.folder
        lost = [path.name for path in (folder.ca, folder.certificate, folder.key) if not path.is_file()]
        if lost and not self.plain_text:
            again = "Restore it from a copy" if folder.ca.name in lost else f"Make a new one: fedlora deploy renew {folder.path}"
            raise ConfigError(f"{folder.ca.parent} has no {' and no '.join(lost)}. {again}")

    def _check_port(self) -> None:
        server = self.folder.server
        family = socket.AF_INET6 if ":" in server.bind else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((server.bind, server.port))
            except OSError as error:
                raise ConfigError(
                    f"port {server.port} of {server.bind} cannot be listened on: {error.strerror or error}. Stop what uses it, "
                    f"or change 'port' or 'bind' in {self.folder.path / 'deployment.toml'}"
                ) from None

    def _wait_until_up(self) -> None:
        """Wait until the SuperLink answers, with a certificate that its authority signed for the address we use."""
        host, _, port = (with_port(*self._aside) if self._aside else self.folder.local_address).rpartition(":")
        host = host.strip("[]")
        end = time.monotonic() + _START_S
        while True:
            if (code := self.processes["superlink"].poll()) is not None:
                raise FedLoRAError(f"Flower's superlink did not start ({_how(code)}): {self._last_words('superlink')}")
            try:
                with socket.create_connection((host, int(port)), timeout=5) as connection:
                    if not self.plain_text:
                        ssl.create_default_context(cafile=str(self.folder.ca)).wrap_socket(
                            connection, server_hostname=host
                        ).close()
                return
            except ssl.SSLCertVerificationError as error:
                raise FedLoRAError(
                    f"the server's certificate does not hold for {host}: {error.verify_message}. "
                    f"Make a new one: fedlora deploy renew {self.folder.path}"
                ) from None
            except OSError:
                if time.monotonic() > end:
                    words = self._last_words("superlink")
                    raise FedLoRAError(f"Flower's superlink does not answer after {_START_S:g} s: {words}") from None
                time.sleep(0.1)

    def _last_words(self, name: str) -> str:
        log = self.folder.state / "logs" / f"{name}.log"
        with contextlib.suppress(OSError):
            lines = [line.strip() for line in log.read_text(errors="replace").splitlines()[-30:] if line.strip()]
            errors = [line for line in lines if "error" in line.lower()] or lines
            if errors:
                return f"{errors[-1]} (all of it: {log})"
        return f"see {log}"

    def _stop(self) -> None:
        """Stop the server app, then SuperExec, then the SuperLink: each may still have something to tell the next."""
        if self.server_app:
            end(find([self.server_app]))
        roots = {name: process.pid for name, process in self.processes.items()}
        for name in ("superexec", "superlink"):
            if name in roots:
                end(children(roots[name]))
                end(find([roots[name]]))
        for process in self.processes.values():
            process.poll()
        self.processes.clear()
        self._noted.unlink(missing_ok=True)


def warning(folder: DeployFolder) -> str:
    """Return what plain text means for a deployment."""
    far = not is_loopback(folder.server.bind)
    reach = f"anyone who reaches port {folder.server.port} of this machine" if far else "any user of this machine"
    return f"plain text: {reach} can read all messages, pose as a node and start runs"


def _environment(folder: DeployFolder) -> dict[str, str]:
    """Return the environment of Flower's processes: quiet, with their own home, and with our programs first."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("FLWR_", "FLOWER_"))}
    own = Path(sys.executable).parent
    beside = ",".join(filter(None, [environment.get("no_proxy") or environment.get("NO_PROXY"), "localhost,127.0.0.1,::1"]))
    return environment | {
        "FLWR_HOME": str(folder.flwr_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": _TASK_POLL_S,
        "PATH": os.pathsep.join([str(own), environment.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "no_proxy": beside,
        "NO_PROXY": beside,
    }


def _program(name: str) -> str:
    """Return one of Flower's programs: that of our own environment, else whichever there is."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ConfigError(f"Flower's program `{name}` is not installed beside {sys.executable}: pip install 'flwr>=1.41,<1.43'")
    return found


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def shut_out(folder: DeployFolder, name: str) -> None:
    """Revoke a node's key: tell the SuperLink, starting one for the moment where none runs, and take the key away.

    Raises:
        FedLoRAError: There is no such node, or the SuperLink does not do it.
    """
    folder.check_node(name)
    if name in folder.registered():
        link = Link(folder, False, {}, lambda text: None)
        if in_use(folder.state):
            link.unregister(name)
        else:
            with link.up():
                link.unregister(name)
    folder.forget_node(name)
