"""What is a client's own between rounds, on the node's disk: kept by run and round, so that any round can be done again.

A message of round n starts from the newest state of a round before n. A server that goes back to an earlier checkpoint, or sends
a message twice, therefore gets the same bytes as the first time.

One file is one state::

    magic "FLS1" | xxh3-64 of all that follows u64 | header bytes u32 | header, JSON: array names, types, shapes, lengths | arrays
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash
from flwr.app import Array, ArrayRecord, RecordDict

from fedlora.errors import RunFolderError
from fedlora.files import disk_errors, sweep, write_atomic, write_json

KEPT_ROUNDS = 8
"""Newest states kept per run and client: as far back as a server's checkpoints reach, and some more."""

_GOES_ON = "the node goes on by itself then"
_LEAD = struct.Struct("<4sQI")
_MAGIC = b"FLS1"
_STATE = re.compile(r"round-(\d+)\.state")


class NodeState:
    """The states that a node keeps, in one folder that belongs to this node alone.

    Args:
        folder: Where; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def load(self, run: str, client: int, round_number: int) -> RecordDict:
        """Return the state that a message of this round starts from; empty where the client has none yet.

        Raises:
            RunFolderError: The state is damaged, or is no longer kept.
        """
        folder = self._of(run, client)
        rounds = _rounds(folder)
        earlier = [number for number in rounds if number < round_number]
        if earlier:
            return _read(folder / _name(earlier[-1]))
        first = _first_dropped(folder)
        if first is not None and first < round_number:
            raise RunFolderError(
                f"{folder} no longer holds what this client had before round {round_number}: the newest {KEPT_ROUNDS} states are "
                f"kept, from round {rounds[0] if rounds else first}. Go on from a later checkpoint, or start a new run"
            )
        return RecordDict({})

    def save(self, run: str, client: int, round_number: int, state: RecordDict) -> None:
        """Keep the state after a round; states of later rounds were of a past that is now done again, and go."""
        folder = self._of(run, client)
        rounds = _rounds(folder)
        if not state and not rounds:
            return
        with disk_errors(folder, _GOES_ON):
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
            write_atomic(folder / _name(round_number), _encode(state), _GOES_ON)
            for number in [number for number in rounds if number > round_number]:
                (folder / _name(number)).unlink()
            kept = sorted({number for number in rounds if number < round_number} | {round_number})
            for number in kept[:-KEPT_ROUNDS]:
                if _first_dropped(folder) is None:
                    write_json(folder / "dropped.json", {"first": number})
                (folder / _name(number)).unlink()

    def remember(self, run: str, key: str, value: Any) -> None:
        """Keep one JSON value of a run."""
        folder = self.folder / _folder_name(run)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / f"{key}.json", value)

    def recall(self, run: str, key: str) -> Any:
        """Return a value of a run, None where there is none."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.folder / _folder_name(run) / f"{key}.json").read_text())
        return None

    def _of(self, run: str, client: int) -> Path:
        return self.folder / _folder_name(run) / f"client-{client}"


@contextlib.contextmanager
def only_user(folder: Path) -> Iterator[None]:
    """Hold a folder for one process for the length of the block (RunFolderError where another one has it)."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / "lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunFolderError(
                f"another node is at work in {folder}. Give each node a folder of its own with --state"
            ) from None
        yield


def _folder_name(run: str) -> str:
    """Return a run's folder: whatever the server calls a run, it stays inside the node's own folder."""
    return hashlib.sha256(run.encode()).hexdigest()[:24]


def _name(round_number: int) -> str:
    return f"round-{round_number:06d}.state"


def _rounds(folder: Path) -> list[int]:
    with disk_errors(folder):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(found[1]) for name in names if (found := _STATE.fullmatch(name)))


def _first_dropped(folder: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((folder / "dropped.json").read_text())["first"])
    return None


def _encode(state: RecordDict) -> bytes:
    entries, parts = [], []
    for name, record in state.array_records.items():
        for key, array in record.items():
            shape = list(array.shape)
            size = len(array.data)
            entries.append(
                {"record": name, "key": key, "dtype": array.dtype, "shape": shape, "stype": array.stype, "bytes": size}
            )
            parts.append(array.data)
    header = json.dumps(entries).encode()
    body = b"".join([struct.pack("<I", len(header)), header, *parts])
    return _MAGIC + struct.pack("<Q", xxhash.xxh3_64_intdigest(body)) + body


def _read(path: Path) -> RecordDict:
    try:
        data = path.read_bytes()
        magic, digest, header_bytes = _LEAD.unpack_from(data)
        if magic != _MAGIC or digest != xxhash.xxh3_64_intdigest(memoryview(data)[_LEAD.size - 4 :]):
            raise ValueError("its checksum does not fit")
        entries = json.loads(data[_LEAD.size : _LEAD.size + header_bytes])
        at, records = _LEAD.size + header_bytes, RecordDict({})
        for entry in entries:
            content = data[at : at + entry["bytes"]]
            at += entry["bytes"]
            record = records.array_records.get(entry["record"]) or ArrayRecord()
            record[entry["key"]] = Array(dtype=entry["dtype"], shape=tuple(entry["shape"]), stype=entry["stype"], data=content)
            records[entry["record"]] = record
        return records
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise RunFolderError(
            f"the client's own state {path} cannot be read: {error}. Restore it, or delete it to go on from the round before"
        ) from None
