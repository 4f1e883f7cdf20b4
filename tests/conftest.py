"""What every test has: no telemetry, no hub, one thread, and the same global generators at its start."""

from __future__ import annotations

import os
import random
import signal

# Read when the libraries are imported, so set before anything below imports them.
os.environ.update(
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
    FLWR_DISABLE_UPDATE_CHECK="1",
    FLWR_TELEMETRY_ENABLED="0",
    HF_HUB_OFFLINE="1",
    MPLBACKEND="agg",
    OMP_NUM_THREADS="1",
    RAY_USAGE_STATS_ENABLED="0",
    TOKENIZERS_PARALLELISM="false",
)

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# A shell starts what runs in its background deaf to Ctrl-C, and children inherit that; tests send Ctrl-C to theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# And `nohup` what it starts deaf to a terminal that closes, which tests close. Children of a handler start with none.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# No deadline: the machines that run the suite are shared. Derandomised: a change either breaks a test or does not.
settings.register_profile("fedlora", deadline=None, derandomize=True)
settings.load_profile("fedlora")


@pytest.fixture(autouse=True)
def _global_generators() -> None:
    """Seed the global generators, so that a test gives the same whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
