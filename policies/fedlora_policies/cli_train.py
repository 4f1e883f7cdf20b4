"""`fedlora train-policy`: a policy learns in a rank environment."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlora.cli.common import Format, print_json, talking
from fedlora.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from fedlora_policies.training import TrainConfig


def command(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[POLICY.toml] [key=value ...]", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the training; default: runs/policies/<time>-<policy>.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Folder of a training that was cut off; goes on from its checkpoint.")
    ] = None,
    format: Annotated[Format, typer.Option(help="How to print the result.")] = Format.text,
) -> None:
    """Train a rank policy; without a file, airllm-plus on a recorded fine-tuning behind a link with a budget.

    The policy that did best on validation channels is written to policy.safetensors; use it with `fedlora simulate
    policy.name=airllm-plus policy.options.file=FOLDER/policy.safetensors`.
    """
    from fedlora_policies.training import Training, open_training, read_train

    changes = list(arguments or [])
    if resume is not None:
        if changes or out is not None:
            raise ConfigError("--resume goes on with what the folder says: give no file, no key=value and no --out beside it")
        training = open_training(resume)
    else:
        path = Path(changes.pop(0)) if changes and "=" not in changes[0] else None
        config = read_train(path, changes)
        folder = out or Path("runs/policies") / f"{datetime.now():%Y%m%d-%H%M%S}-{config.policy}"
        training = Training(folder, config)
    talk = talking(format)
    bar = _Bar(talk)
    try:
        rows = training.run(bar, resume is not None)
    except KeyboardInterrupt:
        known = f"stopped. Go on with: fedlora train-policy --resume {training.path}"
        talk.print(known if training.resumable else "stopped before the first checkpoint", highlight=False)
        raise
    finally:
        bar.stop()
    if format is Format.json:
        print_json({"policy": str(training.policy_file), "iterations": rows})
        return
    talk.print(f"policy kept, on validation: return {training.best[1]:.4g}", highlight=False)
    talk.print(f"policy: {training.policy_file}", highlight=False)


class _Bar:
    """A bar with the newest numbers on a terminal; a line per validation anywhere."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.total = 0

    def say(self, text: str) -> None:
        """Print what happens now."""
        self.console.print(text, highlight=False)

    def start(self, config: TrainConfig, done: int) -> None:
        """Show the bar."""
        self.total = config.iterations
        self.task = self.bar.add_task("training", total=self.total, completed=done)
        self.bar.start()

    def iteration(self, row: dict[str, Any]) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=row["iteration"], description=f"return {row['return']:.4g}")
        if "validation_return" in row:
            self.say(
                f"iteration {row['iteration']:>{len(str(self.total))}}/{self.total}  return {row['return']:.4g}  validation "
                f"{row['validation_return']:.4g}  feasible {100 * row['validation_feasible']:.1f} %  "
                f"rank {row['validation_rank']:.2f}"
            )

    def stop(self) -> None:
        """Take the bar away."""
        self.bar.stop()
