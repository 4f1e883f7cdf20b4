"""Images on their way into a model: what it expects, and how raw pixels become that."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora.errors import DataError, ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_FALLBACK_SIZE = 224
_CHANNELS = 3


@dataclass(frozen=True)
class ImageSpec:
    """What a model expects of its input images.

    Attributes:
        size: Side of the square image, pixels.
        mean: Subtracted from each of the three channels, after pixels are scaled to [0, 1].
        std: Divides each channel after that.
    """

    size: int
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD


def pixels(images: NDArray[np.uint8], spec: ImageSpec) -> Tensor:
    """Turn raw images into model input: bilinear resize with antialias, grey to three channels, normalise.

    An image that is not square is stretched. The result is 12 n size^2 bytes, so convert batch by batch.

    Args:
        images: uint8 [n, H, W] or [n, H, W, 3].
        spec: Of the model.

    Returns:
        float32 [n, 3, size, size].

    Raises:
        DataError: Another number format or shape.
    """
    import numpy as np
    import torch
    from torch.nn import functional

    if str(images.dtype) != "uint8":
        raise DataError(f"images have number format {images.dtype}; give uint8 pixels from 0 to 255")
    grey = images.ndim == 3
    if not (grey or (images.ndim == 4 and images.shape[3] == _CHANNELS)) or 0 in images.shape[1:3]:
        raise DataError(
            f"images have shape {list(images.shape)}; give [n, height, width] for grey or [n, height, width, 3] for RGB"
        )
    # A copy: torch takes neither the read-only nor the reversed views that data sets hand out.
    planes = torch.from_numpy(np.array(images, order="C"))
    planes = (planes.unsqueeze(1) if grey else planes.permute(0, 3, 1, 2)).to(torch.float32) / 255
    size = (spec.size, spec.size)
    if planes.shape[2:] != size and len(planes):
        planes = functional.interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    # Grey becomes three channels here: the difference broadcasts over them.
    return (planes.reshape(-1, planes.shape[1], *size) - mean) / std


def image_spec(config: PreTrainedConfig, preprocessor: Path | None, size: int | None) -> ImageSpec:
    """Return what a model expects, from its configuration and preprocessor file.

    Args:
        config: Of the model.
        preprocessor: Its `preprocessor_config.json`, or None where it has none (then ImageNet's mean and deviation hold).
        size: Asked for by the user, pixels; None takes the preprocessor's, else the configuration's.

    Raises:
        ModelError: The model does not take three channels, or images of this size do not divide into its patches.
    """
    channels = getattr(config, "num_channels", _CHANNELS)
    if channels != _CHANNELS:
        raise ModelError(f"the model takes images of {channels} channels; only models for {_CHANNELS} channels can be used")
    found = _read(preprocessor) if preprocessor else {}
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    if found.get("do_normalize", True):
        mean, std = _triple(found.get("image_mean"), mean), _triple(found.get("image_std"), std)
    else:
        mean, std = (0.0,) * _CHANNELS, (1.0,) * _CHANNELS
    cropped = found.get("crop_size") if found.get("do_center_crop", True) else None
    side = size or _side(cropped) or _side(found.get("size")) or _side(getattr(config, "image_size", None)) or _FALLBACK_SIZE
    patch = _side(getattr(config, "patch_size", None))
    if patch and side % patch:
        lower = side // patch * patch
        nearest = " or ".join(str(good) for good in (lower, lower + patch) if good)
        raise ModelError(f"model.image_size = {side} is not a multiple of the model's patch size {patch}. Use {nearest}")
    return ImageSpec(side, mean, std)


def image_arguments(model: PreTrainedModel, spec: ImageSpec) -> dict[str, Any]:
    """Return what `model.forward` needs besides the pixels, after trying one image of this size where it is not the model's own.

    Raises:
        ModelError: The model cannot take images of this size.
    """
    import torch

    if _side(getattr(model.config, "image_size", None)) in (spec.size, None):
        return {}
    takes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    arguments = {"interpolate_pos_encoding": True} if takes else {}
    try:
        with torch.no_grad():
            model(pixel_values=torch.zeros(1, _CHANNELS, spec.size, spec.size), **arguments)
    except (ValueError, RuntimeError) as error:
        own = _side(model.config.image_size)
        raise ModelError(
            f"a {model.config.model_type} model made for images of {own} pixels does not take {spec.size}: {error}. "
            f"Leave model.image_size out, or set it to {own}"
        ) from error
    return arguments


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}. Restore the file, or remove it to use ImageNet's values") from None
    return found if isinstance(found, dict) else {}


def _side(size: Any) -> int | None:
    """Return the side in any of the forms these files use: 224, [224, 224], {"height": 224, ...}, {"shortest_edge": 224}."""
    if isinstance(size, Mapping):
        size = next((size[key] for key in ("height", "shortest_edge") if key in size), None)
    if isinstance(size, list | tuple):
        size = size[0] if size else None
    return int(size) if size else None


def _triple(values: Any, default: tuple[float, ...]) -> tuple[float, ...]:
    if values is None:
        return default
    if isinstance(values, int | float):
        return (float(values),) * _CHANNELS
    return tuple(float(value) for value in values)
