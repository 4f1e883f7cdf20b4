"""Federated LoRA methods by name: what `method = "..."` sets in a run file, and what each of them does, for people.

Light on purpose (no torch): the run file is read with it. A method is an adapter and an aggregation rule that belong together;
the parts can be mixed by hand as well, and what makes no sense is refused with the reason where the run is built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedlora.errors import ConfigError, UnknownNameError
from fedlora.registry import Registry


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        adapter: Value of adapter.method.
        aggregator: Value of aggregator.method.
        summary: What it is, in one line.
        trained: What a client trains at a site.
        up: What a client sends per site.
        down: What a client receives per site.
        exact: Whether the aggregate is the mean of the clients' updates. "Over its clients": where all have the same ranks it is;
            with mixed ranks each part is the mean over the clients that sent it, and no longer the mean over all.
        mixed_ranks: What clients of different ranks do.
        source: Paper.
        sets: Further keys that it sets where the run file does not, in dotted form.
    """

    adapter: str
    aggregator: str
    summary: str
    trained: str
    up: str
    down: str
    exact: str
    mixed_ranks: str
    source: str
    sets: Mapping[str, Any] = field(default_factory=dict)


METHODS: Registry[Method] = Registry("method", "fedlora.methods")

_SLICED = {"wire.downlink": "sliced"}
_PER_COMPONENT = "yes, per component over its clients"

_OWN = {
    "fedit": Method(
        "lora",
        "fedavg-factors",
        "FedIT: both factors averaged one by one",
        "A, B",
        "rho (in + out)",
        "r (in + out)",
        "no",
        _PER_COMPONENT + " (ours)",
        "arXiv 2305.05644",
    ),
    "ffa-lora": Method(
        "ffa-lora",
        "mean",
        "A frozen and shared, from the seed",
        "B",
        "rho out",
        "r out",
        _PER_COMPONENT,
        _PER_COMPONENT + " (ours)",
        "arXiv 2403.12313",
    ),
    "fedex-lora": Method(
        "lora",
        "fedex",
        "FedIT, and the missing rest merged into the weight",
        "A, B",
        "rho (in + out)",
        "(r + R)(in + out), R <= min(in, out) the rank of the rests so far",
        "yes",
        "yes, exact too (ours)",
        "arXiv 2410.09432",
    ),
    "fed-sb": Method(
        "fed-sb",
        "mean",
        "B R A between frozen singular vectors of the first gradient step",
        "R",
        "rho^2",
        "r^2; once per client also r (in + out)",
        "yes, per entry of R over its clients",
        "yes, leading squares of R (ours)",
        "arXiv 2502.15436",
    ),
    "flora": Method(
        "lora",
        "stack",
        "factors stacked, merged into the weight, fresh adapter every round",
        "A, B",
        "rho (in + out)",
        "R (in + out), R <= min(in, out) the rank of the sum so far",
        "yes",
        "yes",
        "arXiv 2409.05976",
    ),
    "flexlora": Method(
        "lora",
        "flexlora",
        "products averaged, redistributed by SVD, each client its own rank",
        "A, B",
        "rho (in + out)",
        "rho (in + out)",
        "up to truncation at the cap",
        "yes, best approximation of each rank",
        "arXiv 2402.11505",
        _SLICED,
    ),
    "hetlora": Method(
        "lora",
        "hetlora",
        "zero-padded factors weighted by norm, sparsity penalty, self-pruning",
        "A, B",
        "rho (in + out), rho falls by pruning",
        "rho (in + out)",
        "no",
        "yes, padded with zeros",
        "arXiv 2401.06432",
        _SLICED,
    ),
    "fedsa-lora": Method(
        "fedsa-lora",
        "fedavg-factors",
        "A shared, every client its own B; measured at clients",
        "A, B",
        "rho in",
        "r in",
        "no global update",
        _PER_COMPONENT + " (ours)",
        "arXiv 2410.01463",
    ),
    "lora-fair": Method(
        "lora",
        "lora-fair",
        "FedIT, then B corrected on the server towards the mean update",
        "A, B",
        "rho (in + out)",
        "r (in + out)",
        "no, closer than FedIT",
        _PER_COMPONENT + " (ours)",
        "arXiv 2411.14961",
    ),
    "rolora": Method(
        "rolora",
        "mean",
        "B trains in odd rounds, A in even ones",
        "B or A",
        "rho out or rho in",
        "r (in + out)",
        _PER_COMPONENT,
        _PER_COMPONENT + " (ours)",
        "arXiv 2409.02346",
    ),
    "ravan": Method(
        "ravan",
        "ravan",
        "h heads s B H A between frozen bases from the seed",
        "H, s",
        "r^2 per chosen head",
        "h r^2",
        "yes, per head over its clients",
        "yes, per head",
        "arXiv 2506.05568",
    ),
    "full": Method(
        "full",
        "mean",
        "full fine-tuning of the adapted weights, the ceiling",
        "the whole weight",
        "in x out",
        "in x out",
        "yes, per site over its clients",
        "all or nothing per site",
        "arXiv 1602.05629",
    ),
}
for _name, _method in _OWN.items():
    METHODS.add(_name, _method, _method.summary)


def with_method(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run file's plain tree with what its `method` sets filled in; a tree without one comes back as it is.

    Raises:
        ValueError: Unknown method, or the file asks for another adapter or aggregator besides.
    """
    name = tree.get("method")
    if not name:
        return dict(tree)
    try:
        method = METHODS.get(str(name))
    except (UnknownNameError, ConfigError) as error:
        raise ValueError(str(error)) from None
    filled = dict(tree)
    wanted = {"adapter.method": method.adapter, "aggregator.method": method.aggregator, **method.sets}
    for key, value in wanted.items():
        section, _, leaf = key.partition(".")
        given = filled.get(section, {})
        given = given.model_dump(exclude_unset=True) if hasattr(given, "model_dump") else given
        if not isinstance(given, Mapping):
            continue  # the tree's own check says what is wrong with it
        other = None if key == "aggregator.method" and given.get(leaf) == "auto" else given.get(leaf)
        if key in ("adapter.method", "aggregator.method") and other not in (
            None,
            value,
            "auto" if section != "adapter" else value,
        ):
            raise ValueError(
                f"method = '{name}' sets {key} = '{value}', and the run file asks for '{other}'. "
                f"Leave out {key}, or leave out method and give both parts by hand"
            )
        filled[section] = {**given, leaf: value if other is None else other}
    return filled


def rank_for_budget(method: str, numbers: int, out_features: int, in_features: int, heads: int = 4) -> int:
    """Return the largest rank at which one site has at most this many trained numbers (arXiv 2506.05568, Table 10).

    Args:
        method: A method or an adapter ("fedit", "lora"). Ravan's rank is per head. Its scales are not counted, nor the task head.
        numbers: Budget N of a site.
        out_features: Height of its weight.
        in_features: Width of its weight.
        heads: Ravan's heads.

    Raises:
        ConfigError: The budget does not even pay for rank 1, the method is unknown or has no rank to choose, or there are no
            heads.
    """
    if heads < 1:
        raise ConfigError(f"heads = {heads} trains nothing; ravan has at least 1 head")
    adapter = METHODS.get(method).adapter if method in METHODS.names() else method
    both = in_features + out_features
    linear = {"lora": both, "triplet": both + 1, "ffa-lora": out_features, "fedsa-lora": both, "rolora": both}
    squares = {"fed-sb": 1, "ravan": heads}
    if adapter in linear:
        rank = numbers // linear[adapter]
    elif adapter in squares:
        rank = math.isqrt(max(0, numbers) // squares[adapter])
    elif method not in METHODS.names():
        raise UnknownNameError("method or adapter", method, {*METHODS.names(), *linear, *squares})
    else:
        raise ConfigError(f"method '{method}' has no rank that a budget could choose. Known: {', '.join([*linear, *squares])}")
    if rank < 1:
        what = f"one number in each of its {heads} heads" if adapter == "ravan" else "rank 1"
        least = linear.get(adapter) or squares[adapter]
        raise ConfigError(f"a budget of {numbers} numbers is too small for {what} of '{method}': it takes at least {least}")
    return min(rank, in_features, out_features)
