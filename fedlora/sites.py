"""Where adapters go: the projections of a model that a list of name patterns picks, in canonical order."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedlora.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

# What the attention query and value projections are called, by family of architectures.
_QUERIES = ("query", "q_proj", "q", "q_lin", "wq", "query_proj", "to_q", "linear_q")
_VALUES = ("value", "v_proj", "v", "v_lin", "wv", "value_proj", "to_v", "linear_v")
# Query, key and value in one matrix: one site.
_FUSED = ("c_attn", "qkv", "qkv_proj", "query_key_value", "Wqkv")
_AUTO = frozenset((*_QUERIES, *_VALUES, *_FUSED))


@dataclass(frozen=True)
class Site:
    """One adapted projection.

    Attributes:
        name: Dotted module name in the Hugging Face model, such as "bert.encoder.layer.0.attention.self.query".
        in_features: Width of its input.
        out_features: Width of its output.
        transposed: Whether the weight is stored [in, out] (transformers' Conv1D, as in GPT-2) rather than [out, in].
    """

    name: str
    in_features: int
    out_features: int
    transposed: bool = False


def find_sites(model: nn.Module, targets: Sequence[str] = ("auto",), exclude: Collection[str] = ()) -> list[Site]:
    """Return the projections that `targets` name, each once, in the order of the model's modules.

    Args:
        model: Any model; `nn.Linear` and transformers' `Conv1D` modules can be adapted.
        targets: Patterns, each of which has to match. "auto": attention query and value projections, whatever the architecture
            calls them, or the fused query-key-value projection. A word ("q_proj"): the last part of the name. A dotted name
            ("self.query"): its end. With `*`, `?` or `[`: a glob over the whole name ("*.layer.0.*.query"). "re:...": a regular
            expression that the whole name has to match.
        exclude: Modules that are no sites, nor is anything inside them: the task head.

    Raises:
        ModelError: A pattern is no valid regular expression or matches nothing; the message names the nearest that would.
    """
    if isinstance(targets, str) or not targets:
        raise ModelError(f"adapter.targets = {targets!r} names nothing to adapt. Give a list of patterns, or ['auto']")
    everything = _projections(model)
    allowed = {name: site for name, site in everything.items() if not _inside(name, exclude)}
    chosen: set[str] = set()
    for pattern in targets:
        matches = _matcher(pattern)
        matched = [name for name in allowed if matches(name)]
        if not matched:
            raise ModelError(_nothing(pattern, allowed, any(map(matches, everything))))
        chosen.update(matched)
    return [site for name, site in allowed.items() if name in chosen]


def _projections(model: nn.Module) -> dict[str, Site]:
    from torch import nn
    from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
    from transformers.pytorch_utils import Conv1D

    found: dict[str, Site] = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            fan_in, fan_out = module.weight.shape
            found[name] = Site(name, fan_in, fan_out, transposed=True)
        # The output projection of nn.MultiheadAttention is never called as a module: an adapter there would do nothing.
        elif isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear):
            found[name] = Site(name, module.in_features, module.out_features)
    return found


def _inside(name: str, modules: Collection[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _matcher(pattern: str) -> Callable[[str], bool]:
    if pattern == "auto":
        return lambda name: _last(name) in _AUTO
    if pattern.startswith("re:"):
        try:
            compiled = re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            raise ModelError(f"'{pattern}' in adapter.targets is not a valid regular expression: {error}") from None
        return lambda name: compiled.fullmatch(name) is not None
    if any(sign in pattern for sign in "*?["):
        return lambda name: fnmatch.fnmatchcase(name, pattern)
    return lambda name: name == pattern or name.endswith(f".{pattern}")


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _nothing(pattern: str, allowed: Collection[str], only_excluded: bool) -> str:
    """Say that `pattern` matches nothing, and which names are there instead, the nearest first."""
    if only_excluded:
        return (
            f"'{pattern}' in adapter.targets matches only the task head, which is trained whole. Name projections of the backbone"
        )
    ends = list(dict.fromkeys(map(_last, allowed)))
    if not ends:
        return f"'{pattern}' in adapter.targets matches nothing: the model has no linear projections outside its task head"
    near = difflib.get_close_matches(_last(pattern), ends, n=len(ends), cutoff=0.5)
    listed = ", ".join([*near, *(end for end in ends if end not in near)])
    what = "finds no attention projection by a name it knows" if pattern == "auto" else "matches no projection of this model"
    return f"'{pattern}' in adapter.targets {what}. Its projections end in: {listed} (first one: {next(iter(allowed))})"
