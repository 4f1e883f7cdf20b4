"""Federated LoRA fine-tuning, simulated over a radio link, on Flower."""

from importlib.metadata import version

from fedlora.quiet_env import no_telemetry

__version__ = version("fedlora")

no_telemetry()  # Flower reads its switch when it is imported, which no module of ours does before this line
