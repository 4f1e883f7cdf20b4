"""The run file: read, overridden, checked, and every mistake answered with one sentence that helps."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fedlora.config import RunConfig, TrainingConfig, all_keys, load_config, parse_config
from fedlora.errors import ConfigError


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


# -- reading -----------------------------------------------------------------------------------------------------------


def test_no_file_and_no_override_are_the_defaults() -> None:
    config = load_config()
    assert config == RunConfig()
    assert (config.adapter.method, config.adapter.rank, config.training.steps) == ("ravan", 32, 20)


def test_a_file_sets_what_it_names_and_overrides_win(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('rounds = 3\n[adapter]\nmethod = "lora"\nrank = 4\n', encoding="utf-8")
    config = load_config(file, ["adapter.rank=8", "data.name=my data.csv", "adapter.targets=['query', '*.value']"])
    assert (config.rounds, config.adapter.method, config.adapter.rank) == (3, "lora", 8)
    assert config.data.name == "my data.csv"  # what is no TOML is text
    assert config.adapter.targets == ["query", "*.value"]
    assert config.training == RunConfig().training


def test_values_are_read_as_toml() -> None:
    config = load_config(overrides=["training.lr=1e-3", "output.tensorboard=false", "policy.options.rank=[1, 2]", "seed = 7"])
    assert config.training.lr == 0.001 and config.output.tensorboard is False
    assert config.policy.options == {"rank": [1, 2]} and config.seed == 7


def test_a_base_is_a_start_and_stays_as_it_was() -> None:
    base: dict[str, Any] = {"adapter": {"rank": 4}}
    assert load_config(overrides=["adapter.heads=2"], base=base).adapter.rank == 4
    assert base == {"adapter": {"rank": 4}}


def test_toml_and_back_is_the_same_run() -> None:
    for overrides in ([], ["training.epochs=2.5", "model.revision=abc", "adapter.alpha=3.0", "policy.options.a.b=[1, 2]"]):
        config = load_config(overrides=overrides)
        assert parse_config(tomllib.loads(config.to_toml())) == config


def test_steps_and_epochs_exclude_each_other_and_the_later_word_counts(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("training.epochs = 2", encoding="utf-8")
    assert (load_config(file).training.epochs, load_config(file).training.steps) == (2.0, None)
    changed = load_config(file, ["training.steps=3"]).training
    assert (changed.steps, changed.epochs) == (3, None)
    assert load_config(overrides=["training.epochs=1"]).training.steps is None
    assert TrainingConfig().steps == 20
    assert refused("training={steps=1, epochs=1}") == "give either training.steps or training.epochs, not both"


def test_a_configuration_does_not_change_once_read() -> None:
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.rounds = 3  # type: ignore[misc]


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.rnk=4", "unknown key 'adapter.rnk'. Did you mean 'adapter.rank'?"),
        ("rank=4", "unknown key 'rank'. Did you mean 'adapter.rank'?"),  # right key, section forgotten
        ("wire.alpha=4", "unknown key 'wire.alpha'. Did you mean 'data.alpha'?"),
        ("zzz=4", "unknown key 'zzz'. Known: adapter, aggregator, clients"),
        ("wire.dtype=int4", "unknown value 'int4' for wire.dtype. Did you mean 'int8'?"),
        ("engine=spark", "unknown value 'spark' for engine. Known: batched, deployment, ray."),
        ("adapter.rank=four", "adapter.rank = 'four': give a whole number"),
        ("adapter.rank=0", "adapter.rank = 0 trains nothing; the smallest rank is 1"),
        ("adapter.heads=0", "adapter.heads = 0: give 1 or more"),
        ("training.lr=nan", "training.lr = nan: give a finite number"),
        ("training.lr=1e400", "training.lr = inf: give a finite number"),
        ("seed=-1", "seed = -1: give 0 or more"),
        ("clients=2", "clients_per_round = 5 is more than clients = 2: lower the first or raise the other"),
        ("adapter=5", "adapter = 5: this is a section of keys. Write adapter.method=VALUE; its keys: method, rank"),
        ("adapter.targets=query", "adapter.targets = 'query': give a list, for example"),
        ("adapter.rank", "'adapter.rank' is not an override. Write key=value"),
        ("=5", "'=5' is not an override. Write key=value"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(override: str, message: str) -> None:
    assert refused(override).startswith(message)


def test_all_mistakes_are_named_at_once() -> None:
    assert len(refused("adapter.rnk=4", "training.lr=-1", "wire.dtype=int4").splitlines()) == 3


def test_a_value_has_no_keys(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("training = 3", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"'training.lr' cannot be set: 'training' is a value, not a section"):
        load_config(file, ["training.lr=1"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no run file"),
        (b"\xff\xfe", "cannot be read"),
        (b"x = ", "is not valid TOML"),
        (b"[a]\n[a]", "not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


# -- the tree ----------------------------------------------------------------------------------------------------------


def test_every_key_is_listed_once_and_can_be_set_to_its_default() -> None:
    keys = all_keys()
    assert len(keys) == len(set(keys)) and {"seed", "adapter.rank", "ray.client_gpus"} <= set(keys)
    tree = RunConfig().model_dump(exclude_none=True)
    for key in keys:
        section, _, name = key.rpartition(".")
        values = tree.get(section, {}) if section else tree
        if name in values:
            assert parse_config({section: {name: values[name]}} if section else {name: values[name]}) is not None


def test_every_key_says_what_it_means() -> None:
    for key in all_keys():
        section: Any = RunConfig
        *parents, name = key.split(".")
        for parent in parents:
            section = section.model_fields[parent].annotation
        assert section.model_fields[name].description, key


def test_reading_a_run_file_costs_no_heavy_import() -> None:
    heavy = "{'torch', 'transformers', 'flwr'}"
    code = f"import sys, fedlora.config; fedlora.config.load_config(); print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
