"""The tables of the Ravan study beside the paper's, from results.json alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import fill, first_reached, spread, table
from experiments.ravan.cells import ABLATIONS, METHODS_ALL, MIXES, TIERS, Cell, Task
from experiments.ravan.plots import draw_all
from fedlora.runs.progress import size

PAPER = json.loads((Path(__file__).parent / "paper.json").read_text(encoding="utf-8"))
BESIDE = {"text": ("20 Newsgroups", "MRQA"), "image": ("CIFAR-100", "SVHN")}
SPLIT_NAMES = {"iid": "IID", "dirichlet": "non-IID"}
SHARE = 0.9
"""Bytes are counted until this share of what full fine-tuning ends with."""
Rows = list[dict[str, Any]]


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

    def settings(self, task: str, split: str) -> list[tuple[str, str, int, str]]:
        """Return all numbers of clients and budgets of a task and split."""
        return [(task, split, clients, budget) for clients in (self.few, self.many) for budget in ("low", "high")]


def about(values: Sequence[float], sign: bool = False, digits: int = 1) -> str:
    """Return mean and half width; a star where the interval of a difference excludes zero."""
    if not values:
        return ""
    mean, half = spread(list(values))
    text = f"{mean:{'+' if sign else ''}.{digits}f}"
    if half is None:
        return text
    return f"{text} ± {half:.{digits}f}" + (" *" if sign and abs(mean) > half else "")


def main_tables(found: Results) -> str:
    """Accuracy of every method in every setting, beside the paper's."""
    parts = []
    for task in found.tasks:
        beside = BESIDE[task]
        for budget in ("low", "high"):
            head = ["method", *(f"{name}, {clients}" for clients in (found.few, found.many) for name in SPLIT_NAMES.values())]
            head += [f"at clients, non-IID, {found.few}"] * (budget == "low") + [f"paper: {data}, 20" for data in beside]
            rows = []
            for label in METHODS_ALL:
                shown = [found.final(task, split, clients, budget, label)
                         for clients in (found.few, found.many) for split in SPLIT_NAMES]  # fmt: skip
                clients = found.final(task, "dirichlet", found.few, budget, label, key="at_clients")
                if not any(shown) and (budget == "high" or not clients):
                    continue
                cells = [about(list(values.values())) for values in (*shown, *[clients] * (budget == "low"))]
                rows.append([label, *cells, *(published(data, budget, label) for data in beside)])
            if rows:
                parts.append(f"**{task}, {budget} budget**\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def published(data: str, budget: str, method: str, clients: int = 20) -> str:
    """Return the paper's accuracies, IID / non-IID, or nothing where it has none."""
    found = _paper(data, budget, method, clients)
    return " / ".join(f"{found[split]:.1f}" for split in SPLIT_NAMES) if found else ""


def _paper(data: str, budget: str, method: str, clients: int) -> dict[str, float]:
    key = {"data": data, "budget": "low" if method == "full" else budget, "method": method, "clients": clients}
    return {row["split"]: row["accuracy"] for row in PAPER["main"] if all(row[name] == key[name] for name in key)}


def paper_gain(data: Sequence[str], split: str, method: str) -> float | None:
    """Return Ravan's mean gain over a method in the paper: data sets, 20 and 50 clients, both budgets."""
    gains = []
    for name in data:
        for budget in ("low", "high"):
            for clients in (20, 50):
                ours, theirs = _paper(name, budget, "ravan", clients), _paper(name, budget, method, clients)
                if theirs:
                    gains.append(ours[split] - theirs[split])
    return float(np.mean(gains)) if gains else None


def gain_table(found: Results) -> str:
    """How many points Ravan is above each method, paired by seed, beside the paper's."""
    columns = [(task, split) for task in found.tasks for split in SPLIT_NAMES]
    head = ["Ravan less"]
    for task, split in columns:
        head += [f"{task}, {SPLIT_NAMES[split]}", f"paper, {SPLIT_NAMES[split]}"]
    rows = []
    for label in METHODS_ALL:
        cells: list[str] = []
        for task, split in columns:
            theirs = paper_gain(BESIDE[task], split, label)
            gains = found.less(found.settings(task, split), "ravan", label)
            cells += [about(gains, sign=True), "" if theirs is None else f"{theirs:+.1f}"]
        if label != "ravan" and any(cells[::2]):
            rows.append([label, *cells])
    return table(head, rows)


def bytes_tables(found: Results) -> str:
    """Bytes until a given accuracy was reached, all clients of all rounds together."""
    head, columns = ["method"], []
    for task in found.tasks:
        for split, name in SPLIT_NAMES.items():
            ceiling = list(found.final(task, split, found.few, "low", "full").values())
            if ceiling:
                target = SHARE * float(np.mean(ceiling))
                columns.append((task, split, target))
                head += [f"{task}, {name}, {target:.1f} %: sent up", "both ways", "reached"]
    rows = []
    for label in METHODS_ALL:
        cells = []
        for task, split, target in columns:
            runs = list(found.cells(task, split, found.few, "low", label).values())
            at = [(run, first_reached(run["accuracy"], target / 100)) for run in runs]
            there = [(run["up"][index], run["up"][index] + run["down"][index]) for run, index in at if index is not None]
            measured = any(value is not None for run in runs for value in run["accuracy"])
            sizes = [size(int(np.mean(column))) for column in zip(*there, strict=True)] if there else ["", ""]
            cells += [*sizes, f"{len(there)}/{len(runs)}" if measured else ""]
        if any(cells):
            rows.append([label, *cells])
    return table(head, rows)


def rate_table(found: Results) -> str:
    """The chosen learning rates, and all that were tried with their validation accuracy."""
    columns = [(task, split) for task in found.tasks for split in SPLIT_NAMES]
    head = ["", *(f"{task}, {SPLIT_NAMES[split]}" for task, split in columns)]
    rows = []
    for label in (*METHODS_ALL, *ABLATIONS):
        cells = []
        for task, split in columns:
            one = [rate for rate in found.rates if (rate["task"], rate["split"], rate["label"]) == (task, split, label)]
            tried = one[0]["tried"].items() if one else ()
            cells.append(", ".join(f"**{lr}: {v:.3f}**" if float(lr) == one[0]["lr"] else f"{lr}: {v:.3f}" for lr, v in tried))
        if any(cells):
            rows.append([label, *cells])
    return table(head, rows)


def ablation_tables(found: Results) -> str:
    """Scales, bases and numbers of heads, each less the Ravan of the main table (4 heads, random bases, s trained)."""

    def both(label: str) -> list[str]:
        cells = []
        for task in found.tasks:
            where = (task, "dirichlet", found.few, "low")
            cells += [about(list(found.final(*where, label).values()))]
            cells += ["" if label == "ravan" else about(found.less([where], label, "ravan"), sign=True)]
        return cells

    ours = [name for task in found.tasks for name in (task, f"{task}, less Ravan")]
    data = [name for task in found.tasks for name in BESIDE[task]]
    bases, scales = PAPER["bases"], PAPER["scales"]
    rows = [["random bases, s trained, h = 4", *both("ravan"), *(["0"] * len(data))]]
    theirs = {"s fixed": (scales["s fixed"], scales["trained"])}
    theirs |= {name: (bases[name], bases["random"]) for name in ("gram-schmidt", "constant", "shared-subspace")}
    for label, (changed, usual) in theirs.items():
        cells = both(label)
        if any(cells):
            rows.append([label, *cells, *(f"{changed[name] - usual[name]:+.1f}" for name in data)])
    parts = [table(["", *ours, *(f"paper, {name}" for name in data)], rows)]
    rows = []
    for heads in (1, 2, 4, 8, 16):
        label = "ravan" if heads == 4 else f"h={heads}"
        cells = both(label)
        if any(cells):
            rank = Cell("", found.tasks[0], "", 0, "low", label, 0, 1.0).rank(Task("", 0, 384, ()))
            rows.append([str(heads), str(rank), f"{min(heads * (rank or 0), 384)}", *cells])
    parts.append(table(["heads", "rank of a head", "rank of the update at most", *ours], rows, left=0))
    return "\n\n".join(parts)


def tier_tables(found: Results) -> str:
    """Partial heads against smaller ranks under three mixes of tiers, beside the same methods with all clients at the cap."""
    head = ["", *(f"{task}, {mix}" for task in found.tasks for mix in ("no tiers", *MIXES))]
    rows = []
    for label in ["ravan, random", "ravan, weight", "ravan, gradient", "hetlora", "flexlora"]:
        cells = []
        for task in found.tasks:
            where = (task, "dirichlet", found.few, "low")
            cells += [about(list(found.final(*where, label.partition(",")[0]).values()))]
            cells += [about(list(found.final(*where, f"{label}, {mix}").values())) for mix in MIXES]
        rows.append([label, *cells])
    lost = []
    for label in ["ravan, random", "ravan, weight", "ravan, gradient", "hetlora", "flexlora"]:
        cells = []
        for task in found.tasks:
            settings = [(task, "dirichlet", found.few, "low")]
            method = label.partition(",")[0]
            cells += [about(found.less(settings, f"{label}, {mix}", method), sign=True) for mix in MIXES]
        lost.append([label, *cells])
    head_lost = ["less the same without tiers", *(f"{task}, {mix}" for task in found.tasks for mix in MIXES)]
    return table(head, rows) + "\n\n" + table(head_lost, lost) if any(label in TIERS for *_, label in found._cells) else ""


def spent_line(found: Results) -> str:
    """What it took."""
    spent, seeds = found.tree["spent"], sorted({cell["seed"] for cell in found.tree["cells"]})
    return (
        f"Seeds {', '.join(map(str, seeds))}; {spent['runs']} runs, sweeps included, {spent['seconds'] / 3600:.1f} hours of one "
        "core in the rounds themselves."
    )


SECTIONS = {
    "spent": spent_line,
    "main": main_tables,
    "gains": gain_table,
    "bytes": bytes_tables,
    "ablations": ablation_tables,
    "tiers": tier_tables,
    "rates": rate_table,
}


def report(tree: dict[str, Any], folder: Path) -> None:
    """Print the tables, write them into README.md in `folder` between its markers, and draw the plots beside it."""
    found = Results(tree)
    sections = {name: write(found) or "Not measured." for name, write in SECTIONS.items()}
    for name, text in sections.items():
        print(f"## {name}\n\n{text}\n")
    links = draw_all(found, folder)
    for name, link in links.items():
        sections[name] += f"\n\n{link}"
    fill(folder / "README.md", sections)
