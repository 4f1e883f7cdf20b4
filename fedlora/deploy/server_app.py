"""The ServerApp of a deployment: the same session as a simulation's, over real nodes.

It runs in a process of its own that Flower starts. Besides the run file's settings it takes three that are the server's own:
"out" (the run folder, on this machine; empty: a new one under runs/), "resume" (go on from the folder's newest checkpoint) and
"run" (the name under which nodes keep what is theirs).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from fedlora.config import RunConfig
from fedlora.deploy.client_app import run_settings
from fedlora.deploy.flower_private import hasten_pulls
from fedlora.deploy.lives import lives
from fedlora.deploy.polling import PollingGrid
from fedlora.deploy.settings import from_settings
from fedlora.deploy.status import Status, StatusFile
from fedlora.errors import FedLoRAError
from fedlora.files import write_json
from fedlora.runs.progress import Lines

STATUS = "FEDLORA_STATUS"
"""Environment variable with the path of the file that `fedlora serve` watches; where it is not set, nobody watches."""

SERVED = "FEDLORA_SERVED"
"""Environment variable with the name of the run that `fedlora serve` watches."""

RECORD = "deployment.json"
"""File of the run folder that says under which name nodes know the run."""

_MOST_SAID = 30

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Serve one run."""
    settings = dict(context.run_config)
    path = os.environ.get(STATUS)
    # A run that somebody starts by `flwr run` beside the one that is served has no say there.
    telling = Telling(Path(path) if path and settings.get("run") == os.environ.get(SERVED) else None)
    del sys.argv[1:]  # a token is among them, and the run folder keeps the command
    with _told(telling):
        from fedlora.deploy.measured import world_of
        from fedlora.runs.folder import default_folder
        from fedlora.runs.simulate import run

        config = from_settings(run_settings(settings))
        out = Path(str(settings.get("out", ""))) if settings.get("out") else default_folder(config)
        telling.begin(out, str(settings.get("run", "")))
        hasten_pulls()
        polling = PollingGrid(grid, config.deployment, telling, telling.lives)
        run(config, out, resume=bool(settings.get("resume")), progress=telling, grid=polling, world_of=world_of)


class Telling(Lines):
    """Prints what happens, for the log, and keeps the status file.

    Args:
        path: The status file, or None.
    """

    def __init__(self, path: Path | None) -> None:
        super().__init__(Console(soft_wrap=True))
        self.file = StatusFile(path) if path else None
        self.status = Status(pid=os.getpid())
        self.out, self.name, self._row = Path(), "", False
        self.tell()

    def begin(self, out: Path, name: str) -> None:
        """The run goes to the folder `out`; nodes know it as `name`."""
        self.out, self.name = out, name

    def tell(self, **changes: Any) -> None:
        """Change some of the status and write it."""
        for key, value in changes.items():
            setattr(self.status, key, value)
        if self.file:
            self.file.write(self.status)

    def lives(self, nodes: list[int]) -> list[str]:
        """Return what tells one life of each node's connection from the next; `fedlora serve` and its SuperLink write it down."""
        return lives(self.file.path.parent, nodes) if self.file else [""] * len(nodes)

    def keep(self, text: str) -> None:
        """Keep what is not for the user's screen beside the other logs; Flower throws a server app's output away."""
        if self.file:
            with contextlib.suppress(OSError), (self.file.path.parent / "logs" / "server-app.log").open("a") as log:
                log.write(text)

    # -- what the session says -----------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Tell what happens now."""
        super().say(text)
        if not self._row and len(self.status.said) < _MOST_SAID:
            self.tell(said=[*self.status.said, text])

    def start(self, config: RunConfig, rows: list[dict[str, Any]]) -> None:
        """The rounds are about to begin."""
        write_json(self.out / RECORD, {"run": self.name})
        first = rows[-1]["round"] if rows else -1
        self.tell(phase="waiting", first=first, round=max(first, 0) + 1)
        super().start(config, rows)

    def round(self, row: dict[str, Any], clients: list[dict[str, Any]]) -> None:
        """A round is done."""
        self.status.phase = "running"
        self._row = True  # the rows are read from the run folder
        super().round(row, clients)
        self._row = False
        self.tell(round=row["round"] + 1, asked=0, replies=0, waiting=[])

    def stop(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        """The run is done."""
        self.tell(phase="done", round=rows[-1]["round"])

    # -- what the grid says --------------------------------------------------------------------------------------------

    def online(self, nodes: list[int]) -> None:
        """These nodes are online."""
        if nodes != self.status.nodes:
            self.tell(nodes=nodes)

    def asked(self, nodes: list[int]) -> None:
        """A message goes out to each of these nodes."""
        self.tell(asked=len(nodes), replies=0, waiting=nodes)

    def replied(self, reply: Message) -> None:
        """A reply came in; an error is told at once."""
        self.status.replies += 1
        self.status.waiting = [node for node in self.status.waiting if node != reply.metadata.src_node_id]
        if reply.has_error():
            lines = (reply.error.reason or "no reason given").strip().splitlines()
            self.status.last_error = f"node {reply.metadata.src_node_id}: {lines[-1]}"
            self.console.print(self.status.last_error, highlight=False, markup=False)
        self.tell()


@contextlib.contextmanager
def _told(telling: Telling) -> Iterator[None]:
    """Tell why the server app ends, whatever ends it; Flower logs what is raised, and keeps its text with the run."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    try:
        yield
    except FedLoRAError as error:
        telling.tell(phase="failed", error=str(error), exit_code=error.exit_code)
        raise
    except SystemExit:  # told to stop
        telling.tell(phase="failed", error="the server app was told to stop", exit_code=1)
        raise
    except BaseException as error:
        telling.keep(traceback.format_exc())
        telling.tell(phase="failed", error=f"the server app failed: {error!r}", exit_code=1)
        raise
