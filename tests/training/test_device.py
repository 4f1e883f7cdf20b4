"""Device and precision are settled, or refused, before anything is loaded."""

from __future__ import annotations

import pytest
import torch

from benches import DEVICES, Maker
from fedlora.config import TrainingConfig
from fedlora.errors import ConfigError, TrainingError
from fedlora.training import chunks
from fedlora.training.chunks import chunk_size, client_memory, train_in_chunks
from fedlora.training.device import has_fast_bf16, place
from fedlora.training.local import Job, Outcome


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_of_this_machine_is_taken(device: str) -> None:
    assert place(device, "fp32").device.type == device
    assert place("auto", "fp32").device.type == DEVICES[-1]
    assert place(device, "bf16").precision == "bf16"
    assert place(device, "auto").precision == ("bf16" if has_fast_bf16(torch.device(device)) else "fp32")


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "device = 'gpu' is not a device. Use auto, cpu"), ("xpu", "device = 'xpu' is not available on this machine")],
)
def test_another_is_refused(device: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        place(device, "fp32")


def test_a_gpu_that_is_not_there_is_refused() -> None:
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ConfigError, match=r"available on this machine|CUDA device"):
        place(absent, "fp32")


def test_autocast_is_on_in_bf16_alone() -> None:
    a = torch.randn(4, 4)
    with place("cpu", "bf16").autocast():
        assert (a @ a).dtype == torch.bfloat16
    with place("cpu", "fp32").autocast():
        assert (a @ a).dtype == torch.float32


def test_the_chunk_is_between_one_and_all(bench: Maker) -> None:
    made = bench("bert")
    config = TrainingConfig(steps=1, batch_size=16)
    assert chunk_size(made.backbone, made.prepared, config, 1) == 1
    few, many = (chunk_size(made.backbone, made.prepared, config, clients) for clients in (3, 10_000))
    assert few == 3 and 3 <= many < 10_000
    assert chunk_size(made.backbone, made.prepared, TrainingConfig(steps=1, batch_size=100_000), 8) == 1


@pytest.mark.parametrize("architecture", ["bert", "gpt2-lm", "vit", "distilbert"])
def test_memory_grows_with_batch_and_length(architecture: str, bench: Maker) -> None:
    made = bench(architecture)
    small, wide, long = (
        client_memory(made.backbone, TrainingConfig(steps=1, batch_size=size), length)
        for size, length in ((4, 16), (8, 16), (4, 64))
    )
    assert 0 < small < wide < long


def test_a_chunk_that_does_not_fit_is_halved_until_it_does(bench: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench("bert")
    jobs = [made.job(client, made.start()) for client in range(5)]
    real, sizes = chunks.train_clients, []

    def crowded(backbone: object, prepared: object, part: list[Job], *rest: object) -> list[Outcome]:
        sizes.append(len(part))
        if len(part) > limit:
            raise torch.OutOfMemoryError("out of memory")
        return real(backbone, prepared, part, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(chunks, "train_clients", crowded)
    limit = 1
    found = train_in_chunks(made.backbone, made.prepared, jobs, TrainingConfig(steps=1, batch_size=4), 5)
    assert [outcome.client for outcome in found] == [0, 1, 2, 3, 4]
    assert sizes == [5, 2, 1, 1, 1, 1, 1]
    limit = 0
    with pytest.raises(TrainingError, match=r"does not fit this device's memory: lower training.batch_size"):
        train_in_chunks(made.backbone, made.prepared, jobs, TrainingConfig(steps=1, batch_size=4), 5)
