"""Surroundings for calls into transformers: nothing on the screen, nothing drawn from the caller's random generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def private_random() -> Iterator[None]:
    """Give the body a CPU generator of its own; initialisers draw from it before the checkpoint overwrites them."""
    import torch

    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed the generators of any accelerator.
        torch.default_generator.manual_seed(0)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars and load reports off the screen; what matters of them becomes an error or a field."""
    from transformers import utils

    logging: Any = utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
