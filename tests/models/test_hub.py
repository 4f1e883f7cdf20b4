"""Models by hub name, against a small hub on this machine: names, revisions, its cache, and what happens without it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from fedlora.errors import ModelError
from fedlora.models.sources import find_source
from tiny import tiny_text_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Serves the folder `models`/<owner>/<name> of each model the way the hub does, at one commit."""

    def __init__(self, models: Path, *rest: Any) -> None:
        self.models = models
        super().__init__(*rest)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            found, about = self.about(parts[2:]), {}
        else:
            found, about = self.file(parts)
        code = b"" if isinstance(found, str) else found
        self.send_response(404 if isinstance(found, str) else 200)
        for name, value in {**about, **({"X-Error-Code": found} if isinstance(found, str) else {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(code)))
        self.end_headers()
        if body:
            self.wfile.write(code)

    def about(self, parts: list[str]) -> bytes | str:
        """Answer /api/models/<owner>/<name>[/revision/<revision>]; a string is an error code."""
        name, rest = "/".join(parts[:2]), parts[2:]
        if not (self.models / name).is_dir():
            return "RepoNotFound"
        if rest and (rest[0] != "revision" or rest[1] not in ("main", COMMIT)):
            return "RevisionNotFound" if rest[0] == "revision" else "EntryNotFound"
        return json.dumps({"id": name, "modelId": name, "sha": COMMIT, "siblings": [], "tags": []}).encode()

    def file(self, parts: list[str]) -> tuple[bytes | str, dict[str, str]]:
        """Answer /<owner>/<name>/resolve/<revision>/<file>."""
        path = self.models.joinpath(*parts[:2], *parts[4:])
        if not path.is_file():
            return "EntryNotFound", {"X-Repo-Commit": COMMIT}
        content = path.read_bytes()
        return content, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_text_model(folder / "some" / "encoder")
    (folder / "some" / "weights").mkdir()
    return folder


@pytest.fixture(scope="module")
def hub(models: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, models))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


# The hub's address and cache are read when its library is imported, so each hub needs a process of its own.
ASK = """
import json, sys
from fedlora.config import ModelConfig
from fedlora.errors import FedLoRAError
from fedlora.models import load_model

answers = []
for name, revision in json.loads(sys.argv[1]):
    try:
        loaded = load_model(ModelConfig(name=name, revision=revision), "text", "classification", ["a", "b", "c"])
        answers.append([loaded.source, loaded.revision, loaded.fresh_head, len(loaded.tokenizer)])
    except FedLoRAError as error:
        answers.append(f"{type(error).__name__}: {error}")
print(json.dumps(answers))
"""


def ask(endpoint: str, cache: Path, *models: tuple[str, str | None]) -> tuple[list[Any], str]:
    """Load `models` from the hub at `endpoint` in another process; return what came of each, and what went to the screen."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", ASK, json.dumps(models)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout), done.stderr


def test_hub_models_load_by_name_and_stay_when_the_hub_is_gone(hub: str, models: Path, tmp_path: Path) -> None:
    name = "some/encoder"
    asked = [(name, None), (name, COMMIT), (name, "v9"), ("some/encoders", None), ("minilm-l66", None), ("some/weights", None)]
    found, screen = ask(hub, tmp_path, *asked)
    assert found[:2] == [[name, COMMIT, False, 105]] * 2
    assert found[2] == "ModelError: the hub model 'some/encoder' has no revision 'v9'. Check model.revision"
    assert found[3].startswith(
        "ModelError: there is no model 'some/encoders': it is not packaged, no folder, and the hub has none"
    )
    assert found[4].endswith("Did you mean 'minilm-l6'?")
    assert found[5] == "ModelError: the hub model 'some/weights' has no config.json: transformers cannot load it"
    assert screen == ""

    nobody, folder = "http://127.0.0.1:9", str(models / "some" / "encoder")
    found, screen = ask(nobody, tmp_path, (name, None), ("some/other", None), (folder, None))
    assert found[0] == [name, COMMIT, False, 105]
    assert found[2] == [folder, None, False, 105]
    assert found[1].startswith(
        "ModelError: 'some/other' is neither a packaged model nor a folder, and the model hub is not reachable."
    )
    assert "Name a packaged model or a local folder" in found[1]
    assert screen == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("some/model", "the model hub is not reachable. Known: .*minilm-l6"),  # tests run without the hub
        ("minilm-l7", "the model hub is not reachable. Did you mean 'minilm-l6'?"),
        ("not a name", "neither a packaged model nor a folder nor a hub name"),
        ("./missing", "the model folder ./missing does not exist"),
        (__file__, "is a file"),
    ],
)
def test_names_of_nothing_are_one_clear_error(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message.replace("?", r"\?")):
        find_source(name)


def test_folders_that_are_no_model_say_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a model: it has no config.json. Give a folder"):
        find_source(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="It holds an adapter: give the model that the adapter belongs to"):
        find_source(str(tmp_path))


def test_a_relative_folder_is_found_from_anywhere_later(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    assert find_source("some/encoder").name == str(models / "some" / "encoder")
