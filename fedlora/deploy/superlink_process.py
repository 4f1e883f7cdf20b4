"""Flower's SuperLink, with a bound on every request's size, patience with its database, and a count of its nodes' lives.

Flower reads a request whole before it asks who sends it, and has no setting that bounds it: anybody who reaches the port could
fill the server's memory. Run as `python -m fedlora.deploy.superlink_process [--lives FILE] ARGUMENTS OF flower-superlink`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import uvicorn

from fedlora.deploy.flower_private import bear_with_database, tell_activations
from fedlora.deploy.lives import Lives

FLEET_BYTES = 6 * 2**20
"""Largest request of a node, bytes: Flower cuts arrays into pieces of 5 MiB, each a request of its own."""

ANNOUNCEMENT_BYTES = 2**18
"""Largest request of a node that is no piece of an array, bytes: it names objects, or says what went wrong."""

OTHER_BYTES = 16 * 2**20
"""Largest request of Flower's other interfaces, bytes: an app of at most 10 MB."""

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Scope]]
_Send = Callable[[_Scope], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


class BoundedRequests:
    """An ASGI app before another, which refuses requests that are too large by their header, and those that do not say.

    The HTTP server sees to it that no more comes than was said.

    Args:
        app: The app behind it.
    """

    def __init__(self, app: _App) -> None:
        self.app = app

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer one request."""
        status = _refusal(scope) if scope["type"] == "http" else 0
        if not status:
            await self.app(scope, receive, send)
            return
        # The rest is not read: a connection with half a request in it is of no use to anybody.
        headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"the request is too large, or does not say how large it is\n"})


def _refusal(scope: _Scope) -> int:
    """Return the HTTP status that refuses a request, 0 where it is fine."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return 411
    size = headers.get(b"content-length", b"0")
    return 0 if size.isdigit() and int(size) <= most_bytes(scope["path"]) else 413


def most_bytes(path: str) -> int:
    """Return the largest request that is accepted at a path, bytes."""
    if not path.startswith("/v1/fleet/"):
        return OTHER_BYTES
    return FLEET_BYTES if path.endswith("/push-object") else ANNOUNCEMENT_BYTES


def main() -> None:
    """Run a SuperLink until it ends; it exits as Flower does."""
    parser = argparse.ArgumentParser(prog="python -m fedlora.deploy.superlink_process", add_help=False, allow_abbrev=False)
    parser.add_argument("--lives", type=Path)
    options, flower = parser.parse_known_args()
    (command,) = entry_points(group="console_scripts", name="flower-superlink")
    superlink = command.load()
    run = uvicorn.run

    def bounded(app: _App, **named: Any) -> None:
        run(BoundedRequests(app), **named)

    for name in bear_with_database():
        print(f"{name} is not as in Flower 1.41: many arrays sent at once may cost a node its reply", file=sys.stderr)
    for name in tell_activations(Lives(options.lives).begin) if options.lives else ():
        print(f"{name} is not as in Flower 1.41: a node that is started anew in a round may hold it up", file=sys.stderr)
    uvicorn.run = bounded  # type: ignore[assignment]
    sys.argv = ["flower-superlink", *flower]
    superlink()


if __name__ == "__main__":
    main()
