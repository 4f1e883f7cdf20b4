"""Checkpoints: what is written comes back, the newest few stay, and damage of any kind is one clear error."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from children import fedlora_command
from fedlora.aggregation import GlobalState
from fedlora.errors import RunFolderError
from fedlora.federation.strategy import ServerState
from fedlora.runs.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from fedlora.runs.folder import RunFolder
from fedlora.runs.simulate import simulate
from tiny_run import Ground


def make(round_number: int, sites: int = 12) -> Checkpoint:
    """Return a checkpoint in which every number is different."""
    generator = torch.Generator().manual_seed(round_number)
    states = [{"P": torch.randn(5, 2, generator=generator), "E": torch.randn(2, generator=generator)} for _ in range(sites)]
    states[3] = {"P": torch.zeros(5, 0), "E": torch.zeros(0)}  # a stack that nobody has added to
    adapter = GlobalState(states, {"classifier.weight": torch.randn(3, 4, generator=generator)})
    previous = np.arange(4 * sites).reshape(4, sites)
    return Checkpoint(ServerState(round_number, adapter, previous), {1: b"kept", 17: bytes(range(256))}, {"metrics": 99}, 3)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    saved = make(7)
    save_checkpoint(tmp_path, saved, keep=2)
    loaded = load_checkpoint(tmp_path / "round-00007")
    assert loaded.state.round == 7 and loaded.chunk == 3 and loaded.log_bytes == {"metrics": 99}
    assert loaded.clients == saved.clients
    assert np.array_equal(loaded.state.previous, saved.state.previous) and loaded.state.previous.dtype == np.int64
    ours, theirs = saved.state.adapter, loaded.state.adapter
    assert len(theirs.sites) == len(ours.sites)
    for site, other in zip([*ours.sites, ours.head], [*theirs.sites, theirs.head], strict=True):
        assert site.keys() == other.keys() and all(torch.equal(site[name], other[name]) for name in site)


def test_the_newest_few_are_kept_in_the_order_of_rounds(tmp_path: Path) -> None:
    for number in (8, 9, 10, 99_999, 100_000):
        save_checkpoint(tmp_path, make(number), keep=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["round-00010", "round-99999", "round-100000"]


def test_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(1), keep=1)
    for name in ("round-best", "round-00002.old", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "round-00003").write_text("a file")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["round-00001"]


@pytest.fixture(scope="module")
def run(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three rounds with two checkpoints."""
    path = tmp_path_factory.mktemp("run") / "run"
    simulate(ground.config("rounds=3", "adapter.unit=svd", "policy.name=random"), path)
    return path


def _damage_and_load(run: Path, folder: Path, file: str, data: bytes | None) -> str:
    shutil.copytree(run, folder)
    victim = folder / "checkpoints" / "round-00003" / file
    victim.unlink()
    if data is not None:
        victim.write_bytes(data)
    with pytest.raises(RunFolderError) as caught:
        RunFolder.open(folder).latest()
    shutil.rmtree(folder)
    message = str(caught.value)
    assert message.startswith(f"checkpoint {victim.parent} is damaged: {file} ") and "\n" not in message
    assert message.endswith("Remove it to go on from round-00002")
    return message


@pytest.mark.parametrize("file", ["state.json", "state.safetensors"])
def test_a_file_cut_short_anywhere_is_found(run: Path, tmp_path: Path, file: str) -> None:
    data = (run / "checkpoints" / "round-00003" / file).read_bytes()
    last = len(data) - (2 if file == "state.json" else 1)  # a missing line end is no damage
    for length in {0, 1, 7, 8, 9, len(data) // 3, len(data) // 2, last - 1, last}:
        _damage_and_load(run, tmp_path / "copy", file, data[:length])
    _damage_and_load(run, tmp_path / "copy", file, data + b"more")
    assert "cannot be read" in _damage_and_load(run, tmp_path / "copy", file, None)


@pytest.mark.parametrize("file", ["state.json", "state.safetensors"])
def test_a_flipped_bit_anywhere_is_found(run: Path, tmp_path: Path, file: str) -> None:
    data = (run / "checkpoints" / "round-00003" / file).read_bytes()
    pick = random.Random(file)
    positions = {0, 7, 8, len(data) // 2, *pick.sample(range(len(data)), 60)}
    for at in sorted(positions):
        flipped = data[:at] + bytes([data[at] ^ 1 << pick.randrange(8)]) + data[at + 1 :]
        if file == "state.json" and not data[at : at + 1].strip() and not flipped[at : at + 1].strip():
            continue  # one blank for another
        _damage_and_load(run, tmp_path / "copy", file, flipped)


@pytest.mark.parametrize("text", ["", "null", "[]", "3", '"text"', "{}", '{"body": 3}', '{"body": {}, "sha256": ""}', "\xff"])
def test_json_of_another_kind_is_damage(run: Path, tmp_path: Path, text: str) -> None:
    _damage_and_load(run, tmp_path / "copy", "state.json", text.encode("latin-1"))


def test_the_user_hears_of_damage_and_goes_on_from_the_older_one(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "round-00003"
    (newest / "state.safetensors").write_bytes((newest / "state.safetensors").read_bytes()[:-4])
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for command in (["simulate", "--resume", "run"], ["export", "run", "out"]):
        done = fedlora_command(command, tmp_path)
        assert done.code == 5 and "checkpoint run/checkpoints/round-00003 is damaged: state.safetensors" in done.error
        assert "Remove it to go on from round-00002" in done.error
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    shutil.rmtree(newest)
    assert fedlora_command(["simulate", "--resume", "run"], tmp_path).code == 0
    for file in ("adapter/adapter_model.safetensors", "checkpoints/round-00003/state.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (run / file).read_bytes()


def test_without_an_older_one_the_run_starts_again(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "round-00002")
    (tmp_path / "run" / "checkpoints" / "round-00003" / "state.json").unlink()
    with pytest.raises(RunFolderError, match="There is no older one: start the run again"):
        RunFolder.open(tmp_path / "run").latest()
