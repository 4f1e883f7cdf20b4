"""What the section [ray] refuses, and what Ray is told, without starting it."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest

from fedlora.config import RayConfig, load_config
from fedlora.errors import ConfigError
from fedlora.federation.engines import check_address, most_at_a_time, ray_arguments
from fedlora.runs.simulate import simulate
from tiny_run import Ground


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["ray.address=auto", "ray.num_cpus=2"], "ray.num_cpus sizes a Ray of its own, and ray.address names a cluster"),
        (["ray.address=auto", "ray.object_store_mb=200"], "ray.object_store_mb sizes a Ray of its own"),
        (["ray.client_gpus=1.5"], "ray.client_gpus = 1.5: Ray shares out parts of one GPU, or whole ones"),
        (["engine=ray", "device=cuda"], "device = 'cuda' gives clients a GPU only with ray.client_gpus above 0"),
        (["engine=ray", "device=cuda:1", "ray.client_gpus=1"], "device = 'cuda:1': Ray gives every client its GPU"),
        (["ray.object_store_mb=10"], "ray.object_store_mb = 10"),
    ],
)
def test_what_cannot_be_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        load_config(None, changes)


@pytest.mark.parametrize("address", ["here", "host:", "host:port", "host:99999999", "http://host:80", ":6379"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=f"^ray.address = '{re.escape(address)}' is no address. Use host:port, ray://"):
        check_address(address)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_cluster_that_does_not_answer_is_one_error_at_once(ground: Ground, tmp_path: Path, form: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        address = form.format(taken.getsockname()[1])
        started = time.monotonic()
        with pytest.raises(
            ConfigError, match=rf"^ray.address = '{address}': no Ray cluster answers there \(Connection refused\)"
        ):
            simulate(ground.config("engine=ray", f"ray.address={address}"), tmp_path / "run")
    assert time.monotonic() - started < 60  # Ray itself goes on for five minutes


def test_ray_is_told_what_the_file_says() -> None:
    quiet = {"log_to_driver": False, "logging_level": 50}
    own = ray_arguments(RayConfig(num_cpus=3, num_gpus=1, object_store_mb=200))
    sizes = {"num_cpus": 3, "num_gpus": 1, "object_store_memory": 200_000_000}
    assert own == {"address": "local", "include_dashboard": False, "dashboard_port": -1, **quiet, **sizes}
    assert ray_arguments(RayConfig(address="ray://10.0.0.1:10001")) == {"address": "ray://10.0.0.1:10001", **quiet}


def test_how_many_train_at_a_time() -> None:
    assert most_at_a_time(RayConfig(num_cpus=4, client_cpus=2)) == 2
    assert most_at_a_time(RayConfig(num_cpus=1, client_cpus=3)) == 1
    assert most_at_a_time(RayConfig(num_cpus=1000, client_cpus=0.1)) == most_at_a_time(RayConfig(address="auto")) <= 32
