"""Constants of the radio world: YAML files whose every entry names its source and how well that source was checked.

A file is a mapping of entries; an entry is a mapping with `source` (where its numbers come from), `evidence` (one letter of
`EVIDENCE`) and the numbers themselves.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml

EVIDENCE = {
    "V": "read in the source or in a package that implements it",
    "M": "measured or simulated for fedlora",
    "D": "derived by arithmetic from other entries",
    "R": "recalled from the standard or paper, not re-read: check before publishing",
}


@cache
def constants(name: str) -> dict[str, dict[str, Any]]:
    """Return the entries of `data/<name>.yaml`; callers must not change them.

    Args:
        name: File name without its ending, for example "tr38901".

    Raises:
        ValueError: An entry names no source or no evidence mark (a mistake in fedlora's own data).
    """
    text = (files("fedlora_envs") / "data" / f"{name}.yaml").read_text(encoding="utf-8")
    entries: dict[str, dict[str, Any]] = yaml.safe_load(text)
    for key, entry in entries.items():
        if not isinstance(entry, dict) or not entry.get("source") or entry.get("evidence") not in EVIDENCE:
            raise ValueError(f"data/{name}.yaml: entry '{key}' needs a source and an evidence mark of {', '.join(EVIDENCE)}")
    return entries
