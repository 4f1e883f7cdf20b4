"""An emulated run from start to end: namespaces, relay, server, nodes, and what it says of the simulation."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from fedlora.config import RunConfig, parse_config
from fedlora.deploy.deploy_folder import DeployFolder
from fedlora.errors import ConfigError, FedLoRAError, Terminated
from fedlora.files import write_atomic, write_json
from fedlora.runs.folder import RunFolder, refuse_taken
from fedlora_envs.emulation.compare import FOLDER, compare
from fedlora_envs.emulation.follow import Expected, Follower
from fedlora_envs.emulation.namespaces import MTU, SERVER_ADDRESS, Namespaces, check_possible
from fedlora_envs.emulation.pipe import Channel, Impairment
from fedlora_envs.emulation.processes import owner_is_gone, owner_name, stop, tethered
from fedlora_envs.emulation.relay import Plan
from fedlora_envs.emulation.relay_process import Relay
from fedlora_envs.emulation.schedule import START_BPS, Schedule

_LOOK_S = 0.02
_PATIENCE_S = 20.0
_WORKPLACE = "fedlora-emulation-"


@dataclass(frozen=True)
class Settings:
    """How a run is emulated.

    Attributes:
        delay_ms: Propagation delay of each direction; worlds have none.
        jitter_ms: Largest deviation from it.
        loss: Probability that a packet is lost after it took its airtime; worlds count retransmissions in their rates.
        queue_kb: Kilobytes that may wait for each transmitter.
        time_scale: Real seconds per second of the world.
        simulate: Simulate the same run file first, to compare bytes and accuracy.
    """

    delay_ms: float = 5.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    queue_kb: int = 256
    time_scale: float = 1.0
    simulate: bool = True

    def impairment(self) -> Impairment:
        """Return what the relay does to packets (ConfigError for what cannot be)."""
        for name in ("delay_ms", "jitter_ms", "loss"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be >= 0, got {getattr(self, name):g}")
        if not self.loss < 0.5:
            raise ConfigError(f"loss = {self.loss:g}: with half of all packets lost nothing gets through. Choose less than 0.5")
        if self.queue_kb * 1000 < 10 * MTU:
            raise ConfigError(f"queue_kb = {self.queue_kb} holds less than ten packets: choose at least {10 * MTU // 1000}")
        return Impairment(self.delay_ms / 1000, self.jitter_ms / 1000, self.loss, self.queue_kb * 1000)


def emulate(config: RunConfig, out: Path, settings: Settings, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Run `config` with real processes behind emulated links into the folder `out`; return the summary of the comparison.

    The run's engine becomes "deployment"; where `deployment.links` is "auto", policies see what nodes measure.

    Args:
        config: The run; it must name a world.
        out: New folder.
        settings: How it is emulated.
        say: Is told what happens.

    Raises:
        FedLoRAError: Before any work where the machine, the configuration or the folder cannot do; later where a process fails.
    """
    check_possible()
    impairment, schedule = settings.impairment(), Schedule(config, settings.time_scale)
    refuse_taken(out)
    real = _deployed(config)
    with stopped_in_order(), _workplace(out) as work:
        expected = Expected()
        if settings.simulate:
            say("simulating the same run")
            expected.simulated = _simulate(config, work)
        write_json(work / "settings.json", asdict(settings))
        write_atomic(work / "run.toml", real.to_toml())
        deployment = DeployFolder.create(work / "deployment", [SERVER_ADDRESS], config.clients, real)
        with Namespaces(config.clients) as spaces:
            plan = Plan(
                spaces.server_device,
                spaces.devices(),
                impairment,
                Channel([(0.0, START_BPS)]),
                config.seed,
                str(work / "relay.jsonl"),
            )
            with Relay(plan) as relay:
                spaces.connect()
                follower = Follower(real, out, schedule, relay, work / "schedule.jsonl", expected)
                with Cast(spaces, deployment, work) as cast:
                    say("starting the server")
                    cast.start_server(out)
                    say(f"starting {config.clients} nodes")
                    cast.start_nodes()
                    _attend(cast, follower, config.rounds, say)
    return compare(out)


def _deployed(config: RunConfig) -> RunConfig:
    tree = config.model_dump(exclude_none=True)
    tree["engine"] = "deployment"
    if config.deployment.links == "auto":
        tree["deployment"]["links"] = "measured"
    return parse_config(tree)


def _simulate(config: RunConfig, work: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """Simulate the run in a process of its own, whose memory is free again afterwards; return its clients' rows."""
    tree = config.model_dump(exclude_none=True) | {"engine": "batched"}
    file, out = work / "simulated.toml", work / "simulated"
    write_atomic(file, parse_config(tree).to_toml())
    with (work / "logs" / "simulated.log").open("w") as log:
        command = [sys.executable, "-m", "fedlora", "simulate", str(file), "--out", str(out)]
        code = _start(command, log).wait()
    if code:
        raise _failed("the run cannot be simulated", code, work / "logs" / "simulated.log")
    return {(row["round"], row["client"]): row for row in RunFolder.open(out).rows("clients")}


@dataclass
class Cast:
    """The processes of the run: server and nodes, each in its namespace; a context manager that ends them.

    Attributes:
        spaces: Their namespaces.
        deployment: Their keys and certificates.
        work: Where their logs and their state are.
    """

    spaces: Namespaces
    deployment: DeployFolder
    work: Path
    server: subprocess.Popen[str] | None = None
    nodes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    _files: list[IO[str]] = field(default_factory=list)

    def start_server(self, out: Path) -> None:
        """Start the server with its run folder `out`, and wait until it knows the nodes: it would turn them away before."""
        serve = ["serve", str(self.work / "run.toml"), "--deployment", str(self.deployment.path), "--out", str(out.absolute())]
        self.server = self._fedlora(self.spaces.server, "server", serve)
        names = {node.name for node in self.deployment.nodes()}
        while not names <= self.deployment.registered().keys():
            if (code := self.server.poll()) is not None:
                raise _failed("the server has ended", code, self.log("server"))
            time.sleep(_LOOK_S)

    def start_nodes(self) -> None:
        """Start all nodes."""
        for node, space in zip(self.deployment.nodes(), self.spaces.nodes, strict=True):
            reach = ["--superlink", self.deployment.address, "--ca", str(self.deployment.ca), "--key", str(node.key)]
            own = ["--client", str(node.client), "--state", str(self.work / "state" / node.name)]
            self.nodes[node.name] = self._fedlora(space, node.name, ["node", *reach, *own])

    def _fedlora(self, space: str, name: str, arguments: Sequence[str]) -> subprocess.Popen[str]:
        log = self.log(name).open("w")
        self._files.append(log)
        return _start(self.spaces.inside(space, [sys.executable, "-m", "fedlora", *arguments]), log)

    def log(self, name: str) -> Path:
        """Return the file with what a process printed."""
        return self.work / "logs" / f"{name}.log"

    def check(self) -> None:
        """Refuse to go on where a node has ended (FedLoRAError)."""
        for name, process in self.nodes.items():
            if (code := process.poll()) is not None:
                raise _failed(f"{name} has ended", code, self.log(name))

    def __enter__(self) -> Cast:
        return self

    def __exit__(self, *_: object) -> None:
        everybody = [*self.nodes.values(), *([self.server] if self.server else [])]
        for process in everybody:
            process.terminate()
        for process in everybody:
            stop(process, _PATIENCE_S)
        for file in self._files:
            file.close()


def _attend(cast: Cast, follower: Follower, rounds: int, say: Callable[[str], None]) -> None:
    """Keep the relay at the run's round until the server has ended."""
    assert cast.server
    while (code := cast.server.poll()) is None:
        for row in follower.look():
            accuracy = "" if row["test_accuracy"] is None else f", accuracy {row['test_accuracy']:.4f}"
            say(f"round {row['round']} of {rounds}: {row['wall_time_s']:.1f} s{accuracy}")
        cast.check()
        time.sleep(_LOOK_S)
    follower.look()
    if code:
        raise _failed("the server has ended", code, cast.log("server"))


def _start(command: Sequence[str], log: IO[str]) -> subprocess.Popen[str]:
    # A session of its own: Ctrl-C reaches the emulation alone, which ends everybody in order.
    return subprocess.Popen(
        tethered(command),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@contextlib.contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """Yield a folder for all that the emulation needs; what is of interest later goes into the run folder at the end."""
    _remove_stale_workplaces()
    work = Path(tempfile.mkdtemp(prefix=f"{_WORKPLACE}{owner_name()}-"))
    try:
        (work / "logs").mkdir()
        yield work
    finally:
        if (out / "config.toml").exists():
            kept = out / FOLDER
            kept.mkdir(exist_ok=True)
            for name in ("settings.json", "relay.jsonl", "schedule.jsonl", "logs", "simulated"):
                if (work / name).exists():
                    shutil.move(work / name, kept / name)
        shutil.rmtree(work, ignore_errors=True)


def _remove_stale_workplaces() -> None:
    """Remove what emulations that were killed left behind: there are keys in it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_WORKPLACE}*"):
        owner = folder.name.removeprefix(_WORKPLACE).rpartition("-")[0]
        if re.fullmatch(r"\d+-\d+", owner) and owner_is_gone(owner):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def stopped_in_order() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that everything is taken down (raises `Terminated`)."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _failed(what: str, code: int, log: Path) -> FedLoRAError:
    """Return the error of a process that failed, with the last that it said."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = next(
        (line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")),
        (lines or ["it said nothing"])[-1],
    )
    error = FedLoRAError(f"{what} (exit code {code}): {said}")
    error.exit_code = code if code > 0 else 1
    return error
