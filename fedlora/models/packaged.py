"""Models that install from the package registries, by short name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedlora.assets import catalogue
from fedlora.models.convert import plain_folder
from fedlora.registry import Registry


@dataclass(frozen=True)
class PackagedModel:
    """One model of the catalogue of packaged assets.

    Attributes:
        name: Short name.
        image_size: Default side of its input images, pixels, where that should not be the size it was pretrained with.
    """

    name: str
    image_size: int | None = None

    def folder(self) -> Path:
        """Return a plain transformers folder of this model; the first call fetches and converts it.

        Raises:
            AssetError: It cannot be fetched.
            ModelError: It cannot be converted.
        """
        return plain_folder(self.name)


# Entries of other packages have `folder` and `image_size` as well.
MODELS: Registry[PackagedModel] = Registry("model", group="fedlora.models")

# 56 pixels: 16 patches instead of 1,369, which a small CPU can train, at little loss on small images.
_IMAGE_SIZES = {"vit-s14": 56}

for _asset in catalogue().values():
    if _asset.kind == "model":
        _summary = f"{_asset.summary}; {_asset.size_mb:.0f} MB; {_asset.licence}"
        MODELS.add(_asset.name, PackagedModel(_asset.name, _IMAGE_SIZES.get(_asset.name)), _summary)
