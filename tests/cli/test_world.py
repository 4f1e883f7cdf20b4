"""`fedlora world`: what it prints, draws and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from children import Finished, fedlora_command
from fedlora.cli import world as world_command
from fedlora.config import load_config
from fedlora.errors import ConfigError
from fedlora.federation.world import WORLDS

SMALL = ["--clients", "40", "--per-round", "3", "--rounds", "2"]
NAMES = ["airllm", "airllm-markov", "ideal", "inh-office", "trace", "uma-macro", "umi-indoor", "yang2021"]


def _ok(arguments: list[str], folder: Path) -> Finished:
    done = fedlora_command(["world", *arguments], folder)
    assert done.code == 0 and done.err == "", done.err
    return done


def _json(arguments: list[str], folder: Path) -> Any:
    done = _ok([*arguments, "--format", "json"], folder)
    return json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_without_a_name_it_lists_the_worlds(tmp_path: Path) -> None:
    rows = _json([], tmp_path)["worlds"]
    assert [row["name"] for row in rows] == NAMES
    assert all(row["what"] and row["source"] == "fedlora_envs.presets" for row in rows)
    text = _ok([], tmp_path).out
    assert all(name in text for name in NAMES)
    assert list(tmp_path.iterdir()) == []


def test_a_world_in_text_and_pictures(tmp_path: Path) -> None:
    done = _ok(["umi-indoor", *SMALL], tmp_path)
    for words in (
        "urban micro cell",
        "TR 38.901",
        "downlink SNR",
        "uplink rate",
        "outage",
        "payload",
        "200.00 kB",
        "5e11 operations",
    ):
        assert words in done.out
    for words in ("raspberry_pi_5", "energy per client", "done", "dropped", "95 %", "Mb/s", " dB", " J"):
        assert words in done.out
    drawn = [f"runs/world-umi-indoor/{name}.png" for name in ("cell", "snr", "fading")]
    assert done.out.splitlines()[-1] == "drawn: " + ", ".join(drawn)
    assert all((tmp_path / path).is_file() for path in drawn) and "\x1b" not in done.out


def test_json_is_the_portrait_and_pictures_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "snr.png").write_text("old")
    arguments = ["umi-indoor", *SMALL, "uplink.bandwidth_hz=40e6", "world.options.cell.radius_m=60"]
    found = _json([*arguments, "--payload", "5000", "--seed", "4", "--out", "mine"], tmp_path)
    expected: Any = WORLDS.get("umi-indoor")
    assert found == expected.portrait(
        clients=40,
        per_round=3,
        rounds=2,
        payload_bytes=5000,
        seed=4,
        options={"uplink": {"bandwidth_hz": 40e6}, "cell": {"radius_m": 60}},
    ) | {"plots": ["mine/cell.png", "mine/snr.png", "mine/fading.png"]}
    assert (tmp_path / "mine" / "snr.png").read_bytes().startswith(b"\x89PNG")


def test_no_plots_and_a_world_of_fixed_size(tmp_path: Path) -> None:
    found = _json(["yang2021", "--no-plots", "--rounds", "2"], tmp_path)
    assert found["plots"] == [] and found["setting"]["clients"] == 50
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["umi-indoor", "yang2021", "ideal"])
def test_options_are_a_run_file(name: str, tmp_path: Path) -> None:
    text = _ok([name, "--options", "csi.error_db=2.5", "devices.mix={raspberry_pi_4=0.25, server_gpu=3}"], tmp_path).out
    (tmp_path / "run.toml").write_text(text)
    read = load_config(tmp_path / "run.toml").world
    preset: Any = WORLDS.get(name)
    changes = {"csi": {"error_db": 2.5}, "devices": {"mix": {"raspberry_pi_4": 0.25, "server_gpu": 3}}}
    config = preset.config(**changes)
    assert read.name == name and preset.config(**read.options) == config
    assert tomllib.loads(text)["world"]["options"] == config.model_dump(mode="json", exclude_none=True)
    assert "# deadline_s =" in text and "speed_kmh" in text
    assert _json([name, "--options", "csi.error_db=2.5"], tmp_path)["csi"]["error_db"] == 2.5


BACK = "time_s,rate_bps\n0,1e6\n2,1e6\n1,1e6\n"
REFUSALS = [
    ("umi-indor", "unknown world 'umi-indor'. Did you mean 'umi-indoor'?"),
    ("umi-indoor uplink.bandwidth_hz=-5", "world.options.uplink.bandwidth_hz = -5"),
    ("umi-indoor cell.radus_m=5", "unknown key 'world.options.cell.radus_m'. Did you mean 'world.options.cell.radius_m'?"),
    ("umi-indoor links=cel", "Did you mean 'cell'?"),
    ("umi-indoor fading.model=markov fading.step_s=1", "fading markov: fD*T is 9.7"),
    ("trace trace.path=nowhere.csv", "trace file 'nowhere.csv' cannot be read"),
    ("trace trace.path=back.csv", "trace file 'back.csv', line 4: time (time_s) does not increase"),
    ("trace trace.path=empty.csv", "trace file 'empty.csv' has no rows"),
    ("umi-indoor --payload 0", "a payload of 0 bytes: there is nothing to send"),
    ("umi-indoor --payload -3", "a payload of -3 bytes"),
    ("yang2021 --clients 60", "world 'yang2021' holds 50 clients, 60 were asked for"),
    ("yang2021 --per-round 51", "per_round = 51 is more than clients = 50"),
    ("umi-indoor --rounds 0", "rounds = 0"),
    ("uplink.bandwidth_hz=5", "Put its NAME first"),
    ("umi-indoor radius", "'radius' is not an override. Write key=value, for example uplink.bandwidth_hz=100e6"),
]


@pytest.mark.parametrize(("arguments", "says"), REFUSALS, ids=[arguments for arguments, _ in REFUSALS])
def test_one_clear_error(arguments: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "back.csv").write_text(BACK)
    (tmp_path / "empty.csv").write_text("")
    done = fedlora_command(["world", *arguments.split()], tmp_path)
    assert says in done.error and done.code == 2 and done.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.csv", "empty.csv"]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    done = fedlora_command(["world", "airllm", *SMALL, "--out", "file"], tmp_path)
    assert done.code == 5 and done.error.startswith("cannot write file")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_world_of_another_package_that_cannot_describe_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "bareworld-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bareworld\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fedlora.worlds]\nbare = fedlora_bareworld_for_tests:make\n")
    (tmp_path / "fedlora_bareworld_for_tests.py").write_text('def make(setup):\n    """A bare world."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(WORLDS, "_entries", dict(WORLDS._entries))
    for options in (False, True):
        with pytest.raises(ConfigError, match=r"world 'bare' cannot describe itself.*fedlora simulate world.name=bare"):
            world_command.command(["bare"], options=options)


@pytest.mark.parametrize(
    "arguments", [["world", "--help"], ["world", "uplink.bandwidth_hz=5"], ["world", "umi-indoor", "radius"]]
)
def test_what_needs_no_world_imports_none(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['fedlora', *sys.argv[1:]]\n"
        "from fedlora.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('HEAVY', *sorted({'torch', 'flwr', 'scipy', 'matplotlib', 'fedlora_envs'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY"
