"""Raw images to model input, and what a preprocessor file says about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import ViTConfig

from fedlora.errors import DataError, ModelError
from fedlora.models import ImageSpec, pixels
from fedlora.models.images import image_spec

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_pixels_at_their_own_size_are_only_normalised() -> None:
    images = noise(3, 8, 8, 3)
    spec = ImageSpec(8, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    expected = (images / 255 - np.array(spec.mean)) / np.array(spec.std)
    out = pixels(images, spec)
    assert (out.dtype, out.shape) == (torch.float32, (3, 3, 8, 8))
    np.testing.assert_allclose(out.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)


@pytest.mark.parametrize("size", [5, 14, 28, 56])
def test_resize_is_the_antialiased_bilinear_of_image_libraries(size: int) -> None:
    images = noise(2, 28, 28)
    expected = np.stack([np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BILINEAR)) for i in images])
    out = pixels(images, ImageSpec(size, **PLAIN))
    # Pillow rounds to whole pixel values, once for each axis.
    np.testing.assert_allclose(out[:, 0].numpy() * 255, expected, atol=1.01)


def test_grey_is_three_equal_channels_each_normalised_by_its_own() -> None:
    images = noise(2, 6, 6)
    spec = ImageSpec(12)
    colour = pixels(np.repeat(images[..., None], 3, axis=3), spec)
    torch.testing.assert_close(pixels(images, spec), colour)
    assert not torch.equal(colour[:, 0], colour[:, 1])


@given(st.integers(0, 255), st.integers(1, 9), st.integers(1, 9), st.integers(1, 20))
def test_a_flat_image_stays_flat_whatever_its_shape(value: int, height: int, width: int, size: int) -> None:
    out = pixels(np.full((1, height, width), value, dtype=np.uint8), ImageSpec(size, **PLAIN))
    torch.testing.assert_close(out, torch.full((1, 3, size, size), value / 255))


def test_views_and_read_only_arrays_are_taken_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    images = noise(4, 8, 8)
    images.flags.writeable = False
    torch.testing.assert_close(pixels(images[::-2], ImageSpec(4)), pixels(images[[3, 1]], ImageSpec(4)))
    assert not recwarn.list


def test_no_image_gives_an_empty_batch() -> None:
    assert pixels(noise(0, 28, 28), ImageSpec(14)).shape == (0, 3, 14, 14)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (noise(2, 8, 8).astype(np.float32), "number format float32; give uint8"),
        (noise(8, 8), r"shape \[8, 8\]; give \[n, height, width\]"),
        (noise(2, 8, 8, 4), r"shape \[2, 8, 8, 4\]"),
        (noise(2, 0, 8), r"shape \[2, 0, 8\]"),
    ],
)
def test_what_is_no_image_is_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pixels(images, ImageSpec(8))


@pytest.mark.parametrize(
    ("found", "size"),
    [
        ({"size": {"height": 48, "width": 48}}, 48),
        ({"size": 32}, 32),
        ({"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}, 56),
        ({"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}, "do_center_crop": False}, 64),
        ({}, 16),
    ],
)
def test_the_size_is_the_preprocessors_unless_the_user_says_otherwise(found: dict[str, Any], size: int, tmp_path: Path) -> None:
    path = write(tmp_path, found)
    config = ViTConfig(image_size=16, patch_size=8)
    assert image_spec(config, path, None).size == size
    assert image_spec(config, path, 24).size == 24


def test_mean_and_deviation_are_the_preprocessors(tmp_path: Path) -> None:
    config = ViTConfig(image_size=16, patch_size=8)
    own = image_spec(config, write(tmp_path, {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}), None)
    assert own == ImageSpec(16, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert image_spec(config, write(tmp_path, {"image_mean": 0.5, "image_std": 0.25}), None) == ImageSpec(
        16, (0.5,) * 3, (0.25,) * 3
    )
    assert image_spec(config, write(tmp_path, {"do_normalize": False}), None) == ImageSpec(16, **PLAIN)


def test_a_broken_preprocessor_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text('{"size": ')
    with pytest.raises(ModelError, match=r"preprocessor_config.json cannot be read"):
        image_spec(ViTConfig(), path, None)


@pytest.mark.parametrize(("size", "advice"), [(5, "Use 8$"), (20, "Use 16 or 24$")])
def test_the_nearest_sizes_that_fit_are_named(size: int, advice: str) -> None:
    with pytest.raises(ModelError, match=advice):
        image_spec(ViTConfig(image_size=16, patch_size=8), None, size)


def write(folder: Path, found: dict[str, Any]) -> Path:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(found))
    return path
