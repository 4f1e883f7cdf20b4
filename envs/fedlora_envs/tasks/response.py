"""What ranks do to a fine-tune, in a few fitted numbers: the response model and its artefact.

Every component (site l, position j) has an age: the steps that trained it. What it contributes grows with a power a of its age,
since all but the head starts at zero (fits use a = 2), and is worth `weight_l (phi(j / cap_l) - phi((j-1) / cap_l))`, phi(x) =
(1 - exp(-c x)) / (1 - exp(-c)): sites differ, and the first components of a site are worth more than the last. Cut at ranks r
after n steps, the fine-tune has made the progress of what is left, less a share of what is missing, which had been trained to
work with the rest:

    P    = head n + sum_{l, j <= r_l} worth_lj age_lj^a - cut * sum_{l, j > r_l} worth_lj age_lj^a
    loss = floor + (plateau - floor) (1 + P^shape / tail)^-tail + (untrained - plateau) exp(-settle n)

The last term is the quick fall to what the class frequencies give away, which needs no adapter. Accuracy is a falling function of
the loss, linear between knots. Beyond the horizon of the recording the loss stays near `floor`, which is not known to be true.
"""

from __future__ import annotations

import json
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from fedlora.config import ConfigSection
from fedlora.errors import ConfigError, suggest
from fedlora.files import write_atomic
from fedlora_envs.tasks.base import Floats, Ranks, Sites

FORMAT = 1


class Response(ConfigSection):
    """A fitted response model: JSON, with where it comes from and how wrong it is."""

    format: Literal[1] = 1
    sites: list[str] = Field(min_length=1, description="names of the sites")
    caps: list[int] = Field(description="largest rank of each site")
    numbers: list[int] = Field(description="numbers on the air per unit of rank of each site")
    untrained: float = Field(gt=0, description="held-out loss before the first step")
    plateau: float = Field(gt=0, description="loss that the class frequencies give")
    floor: float = Field(ge=0, description="loss after endless training")
    settle: float = Field(ge=0, description="speed at which the plateau is reached, per step")
    weights: list[float] = Field(description="worth of each site, trained at its cap, at age 1")
    curve: float = Field(gt=0, description="c: how much more the first components of a site are worth")
    head: float = Field(ge=0, description="worth of the task head, per step")
    age: float = Field(2.0, ge=1, description="a: power with which a component's contribution grows with its age")
    shape: float = Field(gt=0, description="power of the progress")
    tail: float = Field(0.5, gt=0, description="how slowly the end is reached: small is slow, large is exp(-P^shape)")
    cut: float = Field(ge=0, description="share of the missing progress that a cut costs on top")
    batch_std: float = Field(ge=0, description="standard deviation of a batch's loss about the held-out loss at its ranks")
    pace_std: float = Field(ge=0, description="standard deviation of the log of what a step adds to the ages")
    text_mean: list[float] = Field(min_length=3, max_length=3, description="mean of the text features")
    text_std: list[float] = Field(min_length=3, max_length=3, description="their standard deviation")
    text_weights: list[float] = Field(
        min_length=3, max_length=3, description="what a standard deviation of each adds to a batch's loss"
    )
    knots_loss: list[float] = Field(min_length=2, description="losses, rising")
    knots_accuracy: list[float] = Field(description="accuracies there, falling")
    energy: list[float] = Field(
        description="squared norm of a component's update at age 1, by site; grows with the cube of the age"
    )
    energy_std: float = Field(ge=0, description="standard deviation of its log over episodes and sites")
    errors: dict[str, float] = Field({}, description="on episodes that were not fitted")
    source: dict[str, Any] = Field({}, description="the recorded run")

    @model_validator(mode="after")
    def _consistent(self) -> Response:
        count = len(self.sites)
        for name in ("caps", "numbers", "weights", "energy"):
            values = getattr(self, name)
            if len(values) != count or min(values) < 0:
                raise ValueError(f"{name} has {len(values)} values for {count} sites, or one below 0")
        if min(self.caps) < 1:
            raise ValueError("a cap is below 1")
        if len(self.knots_loss) != len(self.knots_accuracy) or (np.diff(self.knots_loss) <= 0).any():
            raise ValueError("knots_loss does not rise, or has another length than knots_accuracy")
        return self

    @cached_property
    def where(self) -> Sites:
        """The sites as arrays."""
        return Sites(tuple(self.sites), np.array(self.caps, np.int64), np.array(self.numbers, np.int64))

    @cached_property
    def worth(self) -> Floats:
        """Worth of each component at age 1, `[L, cap]`, falling along a site, 0 beyond its cap."""
        return component_worth(np.array(self.weights), self.curve, self.where.caps)

    def grown(self, ages: NDArray[Any]) -> NDArray[Any]:
        """Return what components of these ages contribute, per worth; same type and shape."""
        return np.asarray(ages * ages if self.age == 2.0 else np.power(ages, self.age, dtype=ages.dtype))

    def loss(self, left: Floats, total: Floats, steps: Floats | NDArray[np.int64]) -> Floats:
        """Return the held-out loss.

        Args:
            left: Worth times contribution of what is left, summed.
            total: The same of everything.
            steps: Steps taken.
        """
        progress = self.head * steps + left - self.cut * (total - left)
        learnt = np.power(1.0 + np.power(np.maximum(progress, 0.0), self.shape) / self.tail, -self.tail)
        settled = np.exp(-self.settle * steps)
        return np.asarray(self.floor + (self.plateau - self.floor) * learnt + (self.untrained - self.plateau) * settled)

    def accuracy(self, loss: Floats) -> Floats:
        """Return the held-out accuracy at a loss."""
        return np.interp(loss, self.knots_loss, self.knots_accuracy)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_atomic(path, json.dumps(self.model_dump(mode="json"), indent=1) + "\n")


def component_worth(weights: Floats, curve: float, caps: Ranks) -> Floats:
    """Return the worth of each component, `[L, cap]`: concave along a site, `weights` at the cap."""
    upto = np.minimum(np.arange(int(caps.max()) + 1), caps[:, None]) / caps[:, None]
    share = np.expm1(-curve * upto) / np.expm1(-curve)
    return np.asarray(weights[:, None] * np.diff(share, axis=1))


def load(path: Path) -> Response:
    """Read an artefact of `fedlora record-response` (ConfigError where it is not one)."""
    remedy = "Make one with `fedlora record-response`"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no response model {path}. {remedy}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"the response model {path} cannot be read: {error}. {remedy}") from None
    found = tree.get("format") if isinstance(tree, dict) else None
    if found != FORMAT:
        raise ConfigError(f"the response model {path} has format {found!r}; this version reads {FORMAT}. {remedy}")
    try:
        return Response.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "values"
        raise ConfigError(f"the response model {path} is damaged: {where}: {first['msg']}. {remedy}") from None


def shipped() -> dict[str, Path]:
    """Return the artefacts that come with this package, by name."""
    folder = Path(str(files("fedlora_envs") / "data" / "responses"))
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def find(name_or_path: str | Path) -> Response:
    """Return a shipped response model by name, or one from a file.

    Raises:
        ConfigError: Neither, or a file that is not one.
    """
    known = shipped()
    if str(name_or_path) in known:
        return load(known[str(name_or_path)])
    path = Path(name_or_path)
    if not path.suffix and not path.exists():
        raise ConfigError(f"unknown response model '{name_or_path}'. {suggest(str(name_or_path), known)}")
    return load(path)
