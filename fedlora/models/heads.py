"""The task head of a loaded model: which modules it consists of, and whether the checkpoint held its weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from fedlora.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_head(model: PreTrainedModel, untrained: Collection[str]) -> tuple[tuple[str, ...], bool]:
    """Return the linear modules of a classification head, in module order, and whether the head is fresh.

    The head is every linear module outside the backbone. A pooler inside the backbone (BERT) is pretrained and stays frozen;
    where the checkpoint lacks its weights it joins the head.

    Args:
        model: With a classification head.
        untrained: Names of parameters that the checkpoint did not fill, by absence or by shape.

    Raises:
        ModelError: No linear head; or the checkpoint does not fill the backbone, which must never train on random weights.
    """
    prefix = f"{model.base_model_prefix}."
    linear = _linear_names(model)
    head = [name for name in linear if not name.startswith(prefix)]
    if model.base_model is model or not head:
        raise ModelError(f"{type(model).__name__} has no linear task head that could be trained")
    poolers = [name for name in linear if name.startswith(prefix) and "pooler" in name.split(".") and _of(name, untrained)]
    random = [name for name in untrained if name.startswith(prefix) and not any(_of(pooler, [name]) for pooler in poolers)]
    refuse_random(model, random)
    trained = tuple(name for name in linear if name in {*poolers, *head})
    return trained, any(_of(name, untrained) for name in trained)


def refuse_random(model: PreTrainedModel, untrained: Iterable[str]) -> None:
    """Raise ModelError if any parameter of the backbone is left random."""
    names = sorted(untrained)
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise ModelError(
            f"the checkpoint has no weights for {shown} of {type(model).__name__}: this part would stay random. "
            "Use a complete checkpoint, or one of another architecture"
        )


def clear(model: PreTrainedModel, head: Iterable[str]) -> None:
    """Set the weights of the modules in `head` to zero, so that nothing random is left for a caller to trip over."""
    import torch

    with torch.no_grad():
        for name in head:
            for parameter in model.get_submodule(name).parameters():
                parameter.zero_()


def same_labels(config: Any, names: Collection[str]) -> bool:
    """Return whether a head of this configuration can stand for `names`: as many labels, and the same or no names of its own."""
    found = [str(config.id2label[index]) for index in sorted(config.id2label or {})]
    own = found != [f"LABEL_{index}" for index in range(len(found))]
    return len(found) == len(names) and (not own or [label.casefold() for label in found] == [name.casefold() for name in names])


def _of(module: str, parameters: Iterable[str]) -> bool:
    return any(name.startswith(f"{module}.") for name in parameters)


def _linear_names(model: PreTrainedModel) -> list[str]:
    from torch import nn

    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
