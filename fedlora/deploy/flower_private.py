"""The one place where Flower's private names are touched, each guarded: where a name is gone, Flower works on, only slower.

Known to fit Flower 1.41 and 1.42; a test holds them against the installed version.
"""

from __future__ import annotations

import importlib
import subprocess
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import httpx
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

NODE_AUTH_FAILED = 2004
"""Flower's error code of an activation that was refused: key unknown, or its node is online."""

REGISTRATION_DISABLED = 2001
"""Flower's error code for a node without a key where keys are asked for."""

_LOOP = "flwr.supernode.start_client_internal"
_EXECUTOR = "flwr.supercore.superexec.executor.subprocess_executor"
_CONNECTION = "flwr.supernode.fleet_http_connection"
_OBJECTS = "flwr.supercore.inflatable.inflatable_utils"


def message_for(content: RecordDict, kind: str, run: int, node: int, group: str) -> Message:
    """Return a message as a node receives it, in a process that Flower did not start."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, node, 1
    return Message(content, dst_node_id=node, message_type=kind, group_id=group)


def hasten_supernode(poll_s: float) -> list[str]:
    """Shorten the waits of the SuperNode in this process; return what could not be shortened.

    Flower sleeps 3 s between two looks for a message, 0.5 s between two looks whether the client app is done, and 1 s where a
    message is announced and its arrays are still on their way.

    Args:
        poll_s: Seconds between two looks for a message.
    """
    missing = []
    try:
        loop = importlib.import_module(_LOOP)
        if loop.time is not time:
            raise AttributeError
        loop.time = SimpleNamespace(sleep=lambda seconds: time.sleep(poll_s if seconds > 1 else min(seconds, poll_s, 0.05)))  # type: ignore[attr-defined]
    except (ImportError, AttributeError):
        missing.append(_LOOP)
    try:
        defaults: dict[str, Any] = importlib.import_module(_OBJECTS).pull_objects.__kwdefaults__
        if "initial_backoff" not in defaults:
            raise AttributeError
        defaults["initial_backoff"] = min(defaults["initial_backoff"], 0.1)
    except (ImportError, AttributeError, TypeError):
        missing.append(_OBJECTS)
    return missing


def keep_trying() -> list[str]:
    """Let the SuperNode in this process try again where Flower gives up; return what could not be changed.

    Flower gives up where a connection breaks in the middle of TLS's greeting, as it does when a server is killed, and where a
    server has trouble of its own (500). A certificate that is not to be trusted stays a reason.
    """
    try:
        connection = importlib.import_module(_CONNECTION)
        make = connection.make_simple_http_retry_invoker
        make().should_giveup  # noqa: B018 -- is it there?
    except (ImportError, AttributeError, TypeError):
        return [_CONNECTION]

    def patient() -> Any:
        invoker = make()
        gives_up = invoker.should_giveup
        invoker.should_giveup = lambda error: not _passing(error) and gives_up(error)
        return invoker

    connection.make_simple_http_retry_invoker = patient  # type: ignore[attr-defined]
    return []


def _passing(error: Exception) -> bool:
    """Return whether an error of a connection may pass by itself."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == httpx.codes.INTERNAL_SERVER_ERROR
    return isinstance(error, httpx.TransportError) and "certificate verify failed" not in str(error).lower()


def launch_clients_by(program: str, launch: Callable[[Sequence[str]], Any]) -> bool:
    """Let the SuperExec in this process start `program` by `launch(command line)`; return whether it will."""
    try:
        executor = importlib.import_module(_EXECUTOR)
        if executor.subprocess is not subprocess:
            return False
    except (ImportError, AttributeError):
        return False

    def start(arguments: Sequence[str], **named: Any) -> Any:
        return launch(arguments) if arguments[0] == program else subprocess.Popen(arguments, **named)

    executor.subprocess = SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL)  # type: ignore[attr-defined]
    return True
