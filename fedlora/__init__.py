"""Federated LoRA fine-tuning, simulated over a radio link, on Flower."""

from importlib.metadata import version

__version__ = version("fedlora")
