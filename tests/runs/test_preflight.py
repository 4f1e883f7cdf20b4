"""What `doctor` foretells is what the run then does."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedlora.errors import ConfigError, TrainingError
from fedlora.federation.workbench import build
from fedlora.runs import preflight as module
from fedlora.runs.preflight import installation, preflight
from fedlora.runs.simulate import simulate
from tiny_run import Ground

KINDS = {
    "ravan": (),
    "ravan-random": ("policy.name=random",),
    "ravan-block-tiers": ("adapter.unit=block", "policy.name=tiers"),
    "ravan-svd-int8": ("adapter.unit=svd", "policy.name=random", "wire.dtype=int8"),
    "ravan-sliced-fp16": ("policy.name=random", "wire.downlink=sliced", "wire.dtype=fp16"),
    "lora": ("adapter.method=lora", "policy.name=tiers"),
    "lora-stack": ("adapter.method=lora", "aggregator.method=stack", "policy.name=random"),
    "triplet-sliced": ("adapter.method=triplet", "policy.name=random", "wire.downlink=sliced"),
    "head-only": ("policy.name=fixed", "policy.options.rank=0"),
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_bytes_and_ranks_are_those_of_the_run(ground: Ground, tmp_path: Path, changes: tuple[str, ...]) -> None:
    config = ground.config("rounds=1", *changes)
    foretold = preflight(config)
    row = simulate(config, tmp_path / "run").rounds[1]
    assert foretold["uplink_bytes_in_round_1"] == row["uplink_bytes"]
    assert foretold["downlink_bytes_in_round_1"] == row["downlink_bytes"]
    assert foretold["mean_rank_in_round_1"] == pytest.approx(row["mean_rank"], abs=0.005)


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ((), 4 * (4 * 4 * 4 + 4)),  # four sites of four heads: H [4, 4], s
        (("adapter.method=lora",), 4 * 4 * (32 + 32)),
        (("adapter.method=triplet", "adapter.rank=3"), 4 * 3 * (32 + 32 + 1)),
    ],
    ids=["ravan", "lora", "triplet"],
)
def test_trainable_numbers_are_counted(ground: Ground, changes: tuple[str, ...], numbers: int) -> None:
    found = preflight(ground.config(*changes))
    head = 3 * 32 + 3
    assert found["trainable_numbers_per_client"] == numbers + head and found["sites"] == 4


def test_the_data_are_described(ground: Ground) -> None:
    config = ground.config()
    found, bench = preflight(config), build(config)
    sizes = sorted(len(part) for part in bench.parts)
    assert (
        found["examples"]
        == f"{len(bench.train.examples)} to train, {len(bench.test.examples)} to test"
        == "96 to train, 24 to test"
    )
    assert found["examples_per_client"].startswith(f"{sizes[0]} to {sizes[-1]}, median ")
    assert found["task"] == "classification, 3 classes" and found["device"] == "cpu, fp32"
    assert found["model"].startswith(f"{ground.folder / 'model'} (0.0 M")


def test_times_are_of_the_right_size(ground: Ground, tmp_path: Path) -> None:
    """Within a factor of ten: the machines of the suite are shared."""
    config = ground.config("rounds=3", "training.steps=40")
    found = preflight(config)
    taken = [row["wall_time_s"] for row in simulate(config, tmp_path / "run").rounds[1:]]
    assert sorted(taken)[1] / 10 < found["seconds_per_round_estimate"] + 0.05 < 10 * sorted(taken)[1] + 0.5
    assert found["seconds_in_all_estimate"] == pytest.approx(3 * found["seconds_per_round_estimate"], abs=0.2)


def test_epochs_are_counted_in_steps(ground: Ground) -> None:
    config = ground.config("training.epochs=1.5", "training.batch_size=4")
    bench = build(config)
    steps = [-(-round(1.5 * len(part)) // min(4, len(part))) for part in bench.parts]
    assert module._local_steps(config, [len(part) for part in bench.parts]) == pytest.approx(sum(steps) / len(steps))
    assert module._local_steps(ground.config(), [5, 9]) == 3


def test_too_little_memory_is_refused(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_free_memory", lambda bench: 1000)
    with pytest.raises(TrainingError, match=r"one client's local step needs about .* 1\.00 kB are free on cpu: lower training"):
        preflight(ground.config())


def test_what_cannot_run_is_refused_with_the_runs_own_reason(ground: Ground) -> None:
    with pytest.raises(ConfigError, match="choose 1 to 32"):
        preflight(ground.config("adapter.rank=33"))
    with pytest.raises(ConfigError, match="missing a required argument: 'rank'"):
        preflight(ground.config("policy.name=fixed"))


def test_the_installation_is_described() -> None:
    found = installation()
    assert {"torch", "flwr", "python", "cpu", "cores", "memory_gib", "devices", "commit"} <= found.keys()
    assert found["devices"].startswith("cpu") and found["cores"] >= 1
