"""Folders that cannot take a run, and disks that fill up during one."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from children import fedlora_command
from fedlora.errors import RunFolderError
from fedlora.files import atomic_folder, disk_errors, sweep, write_atomic
from fedlora.runs.folder import RunFolder, refuse_taken
from fedlora.runs.tensorboard import Events
from runs_compared import assert_same_run
from tiny_run import Ground

_ROW = {"round": 1, "test_loss": 0.5}
# A file larger than all that are written before it, so that a limit on file sizes stops exactly there.
_LARGE = ("rounds=3", "adapter.rank=16", "adapter.heads=8")


@pytest.fixture(scope="module")
def whole(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that had all the room it wanted."""
    folder = tmp_path_factory.mktemp("whole")
    assert fedlora_command(["simulate", *ground.overrides(*_LARGE), "--out", "run"], folder).code == 0
    return folder / "run"


@pytest.mark.parametrize(
    ("file", "named", "left"),
    [
        ("config.toml", "config.toml", False),
        ("label_mix.png", "label_mix.png", True),
        ("checkpoints/round-00003/state.safetensors", "checkpoints/round-00000", True),
        ("adapter/adapter_model.safetensors", "adapter", True),
    ],
)
def test_a_full_disk_is_one_error_and_the_run_goes_on_afterwards(
    ground: Ground, whole: Path, tmp_path: Path, file: str, named: str, left: bool
) -> None:
    limit = (whole / file).stat().st_size - 1
    start = ["simulate", *ground.overrides(*_LARGE)]
    done = fedlora_command([*start, "--out", "run"], tmp_path, file_size=limit)
    assert done.error.startswith(f"cannot write run/{named}: {os.strerror(errno.EFBIG)}. Free ") and done.code == 5
    assert (tmp_path / "run").exists() is left
    if left:  # still no room: the same error again, and nothing lost
        again = fedlora_command(["simulate", "--resume", "run"], tmp_path, file_size=limit)
        assert again.error == done.error
    assert fedlora_command([*start, "--resume", "run"], tmp_path).code == 0
    assert_same_run(tmp_path / "run", whole)


def test_a_log_that_no_longer_grows_is_cut_back_to_whole_rows(ground: Ground, tmp_path: Path) -> None:
    """The disk takes a part of a row; after that the run is resumed."""
    start = ["simulate", *ground.overrides("rounds=4")]
    assert fedlora_command([*start, "--out", "whole"], tmp_path).code == 0
    assert fedlora_command([*start, "--out", "run"], tmp_path, kill_at=45).code < 0
    shutil.rmtree(tmp_path / "run" / "tensorboard")
    length = (tmp_path / "run" / "clients.jsonl").stat().st_size
    done = fedlora_command(["simulate", "--resume", "run"], tmp_path, file_size=length + 100)
    assert done.code == 5 and done.error.startswith("cannot write run/clients.jsonl: ")
    assert (tmp_path / "run" / "clients.jsonl").stat().st_size == length + 100
    assert fedlora_command(["simulate", "--resume", "run"], tmp_path).code == 0
    shutil.rmtree(tmp_path / "whole" / "tensorboard")
    shutil.rmtree(tmp_path / "run" / "tensorboard")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("log", ["metrics", "clients", "events"])
def test_no_space_left_for_a_log(ground: Ground, tmp_path: Path, log: str) -> None:
    folder = RunFolder.create(tmp_path / "run", ground.config())
    folder.log(log).parent.mkdir(exist_ok=True)
    folder.log(log).symlink_to("/dev/full")
    with pytest.raises(RunFolderError, match=f"cannot write {folder.log(log)}: {os.strerror(errno.ENOSPC)}"):
        if log == "events":
            Events(folder.log("events"), True).round(_ROW, [])
        else:
            folder.append(log, [_ROW])


# -- before anything is written --------------------------------------------------------------------------------------


def _refused(path: Path, argument: str = "--out") -> str:
    before = sorted(path.parent.rglob("*")) if path.parent.is_dir() else None
    with pytest.raises(RunFolderError) as caught:
        refuse_taken(path, argument)
    assert before is None or sorted(path.parent.rglob("*")) == before
    return str(caught.value)


def test_folders_that_are_taken(ground: Ground, tmp_path: Path) -> None:
    run, files, file = tmp_path / "run", tmp_path / "files", tmp_path / "file"
    RunFolder.create(run, ground.config())
    files.mkdir()
    (files / "thesis.tex").write_text("")
    file.write_text("")
    assert _refused(run) == f"{run} already holds a run. Go on with it by --resume {run}, or choose another --out"
    assert _refused(run, "OUT") == f"{run} already holds a run. Choose another OUT"
    assert _refused(files) == f"{files} already holds other files. Choose another --out"
    assert _refused(file) == f"{file} is a file, not a folder. Choose another --out"
    assert _refused(file / "below" / "it") == f"{file} is a file, not a folder. Choose another --out"


def test_a_name_that_no_disk_takes(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    assert _refused(path).startswith(f"cannot write {path}: {os.strerror(errno.ENAMETOOLONG)}")


def test_folders_that_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".unfinished-config.toml.abc").write_text("half")  # killed before it had a configuration
    for name in ("new", "new/and/deep", "empty", "begun"):
        refuse_taken(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun", "empty"]


def test_a_folder_that_this_user_cannot_write(ground: Ground, tmp_path: Path) -> None:
    """/proc takes no folders, not even root's."""
    done = fedlora_command(["simulate", *ground.overrides(), "--out", "/proc/run"], tmp_path)
    assert done.code == 5 and "/proc" in done.error and "hoose another" in done.error


def test_a_folder_of_somebody_else() -> None:
    """Permissions do not bind root, so a process that is root gives that up first."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)
        code = (
            "import os\n"
            "from pathlib import Path\n"
            "from fedlora.runs.folder import refuse_taken\n"
            "os.getuid() or os.setuid(65534)\n"
            f"refuse_taken(Path({name!r}) / 'run')\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stderr.splitlines()[-1].endswith(f"{name} cannot be written by this user. Choose another --out")


# -- writes that are whole -------------------------------------------------------------------------------------------


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomic(path, "old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new" and [item.name for item in tmp_path.iterdir()] == ["state"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    with pytest.raises(RunFolderError, match="cannot write"):
        write_atomic(tmp_path / "nowhere" / "state", "new")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with atomic_folder(path) as inside:
        (inside / "a").write_text("1")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), atomic_folder(path) as inside:
        (inside / "a").write_text("2")
        raise KeyboardInterrupt
    assert (path / "a").read_text() == "1" and [item.name for item in path.parent.iterdir()] == ["folder"]
    with atomic_folder(path) as inside:
        (inside / "b").write_text("3")
    assert [item.name for item in path.iterdir()] == ["b"] and [item.name for item in path.parent.iterdir()] == ["folder"]


def test_only_what_is_unfinished_is_swept(tmp_path: Path) -> None:
    for name in (".unfinished-state.x1", ".hidden", "state"):
        (tmp_path / name).write_text("")
    (tmp_path / ".unfinished-folder.x2" / "deep").mkdir(parents=True)
    sweep(tmp_path)
    assert sorted(item.name for item in tmp_path.iterdir()) == [".hidden", "state"]


def test_only_the_disks_errors_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), disk_errors(tmp_path):
        raise ZeroDivisionError
    with pytest.raises(RunFolderError, match=f"cannot write {tmp_path}: no room"), disk_errors(tmp_path):
        raise OSError("no room")
