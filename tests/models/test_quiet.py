"""Calls into transformers leave the screen and the global generator as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from fedlora.models.quiet import private_random, quiet
from tiny import tiny_text_model


def test_random_numbers_inside_are_always_the_same_and_outside_untouched() -> None:
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        with private_random():
            drawn.append(torch.rand(4))
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*drawn)


def test_the_generator_comes_back_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError), private_random():
        torch.rand(4)
        raise KeyError
    assert torch.equal(before, torch.get_rng_state())


def test_nothing_is_reported_and_the_settings_come_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny_text_model(tmp_path, task="backbone")
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with pytest.raises(KeyError), quiet():
        AutoModelForSequenceClassification.from_pretrained(folder)  # a fresh head: worth a report otherwise
        assert not logging.is_progress_bar_enabled()
        raise KeyError
    assert not caplog.text
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    AutoModelForSequenceClassification.from_pretrained(folder)
    assert "MISSING" in caplog.text
