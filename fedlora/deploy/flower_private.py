"""The one place where Flower's private names are touched, each guarded: where a name is gone, Flower works on, only slower.

Known to fit Flower 1.41 and 1.42; a test holds them against the installed version.
"""

from __future__ import annotations

import importlib
import math
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
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
_SUPEREXEC = "flwr.supercore.superexec.run_superexec"
_DATABASE = "flwr.supercore.sql_mixin"
_FLEET = "flwr.superlink.servicer.fleet.fleet_handlers"
_TAKE_ARRAYS = (_FLEET, "flwr.superlink.servicer.runtime.runtime_handlers")
# Seconds after which an array that is announced and not there yet is asked for again; doubled each time.
_PULL_AGAIN_S = 0.05
# Seconds after which it is looked first whether a client app is done.
_FIRST_LOOK_S = 0.05
# Milliseconds that a request waits for the SuperLink's database; Flower gives up after 5,000.
_DATABASE_MS = 60_000


def message_for(content: RecordDict, kind: str, run: int, node: int, group: str) -> Message:
    """Return a message as a node receives it, in a process that Flower did not start."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, node, 1
    return Message(content, dst_node_id=node, message_type=kind, group_id=group)


def hasten_supernode(poll_s: float) -> list[str]:
    """Shorten the waits of the SuperNode in this process; return what could not be shortened.

    Flower sleeps 3 s between two looks for a message, and 0.5 s between two looks whether the client app is done.

    Args:
        poll_s: Seconds between two looks for a message.
    """
    hastened = _give_instead(_LOOP, "time", time, SimpleNamespace(sleep=_Waits(poll_s).sleep))
    return [*([] if hastened else [_LOOP]), *hasten_pulls()]


def _give_instead(module: str, name: str, usual: object, instead: object) -> bool:
    """Let a module of Flower use something else under a name, if it stands for what is usual; return whether it does."""
    try:
        found = importlib.import_module(module)
        if getattr(found, name) is not usual:
            return False
    except (ImportError, AttributeError):
        return False
    setattr(found, name, instead)
    return True


class _Waits:
    """The sleeps of a SuperNode's loop.

    A look whether the client app is done costs tens of milliseconds of processor time, which a training beside it needs: the
    longer it has lasted, the less often.
    """

    def __init__(self, poll_s: float) -> None:
        self.poll_s, self._began, self._last = poll_s, -math.inf, -math.inf

    def sleep(self, seconds: float) -> None:
        """Sleep in place of `time.sleep(seconds)`."""
        if seconds > 1:
            time.sleep(self.poll_s)
            return
        now = time.monotonic()
        if now - self._last > 1:
            self._began = now
        time.sleep(min(seconds, max(_FIRST_LOOK_S, 0.1 * (now - self._began))))
        self._last = time.monotonic()


def hasten_pulls() -> list[str]:
    """Shorten the waits of this process for arrays that are announced and still on their way: Flower sleeps 1, 2, 4 ... s.

    A client app is started while the SuperNode still fetches its message, so that it meets such waits in each round.

    Returns:
        What could not be shortened.
    """
    try:
        defaults: dict[str, Any] = importlib.import_module(_OBJECTS).pull_objects.__kwdefaults__
        if "initial_backoff" not in defaults:
            raise AttributeError
        defaults["initial_backoff"] = min(defaults["initial_backoff"], _PULL_AGAIN_S)
    except (ImportError, AttributeError, TypeError):
        return [_OBJECTS]
    return []


def sleep_in_superexec_by(sleep: Callable[[float], None]) -> bool:
    """Let the SuperExec in this process sleep by `sleep(seconds)` between two looks for work; return whether it will."""
    return _give_instead(_SUPEREXEC, "time", time, SimpleNamespace(sleep=sleep))


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


def bear_with_database() -> list[str]:
    """Let the SuperLink in this process wait for its database, and take an array twice; return what could not be changed.

    Many nodes that send many arrays at once keep the database busy for longer than Flower waits. And an array that has come is
    refused when it comes again, as it does where the answer was lost on the way, or where counting its bytes failed after it
    was stored: the node then drops its whole reply, and the round waits for it in vain.
    """
    missing = []
    try:
        database = importlib.import_module(_DATABASE)
        if "busy_timeout" not in dict(database.SQLITE_PRAGMAS):
            raise AttributeError
        database.SQLITE_PRAGMAS = tuple(  # type: ignore[attr-defined]
            (name, str(_DATABASE_MS) if name == "busy_timeout" else value) for name, value in database.SQLITE_PRAGMAS
        )
    except (ImportError, AttributeError, TypeError, ValueError):
        missing.append(_DATABASE)
    for name in _TAKE_ARRAYS:
        try:
            handlers = importlib.import_module(name)
            answer = importlib.import_module("flwr.proto.message_pb2").PushObjectResponse
            handlers.push_object = taking_twice(handlers.push_object, partial(answer, stored=True))  # type: ignore[attr-defined]
        except (ImportError, AttributeError):
            missing.append(name)
    return missing


def taking_twice(push: Callable[..., Any], stored: Callable[[], Any]) -> Callable[..., Any]:
    """Return Flower's handler of an array that a node sends, for which an array that is there already is one that was stored.

    Args:
        push: The handler as it is; called with the request and the SuperLink's state first.
        stored: Makes the answer that an array was stored.
    """

    def take(request: Any, state: Any, *more: Any, **named: Any) -> Any:
        def there() -> bool:
            return bool(state.object_store.get(request.object_id) == request.object_content)

        try:
            answer = push(request, state, *more, **named)
        except Exception:
            if there():
                return stored()
            raise
        return answer if answer.stored or not there() else stored()

    return take


def tell_activations(tell: Callable[[int], None]) -> list[str]:
    """Let the SuperLink in this process tell each node that it lets in, by its id; return what could not be changed."""
    try:
        handlers = importlib.import_module(_FLEET)
        activate = handlers.activate_node
    except (ImportError, AttributeError):
        return [_FLEET]

    def activate_and_tell(*given: Any, **named: Any) -> Any:
        answer = activate(*given, **named)
        tell(answer.node_id)
        return answer

    handlers.activate_node = activate_and_tell  # type: ignore[attr-defined]
    return []


def launch_clients_by(program: str, launch: Callable[[Sequence[str]], Any]) -> bool:
    """Let the SuperExec in this process start `program` by `launch(command line)`; return whether it will."""

    def start(arguments: Sequence[str], **named: Any) -> Any:
        return launch(arguments) if arguments[0] == program else subprocess.Popen(arguments, **named)

    return _give_instead(_EXECUTOR, "subprocess", subprocess, SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL))
