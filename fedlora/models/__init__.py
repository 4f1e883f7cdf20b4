"""Backbones and their task heads: packaged models, local folders and hub models, loaded frozen and ready for adapters."""

from fedlora.models.images import ImageSpec, pixels
from fedlora.models.loading import LoadedModel, load_model
from fedlora.models.packaged import MODELS, PackagedModel

__all__ = ["MODELS", "ImageSpec", "LoadedModel", "PackagedModel", "load_model", "pixels"]
