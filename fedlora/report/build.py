"""What a report consists of: sections of figures and tables, and the texts with which a run can be repeated."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedlora.report.channel import ranks, timeline
from fedlora.report.charts import Axis, Chart, Line, Panel, Section, Table, has_numbers, one
from fedlora.report.clients import heat_maps
from fedlora.report.curves import Runs, clock, costs, progress
from fedlora.report.emulated import emulated, errors
from fedlora.report.policies import comparison
from fedlora.report.sources import Source, find_sources, is_policies
from fedlora.report.studies import study
from fedlora.runs.progress import duration, size
from fedlora.runs.read import RunRecord, read_run


@dataclass
class Text:
    """A text to look up or copy: a title and the text."""

    title: str
    body: str


@dataclass
class Report:
    """A report, not yet drawn."""

    title: str
    lead: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)

    def charts(self) -> list[Chart]:
        """Return all figures; where two have one key, their sections' keys tell them apart."""
        keys = [chart.key for section in self.sections for chart in section.charts]
        return [
            Chart(
                chart.key if keys.count(chart.key) == 1 else f"{section.key}-{chart.key}",
                chart.title,
                chart.views,
                chart.caption,
                chart.wide,
            )
            for section in self.sections
            for chart in section.charts
        ]


def build(paths: Sequence[Path]) -> Report:
    """Return the report of what lies at these paths.

    Raises:
        RunFolderError: There is nothing at one of them that a report can be made of.
    """
    sources = find_sources(paths)
    report = Report(", ".join(source.name for source in sources) if len(sources) < 5 else f"{len(sources)} runs compared")
    runs = [(source.name, source.run) for source in sources if source.run is not None]
    if runs:
        _runs(report, runs)
    for source in sources:
        if is_policies(source):
            report.sections += comparison(source.name if len(sources) > 1 else "", source.found)
        elif source.found:
            report.sections.append(study(source.name, source.found))
        elif source.rows:
            report.sections.append(_training(source))
        if source.found:
            report.texts += _texts_of_results(source)
    _number_keys(report.sections)
    return report


def run_report(run: RunRecord) -> Report:
    """Return the report of one run that has been read."""
    report = Report(run.name)
    _runs(report, [(run.name, run)])
    _number_keys(report.sections)
    return report


def outcomes(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return every run's outcome and what its folder lacks, as plain data (RunFolderError where a path holds no run)."""
    runs = [read_run(path) for path in paths]
    return [
        {
            "folder": str(run.shown),
            "complete": run.complete,
            "rounds_planned": run.rounds,
            **run.summary(),
            "missing": run.missing,
        }
        for run in runs
    ]


def _number_keys(sections: list[Section]) -> None:
    """Make the keys of sections plain and different."""
    seen: dict[str, int] = {}
    for section in sections:
        plain = "".join(letter if letter.isalnum() else "-" for letter in section.key.lower()).strip("-") or "section"
        seen[plain] = seen.get(plain, 0) + 1
        section.key = plain if seen[plain] == 1 else f"{plain}-{seen[plain]}"


def _runs(report: Report, runs: Runs) -> None:
    alone = len(runs) == 1
    for name, run in runs:
        prefix = "" if alone else f"{name}: "
        report.lead.append(prefix + _sentence(run))
        report.missing += [prefix + what for what in run.missing]
    results = Section("results", "Results", progress(runs), [_summary(runs)])
    if not alone:
        results.tables.append(_differing_keys(runs))
    report.sections += [results, Section("costs", "Rounds", costs(runs))]
    for name, run in runs:
        own = [("channel", "Ranks and channel", ranks(run) + timeline(run)), ("clients", "Clients", heat_maps(run))]
        predicted = Section("emulation", "Predicted against measured", emulated(run))
        table = errors(run)
        predicted.tables = [table] if table else []
        sections = [predicted, *(Section(key, title, charts) for key, title, charts in own)]
        for section in sections:
            if section.charts:
                section.title = section.title if alone else f"{name}: {section.title.lower()}"
                section.key = section.key if alone else f"{name}-{section.key}"
                report.sections.append(section)
        report.texts += _texts(run, prefix="" if alone else f"{name}: ")
    report.sections = [section for section in report.sections if section.charts or section.tables]


def _sentence(run: RunRecord) -> str:
    """Return what ran and how far it is."""
    config = run.config
    done = f"{run.rounds_done} of {run.rounds} rounds done" if run.rounds is not None else f"{run.rounds_done} rounds done"
    if config is None:
        return f"{done}."
    behind = f", behind {config.world.name}" if config.world.name else ""
    return (
        f"{config.method or config.adapter.method} on {config.model.name}, {config.data.name} over {config.clients} clients "
        f"({config.data.partition}), {config.clients_per_round} a round, policy {config.policy.name}{behind}, "
        f"engine {config.engine}; {done}."
    )


def _summary(runs: Runs) -> Table:
    """Return every run's outcome, a column per run."""
    found = [run.summary() for _, run in runs]
    kinds: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
        ("test accuracy, before", lambda row: _share(row.get("accuracy_before"))),
        ("test accuracy, after", lambda row: _share(row.get("accuracy_after")) + _when(row, "accuracy_after")),
        ("test loss, before", lambda row: _share(row.get("loss_before"))),
        ("test loss, after", lambda row: _share(row.get("loss_after")) + _when(row, "loss_after")),
        ("accuracy at clients", lambda row: _share(row.get("clients_accuracy"))),
        ("bytes up", lambda row: _text(row, "uplink_bytes", size)),
        ("bytes down", lambda row: _text(row, "downlink_bytes", size)),
        ("replies that counted", _replies),
        ("energy at clients", lambda row: _text(row, "energy_j", lambda joules: f"{joules:.4g} J")),
        ("real time in rounds", lambda row: _text(row, "wall_time_s", duration)),
    )
    rows = [(name, *(how(row) for row in found)) for name, how in kinds]
    times = [(clock(run)[0], clock(run)[1]) for _, run in runs]
    if any(which != "wall time" for _, which in times):
        rows.insert(-2, ("time on the run's clock", *(duration(ends[-1]) if has_numbers(ends[-1:]) else "" for ends, _ in times)))
    rows.insert(0, ("rounds", *(f"{run.rounds_done}" for _, run in runs)))
    kept = tuple(row for row in rows if any(row[1:]))
    return Table("In numbers", ("", *(name for name, _ in runs)), kept)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _when(row: dict[str, Any], name: str) -> str:
    """Return of which round a number is, where that is not the last one."""
    return f" (round {row['evaluated_round']})" if row.get(name) is not None and row["evaluated_round"] != row["rounds"] else ""


def _text(row: dict[str, Any], name: str, how: Callable[[float], str]) -> str:
    return "" if row.get(name) is None else how(row[name])


def _replies(row: dict[str, Any]) -> str:
    if not row:
        return ""
    lost = {what: int(row.get(f"replies_{what}") or 0) for what in ("failed", "dropped", "late")}
    named = "".join(f", {count} {what}" for what, count in lost.items() if count)
    return f"{row['replies']} of {row['replies'] + sum(lost.values())}{named}"


def _differing_keys(runs: Runs) -> Table:
    """Return the keys of the configuration that are not the same in all runs."""
    flat = [_flat(run.config.model_dump(mode="json")) if run.config else {} for _, run in runs]
    keys = list(dict.fromkeys(key for tree in flat for key in tree))
    rows = [(key, *(_value(tree.get(key)) for tree in flat)) for key in keys if len({_value(tree.get(key)) for tree in flat}) > 1]
    return Table(
        "Keys that differ",
        ("key", *(name for name, _ in runs)),
        tuple(rows),
        "" if rows else "None: the runs have one configuration.",
    )


def _value(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return flat


def _texts(run: RunRecord, prefix: str) -> list[Text]:
    """Return how to repeat a run, its configuration and what it ran on."""
    texts = [Text(f"{prefix}command", _repeat(run))]
    if run.config_text:
        texts.append(Text(f"{prefix}configuration (config.toml)", run.config_text))
    if run.environment:
        texts.append(Text(f"{prefix}environment", json.dumps(run.environment, indent=2)))
    return texts


def _repeat(run: RunRecord) -> str:
    """Return the command that repeats a run, from its resolved configuration, and the one that began it."""
    file = run.shown / "config.toml"
    if run.emulation:
        command = ["fedlora", "emulate", str(file)]
    elif run.config is not None and run.config.engine == "deployment":
        command = ["fedlora", "serve", str(file), "--deployment", "DIR"]
    else:
        command = ["fedlora", "simulate", str(file)]
    lines = [shlex.join(command)]
    if run.environment.get("command"):
        lines.append(f"# begun as: {shlex.join(map(str, run.environment['command']))}")
    packages = run.environment.get("packages") or {}
    if packages:
        lines.append(f"# with {', '.join(f'{name} {found}' for name, found in packages.items())}")
    if run.environment.get("commit"):
        lines.append(f"# from commit {run.environment['commit']}")
    return "\n".join(lines)


def _texts_of_results(source: Source) -> list[Text]:
    """Return what a comparison or study says of how it was made; single scores are too many to read."""
    texts = []
    for key in ("config", "environment"):
        if isinstance(source.found.get(key), dict):
            texts.append(Text(f"{source.name}: {key}", json.dumps(source.found[key], indent=2)))
    if not is_policies(source):
        rest = {key: value for key, value in source.found.items() if key not in ("config", "environment")}
        body = json.dumps(rest, indent=1)
        texts.append(Text(f"{source.name}: results", body if len(body) < 200_000 else body[:200_000] + "\n(cut off here)"))
    return texts


def _training(source: Source) -> Section:
    """Return every number of a policy's training against its iterations."""
    step = np.array([row.get("iteration", np.nan) for row in source.rows], np.float64)
    names = list(dict.fromkeys(key for row in source.rows for key in row if key != "iteration"))
    charts = []
    for name in names:
        raw = [row.get(name) for row in source.rows]
        values = np.array([value if isinstance(value, int | float) else np.nan for value in raw], np.float64)
        if has_numbers(values):
            known = np.isfinite(values)
            title = name.replace("_", " ")
            panel = Panel(Axis("iteration", whole=True), Axis(title), (Line(step[known], values[known], title),), 200)
            charts.append(one(f"training-{name}", title.capitalize(), panel))
    return Section("training", f"{source.name}: training of a policy", charts)
