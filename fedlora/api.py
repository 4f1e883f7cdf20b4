"""The notebook's door: run a federation, look at it, go on with its adapter.

The command line does the same with the same configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora.config import QUICKSTART, RunConfig, load_config
from fedlora.errors import ConfigError, UnknownNameError
from fedlora.runs.folder import refuse_own_file
from fedlora.runs.read import RunRecord, read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedlora.report.charts import Chart


@dataclass(frozen=True, eq=False)
class Run(RunRecord):
    """A run on disk: `metrics` and `clients` are pandas tables, `config` is the typed configuration.

    run = fedlora.load_run("runs/mine")
    run.metrics[["round", "test_accuracy", "uplink_bytes"]]
    run.plot("ranks")
    """

    def rows(self, log: str = "metrics") -> list[dict[str, Any]]:
        """Return the rows of "metrics" or "clients" as plain data, None for what was not measured.

        Raises:
            ConfigError: No such log.
        """
        if log not in ("metrics", "clients"):
            raise UnknownNameError("log of a run", str(log), ("metrics", "clients"))
        return super().rows(log)

    def charts(self) -> dict[str, str]:
        """Return the names that `plot` knows for this run, and what each figure shows."""
        return {key: chart.title for key, chart in self._charts().items()}

    def plot(self, name: str = "progress-rounds", view: str | None = None, *, interactive: bool = False) -> Figure | Any:
        """Return one figure of the report.

        Args:
            name: Which one; see `charts`.
            view: For figures with several views ("client 3" of "ranks"); default: the first.
            interactive: A plotly figure (extra `report`) in place of a matplotlib one.

        Raises:
            ConfigError: No such figure or view, or plotly is not installed.
        """
        from fedlora.report.interactive import plotly_figure
        from fedlora.report.papers import matplotlib_figure

        charts = self._charts()
        if name not in charts:
            raise UnknownNameError("figure", name, charts)
        if view is not None and view not in charts[name].views:
            raise UnknownNameError("view", view, charts[name].views)
        if interactive:
            return plotly_figure(charts[name], view)
        if "IPython" in sys.modules:  # a notebook shows matplotlib's figures once this module has been imported
            import matplotlib.pyplot  # noqa: F401
        return matplotlib_figure(charts[name], view)

    def report(self, out: str | Path | None = None) -> Path:
        """Write the report of `fedlora report` and return its path (default: report.html in the run's folder)."""
        from fedlora.report.build import build
        from fedlora.report.page import write_page

        target = _path("out", out) if out is not None else self.path / "report.html"
        refuse_own_file(target)
        write_page(build([self.path]), target)
        return target

    def _charts(self) -> dict[str, Chart]:
        from fedlora.report.build import run_report

        return {chart.key: chart for chart in run_report(self).charts()}

    def __repr__(self) -> str:
        """Return where it lies and how far it is: the tables are long."""
        return f"Run({str(self.shown)!r}, {self.rounds_done} of {self.rounds if self.rounds is not None else '?'} rounds)"


def load_run(path: str | Path) -> Run:
    """Return the run in a folder, finished or not.

    Raises:
        ConfigError: `path` is no path.
        RunFolderError: There is no run in it.
    """
    return Run(**vars(read_run(_path("path", path))))


def simulate(
    run: str | Path | RunConfig | Mapping[str, Any] = "quickstart",
    *overrides: str,
    out: str | Path | None = None,
    progress: bool = True,
    **changes: Any,
) -> Run:
    """Run simulated federated rounds, as `fedlora simulate` does, and return the run.

        fedlora.simulate("quickstart", rounds=3)
        fedlora.simulate("my-run.toml", "training.lr=0.001", out="runs/mine")
        fedlora.simulate(rounds=3, world={"name": "umi-indoor"}, policy={"name": "greedy"})

    Args:
        run: "quickstart", a run file, a configuration, or its plain tree.
        overrides: Strings as on the command line.
        out: New folder for the run; default: `runs/<time>-<model>-<data>-<adapter>`.
        progress: Print a line per round.
        changes: Keys of the configuration; sections are mappings.

    Raises:
        FedLoRAError: Before any work where the configuration or the folder cannot do.
    """
    from rich.console import Console

    from fedlora.quiet_env import calm
    from fedlora.runs.folder import default_folder
    from fedlora.runs.progress import Lines
    from fedlora.runs.simulate import simulate as simulate_rounds

    calm()
    config = _configuration(run, overrides, changes)
    told = Lines(Console(soft_wrap=True)) if progress else None
    folder = _path("out", out) if out is not None else default_folder(config)
    return load_run(simulate_rounds(config, folder, progress=told).folder)


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, str | Path):
        raise ConfigError(f"{name} = {value!r}: give the path of a folder, for example 'runs/mine'")
    return Path(value)


def _configuration(run: Any, overrides: tuple[str, ...], changes: Mapping[str, Any]) -> RunConfig:
    for word in overrides:
        if not isinstance(word, str):
            raise ConfigError(f"{word!r} is not an override. Give text such as 'rounds=3', or a keyword: simulate(rounds=3)")
    if isinstance(run, RunConfig):
        return load_config(None, overrides, run.model_dump(exclude_none=True), changes)
    if isinstance(run, Mapping):
        return load_config(None, overrides, run, changes)
    if not isinstance(run, str | Path):
        raise ConfigError(f"run = {run!r}: give 'quickstart', a run file, a RunConfig or a mapping of its keys")
    if "=" in str(run):
        raise ConfigError(f"the first argument names what to run: simulate('quickstart', {str(run)!r})")
    return load_config(QUICKSTART if run == "quickstart" else run, overrides, changes=changes)
