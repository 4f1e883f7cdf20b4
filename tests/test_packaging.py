"""What is installed: the wheel's contents, its metadata, the pins, and how light `import fedlora` is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from email.message import Message
from email.parser import Parser
from importlib.metadata import packages_distributions, version
from pathlib import Path
from shutil import copy2, copytree

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [ROOT / "fedlora", ROOT / "envs/fedlora_envs", ROOT / "policies/fedlora_policies"]
PACKAGES = {folder.name: folder for folder in FOLDERS if folder.is_dir()}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = ("datasets", "diffusers", "flwr", "matplotlib", "numpy", "ray", "simpy", "stable_baselines3", "torch", "transformers")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _names(extras: Iterable[str]) -> set[str]:
    """The distributions that the core and these extras name."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {_normal(re.split(r"[\[<>=!~; ]", line)[0]) for line in lines} - {"fedlora"}


def test_version_is_that_of_the_distribution() -> None:
    import fedlora

    assert fedlora.__version__ == version("fedlora") == PROJECT["version"]


def test_import_is_light() -> None:
    code = f"import sys, fedlora; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_pin_is_exact_and_portable() -> None:
    pattern = re.compile(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!]*")  # no local version (+cpu), URL, option or marker
    assert [line for line in _pins() if not pattern.fullmatch(line)] == []
    names = [_normal(line.partition("==")[0]) for line in _pins()]
    assert len(names) == len(set(names)), "a name is pinned twice"


def test_every_dependency_is_pinned() -> None:
    named = _names(PROJECT["optional-dependencies"])
    pinned = {_normal(line.partition("==")[0]) for line in _pins()}
    assert {"torch", "flwr", "gymnasium", "onnx", "pytest"} <= named  # the lists were found
    assert named <= pinned
    assert {"ray", "tokenizers", "grpcio"} <= pinned  # transitive ones too


def test_every_import_is_declared() -> None:
    """A library that only comes along with another one may stop coming."""
    declared = _names(extra for extra in PROJECT["optional-dependencies"] if extra != "dev")
    distributions = packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)}: {module}"
        for folder in PACKAGES.values()
        for path in folder.rglob("*.py")
        for module in _imported(path) - sys.stdlib_module_names - set(PACKAGES)
        if not declared & {_normal(name) for name in distributions.get(module, [module])}
    }
    assert undeclared == set()


def _imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in names}


def test_all_holds_every_extra_but_dev() -> None:
    extras = PROJECT["optional-dependencies"]
    (line,) = extras["all"]
    named = set(line.removeprefix("fedlora[").removesuffix("]").split(","))
    # The oracle is for tests alone, the site's tools for its builders, trackers for whoever has one.
    assert named == set(extras) - {"all", "dev", "docs", "radio-oracle", "mlflow", "wandb"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build leaves folders behind that must not reach the checkout or a later build."""
    source = tmp_path_factory.mktemp("source")
    for name in filter(None, ("pyproject.toml", "LICENSE", PROJECT.get("readme"))):
        copy2(ROOT / name, source)
    for folder in PACKAGES.values():
        copytree(folder, source / folder.relative_to(ROOT))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(source / "dist"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (source / "dist").glob("*.whl")
    return path


def _metadata(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (entry for entry in archive.namelist() if entry.endswith(f".dist-info/{name}"))
        return archive.read(path).decode()


@pytest.mark.slow
def test_wheel_holds_every_file_of_every_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.suffix in {".py", ".toml", ".yaml", ".css", ".js"}
        or path.name == "py.typed"
        or (path.parent.name in {"traces", "responses", "data"} and path.is_file())
    }
    assert {"fedlora/__init__.py", "fedlora/py.typed", "fedlora/report/page.js", "fedlora_policies/__init__.py"} <= expected
    assert {f"fedlora_envs/data/responses/{name}-trec.json" for name in ("minilm", "smollm2")} <= expected
    assert inside == expected


@pytest.mark.slow
def test_wheel_carries_licence_extras_and_entry_points(wheel: Path) -> None:
    assert "Apache License" in _metadata(wheel, "licenses/LICENSE")
    metadata: Message = Parser().parsestr(_metadata(wheel, "METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert set(metadata["Requires-Python"].split(",")) == {">=3.11", "<3.14"}
    entry_points = _metadata(wheel, "entry_points.txt")
    assert "fedlora = fedlora.cli:main" in entry_points
    assert "[fedlora.policies]" in entry_points and "[fedlora.worlds]" in entry_points
