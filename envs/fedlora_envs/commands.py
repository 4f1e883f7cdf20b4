"""Commands that this package adds to fedlora's (see `fedlora.cli.plugins`); light to import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlora.cli.common import Format, RunWords, print_json, read_arguments, talking

# What `fedlora record-response` records where nothing else is said.
_DEFAULTS = ("adapter.method=triplet", "adapter.rank=8")


def record_response(
    arguments: RunWords = None,
    out: Annotated[Path, typer.Option(help="File for the response model (JSON).")] = Path("response.json"),
    records: Annotated[
        Path | None,
        typer.Option(help="File for the recorded episodes (JSON lines); goes on with it if it is there. Default: beside --out."),
    ] = None,
    episodes: Annotated[int, typer.Option(min=4, help="Fine-tunings to record.")] = 32,
    horizon: Annotated[int, typer.Option(min=2, help="Steps of each.")] = 15,
    local_steps: Annotated[int, typer.Option(min=1, help="Mini-batches of a step.")] = 5,
    heldout: Annotated[int, typer.Option(min=1, help="Held-out examples measured after every step.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Root of the random ranks and the data orders.")] = 0,
    format: Annotated[Format, typer.Option(help="How to print the result.")] = Format.text,
) -> None:
    """Fine-tune for real at random ranks, fit a response model to it and report its error on episodes not fitted.

    Without a run file: triplet of rank 8 on the quickstart's model and data. Rank environments are trained on such models
    (task "recorded"), and measured on the real one (task "live").
    """
    given = list(arguments or [])
    config = read_arguments(given if given and "=" not in given[0] else [*_DEFAULTS, *given])
    # Only now the heavy imports: a wrong key has been refused already.
    from fedlora.files import disk_errors
    from fedlora_envs.tasks.fitting import fit
    from fedlora_envs.tasks.recording import record

    console = talking(format)
    path = records or out.with_suffix(".jsonl")
    for file in (out, path):
        with disk_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = record(
            config, path, episodes, horizon, seed=seed, local_steps=local_steps, heldout=heldout,
            say=lambda text: console.print(text, highlight=False),
        )  # fmt: skip
    except KeyboardInterrupt:
        console.print(f"stopped. What is recorded is in {path}: the same command goes on with it")
        raise
    response = fit(found)
    response.save(out)
    if format is Format.json:
        print_json({"response": str(out), "records": str(path), "errors": response.errors})
        return
    errors = response.errors
    console.print(
        f"held-out loss of episodes not fitted: RMSE {errors['loss_rmse']:.4f}, R2 {errors['loss_r2']:.4f} "
        f"({errors['episodes']:.0f} episodes, {errors['folds']:.0f} folds)",
        highlight=False,
    )
    console.print(f"response model: {out}", highlight=False)
