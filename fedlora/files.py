"""Writes that are whole or not there at all."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedlora.errors import RunFolderError

# What a killed process leaves behind begins like this; see `sweep`.
_TEMPORARY = ".unfinished-"
_RESUME = "a run that had begun goes on with --resume"


@contextlib.contextmanager
def disk_errors(path: Path, once_free: str = _RESUME) -> Iterator[None]:
    """Turn what the disk refuses (full, read-only, forbidden) into one clear error naming `path`.

    Args:
        path: What is written.
        once_free: What happens once there is room again.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = f"Free some space there; {once_free}" if full else "Choose another folder"
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}. {hint}") from error


def write_atomic(path: Path, data: bytes | str, once_free: str = _RESUME) -> None:
    """Write a file so that a reader, or a machine that lost power, sees the old contents or the new, never a part."""
    raw = data.encode() if isinstance(data, str) else data
    with disk_errors(path, once_free):
        handle, name = tempfile.mkstemp(prefix=f"{_TEMPORARY}{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def plain(value: Any) -> Any:
    """Return a value that strict JSON can hold: null for NaN and infinities, lists for tuples."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that becomes `path` when the block ends without an error.

    An existing `path` is replaced.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{path.name}.", dir=path.parent))
    try:
        with disk_errors(path):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            temporary.chmod(0o777 & ~_umask())
            if path.exists():
                remove_folder(path)
            os.replace(temporary, path)
            _sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder so that, whenever this is cut off, nobody finds half of it under its name (see `sweep`)."""
    doomed = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{path.name}.", dir=path.parent))
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def is_temporary(path: Path) -> bool:
    """Return whether `path` is an unfinished file or folder of this module."""
    return path.name.startswith(_TEMPORARY)


def sweep(folder: Path) -> None:
    """Remove the unfinished files and folders that a killed process left in `folder`; there must be no other one at work."""
    with disk_errors(folder):
        for path in [path for path in folder.iterdir() if is_temporary(path)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
