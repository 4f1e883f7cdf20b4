"""`fedlora emulate`: a run with real processes behind emulated radio links; light to import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedlora.cli.common import Format, RunWords, print_json, read_arguments, talking


def emulate(
    arguments: RunWords = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the run; default: as `fedlora simulate`.")] = None,
    delay_ms: Annotated[float, typer.Option(min=0, help="Propagation delay of each direction, ms.")] = 5.0,
    jitter_ms: Annotated[float, typer.Option(min=0, help="Largest deviation from it, ms.")] = 0.0,
    loss: Annotated[float, typer.Option(min=0, max=0.5, help="Probability that a packet is lost.")] = 0.0,
    queue_kb: Annotated[int, typer.Option(min=15, help="Kilobytes that may wait for each transmitter.")] = 256,
    time_scale: Annotated[float, typer.Option(help="Real seconds per second of the world.")] = 1.0,
    simulate: Annotated[bool, typer.Option(help="Simulate the same run first, to compare bytes and accuracy.")] = True,
    format: Annotated[Format, typer.Option(help="How to print the result.")] = Format.text,
) -> None:
    """Run with real server and nodes in network namespaces, over links that follow the world's channel (root, Linux).

    The run folder is a deployment's; emulation.jsonl, emulation.json and emulation.png in it set what was predicted beside
    what was measured.
    """
    config = read_arguments(arguments or [])
    from fedlora.runs.folder import default_folder
    from fedlora_envs.emulation.run import Settings
    from fedlora_envs.emulation.run import emulate as run

    console = talking(format)
    folder = out or default_folder(config)
    settings = Settings(delay_ms, jitter_ms, loss, queue_kb, time_scale, simulate)
    try:
        summary = run(config, folder, settings, lambda text: console.print(text, highlight=False))
    except KeyboardInterrupt:
        console.print("stopped; server, nodes and namespaces are gone. An emulated run cannot be resumed")
        raise
    if format is Format.json:
        print_json({"folder": str(folder), "summary": summary})
        return
    for line in lines(summary):
        console.print(line, highlight=False)
    console.print(f"run folder: {folder}", highlight=False)


def lines(summary: dict[str, Any]) -> list[str]:
    """Return a comparison's summary (see `compare.summarise`) in a few sentences."""
    said = []
    for way in ("down", "up"):
        found = summary[way]
        if found["replies"]:
            said.append(
                f"{way}link airtime: median error {found['airtime_error']:.1%} over {found['replies']} transfers, "
                f"{found['within_15']:.0%} of them within 15 %; protocols left out {found['payload_alone_error']:.1%}"
            )
            if found["told_over_true"] is not None:
                said.append(f"{way}link goodput that nodes told: {found['told_over_true']:.2f} of the world's (median)")
    time = summary["round_s"]
    if time["predicted"] is not None:
        said.append(
            f"round: {time['predicted']:.2f} s predicted, {time['measured']:.2f} s measured (medians); "
            f"{time['beyond']:.2f} s are Flower's and the server's"
        )
    if "accuracy_difference" in summary:
        said.append(f"accuracy: largest difference to the simulation {summary['accuracy_difference']:.2g}")
    return said
