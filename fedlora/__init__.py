"""Federated LoRA fine-tuning, simulated over a radio link, on Flower.

import fedlora

run = fedlora.simulate("quickstart", rounds=3)
run.metrics
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fedlora.quiet_env import no_telemetry

if TYPE_CHECKING:
    from fedlora.api import Run, load_run, simulate

__all__ = ["Run", "__version__", "load_run", "simulate"]
__version__ = version("fedlora")

no_telemetry()  # Flower reads its switch when it is imported, which no module of ours does before this line


def __getattr__(name: str) -> Any:
    """Return what `__all__` names, imported only now: a client or a light command pays for none of it."""
    if name in ("Run", "load_run", "simulate"):
        from fedlora import api

        return getattr(api, name)
    raise AttributeError(f"module 'fedlora' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
