"""The picture of the label mix: what it shows is read back from its pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedlora.data.plot import plot_label_mix
from fedlora.errors import RunFolderError


def _colours(path: Path) -> dict[tuple[int, int, int], int]:
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return {(int(r), int(g), int(b)): int(n) for (r, g, b), n in zip(found, counts, strict=True)}


def test_bars_are_as_long_as_the_counts(tmp_path: Path) -> None:
    labels = np.array([0] * 30 + [1] * 60)
    plot_label_mix(labels, [np.arange(30), np.arange(30, 90)], ["few", "many"], tmp_path / "mix.png")
    colours = _colours(tmp_path / "mix.png")
    few, many = colours[(0x00, 0x72, 0xB2)], colours[(0xE6, 0x9F, 0x00)]
    assert many / few == pytest.approx(2, rel=0.05)  # the legend's patches are the same size for both
    assert [path.name for path in tmp_path.iterdir()] == ["mix.png"]


@pytest.mark.parametrize(("classes", "clients"), [(2, 1), (8, 20), (12, 100), (13, 5), (50, 300)])
def test_any_number_of_classes_and_clients(classes: int, clients: int, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, classes, 3000)
    parts = np.array_split(np.arange(3000), clients)
    plot_label_mix(labels, parts, [f"class {n}" for n in range(classes)], tmp_path / "mix.png")
    width, height = Image.open(tmp_path / "mix.png").size
    assert 1000 < width < 2500 and 200 < height < 2000
    if classes <= 12:
        # As many bar colours as classes, each over a visible area.
        saturated = [
            colour for colour, count in _colours(tmp_path / "mix.png").items() if count > 300 and max(colour) - min(colour) > 40
        ]
        assert len(saturated) >= min(classes, 7)


def test_examples_without_labels_are_one_bar(tmp_path: Path) -> None:
    plot_label_mix(np.zeros(9, dtype=np.int64), [np.arange(4), np.arange(4, 9)], [], tmp_path / "mix.png")
    assert _colours(tmp_path / "mix.png")[(0x00, 0x72, 0xB2)] > 10_000


def test_a_failed_drawing_leaves_the_old_picture(tmp_path: Path) -> None:
    target = tmp_path / "mix.png"
    target.write_bytes(b"old")
    with pytest.raises(RunFolderError, match="cannot write"):
        plot_label_mix(np.zeros(4, dtype=np.int64), [np.arange(4)], ["a", "b"], tmp_path / "missing" / "mix.png")
    with pytest.raises(IndexError):
        plot_label_mix(np.zeros(4, dtype=np.int64), [np.arange(9)], ["a", "b"], target)
    assert target.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
