"""What the Ravan study found, and what the paper reports, to look things up in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import spread
from experiments.ravan.cells import METHODS_ALL

PAPER = json.loads((Path(__file__).parent / "paper.json").read_text(encoding="utf-8"))
BESIDE = {"text": ("20 Newsgroups", "MRQA"), "image": ("CIFAR-100", "SVHN")}
SPLIT_NAMES = {"iid": "IID", "dirichlet": "non-IID"}


class Results:
    """What the study found, by what was run.

    Args:
        tree: results.json.
    """

    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree, self.rates = tree, tree["rates"]
        self.tasks = list(tree["settings"]["tasks"])
        self.few, self.many = tree["settings"]["clients"]
        self._cells: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
        for cell in tree["cells"]:
            key = (cell["task"], cell["split"], cell["clients"], cell["budget"], cell["label"])
            self._cells.setdefault(key, {})[cell["seed"]] = cell
        self.labels = {cell["label"] for cell in tree["cells"]}

    def cells(self, task: str, split: str, clients: int, budget: str, label: str) -> dict[int, dict[str, Any]]:
        """Return the cells of a setting by seed; full fine-tuning is the same at every budget."""
        return self._cells.get((task, split, clients, "low" if label == "full" else budget, label), {})

    def final(self, *setting: Any, key: str = "accuracy") -> dict[int, float]:
        """Return accuracies at the end, percent, by seed; `key` "at_clients" for what clients measured."""
        found = {}
        for seed, cell in self.cells(*setting).items():
            value = cell[key][-1] if key == "accuracy" else cell[key]
            if value is not None:
                found[seed] = 100.0 * value
        return found

    def less(self, settings: Sequence[tuple[Any, ...]], ours: str, theirs: str) -> list[float]:
        """Return, by seed, how many points `ours` is above `theirs` in the mean over the settings that both have."""
        by_seed: dict[int, list[float]] = {}
        for setting in settings:
            left, right = self.final(*setting, ours), self.final(*setting, theirs)
            for seed in left.keys() & right.keys():
                by_seed.setdefault(seed, []).append(left[seed] - right[seed])
        most = max((len(values) for values in by_seed.values()), default=0)
        # A seed that has not been everywhere yet would compare other settings.
        return [float(np.mean(values)) for _, values in sorted(by_seed.items()) if len(values) == most]

    def settings(self, task: str, split: str, everywhere: bool = True) -> list[tuple[str, str, int, str]]:
        """Return all numbers of clients and budgets of a task and split, or the fewer clients and the low budget alone."""
        if not everywhere:
            return [(task, split, self.few, "low")]
        return [(task, split, clients, budget) for clients in (self.few, self.many) for budget in ("low", "high")]


def of_paper(data: str, budget: str, method: str, clients: int) -> dict[str, float]:
    """Return the paper's accuracies by split, percent; nothing where it has none."""
    key = {"data": data, "budget": "low" if method == "full" else budget, "method": method, "clients": clients}
    return {row["split"]: row["accuracy"] for row in PAPER["main"] if all(row[name] == key[name] for name in key)}


def paper_gain(
    data: Sequence[str], split: str, method: str, counts: Sequence[int] = (20, 50), budgets: Sequence[str] = ("low", "high")
) -> float | None:
    """Return Ravan's mean gain over a method in the paper, over data sets, numbers of clients and budgets."""
    gains = []
    for name in data:
        for budget in budgets:
            for clients in counts:
                ours, theirs = of_paper(name, budget, "ravan", clients), of_paper(name, budget, method, clients)
                if theirs:
                    gains.append(ours[split] - theirs[split])
    return float(np.mean(gains)) if gains else None


def summary(tree: dict[str, Any]) -> dict[str, Any]:
    """Return accuracies at the end by seed, and what Ravan is above each method, in the form that `fedlora report` draws.

    Args:
        tree: results.json.
    """
    found, accuracies, gains = Results(tree), dict[str, Any](), dict[str, Any]()
    for task in found.tasks:
        for split, name in SPLIT_NAMES.items():
            for clients in (found.few, found.many):
                for budget in ("low", "high"):
                    key = f"accuracy (%): {task}, {name}, {clients} clients, {budget} budget"
                    by_label = {label: found.final(task, split, clients, budget, label) for label in sorted(found.labels)}
                    # A word of one letter would be read as a unit.
                    accuracies[key] = {label.replace("s fixed", "fixed scales"): of for label, of in by_label.items() if of}
            key = f"accuracy difference (points): Ravan less the method, {task}, {name}"
            gains[key] = {}
            for label in METHODS_ALL:
                values = found.less(found.settings(task, split), "ravan", label)
                if label != "ravan" and len(values) > 1:
                    mean, half = spread(values)
                    gains[key][label] = {"mean": mean, "half_width_95": half}
    return {"gains": gains, "accuracies": accuracies}
