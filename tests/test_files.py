"""Writes are whole or not there at all, and what the disk refuses is one clear error."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from fedlora.errors import RunFolderError
from fedlora.files import atomic_folder, disk_errors, write_atomic, write_json


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_text_bytes_and_json_are_written_as_they_are(tmp_path: Path) -> None:
    write_atomic(tmp_path / "text", "grün\n")
    write_atomic(tmp_path / "bytes", b"\0\1")
    write_json(tmp_path / "value.json", {"a": [1, 2.5]})
    assert (tmp_path / "text").read_text(encoding="utf-8") == "grün\n"
    assert (tmp_path / "bytes").read_bytes() == b"\0\1"
    assert json.loads((tmp_path / "value.json").read_text()) == {"a": [1, 2.5]}
    assert leftovers(tmp_path) == []


def test_an_old_file_is_replaced_and_the_umask_respected(tmp_path: Path) -> None:
    file = tmp_path / "file"
    mask = os.umask(0o027)
    try:
        write_atomic(file, "old")
        write_atomic(file, "new")
        with atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(mask)
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o640 and (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_atomic(file, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"cannot write .*file: No space left on device. Free some space"):
        write_atomic(file, "new")
    assert file.read_text() == "old" and leftovers(tmp_path) == []


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"cannot write .*missing.*file: No such file or directory"):
        write_atomic(tmp_path / "missing" / "file", "x")


def test_readers_see_the_old_or_the_new_and_never_a_part(tmp_path: Path) -> None:
    file = tmp_path / "file"
    contents = [letter * 200_000 for letter in "ab"]
    write_atomic(file, contents[0])
    done, seen = threading.Event(), set()

    def read() -> None:
        while not done.is_set():
            seen.add(file.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(40):
        write_atomic(file, contents[number % 2])
    done.set()
    reader.join()
    assert seen <= set(contents) and seen


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    with atomic_folder(target) as temporary:
        (temporary / "a").write_text("1")
        (temporary / "deep").mkdir()
        (temporary / "deep" / "b").write_text("2")
        assert not target.exists() and temporary.parent == target.parent
    assert (target / "a").read_text() == "1" and (target / "deep" / "b").read_text() == "2"
    assert not temporary.exists() and leftovers(target.parent) == []


def test_an_existing_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for name in ("old", "new"):
        with atomic_folder(target) as temporary:
            (temporary / name).touch()
    assert [path.name for path in target.iterdir()] == ["new"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_goes_wrong_on_the_way_leaves_the_old_folder(error: BaseException, tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with atomic_folder(target) as temporary:
        (temporary / "old").touch()
    expected = RunFolderError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), atomic_folder(target) as temporary:
        (temporary / "half").touch()
        raise error
    assert [path.name for path in target.iterdir()] == ["old"]
    assert leftovers(tmp_path) == []


def test_only_errors_of_the_disk_are_translated(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), disk_errors(tmp_path):
        raise ValueError("mine")
    with pytest.raises(RunFolderError) as caught, disk_errors(tmp_path):
        raise PermissionError(13, "Permission denied")
    assert isinstance(caught.value.__cause__, PermissionError) and caught.value.exit_code == 5
