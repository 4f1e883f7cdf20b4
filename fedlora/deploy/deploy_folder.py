"""The folder of a deployment: who the server is, who its nodes are, and everything that either needs to start.

    README.md            the exact commands
    deployment.toml      the server's names, its port, its nodes
    run.toml             the run that the folder was made for
    app/                 the Flower app, for `flwr run`
    certificates/        the authority, the server's certificate, their keys, and the secret of what runs beside the SuperLink
    nodes/NAME[.pub]     one key per node; what was revoked lies in nodes/revoked/
    systemd/             units for the server and for each device
    flwr/                Flower's own home: its settings and what it installs
    state/               the SuperLink's database, logs, and which key became which of Flower's nodes

Private keys have mode 0600, and only the folder's user may enter `certificates`, `nodes` and `state`.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from pydantic import Field

from fedlora.config import ConfigSection, RunConfig, parse_section, read_toml
from fedlora.deploy.app_folder import write_app
from fedlora.deploy.certificates import (
    general_name,
    write_authority,
    write_node_key,
    write_secret,
    write_server_certificate,
)
from fedlora.deploy.instructions import device_unit, readme, server_unit
from fedlora.errors import ConfigError, FedLoRAError, RunFolderError, suggest
from fedlora.files import disk_errors, write_atomic, write_json
from fedlora.runs.folder import refuse_taken

DEFAULT_PORT = 9092

_NODE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}", re.IGNORECASE)


class ServerConfig(ConfigSection):
    """What deployment.toml says."""

    hosts: list[str] = Field(min_length=1, description="names and addresses under which nodes reach the server")
    bind: str = Field("0.0.0.0", description="address that the server listens on")
    port: int = Field(DEFAULT_PORT, ge=1, le=65535, description="its port")
    nodes: dict[str, int] = Field({}, description="client number of each node")
    revoked: dict[str, int] = Field({}, description="client numbers of nodes whose keys were revoked")


@dataclass(frozen=True)
class Node:
    """A node that has a key.

    Attributes:
        name: Its name.
        client: Which client of the partition it is.
        key: Its private key.
        public: Its public key.
    """

    name: str
    client: int
    key: Path
    public: Path


class DeployFolder:
    """One deployment on disk.

    Args:
        path: The folder; `create` or `open` make the object.
        server: What its deployment.toml says.
    """

    def __init__(self, path: Path, server: ServerConfig) -> None:
        self.path, self.server = path.absolute(), server
        certificates = self.path / "certificates"
        self.ca, self.certificate, self.key = (certificates / name for name in ("ca.crt", "server.crt", "server.key"))
        self.secret, self._authority_key = certificates / "superexec.secret", certificates / "ca.key"
        self.app, self.flwr_home, self.state = self.path / "app", self.path / "flwr", self.path / "state"
        self.run_file = self.path / "run.toml"

    @staticmethod
    def create(
        path: Path, hosts: list[str], nodes: int, config: RunConfig, bind: str = "", port: int = DEFAULT_PORT
    ) -> DeployFolder:
        """Make the folder of a new deployment.

        Args:
            path: A new folder.
            hosts: Names and addresses of the server; the first is the one that devices are told.
            nodes: How many nodes get a key; they are clients 0, 1, ... of the run.
            config: The run that it is for.
            bind: Address to listen on; default: all where a host is not this machine, this machine alone otherwise.
            port: The server's port.

        Raises:
            FedLoRAError: The folder is taken or cannot be written, or a host is none.
        """
        refuse_taken(path, "DIR")
        for host in hosts:
            general_name(host)
        if bind and not _is_address(bind):
            raise ConfigError(f"--bind {bind}: give an address of this machine to listen on, for example 0.0.0.0 or 192.168.1.20")
        local = all(is_loopback(host) for host in hosts)
        bind = bind or ("127.0.0.1" if local else "0.0.0.0")
        server = ServerConfig(hosts=hosts, bind=bind, port=port, nodes={f"node-{number}": number for number in range(nodes)})
        folder = DeployFolder(path, server)
        with _undone(path), disk_errors(path):
            for name, mode in (("certificates", 0o700), ("nodes", 0o700), ("state", 0o700), ("systemd", 0o755), ("flwr", 0o755)):
                (path / name).mkdir(parents=True)
                (path / name).chmod(mode)
            write_authority(folder.ca, folder._authority_key)
            folder.renew(hosts)
            write_secret(folder.secret)
            for node in folder.nodes():
                write_node_key(node.key, node.public, node.name)
            write_app(folder.app, config)
            write_atomic(folder.run_file, config.to_toml())
            folder.write()
        return folder

    @staticmethod
    def open(path: Path) -> DeployFolder:
        """Open the folder of a deployment (RunFolderError where it is none)."""
        file = path / "deployment.toml"
        if not file.is_file():
            raise RunFolderError(f"{path} holds no deployment (no deployment.toml in it). Make one: fedlora deploy init {path}")
        return DeployFolder(path, parse_section(ServerConfig, read_toml(file, "deployment file")))

    @property
    def address(self) -> str:
        """Host and port as devices know the server."""
        return with_port(self.server.hosts[0], self.server.port)

    @property
    def local_address(self) -> str:
        """Host and port for what runs beside the server."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
        return with_port(everywhere.get(self.server.bind, self.server.bind), self.server.port)

    def nodes(self) -> list[Node]:
        """Return the nodes that have a key, by client number."""
        folder = self.path / "nodes"
        found = sorted(self.server.nodes.items(), key=lambda item: (item[1], item[0]))
        return [Node(name, client, folder / name, folder / f"{name}.pub") for name, client in found]

    def add_node(self, name: str) -> Node:
        """Give a new node a key and the lowest client number that is free (ConfigError where the name cannot be)."""
        if not _NODE.fullmatch(name) or name.endswith(".pub") or name == "revoked":
            raise ConfigError(
                f"'{name}' cannot be a node's name: letters, digits, dots, dashes and underscores, for example roof-3"
            )
        if name in self.server.nodes or name in self.server.revoked:
            state = "has a key" if name in self.server.nodes else "was revoked"
            raise ConfigError(f"a node '{name}' {state} already. Choose another name")
        taken = set(self.server.nodes.values())
        client = next(number for number in range(len(taken) + 1) if number not in taken)
        folder = self.path / "nodes"
        write_node_key(folder / name, folder / f"{name}.pub", name)
        self._change(nodes={**self.server.nodes, name: client})
        return next(node for node in self.nodes() if node.name == name)

    def check_node(self, name: str) -> None:
        """Refuse a name that no node has (ConfigError)."""
        if name in self.server.revoked:
            raise ConfigError(f"node '{name}' was revoked already")
        if name not in self.server.nodes:
            raise ConfigError(f"there is no node '{name}'. {suggest(name, self.server.nodes)}")

    def forget_node(self, name: str) -> None:
        """Take a node's key away; the SuperLink must know already."""
        self.check_node(name)
        revoked = self.path / "nodes" / "revoked"
        with disk_errors(revoked):
            revoked.mkdir(exist_ok=True)
            for file in (name, f"{name}.pub"):
                if (self.path / "nodes" / file).exists():
                    shutil.move(self.path / "nodes" / file, revoked / file)
            (self.path / "systemd" / f"fedlora-{name}.service").unlink(missing_ok=True)
        left = {node: client for node, client in self.server.nodes.items() if node != name}
        self._change(nodes=left, revoked={**self.server.revoked, name: self.server.nodes[name]})

    def renew(self, hosts: list[str]) -> None:
        """Give the server a new certificate for `hosts`; nodes go on as they are, the authority is the same."""
        write_server_certificate(self.certificate, self.key, self.ca, self._authority_key, hosts)
        self._change(hosts=hosts)

    def write(self) -> None:
        """Write all that follows from the folder's settings: deployment.toml, Flower's settings, units, README."""
        header = "# Read by `fedlora serve` and changed by `fedlora deploy`.\n"
        write_atomic(self.path / "deployment.toml", header + tomli_w.dumps(self.server.model_dump()))
        self.write_flwr_config()
        units = self.path / "systemd"
        write_atomic(units / "fedlora-server.service", server_unit(self.path))
        for node in self.nodes():
            write_atomic(units / f"fedlora-{node.name}.service", device_unit(self.address, node.name, node.client))
        nodes = [(node.name, node.client) for node in self.nodes()]
        write_atomic(self.path / "README.md", readme(self.path, self.server.hosts, self.address, nodes))

    def write_flwr_config(self, address: str = "") -> None:
        """Write how Flower's own command line reaches the server from this machine; default: at the server's own address."""
        address = address or self.local_address
        links = {
            "default": "fedlora",
            "fedlora": {"address": address, "root-certificates": str(self.ca)},
            "plain": {"address": address, "insecure": True},
        }
        write_atomic(self.flwr_home / "config.toml", tomli_w.dumps({"superlink": links}))

    # -- which key became which of Flower's nodes ------------------------------------------------------------------------

    def registered(self) -> dict[str, int]:
        """Return Flower's id of each node that it knows, by name."""
        try:
            return {str(name): int(number) for name, number in json.loads(self._registry.read_text()).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            raise FedLoRAError(
                f"{self._registry} cannot be read ({error}). Remove {self.state} to register all nodes anew"
            ) from None

    def note_registered(self, ids: dict[str, int]) -> None:
        """Keep which of Flower's nodes the keys are."""
        write_json(self._registry, ids)

    @property
    def _registry(self) -> Path:
        return self.state / "nodes.json"

    def _change(self, **changes: object) -> None:
        self.server = parse_section(ServerConfig, self.server.model_dump() | changes)
        if (self.path / "deployment.toml").exists():
            self.write()


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine itself."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return text == "localhost"
    return True


def with_port(host: str, port: int) -> str:
    """Return host and port as one text."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def free_port(bind: str) -> int:
    """Return a port that is free just now at an address ("": all)."""
    with socket.socket(socket.AF_INET6 if ":" in bind else socket.AF_INET) as probe:
        probe.bind((bind, 0))
        return int(probe.getsockname()[1])


@contextmanager
def _undone(path: Path) -> Iterator[None]:
    """Leave nothing behind where the folder could not be made."""
    new = not path.exists()
    try:
        yield
    except BaseException:
        for inside in list(path.iterdir()) if path.is_dir() else []:
            shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
        if new and path.is_dir():
            path.rmdir()
        raise
