"""Bad input ends in one line that says what, where and what to do, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from children import fedlora_command
from tiny_run import Ground, write_rows

REFUSALS = [
    ("adapter.rnk=4", 2, "unknown key 'adapter.rnk'. Did you mean 'adapter.rank'?"),
    ("lr=0.1", 2, "unknown key 'lr'. Did you mean 'training.lr'?"),
    ("engine=bathed", 2, "Did you mean 'batched'?"),
    ("adapter.method=rvan", 2, "Did you mean 'ravan'?"),
    ("aggregator.method=stck", 2, "Did you mean 'stack'?"),
    ("policy.name=tier", 2, "Did you mean 'tiers'?"),
    ("data.name=trec6", 2, "Did you mean 'trec-6'?"),
    ("data.label_column=lable", 3, "label"),
    ("model.name=data.csv", 3, "not"),
    ("adapter.rank=0", 2, "adapter.rank = 0 trains nothing"),
    ("adapter.rank=99", 2, "choose 1 to 32"),
    ("adapter.rank=9 adapter.init=gram-schmidt", 2, "the Gram-Schmidt limit is 32. Lower rank to 8"),
    ("clients_per_round=7", 2, "clients_per_round = 7 is more than clients = 6"),
    ("clients=90 data.partition=iid", 2, "client"),
    ("adapter.method=lora aggregator.method=ravan", 2, "Use 'fedavg-factors' (FedIT) or 'stack' (FLoRA)"),
    ("adapter.targets=['nowhere']", 3, "nowhere"),
    ("device=cuda:9", 2, "device = 'cuda:9'"),
    ("training.steps=3 training.lr=-1", 2, "training.lr"),
    ("wire.downlink=sliced adapter.score=gradient", 2, "wire.downlink = 'sliced'"),
    ("data.max_length=4000", 2, "data.max_length = 4000"),
    ("world.name=umi-indor", 2, "unknown world 'umi-indor'. Did you mean 'umi-indoor'?"),
    ("world.name=umi-indoor world.options.uplnk.sharing=pf", 2, "'world.options.uplnk'. Did you mean 'world.options.uplink'?"),
    ("world.name=umi-indoor world.options.uplink.sharng=pf", 2, "Did you mean 'world.options.uplink.sharing'?"),
    ("world.name=umi-indoor world.options.speed_kmh=3", 2, "Did you mean 'world.options.cell.speed_kmh'?"),
    ("world.name=umi-indoor world.options.rate.model=shanon", 2, "Did you mean 'shannon'?"),
    ("world.name=umi-indoor world.options.uplink.bandwidth_hz=-5", 2, "world.options.uplink.bandwidth_hz = -5"),
    ("world.name=umi-indoor world.options.fading.model=markov world.options.fading.step_s=1", 2, "fD*T"),
    ("world.name=yang2021 world.options.clients=5", 2, "world 'yang2021' holds 5 clients, 6 were asked for"),
    ("world.name=umi-indoor world.deadline_s=3", 2, "What belongs to the chosen name alone goes under 'world.options'"),
    ("world.name=umi-indoor world.uplink.sharing=pf", 2, "What belongs to the chosen name alone goes under 'world.options'"),
    ("aggregator.options.snr_db=3", 2, "aggregator.options do not fit aggregator.method"),
    ("aggregator.snr_db=3", 2, "What belongs to the chosen name alone goes under 'aggregator.options'"),
    ("policy.rank=3", 2, "Did you mean 'adapter.rank'?"),
    ("no-equals-sign-here seed=1", 2, "there is no run file"),
]


@pytest.mark.parametrize(("changes", "code", "says"), REFUSALS, ids=[changes for changes, _, _ in REFUSALS])
def test_one_clear_error_and_nothing_written(changes: str, code: int, says: str, ground: Ground, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,label\n")
    words = changes.split()
    arguments = [*words, *ground.overrides()] if "=" not in words[0] else ground.overrides(*words)
    done = fedlora_command(["simulate", *arguments, "--out", "run"], tmp_path)
    assert says in done.error
    assert done.code in (code, 2, 3) if says in ("client", "not", "label") else done.code == code
    assert not (tmp_path / "run").exists()


def test_labels_missing_in_the_training_data(ground: Ground, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "holes.csv")
    lines = path.read_text().splitlines()
    lines[5] = lines[5].rpartition(",")[0] + ","
    path.write_text("\n".join(lines) + "\n")
    done = fedlora_command(["simulate", *ground.overrides(f"data.name={path}"), "--out", "run"], tmp_path)
    assert done.code == 3 and "has no label" in done.error
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_another_run_is_left_alone(ground: Ground, tmp_path: Path) -> None:
    assert fedlora_command(["simulate", *ground.overrides("rounds=1"), "--out", "run"], tmp_path).code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    done = fedlora_command(["simulate", *ground.overrides("rounds=1"), "--out", "run"], tmp_path)
    assert done.code == 5 and "--resume run" in done.error
    done = fedlora_command(["simulate", *ground.overrides("rounds=1", "seed=3"), "--resume", "run"], tmp_path)
    assert done.code == 5 and "seed" in done.error
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_every_update_not_finite_is_reported_and_the_run_goes_on(ground: Ground, tmp_path: Path) -> None:
    done = fedlora_command(["simulate", *ground.overrides("training.lr=1e30", "training.clip=0"), "--out", "run"], tmp_path)
    assert done.code == 0
    assert "non-finite" in done.out and "0/4 clients" in done.out
    said = "no reply was counted in any round: the adapter is the one that the run began with"
    assert done.out.count(said) == 1 and done.out.index(said) > done.out.index("round 2/2")
