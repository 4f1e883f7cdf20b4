"""`fedlora deploy`: the folder of a deployment, what is asked, and what is refused."""

from __future__ import annotations

import configparser
import os
import pty
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cryptography import x509

from children import fedlora_command
from fedlora.config import RunConfig, load_config
from fedlora.deploy.app_folder import SERVER_DEFAULTS, flat_settings, settings_file
from fedlora.deploy.deploy_folder import DeployFolder
from fedlora.deploy.settings import from_settings, to_settings
from fedlora.errors import ConfigError, RunFolderError


def _make(path: Path, *hosts: str, nodes: int = 2, config: RunConfig | None = None) -> DeployFolder:
    return DeployFolder.create(path, list(hosts) or ["localhost"], nodes, config or RunConfig(clients=nodes, clients_per_round=1))


def test_the_command_makes_all_of_it(tmp_path: Path) -> None:
    arguments = ["--host", "server.example.org", "--host", "10.77.0.1", "--nodes", "3", "--port", "9443"]
    done = fedlora_command(["deploy", "init", "lab", "rounds=7", *arguments], tmp_path)
    assert done.code == 0 and done.out.splitlines() == [
        "deployment of 3 nodes at server.example.org:9443: lab",
        "next: lab/README.md",
    ]
    lab = tmp_path / "lab"
    assert (lab / "run.toml").read_text() == load_config(lab / "run.toml").to_toml()
    config = load_config(lab / "run.toml")
    assert (config.rounds, config.clients, config.clients_per_round, config.engine) == (7, 3, 3, "deployment")
    secret = {
        str(path.relative_to(lab)) for path in lab.rglob("*") if path.is_file() and stat.S_IMODE(path.stat().st_mode) == 0o600
    }
    keys = {"certificates/ca.key", "certificates/server.key", "certificates/superexec.secret"}
    assert secret == keys | {f"nodes/node-{number}" for number in range(3)}
    certificate = x509.load_pem_x509_certificate((lab / "certificates" / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["server.example.org", "localhost"]
    flwr = tomllib.loads((lab / "flwr" / "config.toml").read_text())["superlink"]
    assert flwr["fedlora"] == {"address": "127.0.0.1:9443", "root-certificates": str(lab / "certificates" / "ca.crt")}


def test_a_run_file_says_how_many_nodes(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("clients = 4\nclients_per_round = 2\n")
    assert fedlora_command(["deploy", "init", "lab", "my.toml", "--host", "localhost"], tmp_path).code == 0
    folder = DeployFolder.open(tmp_path / "lab")
    assert [node.client for node in folder.nodes()] == [0, 1, 2, 3]
    assert load_config(folder.run_file).clients_per_round == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("policy.name=greedi", "unknown policy 'greedi'. Did you mean 'greedy'?"),
        ("aggregator.options.f=1", "aggregator.options do not fit aggregator.method = "),
        ("world.name=umi-indor", "unknown world 'umi-indor'. Did you mean 'umi-indoor'?"),
    ],
)
def test_a_run_that_no_server_could_serve(tmp_path: Path, change: str, message: str) -> None:
    done = fedlora_command(["deploy", "init", "lab", change, "--host", "localhost"], tmp_path)
    assert done.code == 2 and done.error.startswith(message) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("hosts", "bind"), [(["localhost"], "127.0.0.1"), (["127.0.0.1", "server"], "0.0.0.0")])
def test_it_listens_where_it_must(tmp_path: Path, hosts: list[str], bind: str) -> None:
    assert _make(tmp_path / "lab", *hosts).server.bind == bind


# -- the Flower app ----------------------------------------------------------------------------------------------------


def test_the_app_carries_every_setting(tmp_path: Path) -> None:
    config = load_config(None, ["data.alpha=0.7", "world.name=umi-indoor", "world.options.deadline_s=3"])
    folder = _make(tmp_path / "lab", config=config)
    settings = flat_settings(folder.app / "pyproject.toml")
    assert {key: settings.pop(key) for key in SERVER_DEFAULTS} == SERVER_DEFAULTS
    assert settings == to_settings(config) and from_settings(settings) == config


def test_the_app_is_one_that_flower_builds(tmp_path: Path) -> None:
    folder = _make(tmp_path / "lab")
    flwr = Path(sys.executable).parent / "flwr"
    environment = os.environ | {"FLWR_HOME": str(folder.flwr_home)}
    command = [flwr, "build", "--app", str(folder.app)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0 and "missing" not in done.stdout, done.stdout + done.stderr
    assert len(list(tmp_path.glob("fedlora.fedlora-run.*.fab"))) == 1
    project = tomllib.loads((folder.app / "pyproject.toml").read_text())["project"]
    assert [name for name in project["dependencies"] if "torch" in name] == []


def test_the_settings_of_one_run(tmp_path: Path) -> None:
    settings_file(tmp_path / "run.toml", RunConfig(), Path("/srv/run"), True, "abc")
    tree = tomllib.loads((tmp_path / "run.toml").read_text())
    assert (tree["out"], tree["resume"], tree["run"], tree["adapter"]["rank"]) == (
        "/srv/run",
        True,
        "abc",
        RunConfig().adapter.rank,
    )


# -- nodes -------------------------------------------------------------------------------------------------------------


def test_nodes_come_and_go(tmp_path: Path) -> None:
    _make(tmp_path / "lab")
    added = fedlora_command(["deploy", "add-node", "lab", "roof"], tmp_path)
    assert added.code == 0 and added.out.startswith("roof is client 2; its key: ")
    assert fedlora_command(["deploy", "revoke", "lab", "node-1"], tmp_path).out == "node-1 is shut out\n"
    folder = DeployFolder.open(tmp_path / "lab")
    assert [(node.name, node.client) for node in folder.nodes()] == [("node-0", 0), ("roof", 2)]
    assert sorted(path.name for path in (tmp_path / "lab" / "nodes" / "revoked").iterdir()) == ["node-1", "node-1.pub"]
    assert "node-1" not in (tmp_path / "lab" / "README.md").read_text()
    assert not (tmp_path / "lab" / "systemd" / "fedlora-node-1.service").exists()
    assert folder.add_node("cellar").client == 1  # the number that is free


@pytest.mark.parametrize(
    ("command", "name", "message"),
    [
        ("add-node", "node-0", "a node 'node-0' has a key already. Choose another name"),
        ("add-node", "../x", "'../x' cannot be a node's name"),
        ("add-node", "x.pub", "'x.pub' cannot be a node's name"),
        ("revoke", "node-9", "there is no node 'node-9'. Did you mean 'node-"),
    ],
)
def test_names_that_cannot_be(tmp_path: Path, command: str, name: str, message: str) -> None:
    _make(tmp_path / "lab")
    before = (tmp_path / "lab" / "deployment.toml").read_bytes()
    done = fedlora_command(["deploy", command, "lab", name], tmp_path)
    assert done.code == 2 and done.error.startswith(message)
    assert (tmp_path / "lab" / "deployment.toml").read_bytes() == before


def test_the_server_gets_another_certificate(tmp_path: Path) -> None:
    old = _make(tmp_path / "lab")
    authority, key = old.ca.read_bytes(), old.key.read_bytes()
    assert fedlora_command(["deploy", "renew", "lab", "--host", "new.example.org"], tmp_path).code == 0
    new = DeployFolder.open(tmp_path / "lab")
    assert new.ca.read_bytes() == authority and new.key.read_bytes() != key
    assert f"new.example.org:{new.server.port}" in (tmp_path / "lab" / "README.md").read_text()


# -- refused -----------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "thesis.tex").write_text("")
    with pytest.raises(RunFolderError, match=r"lab already holds other files\. Choose another DIR"):
        _make(tmp_path / "lab")
    assert [path.name for path in (tmp_path / "lab").iterdir()] == ["thesis.tex"]


def test_nothing_is_left_of_a_folder_that_could_not_be_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'no host' is neither"):
        _make(tmp_path / "lab", "no host")
    assert not (tmp_path / "lab").exists()


def test_no_host_and_nobody_to_ask(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedlora", "deploy", "init", "lab"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: how do devices reach the server? Give its name or address")
    assert not (tmp_path / "lab").exists()


def test_whoever_sits_at_a_terminal_is_asked(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "fedlora", "deploy", "init", "lab"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=theirs, stdout=subprocess.PIPE, text=True) as process:
        os.write(ours, b"server.example.org, 10.77.0.1\n")
        assert process.wait(60) == 0
    os.close(ours)
    os.close(theirs)
    assert DeployFolder.open(tmp_path / "lab").server.hosts == ["server.example.org", "10.77.0.1"]


def test_a_folder_that_is_no_deployment(tmp_path: Path) -> None:
    done = fedlora_command(["serve", "--deployment", "."], tmp_path)
    assert done.code == 5 and done.error == ". holds no deployment (no deployment.toml in it). Make one: fedlora deploy init ."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("clients=5", "clients = 5, but .* has keys for 2 nodes. Set clients=2"),
        ("clients=1", r"node 'node-1' is client 1, the run has clients = 1 \(numbered from 0\). Set clients=2"),
        ("round=3", "unknown key 'round'. Did you mean 'rounds'?"),
    ],
)
def test_runs_that_do_not_fit_the_nodes(tmp_path: Path, change: str, message: str) -> None:
    _make(tmp_path / "lab")
    done = fedlora_command(["serve", "--deployment", "lab", change, "--out", "run"], tmp_path)
    assert done.code == 2 and re.match(message, done.error)
    assert not (tmp_path / "run").exists()


def test_simulate_says_who_serves(tmp_path: Path) -> None:
    done = fedlora_command(["simulate", "engine=deployment", "--out", "run"], tmp_path)
    assert done.code == 2 and "`fedlora serve RUN.toml --deployment DIR`" in done.error
    assert not (tmp_path / "run").exists()


# -- systemd -----------------------------------------------------------------------------------------------------------


def test_units_are_whole(tmp_path: Path) -> None:
    """Each has its sections, starts the command of the README, and nothing in it is left to fill in."""
    _make(tmp_path / "lab with a space", "server.example.org")
    units = sorted((tmp_path / "lab with a space" / "systemd").iterdir())
    assert [unit.name for unit in units] == ["fedlora-node-0.service", "fedlora-node-1.service", "fedlora-server.service"]
    for unit in units:
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        parser.read(unit)
        assert parser.sections() == ["Unit", "Service", "Install"] and "{" not in unit.read_text()
    assert "node --superlink server.example.org:9092 --ca /etc/fedlora/ca.crt --key %d/node.key" in units[1].read_text()
    assert "serve run.toml --deployment . --resume runs/service" in units[2].read_text()
