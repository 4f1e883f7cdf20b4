"""The tables of the Ravan study beside the paper's, from results.json alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import fill, first_reached, spread, table
from experiments.ravan.cells import ABLATIONS, BUDGETS, METHODS_ALL, MIXES, TIERS, Cell, Task
from experiments.ravan.plots import draw_all
from experiments.ravan.results import BESIDE, PAPER, SPLIT_NAMES, Results, of_paper, paper_gain
from fedlora.runs.progress import size

SHARE = 0.9
"""Bytes are counted until this share of what full fine-tuning ends with."""


def about(values: Sequence[float], sign: bool = False, digits: int = 1, worst: bool = False) -> str:
    """Return mean and half width; a star where the interval of a difference excludes zero; on request the worst seed."""
    if not values:
        return ""
    mean, half = spread(list(values))
    text = f"{mean:{'+' if sign else ''}.{digits}f}"
    if half is None:
        return text
    text += f" ± {half:.{digits}f}" + (" *" if sign and abs(mean) > half else "")
    return text + (f" ({min(values):.{digits}f})" if worst else "")


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
                cells = [about(list(values.values()), worst=True) for values in (*shown, *[clients] * (budget == "low"))]
                rows.append([label, *cells, *(published(data, budget, label) for data in beside)])
            if rows:
                parts.append(f"**{task}, {budget} budget**\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def published(data: str, budget: str, method: str, clients: int = 20) -> str:
    """Return the paper's accuracies, IID / non-IID, or nothing where it has none."""
    found = of_paper(data, budget, method, clients)
    return " / ".join(f"{found[split]:.1f}" for split in SPLIT_NAMES) if found else ""


def gain_tables(found: Results) -> str:
    """How many points Ravan is above each method, paired by seed, beside the paper's."""
    return (
        f"{_gains(found, everywhere=True)}\n\n{found.few} clients and the low budget alone:\n\n{_gains(found, everywhere=False)}"
    )


def _gains(found: Results, everywhere: bool) -> str:
    columns = [(task, split) for task in found.tasks for split in SPLIT_NAMES]
    head = ["Ravan less"]
    for task, split in columns:
        head += [f"{task}, {SPLIT_NAMES[split]}", f"paper, {SPLIT_NAMES[split]}"]
    rows = []
    for label in METHODS_ALL:
        cells: list[str] = []
        for task, split in columns:
            of = ((20, 50), ("low", "high")) if everywhere else ((20,), ("low",))
            theirs = paper_gain(BESIDE[task], split, label, *of)
            gains = found.less(found.settings(task, split, everywhere), "ravan", label)
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
    columns = [(task, split, budget) for budget in BUDGETS for task in found.tasks for split in SPLIT_NAMES]
    head = ["", *(f"{task}, {SPLIT_NAMES[split]}, {budget}" for task, split, budget in columns)]
    rates = {(rate["task"], rate["split"], rate["budget"], rate["label"]): rate for rate in found.rates}
    rows = []
    for label in (*METHODS_ALL, *ABLATIONS):
        cells = []
        for column in columns:
            one = rates.get((*column, label), {"tried": {}, "lr": 0.0})
            tried = one["tried"].items()
            cells.append(", ".join(f"**{lr}: {v:.3f}**" if float(lr) == one["lr"] else f"{lr}: {v:.3f}" for lr, v in tried))
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
    return table(head, rows) + "\n\n" + table(head_lost, lost) if found.labels & TIERS.keys() else ""


def spent_line(found: Results) -> str:
    """What it took."""
    spent, seeds = found.tree["spent"], dict[tuple[int, str, str], set[int]]()
    for cell in found.tree["cells"]:
        seeds.setdefault((cell["clients"], cell["split"], cell["budget"]), set()).add(cell["seed"])
    common = set.intersection(*seeds.values()) if seeds else set()
    more = [
        f"{clients} clients, {SPLIT_NAMES[split]}, {budget} budget: {_listed(there - common)} too"
        for (clients, split, budget), there in seeds.items()
        if there - common
    ]
    seeds_of_all = "; ".join([f"Seeds {_listed(common)}", *more])
    hours = spent["seconds"] / 3600
    return f"{seeds_of_all}; {spent['runs']} runs, sweeps included, {hours:.1f} hours of one core in the rounds themselves."


def _listed(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


SECTIONS = {
    "spent": spent_line,
    "main": main_tables,
    "gains": gain_tables,
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
