"""How training examples are spread over clients, through flwr-datasets' partitioners."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedlora.config import DataConfig
from fedlora.data.base import Examples
from fedlora.errors import ConfigError, DataError

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

# One to train on and one to hold out.
_SMALLEST = 2
# flwr-datasets draws ten times itself before it gives up.
_DIRICHLET_SEEDS = 50

Indices = NDArray[np.int64]


def partition(examples: Examples, config: DataConfig, clients: int, seed: int) -> list[Indices]:
    """Deal every training example to exactly one client, the same way for the same seed.

    Kinds (`config.partition`): "iid" in equal parts at random; "dirichlet" draws each label's shares over the clients from
    Dirichlet(alpha) (arXiv:1905.12022), again until every client has two examples (rounding gives the last client one example
    of nearly every label); "shards" sorts by label and deals `shards_per_client` runs of equal length to each client
    (arXiv:1602.05629); "natural" follows `examples.natural`, in sorted order of the ids. Examples without labels (causal
    language modelling) take their natural ids for labels.

    Args:
        examples: The training part.
        config: The run file's `data` section.
        clients: Number of clients.
        seed: The run's seed.

    Returns:
        One sorted int64 array of positions in `examples` per client; together they are 0..N-1.

    Raises:
        ConfigError: The data cannot be spread this way over so many clients; names the client and the remedy.
    """
    from flwr_datasets.partitioner import IidPartitioner

    from fedlora.streams import stream

    if len(examples) < _SMALLEST * clients:
        raise ConfigError(
            f"{len(examples)} training examples are too few for clients = {clients}: each needs {_SMALLEST}. "
            f"Set clients to {max(1, len(examples) // _SMALLEST)} or less, or raise data.max_examples"
        )
    if config.partition == "natural":
        return _natural(examples, clients)
    # The partitioners keep the order they are given: whichever examples share a label are shuffled here.
    order = stream(seed, "partition order").permutation(len(examples))
    if config.partition == "iid":
        owner = _owners(IidPartitioner(clients), np.zeros(len(order), np.int64), clients)
    else:
        keys = _label_keys(examples, config)[order]
        draw = stream(seed, "partition draw")
        if config.partition == "dirichlet":
            owner = _dirichlet(keys, config.alpha, clients, draw)
        else:
            owner = _shards(keys, config.shards_per_client, clients, draw)
    return [np.sort(order[owner == client]) for client in range(clients)]


def split_client(indices: Indices, fraction: float, seed: int, client: int) -> tuple[Indices, Indices]:
    """Split one client's examples into those it trains on and those it only measures on.

    Args:
        indices: The client's examples, at least one.
        fraction: Share to hold out; above 0 at least one example is, unless the client has only one.
        seed: The run's seed.
        client: The client's number.

    Returns:
        (training, held out), both sorted; the first is never empty.
    """
    from fedlora.streams import stream

    if not len(indices):
        raise DataError(f"client {client} has no examples to split")
    count = min(max(1, round(fraction * len(indices))), len(indices) - 1) if fraction > 0 else 0
    order = stream(seed, "client split", client).permutation(indices)
    return np.sort(order[count:]), np.sort(order[:count])


def _label_keys(examples: Examples, config: DataConfig) -> NDArray[np.int64]:
    if len(np.unique(examples.labels)) > 1:
        return examples.labels
    if examples.natural is None:
        raise ConfigError(
            f'data.partition = "{config.partition}" spreads labels, and these examples have neither labels nor client ids. '
            'Set data.partition = "iid", or name a column of client ids in data.natural_column'
        )
    return np.unique(examples.natural, return_inverse=True)[1].astype(np.int64)


def _dirichlet(labels: NDArray[np.int64], alpha: float, clients: int, draw: np.random.Generator) -> Indices:
    from flwr_datasets.partitioner import DirichletPartitioner

    def deal(smallest: int) -> Indices:
        seed = int(draw.integers(2**31))
        partitioner = DirichletPartitioner(clients, "label", float(alpha), min_partition_size=smallest, shuffle=False, seed=seed)
        return _owners(partitioner, labels, clients)

    for _ in range(_DIRICHLET_SEEDS):
        try:
            return deal(_SMALLEST)
        except ValueError:  # some client stayed too small
            continue
    sizes = np.bincount(deal(0), minlength=clients)
    raise ConfigError(
        f"data.alpha = {alpha} leaves some of clients = {clients} with too few examples, however often it is drawn: in the last "
        f"draw client {sizes.argmin()} got {sizes.min()}, and each needs {_SMALLEST}. Raise data.alpha or lower clients"
    )


def _shards(labels: NDArray[np.int64], per_client: int, clients: int, draw: np.random.Generator) -> Indices:
    from flwr_datasets.partitioner import ShardPartitioner

    count = clients * per_client
    if count > len(labels):
        raise ConfigError(
            f"clients = {clients} times data.shards_per_client = {per_client} makes {count} shards of {len(labels)} examples: "
            f"lower one of them, {len(labels)} shards at most"
        )
    # The partitioner drops what is left after equal shards. Leave that many rows out, evenly along the sorted labels, and give
    # each to the client that has its neighbour.
    by_label = np.argsort(labels, kind="stable")
    extra = np.linspace(0, len(labels), len(labels) % count, endpoint=False).astype(int)
    kept = np.delete(by_label, extra)
    seed = int(draw.integers(2**31))
    partitioner = ShardPartitioner(clients, "label", num_shards_per_partition=per_client, shuffle=False, seed=seed)
    owner = np.full(len(labels), -1, dtype=np.int64)
    owner[kept] = _owners(partitioner, labels[kept], clients)
    neighbour = np.minimum(extra - np.arange(len(extra)), len(kept) - 1)
    owner[by_label[extra]] = owner[kept[neighbour]]
    return owner


def _natural(examples: Examples, clients: int) -> list[Indices]:
    from flwr_datasets.partitioner import NaturalIdPartitioner

    if examples.natural is None:
        raise ConfigError(
            'data.partition = "natural" needs to know whom an example belongs to. Name the column in data.natural_column '
            "(own data), or choose another data.partition"
        )
    names, ids, sizes = np.unique(examples.natural, return_inverse=True, return_counts=True)
    if len(names) != clients:
        raise ConfigError(f"clients = {clients}, but the training examples belong to {len(names)}. Set clients = {len(names)}")
    if sizes.min() < _SMALLEST:
        client = int(sizes.argmin())
        raise DataError(
            f"client {client} ('{names[client]}') has {sizes[client]} training example; each needs {_SMALLEST}. "
            f"Leave out such clients ({int((sizes < _SMALLEST).sum())} of {clients}) or give them more"
        )
    owner = _owners(NaturalIdPartitioner("label"), ids.astype(np.int64), clients)
    return [np.flatnonzero(owner == client).astype(np.int64) for client in range(clients)]


def _owners(partitioner: Partitioner, labels: NDArray[np.int64], clients: int) -> Indices:
    """Return which client `partitioner` gives each row to; -1 for none."""
    import datasets

    owner = np.full(len(labels), -1, dtype=np.int64)
    # Columns of this format are arrays; those of others are read row by row.
    data = datasets.Dataset.from_dict({"label": labels, "row": np.arange(len(labels))}).with_format("pandas")
    # Warnings about repeated draws and a progress bar that cannot be switched off.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        partitioner.dataset = data
        for client in range(clients):
            owner[np.asarray(partitioner.load_partition(client)["row"], dtype=np.int64)] = client
    return owner
