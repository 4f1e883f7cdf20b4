"""Keys of a run file that were set and that nothing will read: said once before the run, as notes.

Methods may share a run file (`fedlora simulate run.toml method=fedit` on one that gives `adapter.heads`), so such keys are no
errors. A value that is the default is not worth a word: it changes nothing where it is read, either.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedlora.adapters import Adapter
from fedlora.config import AdapterConfig, ConfigSection, RunConfig, ServerConfig

_READERS = {"heads": "ravan", "unit": "ravan", "score": "ravan", "scales": "ravan", "start_examples": "fed-sb"}
"""Keys of the `adapter` section that one of fedlora's own adapters alone reads."""
_MOMENTS = ("second_momentum", "tau")


def unread(config: RunConfig, adapter: Adapter) -> list[str]:
    """Return a line for each part of the run whose keys were changed to no effect.

    Args:
        config: The run.
        adapter: The adapter of one of its sites; what those of other packages read is not known, and nothing is said of them.
    """
    own, server = config.adapter, config.server
    notes = []
    if type(adapter).__module__.startswith("fedlora."):
        others = [key for key, reader in _READERS.items() if reader != own.method]
        notes.append(_note("adapter", own, AdapterConfig(), others, f"adapter.method = '{own.method}'"))
        if own.method == "ravan" and own.unit == "svd":
            notes.append(_note("adapter", own, AdapterConfig(), ["score"], "adapter.unit = 'svd'"))
        if own.method == "fed-sb" and not adapter.starts_from_gradients:
            notes.append(_note("adapter", own, AdapterConfig(), ["start_examples"], f"adapter.init = '{adapter.init}'"))
    idle = {"none": ("lr", "momentum", *_MOMENTS), "fedavgm": _MOMENTS}.get(server.optimizer, ())
    notes.append(_note("server", server, ServerConfig(), idle, f"server.optimizer = '{server.optimizer}'"))
    return [note for note in notes if note]


def _note(section: str, given: ConfigSection, default: ConfigSection, keys: Sequence[str], because: str) -> str:
    changed = [key for key in keys if getattr(given, key) != getattr(default, key)]
    if not changed:
        return ""
    said = [f"{section}.{key} = {value!r}" for key, value in ((key, getattr(given, key)) for key in changed)]
    one = len(said) == 1
    return f"{' and '.join(said)} {'changes' if one else 'change'} nothing: {because} does not read {'it' if one else 'them'}"
