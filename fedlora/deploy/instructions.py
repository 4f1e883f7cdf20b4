"""What a deployment folder tells people and systemd: its README and its units."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

PREFIX = "/opt/fedlora"
"""Where devices have fedlora, in the instructions."""

FILES = "/etc/fedlora"
"""Where devices have their files, in the instructions."""

_README = """\
# A deployment of fedlora

The server is this machine; devices reach it at **{address}**{also}. Traffic is encrypted, and only nodes that have a key take
part. All commands are run in this folder unless another machine is named:

```
cd {folder}
```

| node | client of the run | key |
| --- | --- | --- |
{table}

A node that is client *n* trains on part *n* of the run's data set, or on data of its own (`--data`, below). Keep every key
secret; whoever has `certificates/ca.key` can pose as the server.

## 1. Start the server

```
fedlora serve run.toml --deployment .
```

It waits for the nodes, runs the rounds, shows how far they are, and ends. Its exit code is 0 only if all rounds are done. Run
files other than `run.toml` and `key=value` overrides work as with `fedlora simulate`. A run that was cut off goes on by

```
fedlora serve --deployment . --resume RUN_DIR
```

Devices need to reach port {port} of this machine. Flower's control interface answers at the same port, and whoever reaches it and
has `ca.crt` can start runs and add nodes: let only the devices' network through your firewall.

## 2. Give each device its files

On this machine, once per device; DEVICE is its address, and each node is one device:

```
{copies}
```

## 3. Start the nodes

On each device (Python 3.11 to 3.13), once:

```
git clone https://github.com/fedlora/fedlora /opt/fedlora-source
python3 -m venv {prefix}
{prefix}/bin/pip install -c /opt/fedlora-source/constraints.txt /opt/fedlora-source
```

Check the device, then start its node; the commands of each:

```
{starts}
```

To train on the device's own data, add `--data FILE` (a table of texts and labels; the labels must be among the run's).

## 4. As services

On the server (it goes on by itself after a restart of the machine, and ends when all rounds are done):

```
sudo cp systemd/fedlora-server.service /etc/systemd/system/
sudo systemctl daemon-reload
sudo systemctl enable --now fedlora-server
journalctl -fu fedlora-server
```

On each device, after its unit was copied there as in 2:

```
{services}
```

## Later

```
fedlora deploy add-node . NAME      # a key for one more device; takes effect at the next `fedlora serve`
fedlora deploy revoke . NAME        # shut a device out, at once
fedlora deploy renew .              # a new server certificate (it is valid for {days} days); devices keep their ca.crt
```

Flower's own command line works here too, while the server runs; telemetry, update checks and its installing of packages stay off:

```
export FLWR_HOME={home} FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
flwr supernode list fedlora
flwr ls fedlora
flwr run app fedlora -c 'rounds=3'
```

A run that is started by `flwr run` goes on beside the one that `fedlora serve` watches, over the same nodes, and ends with it.
"""

_SERVER_UNIT = """\
[Unit]
Description=fedlora server
Wants=network-online.target
After=network-online.target

[Service]
WorkingDirectory={folder}
ExecStart={command} serve run.toml --deployment . --resume runs/service
Restart=on-failure
RestartSec=10
# Stopped by Ctrl-C or by systemd.
SuccessExitStatus=130 143
KillMode=mixed
TimeoutStopSec=60

[Install]
WantedBy=multi-user.target
"""

_DEVICE_UNIT = """\
[Unit]
Description=fedlora node {name}
Wants=network-online.target
After=network-online.target

[Service]
# A user of its own, who reads the key without root's rights and writes nothing but its state.
DynamicUser=yes
StateDirectory=fedlora
CacheDirectory=fedlora
Environment=XDG_CACHE_HOME=%C/fedlora HOME=%S/fedlora
LoadCredential=node.key:{files}/{name}
ExecStart={prefix}/bin/fedlora node --superlink {address} --ca {files}/ca.crt --key %d/node.key \\
    --client {client} --state %S/fedlora/{name}
Restart=on-failure
RestartSec=10
# A wrong option, a file that cannot be used, a key that the server refuses: trying again changes nothing.
RestartPreventExitStatus=2 3 8
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""


def readme(folder: Path, hosts: list[str], address: str, nodes: list[tuple[str, int]]) -> str:
    """Return the README of a deployment.

    Args:
        folder: The deployment's folder.
        hosts: Names and addresses of the server.
        address: Host and port that devices are told.
        nodes: Name and client number of each node.
    """
    from fedlora.deploy.certificates import VALID_DAYS

    others = ", ".join(hosts[1:])
    return _README.format(
        address=address,
        also=f" (its certificate also names {others})" if others else "",
        folder=shlex.quote(str(folder.absolute())),
        port=address.rpartition(":")[2],
        table="\n".join(f"| {name} | {client} | nodes/{name} |" for name, client in nodes),
        copies="\n".join(_copies(name) for name, _ in nodes),
        prefix=PREFIX,
        starts="\n".join(start_commands(address, name, client) for name, client in nodes),
        services="\n".join(f"systemctl enable --now fedlora-{name}" for name, _ in nodes),
        days=VALID_DAYS,
        home=shlex.quote(str(folder.absolute() / "flwr")),
    )


def start_commands(address: str, name: str, client: int) -> str:
    """Return what checks and starts a node on its device."""
    common = f"--superlink {address} --ca {FILES}/ca.crt --key {FILES}/{name}"
    command = f"{PREFIX}/bin/fedlora"
    return f"{command} doctor --edge {common}\n{command} node {common} --client {client}"


def server_unit(folder: Path) -> str:
    """Return the server's systemd unit."""
    command = Path(sys.executable).parent / "fedlora"
    start = _escaped(str(command)) if command.exists() else f"{_escaped(sys.executable)} -m fedlora"
    return _SERVER_UNIT.format(folder=str(folder.absolute()).replace("%", "%%"), command=start)


def device_unit(address: str, name: str, client: int) -> str:
    """Return a device's systemd unit."""
    return _DEVICE_UNIT.format(address=address, name=name, client=client, files=FILES, prefix=PREFIX)


def _copies(name: str) -> str:
    files = f"certificates/ca.crt nodes/{name}"
    return (
        f"ssh root@DEVICE mkdir -p {FILES}\n"
        f"scp -p {files} root@DEVICE:{FILES}/\n"
        f"scp systemd/fedlora-{name}.service root@DEVICE:/etc/systemd/system/"
    )


def _escaped(path: str) -> str:
    """Return a path as ExecStart= takes it."""
    return '"' + path.replace("%", "%%") + '"' if " " in path else path.replace("%", "%%")
