"""Files of learned policies: what is written is read, and what cannot be used is one error that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from fedlora.errors import ConfigError
from fedlora.federation.policy import make_policy
from fedlora_policies import policy_file
from fedlora_policies.features import Reader
from fedlora_policies.plus.chain import ChainConfig
from fedlora_policies.plus.network import NetworkConfig
from fedlora_policies.plus.policy import AirllmPlusPolicy, Brain
from fedlora_policies.policy_file import PolicyFile, load_into, load_policy
from looks import COSTS, SETUP, look

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor([3])}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The file of an untrained airllm-plus."""
    path = tmp_path / "policy.safetensors"
    brain().file({"note": "α"}).save(path)
    return path


def brain(seed: int = 4) -> Brain:
    """Return an untrained one."""
    return Brain(NetworkConfig(width=8, blocks=1, time_width=8), ChainConfig(sample_steps=3, guidance=1.5), seed)


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    """Change the head or the tensors of a policy file."""
    found = load_policy(path, "airllm-plus")
    head, tensors = {"format": 1, "policy": "airllm-plus", "about": found.about}, dict(found.tensors)
    change(head, tensors)
    path.write_bytes(save(tensors, {"fedlora-policy": json.dumps(head)}))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    file = PolicyFile("mine", {"caps": [4, 8], "notes": {"seed": 3, "score": 0.5}}, {**TENSORS, "turned": TENSORS["weight"].T})
    file.save(tmp_path / "one.safetensors")
    found = load_policy(str(tmp_path / "one.safetensors"), "mine")
    assert (found.policy, found.about) == (file.policy, file.about) and found.tensors.keys() == file.tensors.keys()
    assert all(
        torch.equal(found.tensors[name], tensor) and found.tensors[name].dtype == tensor.dtype
        for name, tensor in file.tensors.items()
    )
    file.save(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.safetensors", "two.safetensors"]


def test_a_loaded_policy_plays_as_the_one_that_was_saved(written: Path) -> None:
    budget = np.array([0.0, 200.0, 700.0, np.inf])
    seen = look(3, (0, 1, 2, 3), budget_bytes=budget)
    ranks = make_policy("airllm-plus", {"file": str(written)}, SETUP).choose(seen)
    assert ranks.tolist() == AirllmPlusPolicy(SETUP, brain()).choose(seen).tolist() and ranks.any()
    assert (COSTS.bytes(ranks)[1:] <= budget[1:]).all()
    again, features = Brain.load(written), Reader(SETUP, "x")(seen)
    assert (again.network, again.config) == (brain().network, brain().config)
    assert np.array_equal(again.requests(features), brain().requests(features))
    assert not np.allclose(again.requests(features), brain(5).requests(features))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def behead(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:30])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def scribble(path: Path) -> None:
    path.write_bytes(b"policy = 'airllm-plus'\n" * 40)


def foreign(path: Path) -> None:
    path.write_bytes(save(TENSORS, {"format": "pt"}))


def listed(path: Path) -> None:
    path.write_bytes(save(TENSORS, {"fedlora-policy": "[1, 2]"}))


def not_json(path: Path) -> None:
    path.write_bytes(save(TENSORS, {"fedlora-policy": "{"}))


def nan(path: Path) -> None:
    rewrite(path, lambda head, tensors: tensors["site.bias"].fill_(float("nan")))


def newer(path: Path) -> None:
    rewrite(path, lambda head, tensors: head.update(format=2))


def nameless(path: Path) -> None:
    rewrite(path, lambda head, tensors: head.pop("policy"))


def mute(path: Path) -> None:
    rewrite(path, lambda head, tensors: head.pop("about"))


def other_policy(path: Path) -> None:
    rewrite(path, lambda head, tensors: head.update(policy="ppo"))


def other_features(path: Path) -> None:
    rewrite(path, lambda head, tensors: head["about"]["features"]["client"].pop())


def no_features(path: Path) -> None:
    rewrite(path, lambda head, tensors: head["about"].pop("features"))


def no_sizes(path: Path) -> None:
    rewrite(path, lambda head, tensors: head["about"].pop("network"))


def more_sizes(path: Path) -> None:
    rewrite(path, lambda head, tensors: head["about"]["chain"].update(colour="red"))


def other_sizes(path: Path) -> None:
    rewrite(path, lambda head, tensors: head["about"]["network"].update(width=9))


def one_tensor_less(path: Path) -> None:
    rewrite(path, lambda head, tensors: tensors.pop("nothing"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (Path.unlink, "there is no policy file"),
        (cut, "cannot be read"),
        (behead, "cannot be read"),
        (empty, "cannot be read"),
        (scribble, "cannot be read"),
        (foreign, "cannot be read"),
        (listed, "cannot be read"),
        (not_json, "cannot be read"),
        (nan, "holds numbers that are not finite"),
        (newer, "has format 2; this version reads 1"),
        (nameless, "cannot be read"),
        (mute, "cannot be read"),
        (other_policy, "holds a policy 'ppo', and policy.name is 'airllm-plus'"),
        (other_features, "was trained on other features than this version reads"),
        (no_features, "was trained on other features than this version reads"),
        (no_sizes, "is damaged"),
        (more_sizes, "is damaged"),
        (other_sizes, "is damaged"),
        (one_tensor_less, "is damaged"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_error(written: Path, spoil: Callable[[Path], None], says: str) -> None:
    spoil(written)
    with pytest.raises(ConfigError) as caught:
        make_policy("airllm-plus", {"file": str(written)}, SETUP)
    assert says in str(caught.value) and str(written) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("file", [3, ["policy.safetensors"], {"path": "x"}])
def test_what_is_no_path_is_one_error(file: Any) -> None:
    with pytest.raises(ConfigError, match=r"policy\.options\.file = .*: give the path of a file"):
        make_policy("airllm-plus", {"file": file}, SETUP)


def test_a_folder_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load_policy(tmp_path, "airllm-plus")
    assert "\n" not in str(caught.value)


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2, bias=False)
    load_into(module, {"weight": TENSORS["weight"]}, tmp_path)
    assert torch.equal(module.weight, TENSORS["weight"])
    for tensors in ({"weight": TENSORS["weight"].T}, {}, {"weight": TENSORS["weight"], "bias": TENSORS["steps"]}):
        with pytest.raises(ConfigError, match="is damaged: ") as caught:
            load_into(module, tensors, tmp_path)
        assert "\n" not in str(caught.value)


def test_other_sites_are_refused_naming_both() -> None:
    file = PolicyFile("airllm", {"caps": [4, 4, 8]}, {})
    file.refuse_other_sites(SETUP)
    wanted = {
        (4, 8, 4): "3 sites of rank up to 4, 8 in another order",
        (4, 4): "2 sites of rank up to 4",
        (4, 8, 16): "3 sites of rank up to 4, 8, 16",
    }
    for caps, said in wanted.items():
        with pytest.raises(ConfigError) as caught:
            file.refuse_other_sites(replace(SETUP, caps=np.array(caps)))
        words = f"this 'airllm' was trained for 3 sites of rank up to 4, 8, and here are {said}: it cannot carry over"
        assert words in str(caught.value) and "'airllm-plus'" in str(caught.value)


def test_a_failed_write_leaves_the_old_file(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written.read_bytes()

    def full(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(policy_file, "save", full)
    with pytest.raises(MemoryError):
        PolicyFile("mine", {}, TENSORS).save(written)
    assert written.read_bytes() == before
